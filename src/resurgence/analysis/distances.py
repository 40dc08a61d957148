"""Distances between image sets as a whole, in the features of a scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from resurgence.analysis.random_effects import Estimate, groups_of, jackknife
from resurgence.analysis.roles import Role, part_name
from resurgence.analysis.score_sets import ImageSet, name_of
from resurgence.scorers.frechet import Moments, between, moments
from resurgence.scorers.kernel_distance import paired_distance

KID_SCALE = 1000  # of the kernel distance in tables
DISTANCES = ("frechet", "kid")  # to the base's images


def distance_estimates(sets: list[ImageSet], roles: Mapping[str, Role]) -> dict[tuple[int, str, str], Estimate]:
    """Fréchet and kernel distance of each set to the base by set number, role and metric, by the jackknife.

    A sample with replacement repeats images, which shrinks the covariance and biases the distance to one side; leaving
    groups of units out does not.

    Raises:
        ValueError: features of some sets and not of others.
    """
    if without := [images for images in sets if images.features is None]:
        if len(without) < len(sets):
            raise ValueError(f"{name_of(without[0].key)} has no features and others have; score it again")
        return {}
    distances = {}
    most = most_groups(sets[0].features)
    for name, role in roles.items():
        groups = groups_of(role.units, most)
        sizes = np.bincount(groups)
        if sizes.sum() - sizes.max() < 2:
            continue  # a covariance needs two images when a group is left out
        base = sets[0].features[role.mask]
        frechet = frechet_from(base)
        for number, images in enumerate(sets):
            features = images.features[role.mask]
            kernel = paired_distance(base, features, groups)
            functions = {
                "frechet": partial(frechet, features=features),
                "kid": lambda mask, of=kernel: KID_SCALE * of(mask),
            }
            for metric, function in functions.items():
                to_base = function if number else lambda mask: 0.0  # the base itself
                part = part_name(images, name, metric)
                distances[number, name, metric] = jackknife(to_base, role.units, part, role.name, most)
    return distances


def frechet_from(base: np.ndarray) -> Callable[..., float]:
    """The Fréchet distance of features to those of the base in the rows of a mask; moments of the base once a mask."""
    by_mask: dict[bytes, Moments] = {}

    def distance(mask: np.ndarray, features: np.ndarray) -> float:
        key = mask.tobytes()
        if key not in by_mask:
            by_mask[key] = moments(base[mask])
        return between(by_mask[key], moments(features[mask]))

    return distance


def most_groups(features: np.ndarray) -> int:
    """Most jackknife groups: a replicate takes 2 s with 2,048 features and as many images."""
    return 8 if features.shape[1] > 1000 else 32


def reference_estimates(sets: list[ImageSet], role: Role, reference: np.ndarray) -> list[Estimate]:
    """Fréchet distance of the images of general prompts of each set to features of real images, (m, F)."""
    real, distances = moments(reference), []
    for images in sets:
        features = images.features[role.mask]
        if features.shape[1] != reference.shape[1]:
            raise ValueError(f"{name_of(images.key)} has {features.shape[1]} features, the real images "
                             f"{reference.shape[1]}: of another scorer; score one of them again")  # fmt: skip
        distance = lambda mask, x=features: between(real, moments(x[mask]))  # noqa: E731
        part = part_name(images, "general", "frechet_reference")
        distances.append(jackknife(distance, role.units, part, role.name, most_groups(reference)))
    return distances

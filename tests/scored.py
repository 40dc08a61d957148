"""Synthetic scores: small studies whose per-image rows are known, for the tests of tables and figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from resurgence.analysis.score_sets import ImageSet, image_set

PEOPLE = {"erase": ["princess", "surfer", "man cook", "juggler"], "retain": ["angel", "prince", "old woman"]}
SHIP = {"erase": ["ship"], "retain": ["cat", "dog", "truck"], "synonym": ["ship"]}
WORDS = {"synonym": ["vessel", "boat"]}
FEATURES = 5


def prompt_rows(concepts: dict[str, list[str]], seeds: int = 4) -> pd.DataFrame:
    """A prompt set with two templates, in the order of prompts.py."""
    rows = []
    for role, names in concepts.items():
        for concept in names:
            for word in WORDS.get(role, [concept]):
                for template in ("a photo of the {}", "a sketch of the {}"):
                    for k in range(seeds):
                        seed = 1000 * len(rows) + k
                        rows.append((template.format(word), concept, role, template, seed, k))
    return pd.DataFrame(rows, columns=["prompt", "concept", "role", "template", "seed", "index"])


def score(prompts: pd.DataFrame, chance: dict[str, float], seed: int) -> pd.DataFrame:
    """Score columns in which an image of a role is right with the given probability."""
    generator = np.random.default_rng(seed)
    p = prompts["role"].map(chance).to_numpy()
    drawn = generator.random((3, len(prompts)))
    columns = {
        "recogniser_top1": "cat",
        "recogniser_correct": (drawn[0] < p).astype(float),
        "recogniser_probability": p,
        "clip_score": 20 + 10 * p + drawn[1],
        "clip_correct": (drawn[2] < p).astype(float),
        "clip_probability": 0.5 * p + 0.3 * drawn[1],
    }
    return prompts.assign(**columns)


def features(prompts: pd.DataFrame, shift: float, seed: int) -> np.ndarray:
    """Features (n, 5) around `shift`."""
    return np.random.default_rng(seed).normal(shift, 1.0, (len(prompts), FEATURES))


def study_sets(
    steps: tuple[int, ...] = (50, 100), erase_seeds: tuple[int, ...] = (0,), erasers: tuple[str, ...] = ("mace", "uce")
) -> list[ImageSet]:
    """Two tasks, some erasers, LoRA fine-tuning; the erased concepts come back with the steps."""
    sets = []
    for task, concepts in (("identities-4", PEOPLE), ("ship", SHIP)):
        prompts = prompt_rows(concepts)
        key = {"base": "miniature", "task": task, "state": "base"}
        good = {"erase": 0.9, "retain": 0.9, "synonym": 0.8}
        sets.append(image_set(key, score(prompts, good, 1), features(prompts, 0.0, 1)))
        for i, (eraser, s) in enumerate((e, s) for e in erasers for s in erase_seeds):
            key = {"base": "miniature", "task": task, "eraser": eraser, "variant": "default", "erase_seed": s}
            bad = {"erase": 0.05, "retain": 0.8, "synonym": 0.1}
            sets.append(
                image_set({**key, "state": "erased"}, score(prompts, bad, 10 + i), features(prompts, 1.0, 10 + i))
            )
            tuned = {"finetune": "lora", "finetune_variant": "default", "finetune_seed": 0, "state": "finetuned"}
            for step in steps:
                back = {"erase": min(0.9, 0.05 + 0.004 * step), "retain": 0.78, "synonym": 0.2}
                rows = score(prompts, back, 100 + 7 * i + step)
                sets.append(image_set({**key, **tuned, "step": step}, rows, features(prompts, 0.7, 100 + i + step)))
    return sets


def write_scores_folder(folder: Path, one: ImageSet) -> dict:
    """Write an image set as a scores folder; returns its entry."""
    import torch

    from resurgence.scorers import write_scores

    write_scores(folder, one.rows, {"recogniser": torch.from_numpy(one.features)})
    return {k: v for k, v in one.key.items() if v is not None} | {"path": str(folder)}

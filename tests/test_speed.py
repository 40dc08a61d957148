"""SPEED against the paper's closed form, projection by projection, and what its constraints promise."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from resurgence.config.task import Task
from resurgence.diffusion.attention import projection_weights
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.configs import SpeedConfig
from resurgence.erasers.closed_form.speed import erase, free_directions, influential, invariant_rows
from resurgence.seeds import generator
from slow import embed_word as embed
from tiny import make_pipeline

KINDS = {
    "sd1": {"cross_attention_dim": 64, "heads": 2, "max_length": 16},
    "sd2": {
        "cross_attention_dim": 72, "heads": [2, 4], "pad": "zero", "prediction_type": "v_prediction", "max_length": 18,
    },
}  # fmt: skip
TASK = Task(
    name="two", kind="person", erase=("ship", "old cat"), retain=("queen", "bird", "sky above a street", "the doctor"),
    mapping={"ship": "a wide street", "old cat": "person"}, templates=("a photo of the {}",),
    seeds={"erase": 1, "retain": 1},
)  # fmt: skip
CFG = SpeedConfig(threshold=0.4, lamb=0.3, augmentations=3)
EXACT = SpeedConfig(threshold=1e-9, prior_filter=False, augmentations=0)


@pytest.fixture(scope="module", params=list(KINDS))
def pipe(request):
    return make_pipeline(**KINDS[request.param]).to(torch.float64)


def retained_rows(pipe, cfg: SpeedConfig, task: Task = TASK) -> list[torch.Tensor]:
    found = [(embed(pipe, template, word)) for word in task.retain for template in cfg.captions]
    return [row for e, i in found for row in (e if cfg.retained_tokens == "all" else e[i : i + 1])]


def above_mean(rows: list[torch.Tensor], matrix: torch.Tensor) -> list[torch.Tensor]:
    lengths = [float((matrix @ row).norm()) for row in rows]
    return [row for row, length in zip(rows, lengths, strict=True) if length > sum(lengths) / len(lengths)]


def paper(pipe, cfg: SpeedConfig, name: str, weight: torch.Tensor, seed: int) -> torch.Tensor:
    """Delta P = W (E* E^T - E E^T) P Q M with M = (E E^T P + lamb I)^-1 and Q = I - M C (C^T P M C)^-1 C^T P."""
    eye = torch.eye(weight.shape[1], dtype=torch.float64)
    gram, values, number = torch.zeros_like(eye), torch.zeros_like(eye), 0
    for concept in TASK.erase:
        for template in cfg.captions:
            aim = TASK.mapping[concept] if cfg.destination is None else cfg.destination
            (e, i), (target, j) = embed(pipe, template, concept), embed(pipe, template, aim)
            places = [(i, j)] if cfg.tokens == "last" else [(k, k) for k in range(1, len(e))]
            for k, m in places:
                gram += torch.outer(e[k], e[k])
                values += torch.outer(target[m], e[k])
            number += 1
    if cfg.average:
        gram, values = gram / number, values / number

    free = weight @ (values - gram) @ torch.linalg.inv(gram + eye)
    rows = retained_rows(pipe, cfg)
    if cfg.prior_filter:
        rows = above_mean(rows, free)
    if cfg.augmentations:
        _, sizes, vectors = torch.linalg.svd(weight)
        smallest = vectors[min(weight.shape) - cfg.directions : min(weight.shape)]
        assert (sizes[-cfg.directions :] <= sizes.min() * (1 + 1e-9)).sum() >= 1
        projector = sum(torch.outer(v, v) for v in smallest)
        draws = generator("speed augmentation", seed, name)
        noise = torch.randn(cfg.augmentations, len(rows), len(eye), generator=draws, dtype=torch.float64)
        copies = [row + projector @ noise[a, n] for a in range(cfg.augmentations) for n, row in enumerate(rows)]
        rows = rows + above_mean(copies, free)
    _, sizes, vectors = torch.linalg.svd(torch.stack(rows))
    taken = [v for v, size in zip(vectors[: len(sizes)], sizes, strict=True) if size**2 / len(rows) >= cfg.threshold]
    p = eye - sum((torch.outer(v, v) for v in taken), torch.zeros_like(eye))

    m = torch.linalg.inv(gram @ p + cfg.lamb * eye)
    q = eye
    if cfg.invariants == "rows":
        c = embed(pipe, "{}", "")[0].T
        q = eye - m @ c @ torch.linalg.inv(c.T @ p @ m @ c) @ c.T @ p
    return weight @ (values - gram) @ p @ q @ m


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"prior_filter": False}, {"augmentations": 0}, {"invariants": "none", "lamb": 2.0}, {"average": True},
        {"tokens": "all", "keys": True}, {"tokens": "all", "retained_tokens": "all", "invariants": "none"},
        {"directions": 3}, {"threshold": 1e-3}, {"destination": "the sky"},
        {"captions": ("{}", "the {} on it"), "lamb": 0.05},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)  # fmt: skip
def test_edit_is_the_papers_closed_form(pipe, changes):
    cfg = dataclasses.replace(CFG, **changes)
    delta = erase(pipe, TASK, cfg, EraserData(), seed=5)
    weights = {n: w for n, w in projection_weights(pipe.unet).items() if cfg.keys or n.endswith(".to_v")}
    assert delta.keys() == {f"unet.{n}.weight" for n in weights}
    for name, weight in weights.items():
        expected = paper(pipe, cfg, name, weight, 5)
        assert expected.norm() > 1e-3 * weight.norm()
        assert (delta[f"unet.{name}.weight"] - weight - expected).norm() < 1e-6 * expected.norm()


def moved(pipe, delta, row: torch.Tensor, target: torch.Tensor | None = None) -> float:
    """max ||W' e - W e*|| / ||W e*|| over the edited projections."""
    distances = []
    for name, weight in projection_weights(pipe.unet).items():
        if name.endswith(".to_v"):
            goal = weight @ (row if target is None else target)
            distances.append(float((delta[f"unet.{name}.weight"] @ row - goal).norm() / goal.norm()))
    return max(distances)


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_constraints_hold_exactly(pipe, tokens):
    """All retained names and the whole caption "", its start token included, give the same values as before."""
    delta = erase(pipe, TASK, dataclasses.replace(EXACT, tokens=tokens), EraserData(), 0)
    assert all(moved(pipe, delta, row) < 1e-9 for row in retained_rows(pipe, EXACT))
    assert all(moved(pipe, delta, row) < 1e-9 for row in embed(pipe, "{}", "")[0])
    assert all(moved(pipe, delta, embed(pipe, "a photo of {}", word)[0][0]) < 1e-9 for word in ("ship", "queen"))
    assert all(moved(pipe, delta, e[i]) > 0.01 for e, i in (embed(pipe, "{}", word) for word in TASK.erase))


def test_all_rows_of_retained_captions_stay_as_set(pipe):
    """Where all rows of the erased captions are edited, the ends of the retained captions would move with them."""
    one = dataclasses.replace(TASK, retain=TASK.retain[:1], labels=())
    cfg = dataclasses.replace(EXACT, tokens="all", retained_tokens="all")
    rows = retained_rows(pipe, cfg, one)
    assert max(moved(pipe, erase(pipe, one, cfg, EraserData(), 0), row) for row in rows) < 1e-9
    last = dataclasses.replace(cfg, retained_tokens="last")
    assert max(moved(pipe, erase(pipe, one, last, EraserData(), 0), row) for row in rows) > 1e-3


def test_erased_concepts_become_their_destination(pipe):
    """With hardly any ridge the erased rows are mapped exactly, in spite of all constraints."""
    delta = erase(pipe, TASK, dataclasses.replace(EXACT, lamb=1e-10), EraserData(), 0)
    for concept, aim in TASK.mapping.items():
        (e, i), (target, j) = embed(pipe, "{}", concept), embed(pipe, "{}", aim)
        assert moved(pipe, delta, e[i], target[j]) < 1e-5


def test_constraints_apply_as_set(pipe):
    """Without invariants "" moves, without the last retained name that name does."""
    free = erase(pipe, TASK, dataclasses.replace(EXACT, invariants="none"), EraserData(), 0)
    assert max(moved(pipe, free, row) for row in embed(pipe, "{}", "")[0]) > 1e-3
    fewer = dataclasses.replace(TASK, retain=TASK.retain[:-1], labels=())
    e, i = embed(pipe, "{}", TASK.retain[-1])
    assert moved(pipe, erase(pipe, fewer, EXACT, EraserData(), 0), e[i]) > 1e-3


def test_centres_keep_the_start_token_and_three_means(pipe):
    empty = embed(pipe, "{}", "")[0]
    kept = invariant_rows(empty, "centres", seed=0)
    assert kept.shape == (4, empty.shape[1]) and torch.equal(kept[0], empty[0])
    delta = erase(pipe, TASK, dataclasses.replace(EXACT, invariants="centres"), EraserData(), 0)
    assert all(moved(pipe, delta, row) < 1e-9 for row in kept)
    assert max(moved(pipe, delta, row) for row in empty) > 1e-6


def test_centres_are_the_means_of_clusters():
    g = torch.Generator().manual_seed(0)
    means = 100 * torch.randn(3, 8, generator=g, dtype=torch.float64)
    groups = [mean + torch.randn(5, 8, generator=g, dtype=torch.float64) for mean in means]
    found = invariant_rows(torch.cat([torch.zeros(1, 8, dtype=torch.float64), *groups]), "centres", seed=3)[1:]
    expected = torch.stack([group.mean(0) for group in groups])
    assert torch.cdist(expected, found).min(1).values.max() < 1e-12


def test_influential_rows_by_hand():
    rows = torch.arange(4.0)[:, None]
    assert influential(rows, torch.tensor([1.0, 5.0, 2.0, 4.0])).flatten().tolist() == [1, 3]  # the mean is 3
    assert influential(rows[:1], torch.tensor([0.3])).flatten().tolist() == [0]


def test_directions_survive_dependent_invariants():
    """Invariants that repeat, or that the retained rows hold already, take no direction twice."""
    eye = torch.eye(6, dtype=torch.float64)
    retained = torch.stack([3 * eye[0], eye[0] + 2 * eye[1]])
    invariants = torch.stack([eye[2], 5 * eye[2], eye[1], eye[2] + eye[3]])
    basis = free_directions(retained, invariants, threshold=1e-6)
    assert basis.shape == (6, 2)
    assert torch.allclose(basis @ basis.T, torch.outer(eye[4], eye[4]) + torch.outer(eye[5], eye[5]), atol=1e-12)
    assert free_directions(retained, invariants[:0], threshold=1e-6).shape == (6, 4)
    assert free_directions(retained, invariants[:0], threshold=3.0).shape == (6, 5)  # eigenvalues 1.3 and 5.7


def test_seeds(pipe):
    one, again, other = (erase(pipe, TASK, CFG, EraserData(), seed) for seed in (0, 0, 1))
    assert all(torch.equal(w, again[n]) for n, w in one.items())
    assert not all(torch.equal(w, other[n]) for n, w in one.items())
    one, other = (erase(pipe, TASK, EXACT, EraserData(), seed) for seed in (0, 1))  # nothing is drawn
    assert all(torch.equal(w, other[n]) for n, w in one.items())


def test_report_and_untouched_pipeline(pipe, tmp_path):
    before = {n: p.clone() for n, p in pipe.unet.state_dict().items()}
    delta = erase(pipe, TASK, EXACT, EraserData(), 0, tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.state_dict().items())
    report = json.loads((tmp_path / "closed_form.json").read_text())
    length, width = embed(pipe, "{}", "")[0].shape
    assert set(report["null_space"].values()) == {width - length - len(TASK.retain)}  # all rows are independent
    for name in report["null_space"]:
        weight = projection_weights(pipe.unet)[name]
        change = float((delta[f"unet.{name}.weight"] - weight).norm() / weight.norm())
        assert report["edit"]["relative_change"][name] == pytest.approx(change, rel=1e-6)


def test_no_direction_left_says_what_to_do():
    small = make_pipeline(cross_attention_dim=32, max_length=40)
    with pytest.raises(ValueError, match=r"threshold = 0.1 and invariants: rows leave none of 32 .*raise threshold"):
        erase(small, TASK, SpeedConfig(), EraserData(), 0)

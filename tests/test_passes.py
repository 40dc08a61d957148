"""The passes that a plan counts are those that the erasers make, counted at the UNet of a tiny pipeline."""

from __future__ import annotations

import json
import typing

import pytest
import torch

from resurgence.config.erasers import ERASERS, EraserConfig, Passes, eraser_config
from resurgence.config.optimisation import Optimisation, Selection
from resurgence.erasers import EraserData, method
from resurgence.workflow.gpu_hours import SHARES
from slow import TASK, pipeline

WALKED = {"ddim_steps": 4, "trajectories": 2}
KNOWN = {"ddim_steps": 2, "trajectories": 1}  # two steps of two samples draw as many points as there are
CASES = [
    ("esd", {**WALKED, "x_t": "base"}),
    ("esd", {**KNOWN, "x_t": "base"}),
    ("sdd", {**WALKED, "z_t": "base"}),
    ("spm", {**WALKED, "x_t": "base", "anchors": 3, "adapters": "concept"}),
    ("spm", {**WALKED, "x_t": "base", "anchors": 1, "adapters": "shared"}),
    ("spm", {**KNOWN, "x_t": "base", "anchors": 3, "adapters": "concept"}),
    ("spm", {**KNOWN, "x_t": "base", "anchors": 1, "adapters": "shared"}),
    ("eap", {**KNOWN, "closest": 3, "target": "guided"}),
    ("eap", {**KNOWN, "closest": 3}),
    ("advunlearn", {**KNOWN, "warmup": 0, "attack_steps": 3, "retain_batch": 2, "retain_trajectories": 1}),
    ("eap", {**WALKED, "closest": 3, "target": "guided"}),
    ("eap", {**WALKED, "closest": 3, "through": "student", "search_steps": 3}),
    ("advunlearn", {**WALKED, "warmup": 0, "attack_steps": 3, "retain_batch": 2, "retain_trajectories": 1}),
    ("ca", {}),
    ("ca", {"loss": "noise-based", "anchor_weight": 1.0}),
    ("fmn", {}),
    ("doco", {"warmup": 0}),
    ("doco", {"warmup": 0, "anchor_from": "frozen"}),
    ("salun", {"mask_guidance": 0.0, "mask_steps": 3}),
    ("erasediff", {"inner_steps": 2}),
    ("erasediff", {"inner_steps": 0}),
    ("scissorhands", {"forget": "pseudo"}),
    ("scissorhands", {"saliency_guidance": 7.5}),
]
WAYS_BACK = 4  # of DoCo, which no forward pass shows


def pictures() -> EraserData:
    """Two images of each concept and anchor."""
    g = torch.Generator().manual_seed(2)
    groups = {"images": TASK.erase, "retained": TASK.retain, "anchors": TASK.mapping.values()}
    made = {kind: {n: torch.rand(2, 3, 16, 16, generator=g) * 2 - 1 for n in names} for kind, names in groups.items()}
    return EraserData(**made)


def config(name: str, settings: dict, steps: int) -> EraserConfig:
    """Settings of a short run of two samples a step."""
    return eraser_config(name)(**{"batch": 2, "lr": 1e-4, "steps": steps, **settings})


def counted(name: str, settings: dict, steps: int) -> dict[bool, int]:
    """Samples that went through the UNet, by whether gradients were recorded."""
    pipe, rows = pipeline("epsilon"), {True: 0, False: 0}

    def count(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        rows[torch.is_grad_enabled()] += len(args[0] if args else kwargs["sample"])

    pipe.unet.register_forward_pre_hook(count, with_kwargs=True)
    method(name).erase(pipe, TASK, config(name, settings, steps), pictures(), 0)
    return rows


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{name}-{k}" for k, (name, _) in enumerate(CASES)])
def test_passes_are_those_of_a_run(name: str, settings: dict) -> None:
    for steps in (2, 4):
        rows = counted(name, settings, steps)
        passes = config(name, settings, steps).unet_passes(len(TASK.erase), len(TASK.retain))
        ways_back = 2 * steps * WAYS_BACK if name == "doco" else 0
        assert (rows[True], rows[False] + ways_back) == passes


def test_every_selection_has_a_size() -> None:
    assert set(SHARES) == set(typing.get_args(Selection))


def test_every_trained_eraser_is_counted() -> None:
    assert {name for name in ERASERS if issubclass(eraser_config(name), Optimisation)} == {name for name, _ in CASES}
    assert Optimisation(steps=5, batch=3).unet_passes(1, 1) == Passes(15, 30)  # a method that does not count
    assert eraser_config("mace")(steps=7).unet_passes(3, 2) == Passes(21, 0)


HALF = [
    ("esd", {**WALKED, "x_t": "student"}),
    ("sdd", {**WALKED, "z_t": "teacher"}),
    ("salun", {"target_from": "current", "fraction": 1.0}),
    ("erasediff", {"inner_steps": 3, "inner_lr": 1e-2}),
]


@pytest.mark.parametrize(
    ("name", "settings"),
    [pytest.param(*case, id=case[0], marks=pytest.mark.nightly if case[0] == "salun" else ()) for case in HALF],
)
def test_half_precision_trains_the_same_weights(name: str, settings: dict, tmp_path) -> None:
    """A weight that autocast has cast in a pass without gradients, or before it changed, would be used again."""
    moved, curves = [], []
    before = {f"unet.{n}": w.clone() for n, w in pipeline("epsilon").unet.named_parameters()}
    for precision in ("fp32", "bf16"):
        fixed = {"batch": 2, "lr": 1e-3, "steps": 2, "optimiser": "adam", "weight_decay": 0.0, "max_norm": None}
        cfg = eraser_config(name)(**{**fixed, "precision": precision, **settings})
        folder = tmp_path / precision
        folder.mkdir()
        delta = method(name).erase(pipeline("epsilon"), TASK, cfg, pictures(), 0, folder)
        moved.append(torch.cat([(delta[key] - before[key]).flatten() for key in sorted(delta)]))
        curves.append(json.loads((folder / "curves.json").read_text()))
    assert torch.cosine_similarity(*moved, dim=0) > 0.9
    assert (moved[1] != 0).float().mean() > 0.95
    if name == "erasediff":  # how much of L_f the inner steps take away: nothing from a cast weight used again
        assert min(curve["constraint"][0] / curve["forget"][0] for curve in curves) > 0.5

"""The passes that a plan counts are those that the erasers make, counted at the UNet of a tiny pipeline."""

from __future__ import annotations

import importlib
import json
import typing
from dataclasses import asdict

import pytest
import torch

from resurgence.config.method_configs import config_class, methods
from resurgence.config.optimisation import Optimisation, Selection
from resurgence.erasers import EraserData
from resurgence.workflow.gpu_hours import SHARES
from resurgence.workflow.unet_passes import once, passes
from slow import TASK, pipeline

WALKED = {"ddim_steps": 4, "trajectories": 2}
CASES = [
    ("esd", {**WALKED, "x_t": "base"}),
    ("sdd", {**WALKED, "z_t": "base"}),
    ("spm", {**WALKED, "x_t": "base", "anchors": 3, "adapters": "concept"}),
    ("spm", {**WALKED, "x_t": "base", "anchors": 1, "adapters": "shared"}),
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


def counted(method: str, settings: dict, steps: int) -> dict[bool, int]:
    """Samples that went through the UNet, by whether gradients were recorded."""
    pipe, rows = pipeline("epsilon"), {True: 0, False: 0}

    def count(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        rows[torch.is_grad_enabled()] += len(args[0] if args else kwargs["sample"])

    pipe.unet.register_forward_pre_hook(count, with_kwargs=True)
    module = importlib.import_module(methods()[method])
    cfg = module.ERASER.config(**{"batch": 2, "lr": 1e-4, "steps": steps, **settings})
    module.ERASER.erase(pipe, TASK, cfg, pictures(), 0)
    return rows


@pytest.mark.parametrize(("method", "settings"), CASES, ids=[f"{name}-{k}" for k, (name, _) in enumerate(CASES)])
def test_passes_are_those_of_a_run(method: str, settings: dict) -> None:
    two, four = counted(method, settings, 2), counted(method, settings, 4)
    step = {graded: (four[graded] - two[graded]) / 4 for graded in (True, False)}  # of two steps with two samples
    told = asdict(config_class(methods()[method])(**{"batch": 2, "steps": 4, **settings}))
    graded, plain = passes(methods()[method], told, len(TASK.erase))
    assert (step[True], step[False]) == (graded, plain - (WAYS_BACK if method == "doco" else 0))
    before = once(told, len(TASK.erase), len(TASK.retain))
    assert before == (two[True] - 4 * step[True], two[False] - 4 * step[False])


def test_every_selection_has_a_size() -> None:
    assert set(SHARES) == set(typing.get_args(Selection))


def test_every_trained_eraser_is_counted() -> None:
    trained = {name for name, module in methods().items() if issubclass(config_class(module), Optimisation)}
    assert {name for name in trained if methods()[name].startswith("resurgence.")} == {name for name, _ in CASES}
    assert passes("elsewhere.method", {}, 3) == (1, 2)


HALF = [
    ("esd", {**WALKED, "x_t": "student"}),
    ("sdd", {**WALKED, "z_t": "teacher"}),
    ("salun", {"target_from": "current", "fraction": 1.0}),
    ("erasediff", {"inner_steps": 3, "inner_lr": 1e-2}),
]


@pytest.mark.parametrize(("method", "settings"), HALF, ids=[name for name, _ in HALF])
def test_half_precision_trains_the_same_weights(method: str, settings: dict, tmp_path) -> None:
    """A weight that autocast has cast in a pass without gradients, or before it changed, would be used again."""
    module, moved, curves = importlib.import_module(methods()[method]), [], []
    before = {f"unet.{n}": w.clone() for n, w in pipeline("epsilon").unet.named_parameters()}
    for precision in ("fp32", "bf16"):
        fixed = {"batch": 2, "lr": 1e-3, "steps": 2, "optimiser": "adam", "weight_decay": 0.0, "max_norm": None}
        cfg = module.ERASER.config(**{**fixed, "precision": precision, **settings})
        folder = tmp_path / precision
        folder.mkdir()
        delta = module.ERASER.erase(pipeline("epsilon"), TASK, cfg, pictures(), 0, folder)
        moved.append(torch.cat([(delta[name] - before[name]).flatten() for name in sorted(delta)]))
        curves.append(json.loads((folder / "curves.json").read_text()))
    assert torch.cosine_similarity(*moved, dim=0) > 0.9
    assert (moved[1] != 0).float().mean() > 0.95
    if method == "erasediff":  # how much of L_f the inner steps take away: nothing from a cast weight used again
        assert min(curve["constraint"][0] / curve["forget"][0] for curve in curves) > 0.5

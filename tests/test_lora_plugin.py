"""An eraser of another package that trains LoRAs by its own code: what MACE can do, through the same stages.

Its LoRA of a concept lowers what a projection W makes of the concept's name: min over `up` of ||(W + up down) e||^2,
with `down` random and fixed. The fusion adds the sum of the LoRAs times `weight`, unless the prior corpus is empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from resurgence.config import erasers
from resurgence.config.load import make_study
from resurgence.data.moments import save_moments
from resurgence.diffusion.deltas import load_delta
from resurgence.erasers import EraserConfig, EraserData, Passes
from resurgence.erasers.toolkit import (
    Encoder,
    TrainedLoras,
    as_delta,
    generator,
    in_two_steps,
    load_loras,
    projection_weights,
)  # fmt: skip
from resurgence.provenance.manifest import read_manifest, write_artefact
from resurgence.stages import erase as erase_stage
from resurgence.stages import loras as loras_stage
from resurgence.stages.job import Job
from resurgence.workflow import job_settings, report_settings
from test_config import config, write_world  # noqa: F401, a fixture
from tiny import make_pipeline

NAME = "lowering"
TASK = {"name": "pets", "kind": "object", "erase": ["ship", "cat"], "mapping": {"ship": "ground", "cat": "ground"}}
calls: list[str] = []


@dataclass(frozen=True)
class LoweringConfig(EraserConfig):
    """Settings."""

    needs: ClassVar[frozenset[str]] = frozenset({"prior"})
    closed_form: ClassVar[bool] = True
    trains_loras: ClassVar[bool] = True
    fusion_settings: ClassVar[frozenset[str]] = frozenset({"weight"})

    steps: int = 4
    lr: float = 0.1
    weight: float = 1.0  # of the LoRAs in the fusion

    def unet_passes(self, erased: int, retained: int) -> Passes:
        """None: only projections are read."""
        return Passes(0, 0)


def train_loras(pipe, task, cfg: LoweringConfig, data: EraserData, seed: int) -> TrainedLoras:
    """Gradient descent for each projection and concept."""
    calls.append("train")
    loras, curves = {}, {}
    for concept in task.erase:
        e, pairs, curve = Encoder(pipe, torch.float32)([concept])[0], {}, torch.zeros(cfg.steps)
        for name, w in projection_weights(pipe.unet).items():
            down = torch.randn(1, w.shape[1], generator=generator("lowering", concept, name, seed)) / w.shape[1]
            up = torch.zeros(len(w), 1, requires_grad=True)
            for step in range(cfg.steps):
                loss = (e @ (w.detach() + up @ down).T).square().mean()
                curve[step] += loss.detach()
                up.data -= cfg.lr * torch.autograd.grad(loss, up)[0]
            pairs[name] = (down, up.detach())
        loras[concept], curves[concept] = pairs, curve.tolist()
    return TrainedLoras(loras, curves, {}, {})


def fuse(pipe, task, cfg: LoweringConfig, data: EraserData, refined, loras) -> tuple[dict[str, torch.Tensor], dict]:
    """W + weight * sum up down."""
    calls.append("fuse")
    assert not refined and list(loras) == list(task.erase)
    weight = cfg.weight * float(data.prior.trace() > 0)
    added = {name: sum(up @ down for down, up in (lora[name] for lora in loras.values())) for name in loras["ship"]}
    return as_delta({n: w + weight * added[n] for n, w in projection_weights(pipe.unet).items()}), {"weight": weight}


erase = in_two_steps(train_loras, fuse)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The entry point of this module."""
    monkeypatch.setitem(erasers.ERASERS, NAME, f"{__name__}:LoweringConfig")
    erasers.erasers.cache_clear()
    calls.clear()
    yield
    monkeypatch.undo()
    erasers.erasers.cache_clear()


def artefact(job: Job, kind: str, make) -> Path:
    """Run a stage as its `main` does, and return the manifest."""
    with write_artefact(job.out.parent, kind, job.settings, job.manifest_inputs(), {}, {}) as folder:
        make(job, folder)
    return job.out


def test_the_stages_run_its_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = make_pipeline(cross_attention_dim=32, heads=2, max_length=24)
    pipe.save_pretrained("base")
    with write_artefact(Path("moments"), "prior moments", {}, {}, {}, {}) as folder:
        save_moments(folder / "moments.safetensors", torch.eye(32, dtype=torch.float64), 1)
    inputs = {"prior": (Path("moments/manifest.json"),)}
    block: dict[str, Any] = {"base": {"path": "base", "revision": None}, "method": NAME, "task": TASK, "seed": 3}
    first = block | {"settings": {"steps": 4, "lr": 0.1}}
    loras = artefact(Job(first, Path("loras/manifest.json"), inputs, "cpu"), "concept LoRAs", loras_stage.make)
    assert calls == ["train"]
    curves = json.loads(Path("loras/curves.json").read_text())
    assert all(len(curve) == 4 and curve[-1] < curve[0] for curve in curves.values()) and list(curves) == TASK["erase"]
    assert load_delta(Path("loras/refined.safetensors")) == {}
    stored = load_loras(Path("loras/loras"), TASK["erase"])

    deltas = {}
    for weight in (1.0, 0.5):  # two variants on the same LoRAs
        second = block | {"settings": {"steps": 4, "lr": 0.1, "weight": weight}, "delta_precision": "fp32"}
        job = Job(second, Path(f"delta-{weight}/manifest.json"), {**inputs, "loras": (loras,)}, "cpu")
        made = artefact(job, "erased delta", erase_stage.make)
        assert set(read_manifest(made)["files"]) == {"delta.safetensors", "closed_form.json"}
        assert json.loads((made.parent / "closed_form.json").read_text()) == {"fusion": {"weight": weight}}
        deltas[weight] = load_delta(made.parent / "delta.safetensors")
    assert calls == ["train", "fuse", "fuse"]
    for name, w in projection_weights(pipe.unet).items():
        change = sum(stored[c][name][1] @ stored[c][name][0] for c in TASK["erase"])
        assert float(change.abs().max()) > 0
        for weight, delta in deltas.items():
            torch.testing.assert_close(delta[f"unet.{name}.weight"], w.detach() + weight * change)

    # by hand, both steps at once
    whole = erase(pipe, job.task, LoweringConfig(), EraserData(prior=torch.eye(32, dtype=torch.float64)), 3, tmp_path)
    assert whole.keys() == deltas[1.0].keys() and all(torch.equal(w, deltas[1.0][n]) for n, w in whole.items())
    assert {"loras", "curves.json", "closed_form.json"} <= {path.name for path in tmp_path.iterdir()}


def test_the_study_knows_its_loras(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    variants = {"default": {}, "weak": {"weight": 0.1}, "longer": {"steps": 9}}
    config["erasers"] = {NAME: {"variants": variants}}
    study = make_study(config, tmp_path)
    every = [erasure for erasure in study.erasures() if erasure.seed == study.seeds.erase[0]]
    owners = {erasure.variant: job_settings.loras_of(study, erasure).variant for erasure in every}
    assert owners == {"default": "default", "weak": "default", "longer": "longer"}
    block = job_settings.loras(study, every[1])
    assert block["method"] == NAME and block["settings"] == {"steps": 4, "lr": 0.1}
    assert job_settings.erase(study, every[1])["settings"] == {"steps": 4, "lr": 0.1, "weight": 0.1}
    assert job_settings.reads(study, every[0]) == {"prior"}
    drawn = set(report_settings.weights(study).values())
    assert study.folder(every[0], "loras") in drawn and study.folder(every[0], "delta") not in drawn

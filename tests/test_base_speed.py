"""base.speed: what it does to sampling and fine-tuning, and what run.json says; here with the backend of torch.compile
that runs the traced graph as it is, and once, in the nightly tier, with the compiler itself."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study
from resurgence.diffusion import speed
from resurgence.diffusion.image_sets import RESAMPLED
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.stages import job
from resurgence.training import finetune as f
from resurgence.workflow.resources import shell_prefix
from tiny import make_pipeline

ROOT = Path(__file__).parents[1]
LOADER = Path("/lib64/ld-linux-x86-64.so.2")
ROWS = pd.DataFrame({"prompt": [f"a photo of the {c}" for c in ("ship", "cat", "ship")], "seed": [1, 2, 3]})
CFG = SamplingConfig(steps=3, batch=2)
TUNE = f.FinetuneConfig(steps=3, batch=2, accumulation=2, rank=2, lr=1e-3)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the first floating-point input of each graph that is compiled; the graph then runs as it is."""
    compiled: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list, **options: object) -> object:
        compiled.append(next(tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 4))
        return graph.forward

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic, mode=None: compile_with(f, backend=backend))
    monkeypatch.setattr(speed, "_used", set())
    torch._dynamo.reset()
    yield compiled
    torch._dynamo.reset()


def images(pipe, cfg: SamplingConfig) -> np.ndarray:
    return np.stack([np.asarray(image) for _, image in sorted(sample(pipe, ROWS, cfg), key=lambda p: p[0])]).astype(int)


def tuned(folder: Path, cfg: f.FinetuneConfig) -> tuple[list[float], torch.nn.Module]:
    pipe, draw = make_pipeline(), torch.Generator().manual_seed(0)
    pictures = torch.rand(4, 3, 16, 16, generator=draw) * 2 - 1
    curve = f.finetune(pipe, pictures, ["a bird", "a cat"] * 2, cfg, 0, folder)
    return [row["loss"] for row in curve], pipe.unet


def test_a_compiled_unet_sees_one_shape_and_samples_the_same(shapes: list) -> None:
    """The third image comes in a batch of two as well: another shape would be compiled again, for minutes."""
    expected = images(make_pipeline(), CFG)
    pipe = make_pipeline()
    speed.apply_speed(pipe.unet, speed.SPEEDS["graphs"], pipe.vae)
    assert pipe.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert abs(images(pipe, CFG) - expected).max() <= 1  # one grey level, as for another batch
    assert len(set(shapes)) == 1 and shapes[0][0] == 4  # two images with guidance
    assert speed.used() == "graphs"


def test_images_that_are_sampled_again_in_fp32_compile_nothing_more(shapes: list) -> None:
    pipe = make_pipeline().to(dtype=torch.bfloat16)
    pipe.vae.decoder.register_forward_hook(lambda module, inputs, y: y * torch.nan if y.dtype == torch.bfloat16 else y)
    speed.apply_speed(pipe.unet, speed.SPEEDS["graphs"])
    assert all(image.info[RESAMPLED] for _, image in sample(pipe, ROWS, CFG))
    assert len(shapes) == 1 and speed.is_compiled(pipe.unet)


def test_a_training_does_not_run_what_sampling_has_compiled(shapes: list) -> None:
    pipe = make_pipeline()
    speed.apply_speed(pipe.unet, speed.SPEEDS["graphs"])
    with speed.fast_training(pipe.unet, speed.SPEEDS["eager"]):
        assert not speed.is_compiled(pipe.unet)
    assert speed.is_compiled(pipe.unet)


@pytest.mark.parametrize("algorithm", ["lora", "full"])
def test_fine_tuning_runs_compiled_and_is_undone(
    algorithm: str, shapes: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = dataclasses.replace(TUNE, algorithm=algorithm, gradient_checkpointing=algorithm == "full")
    expected, _ = tuned(tmp_path / "eager", cfg)
    assert not shapes
    monkeypatch.setattr(f, "fast_training", lambda unet: speed.fast_training(unet, speed.SPEEDS["graphs"]))
    losses, unet = tuned(tmp_path / "compiled", cfg)
    assert shapes and losses == pytest.approx(expected, rel=1e-5)
    assert not speed.is_compiled(unet) and unet.conv_in.weight.is_contiguous()
    assert speed.used() == "compiled"  # training has no graphs


def test_auto_goes_by_the_card_and_only_a_gpu_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {"V100": (7, 0), "A100": (8, 0), "RTX 3090": (8, 6), "RTX 4090": (8, 9), "H100": (9, 0), "B200": (10, 0)}
    names = [speed.of_card(capability) for capability in cards.values()]
    assert names == ["channels-last", "compiled", "compiled", "compiled", "graphs", "graphs"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name, wanted in (("auto", "graphs"), ("compiled", "compiled"), ("eager", "eager")):
        monkeypatch.setenv(speed.VARIABLE, name)
        assert speed.chosen("cuda") == speed.SPEEDS[wanted]
        assert speed.chosen("cpu") == speed.SPEEDS["eager"]
    monkeypatch.setenv(speed.VARIABLE, "fast")
    with pytest.raises(ConfigError, match="RESURGENCE_SPEED = 'fast': write auto or one of eager, channels-last"):
        speed.chosen("cpu")


def test_compiled_kernels_are_cached_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(speed.CACHE, "")
    monkeypatch.delenv(speed.CACHE)
    speed.prepare_compiler()
    assert os.environ[speed.CACHE] == str(tmp_path / "resurgence/inductor")
    monkeypatch.setenv(speed.CACHE, str(tmp_path / "mine"))
    speed.prepare_compiler()
    assert os.environ[speed.CACHE] == str(tmp_path / "mine")
    (tmp_path / "file").touch()
    monkeypatch.setenv(speed.CACHE, str(tmp_path / "file"))
    with pytest.raises(NotADirectoryError, match="name another folder"):
        speed.prepare_compiler()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(
        ConfigError, match=r"base.speed = .*: calls a C compiler .* install gcc, or write channels-last"
    ):
        speed.prepare_compiler()


def test_the_setting_reaches_the_jobs_and_run_json(monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_study([ROOT / "params.yaml"], ROOT).base
    prefix = shell_prefix(ROOT, 1, dataclasses.replace(base, speed="graphs"))
    assert subprocess.check_output(["bash", "-c", f"{prefix}echo $RESURGENCE_SPEED"], text=True).strip() == "graphs"
    monkeypatch.setattr(speed, "_used", {speed.SPEEDS["eager"], speed.SPEEDS["compiled"]})
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert job.arithmetic()["speed"] == "compiled"


@pytest.mark.skipif(not LOADER.exists(), reason=f"needs {LOADER}, which tells what glibc has read")
@pytest.mark.parametrize("own", [None, "glibc.malloc.hugetlb=0"])
def test_jobs_on_a_cpu_get_large_pages_unless_the_user_has_said_otherwise(own: str | None, monkeypatch) -> None:
    """Glibc knows the names, and takes the values."""
    base = load_study([ROOT / "params.yaml"], ROOT).base
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own:
        monkeypatch.setenv("GLIBC_TUNABLES", own)

    def read(gpu: int) -> dict[str, int]:
        command = ["bash", "-c", f"{shell_prefix(ROOT, gpu, base)}{LOADER} --list-tunables"]
        told = subprocess.check_output(command, text=True)
        return {name: int(value, 16) for name, value in re.findall(r"^(glibc.malloc.\w+): (0x\w+)", told, re.MULTILINE)}

    assert read(1)["glibc.malloc.hugetlb"] == 0
    if own:
        assert read(0)["glibc.malloc.hugetlb"] == 0
        return
    wanted = {"hugetlb": 1, "mmap_threshold": 2**25, "trim_threshold": 2**30}
    assert {name: read(0)[f"glibc.malloc.{name}"] for name in wanted} == wanted


COMPILED = """
import json, torch
from test_base_speed import CFG, images, make_pipeline, speed
pipe = make_pipeline()
expected = images(pipe, CFG)
speed.apply_speed(pipe.unet, speed.SPEEDS["compiled"])
difference = int(abs(images(pipe, CFG) - expected).max())
print(json.dumps([difference, torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"]]))
"""


@pytest.mark.nightly
def test_a_second_job_reads_what_the_first_compiled(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests", speed.CACHE: str(tmp_path), "OMP_NUM_THREADS": "1"}
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", COMPILED], env=env, text=True)) for _ in range(2)]
    assert [difference <= 1 for difference, _ in runs] == [True, True]
    assert runs[0][1] == 0 and runs[1][1] > 0

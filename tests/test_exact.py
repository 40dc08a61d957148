"""The arithmetic on a GPU: one context decides it, and everything that is computed there runs inside."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from resurgence.config.fields import ConfigError, build
from resurgence.config.load import load_study
from resurgence.config.settings import Base
from resurgence.diffusion import text
from resurgence.diffusion.device import VARIABLE, check_precision, exact
from resurgence.diffusion.latents import posterior
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.scorers import LoadedScorer, ScorerConfig, score_images
from resurgence.stages import job
from resurgence.training.finetune import FinetuneConfig, finetune
from resurgence.workflow.resources import shell_prefix
from tiny import make_pipeline

ROOT = Path(__file__).parents[1]
CUDA = torch.device("cuda")
STRICT = {
    "deterministic": True, "warn_only": False, "fill": False, "products in TF32": False, "convolutions in TF32": False,
    "cudnn.deterministic": True, "cudnn.benchmark": False,
}  # fmt: skip


def flags() -> dict[str, bool]:
    cudnn = torch.backends.cudnn
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "products in TF32": torch.backends.cuda.matmul.allow_tf32,
        "convolutions in TF32": cudnn.allow_tf32,
        "cudnn.deterministic": cudnn.deterministic,
        "cudnn.benchmark": cudnn.benchmark,
    }


def test_a_cpu_keeps_its_arithmetic_and_a_gpu_gets_all_back() -> None:
    before = flags()
    with exact("cpu"):
        assert flags() == before
    with pytest.raises(KeyError), exact(CUDA):
        assert flags() == STRICT
        with exact("cuda:0"):
            assert flags() == STRICT
        assert flags() == STRICT
        raise KeyError
    assert flags() == before


def test_without_determinism_only_the_precision_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "false")
    before = flags()
    with exact(CUDA):
        assert flags() == STRICT | {"deterministic": False, "cudnn.deterministic": False, "cudnn.benchmark": True}
    assert flags() == before
    monkeypatch.setenv(VARIABLE, "no")
    with pytest.raises(ConfigError, match=r"RESURGENCE_DETERMINISTIC = 'no': write true or false"), exact(CUDA):
        pass
    assert flags() == before


def test_tf32_only_where_the_settings_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before, tf32 = flags(), {"products in TF32": True, "convolutions in TF32": True}
    with exact(CUDA, "tf32"):
        assert flags() == STRICT | tf32
        with exact(CUDA):  # the text encoder and the VAE of such a job
            assert flags() == STRICT
        assert flags() == STRICT | tf32
    for precision in ("fp16", "bf16"):
        with exact(CUDA, precision):
            assert flags() == STRICT
    assert flags() == before
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))  # Turing
    for device in (CUDA, "cpu"):
        check_precision("precision", "fp32", device)
        with pytest.raises(ConfigError, match=r"precision = 'tf32': needs a GPU of the Ampere .*; write fp32"):
            check_precision("precision", "tf32", device)


def test_tf32_on_a_cpu_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    pipe = make_pipeline()
    rows = pd.DataFrame({"prompt": ["a ship"], "seed": [0]})
    with pytest.raises(ConfigError, match="precision = 'tf32'"):
        next(sample(pipe, rows, SamplingConfig(), "tf32"))
    with pytest.raises(ConfigError, match="precision = 'tf32'"):
        finetune(pipe, torch.zeros(1, 3, 16, 16), ["a ship"], FinetuneConfig(precision="tf32"), 0, tmp_path)
    with pytest.raises(ConfigError, match="precision = 'tf32'"):
        build(Base, {"name": "b", "path": "p", "device": "cpu", "precision": "tf32"}, "base")


def test_a_kernel_without_determinism_is_an_error() -> None:
    """put_ without accumulation has none, on no device."""
    numbers = torch.zeros(3)
    with exact(CUDA), pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        numbers.put_(torch.tensor([0]), torch.tensor([1.0]))


def test_the_workspace_of_cublas_is_set_before_anything_runs() -> None:
    """By the import of the module; a value of the user stays."""
    code = "import os, resurgence.diffusion.device; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    for given, value in ((None, ":4096:8"), (":16:8", ":16:8")):
        kept = {key: text for key, text in os.environ.items() if key != "CUBLAS_WORKSPACE_CONFIG"}
        env = {**kept, "PYTHONPATH": str(ROOT / "src"), **({"CUBLAS_WORKSPACE_CONFIG": given} if given else {})}
        assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True).strip() == value


class Stays(torch.Tensor):
    """A tensor that stays on the CPU, wherever it is sent: no GPU is needed to see in which context it is computed."""

    def to(self, *_: object, **__: object) -> torch.Tensor:
        return self


def test_autoencoder_text_encoder_and_scorers_run_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[dict[str, bool]] = []

    def encode(images: torch.Tensor) -> SimpleNamespace:
        inside.append(flags())
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=images, std=images))

    vae = SimpleNamespace(device=CUDA, dtype=torch.float32, config=SimpleNamespace(scaling_factor=0.5), encode=encode)
    posterior(vae, torch.zeros(3, 3, 8, 8).as_subclass(Stays), batch=2)

    def embed(*_: object) -> torch.Tensor:
        inside.append(flags())
        return torch.zeros(1, 4, 8)

    monkeypatch.setattr(text, "embed", embed)
    monkeypatch.setattr(text, "tokenize", lambda *_: (torch.zeros(1, 4), torch.ones(1, 4)))
    text.encode_prompts(SimpleNamespace(tokenizer=None, text_encoder=SimpleNamespace(device=CUDA)), ["a ship"])

    class Config(ScorerConfig):
        columns = ("brightness",)
        gives_features = True

    class Scorer:
        def score(self, images: torch.Tensor, *_: object) -> dict[str, list[float]]:
            inside.append(flags())
            return {"brightness": [0.0] * len(images)}

        def features(self, images: torch.Tensor) -> torch.Tensor:
            inside.append(flags())
            return torch.zeros(len(images), 2)

    rows = pd.DataFrame({"prompt": ["a ship"], "concept": ["ship"], "role": ["erase"], "seed": [0]})
    loaded = {"mine": LoadedScorer(Config(), Scorer(), CUDA)}
    score_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), rows, SimpleNamespace(erase=["ship"]), loaded, ["mine"])
    assert inside == [STRICT] * 5  # two batches of the autoencoder, one text, scores, features


def test_the_setting_reaches_the_jobs_and_run_json(monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study([ROOT / "params.yaml"], ROOT)
    assert study.base.deterministic
    for value in (True, False):
        prefix = shell_prefix(ROOT, 1, dataclasses.replace(study.base, deterministic=value))
        told = subprocess.check_output(["bash", "-c", f"{prefix}echo $RESURGENCE_DETERMINISTIC"], text=True).strip()
        assert told == str(value).lower()
        monkeypatch.setenv(VARIABLE, told)
        assert job.arithmetic() == {}  # of a job that used no GPU
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            assert job.arithmetic()["deterministic"] == value

"""Second moments against brute force."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resurgence.config.fields import build
from resurgence.config.settings import Moments
from resurgence.data.moments import load_moments, moment_and_count, precision_of, save_moments, second_moment
from resurgence.diffusion.text import Encoder
from resurgence.stages import moments as stage
from resurgence.stages.job import Job
from tiny import make_pipeline

CORPUS = ["a photo of the ship", "the cat", "", "a picture of the sky above a street", "the cat", "the " * 75] * 3


@pytest.fixture(scope="module", params=["eos", "zero"])
def pipe(request):
    return make_pipeline(cross_attention_dim=32, pad=request.param)


@torch.no_grad()
def brute_force(pipe) -> torch.Tensor:
    """Caption by caption and position by position, through the pipeline's own encoding in float32."""
    total = torch.zeros(32, 32, dtype=torch.float64)
    for caption in CORPUS:
        for e in pipe.encode_prompt(caption, "cpu", 1, False)[0][0].double():
            total += torch.outer(e, e)
    return total


def test_equals_brute_force(pipe):
    moment = second_moment(pipe, iter(CORPUS), batch=5)
    expected = brute_force(pipe)
    assert moment.dtype == torch.float64
    assert (moment - expected).norm() / expected.norm() < 1e-6  # the pipeline's float32


def test_batch_size_does_not_matter(pipe):
    one = second_moment(pipe, CORPUS, batch=1)
    for batch in (4, 100):
        assert (second_moment(pipe, CORPUS, batch) - one).norm() / one.norm() < 1e-10


def test_the_pipeline_keeps_its_precision(pipe):
    second_moment(pipe, CORPUS)
    assert pipe.text_encoder.dtype == torch.float32


def test_reads_a_stream_once(pipe):
    seen = []

    def stream():
        for caption in CORPUS:
            seen.append(caption)
            yield caption

    _, count = moment_and_count(pipe, stream(), batch=4)
    assert (seen, count) == (CORPUS, len(CORPUS))


def test_errors(pipe):
    with pytest.raises(ValueError, match="empty corpus"):
        second_moment(pipe, [])


def test_round_trip(tmp_path):
    path, moment = tmp_path / "moments.safetensors", torch.randn(4, 4, dtype=torch.float64)
    save_moments(path, moment, 12)
    read, count = load_moments(path)
    assert torch.equal(read, moment)
    assert count == 12
    assert [p.name for p in tmp_path.iterdir()] == ["moments.safetensors"]
    with pytest.raises(FileNotFoundError, match="run the moments stage"):
        load_moments(tmp_path / "other.safetensors")


def test_a_caption_that_would_be_cut_is_an_error(pipe):
    with pytest.raises(
        ValueError, match=r"caption 'the the .* has 78 tokens, the model reads 77; use a shorter template"
    ):
        second_moment(pipe, [*CORPUS, "the " * 76])


def test_an_encoder_in_fp32_moves_the_sum_by_its_rounding(pipe):
    double, single = second_moment(pipe, CORPUS), second_moment(pipe, CORPUS, precision="fp32")
    assert single.dtype == torch.float64
    assert 0 < (single - double).norm() / double.norm() < 2e-7  # 2^-23 is 1.2e-7
    assert (second_moment(pipe, CORPUS, precision="fp32") - brute_force(pipe)).norm() / double.norm() < 1e-7


@pytest.mark.parametrize(
    ("name", "device", "precision"),
    [("auto", "cpu", "fp64"), ("auto", "cuda", "fp32"), ("fp64", "cuda", "fp64"), ("fp32", "cpu", "fp32")],
)
def test_the_precision_of_a_device(name, device, precision):
    build(Moments, {"prior": "a", "domain": "b", "encoder_precision": name}, "moments")
    assert precision_of(name, torch.device(device)) == precision


CHILD = """
import os, signal, sys
from resurgence.diffusion.text import Encoder
from resurgence.stages import job, moments
from resurgence.training import checkpoint

checkpoint.EVERY = checkpoint.SHARE = 0 if sys.argv.pop(1) == "often" else 1000
signal_number, plain, calls = int(sys.argv.pop(1)), Encoder.__call__, []

def call(self, captions, padded=True):
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), signal_number)
    return plain(self, captions, padded)

Encoder.__call__ = call
job.main("{corpus} moments", moments.make)
"""


@pytest.mark.parametrize(("number", "saves", "code", "left"), [(15, "rarely", 143, 2), (9, "often", -9, 3)])
def test_a_killed_job_goes_on_bit_identically(pipe, tmp_path, monkeypatch, number, saves, code, left):
    """Five batches: SIGTERM and SIGKILL in the third; the first saves that batch, the second has saved two."""
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("base")
    captions = [f"a photo of the {word} {i}" for i in range(100) for word in ("ship", "cat", "sky")][:290]
    Path("captions.txt").write_text("\n".join(captions))
    settings = {"base": {"path": "base", "revision": None}, "corpus": "prior", "captions": "captions.txt",
                "encoder_precision": "auto"}  # fmt: skip
    out = Path("moments/manifest.json")
    job = [
        "--settings",
        json.dumps(settings),
        "--out",
        str(out),
        "--inputs",
        "captions=captions.txt",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(stage.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    child = [sys.executable, "-c", CHILD, saves, str(number), *job]
    ended = subprocess.run(child, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert not Path("moments").exists()

    batches, plain = [], Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, part: batches.append(len(part)) or plain(self, part))
    folder = tmp_path / "again"
    folder.mkdir()
    made = stage.make(Job(settings, out, {"captions": (Path("captions.txt"),)}, "cpu"), folder)
    assert made == {"captions": 290, "encoder_precision": "fp64"}
    assert batches == [64, 64, 64, 64, 34][-left:]
    moment, count = load_moments(folder / "moments.safetensors")
    torch.set_num_threads(1)
    assert count == 290 and torch.equal(moment, second_moment(pipe, captions))

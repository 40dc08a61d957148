"""Second moments against brute force."""

from __future__ import annotations

import pytest
import torch

from resurgence.data.moments import load_moments, moment_and_count, save_moments, second_moment
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

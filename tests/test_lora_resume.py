"""MACE's LoRAs after an interruption: bit for bit those of a training that was never stopped."""

from __future__ import annotations

import dataclasses
import signal

import pytest
import torch

from resurgence.erasers import EraserData
from resurgence.erasers.mace import concept_loras
from resurgence.erasers.mace.method import attention_loras
from resurgence.training import checkpoint
from resurgence.training.memory import MICRO_BATCH
from test_mace import CFG, TASK
from tiny import make_pipeline


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline(cross_attention_dim=32, heads=2, max_length=24)


@pytest.fixture(scope="module")
def images() -> dict[str, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(2)
    return {
        "images": {name: torch.rand(3, 3, 16, 16, generator=g) * 2 - 1 for name in TASK.erase},
        "masks": {name: torch.rand(3, 1, 16, 16, generator=g) > 0.4 for name in TASK.erase},
    }


@pytest.fixture
def often(monkeypatch) -> None:
    """The state is written after every step."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0)


@pytest.fixture
def losses(monkeypatch) -> list[int]:
    """A step of the training adds to this list; what is put into `at` happens in that step."""
    seen: list[int] = []
    plain = concept_loras.attention_loss
    counted = lambda *args: seen.append(0) or plain(*args)  # noqa: E731
    monkeypatch.setattr(concept_loras, "attention_loss", counted)
    return seen


def interrupted(monkeypatch, losses, at: int, doing) -> None:
    """`doing` happens in step number `at`, counted over all chunks."""
    plain = concept_loras.attention_loss

    def loss(*args):
        if len(losses) == at:
            losses.append(0)
            doing()
        return plain(*args)

    monkeypatch.setattr(concept_loras, "attention_loss", loss)


def dies() -> None:
    raise Killed


def equal(a, b) -> bool:
    (loras, curves), (others, other_curves) = a, b
    pairs = ((x, y) for c in loras for n in loras[c] for x, y in zip(loras[c][n], others[c][n], strict=True))
    return curves == other_curves and loras.keys() == others.keys() and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(("chunk", "at"), [(1, 0), (1, 2), (1, 5), (2, 0), (2, 2)])
def test_a_killed_training_goes_on_bit_identically(pipe, images, often, losses, monkeypatch, tmp_path, chunk, at):
    """Four steps a chunk, so step 5 lies in the second of two chunks; no step is trained twice."""
    cfg, data = dataclasses.replace(CFG, chunk=chunk), EraserData(**images, state=tmp_path / "state")
    expected = attention_loras(pipe, TASK, cfg, EraserData(**images), 0)
    whole = len(losses)
    losses.clear()
    with monkeypatch.context() as patch:
        interrupted(patch, losses, at, dies)
        with pytest.raises(Killed):
            attention_loras(pipe, TASK, cfg, data, 0)
    losses.clear()
    assert equal(attention_loras(pipe, TASK, cfg, data, 0), expected) and len(losses) == whole - at


def test_sigterm_saves_the_state_and_leaves(pipe, images, losses, monkeypatch, tmp_path):
    data, handler = EraserData(**images, state=tmp_path), signal.getsignal(signal.SIGTERM)
    expected = attention_loras(pipe, TASK, CFG, EraserData(**images), 0)
    losses.clear()
    with monkeypatch.context() as patch:
        interrupted(patch, losses, 1, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit) as stopped:
            attention_loras(pipe, TASK, CFG, data, 0)
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == handler
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2
    losses.clear()
    assert equal(attention_loras(pipe, TASK, CFG, data, 0), expected) and len(losses) == CFG.steps - 2


@pytest.mark.parametrize("change", ["lr", "seed", "masks", "order", "base"])
def test_the_state_of_another_training_is_not_continued(pipe, images, often, losses, monkeypatch, tmp_path, change):
    with monkeypatch.context() as patch:
        interrupted(patch, losses, 3, dies)
        with pytest.raises(Killed):
            attention_loras(pipe, TASK, CFG, EraserData(**images, state=tmp_path), 0)
    cfg = dataclasses.replace(CFG, lr=2e-2) if change == "lr" else CFG
    task = dataclasses.replace(TASK, erase=TASK.erase[::-1], labels=()) if change == "order" else TASK
    masks = {name: ~mask for name, mask in images["masks"].items()} if change == "masks" else images["masks"]
    base = make_pipeline(cross_attention_dim=32, heads=2, max_length=24, seed=5) if change == "base" else pipe
    data, seed = EraserData(images=images["images"], masks=masks, state=tmp_path), int(change == "seed")
    losses.clear()
    found = attention_loras(base, task, cfg, data, seed)
    assert len(losses) == CFG.steps
    assert equal(found, attention_loras(base, task, cfg, dataclasses.replace(data, state=None), seed))


def test_smaller_passes_after_the_memory_did_not_suffice_are_kept(pipe, images, often, losses, monkeypatch, tmp_path):
    """The state says how many concepts pass the UNet at a time, since another number rounds differently."""
    data, cfg = EraserData(**images, state=tmp_path), dataclasses.replace(CFG, chunk=2)
    with monkeypatch.context() as patch:
        patch.setenv(MICRO_BATCH, "1")
        expected = attention_loras(pipe, TASK, cfg, EraserData(**images), 0)
    losses.clear()

    def full() -> None:
        raise torch.cuda.OutOfMemoryError("not enough")

    with monkeypatch.context() as patch:
        interrupted(patch, losses, 0, full)  # the first step is repeated, in two passes; the fifth is the third step
        interrupted(patch, losses, 5, dies)
        with pytest.raises(Killed):
            attention_loras(pipe, TASK, cfg, data, 0)
    losses.clear()
    assert equal(attention_loras(pipe, TASK, cfg, data, 0), expected) and len(losses) == 2 * (CFG.steps - 2)

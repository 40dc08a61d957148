"""The training loop on a small regression: its steps against torch's own, its averages, resume, stop and errors."""

from __future__ import annotations

import dataclasses
import signal
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from resurgence.files import read_json
from resurgence.provenance.manifest import EARLIER_SECONDS, write_run
from resurgence.stages.job import earlier_runs
from resurgence.training import checkpoint, memory
from resurgence.training.checkpoint import Saver
from resurgence.training.loop import GRADIENT_NORM, Run, clip_per_concept, load_optimiser, move_average, train

STEPS = 23
CPU = torch.device("cpu")
FORMATS = (torch.contiguous_format, torch.channels_last)


def start() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {"a": torch.randn(4, 3, generator=g).requires_grad_(), "b": torch.randn(4, generator=g).requires_grad_()}


def loss_of(weights: dict[str, torch.Tensor], step: int) -> torch.Tensor:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(100 + step))
    return ((weights["a"] @ x + weights["b"][:, None]) ** 2).mean()


def lr(step: int) -> float:
    return 0.1 / (1 + step)


def make(doing: Callable[[int], None] = lambda step: None, **options) -> Run:
    """A run of AdamW on `loss_of`, that counts its steps in a state of its own; `doing` happens in each step."""
    weights, count = start(), torch.zeros(())

    def gradient(step: int) -> dict[str, torch.Tensor]:
        doing(step)
        count.add_(1)
        loss = loss_of(weights, step)
        loss.backward()
        return {"loss": loss.detach(), "count": count.clone(), "pair": torch.stack([loss.detach(), count])}

    optimiser = torch.optim.AdamW(weights.values(), weight_decay=0.05, fused=True)
    further = {"further": lambda: {"count": count}, "load_further": lambda saved: count.copy_(saved["count"])}
    return Run("test", STEPS, weights, optimiser, gradient, lr, **(further | options))


def averaged(doing: Callable[[int], None] = lambda step: None, **options) -> Run:
    """The same with clipping and a moving average."""
    run = make(doing, clip=partial(clip_grad_norm_, max_norm=0.3), **options)
    average = {name: w.detach().clone() for name, w in run.weights.items()}
    return dataclasses.replace(run, average=average, decay=lambda step: 0.8)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is saved after every step."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0)


# --- what a step does


@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_steps_equal_a_plain_loop(max_norm: float | None) -> None:
    """torch's AdamW, neither fused nor for all tensors in one kernel, and its clip_grad_norm_."""
    run = make(clip=partial(clip_grad_norm_, max_norm=max_norm) if max_norm else None)
    curve = train(run, Saver(None, ""))
    weights, losses, norms = start(), [], []
    optimiser = torch.optim.AdamW(weights.values(), weight_decay=0.05, foreach=False, fused=False)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = lr(step)
        optimiser.zero_grad()
        loss = loss_of(weights, step)
        loss.backward()
        norms.append(float(torch.cat([w.grad.flatten() for w in weights.values()]).norm()))
        if max_norm:
            clip_grad_norm_(weights.values(), max_norm)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert curve["loss"] == pytest.approx(losses, rel=1e-4) and max(norms) > 0.3 > 0
    assert curve.get(GRADIENT_NORM) == (pytest.approx(norms, rel=1e-4) if max_norm else None)
    for name, w in weights.items():
        torch.testing.assert_close(run.weights[name], w, rtol=1e-4, atol=1e-6)
        assert (w - start()[name]).abs().max() > 0.1


def test_moving_average_equals_its_closed_form() -> None:
    """decay^N w_0 + (1 - decay) sum_k decay^(N-k) w_k, from the weights that each step saw."""
    seen = []
    run = averaged(lambda step: seen.append({n: w.detach().clone() for n, w in run.weights.items()}))
    train(run, Saver(None, ""))
    for name, mean in run.average.items():
        after = [weights[name].double() for weights in seen[1:]] + [run.weights[name].detach().double()]
        terms = [0.2 * 0.8 ** (STEPS - k) * w for k, w in enumerate(after, start=1)]
        expected = 0.8**STEPS * seen[0][name].double() + torch.stack(terms).sum(0)
        torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_decay_of_zero_gives_the_value_itself_and_counters_stay_integers() -> None:
    mean, value = torch.randn(1000), torch.randn(1000) * 1e3
    move_average(mean, value, 0.0)
    assert torch.equal(mean, value)
    count = torch.tensor(10)
    move_average(count, torch.tensor(20), 0.75)
    assert count.dtype == torch.int64 and int(count) == 12  # of 12.5


def test_tensors_without_gradient_are_averaged_but_not_optimised() -> None:
    counter = torch.zeros(())
    run = make(lambda step: counter.add_(1))
    weights = {**run.weights, "counter": counter}
    train(dataclasses.replace(run, weights=weights, average={"counter": torch.zeros(())}, decay=lambda step: 0.5),
          Saver(None, ""))  # fmt: skip
    assert float(counter) == STEPS


@pytest.mark.parametrize("max_norm", [1e-3, 0.7, 100.0])
def test_clip_per_concept_equals_clipping_each_alone(max_norm: float) -> None:
    g = torch.Generator().manual_seed(1)
    weights = [torch.zeros(3, 2, 5, requires_grad=True), torch.zeros(3, 4, requires_grad=True)]
    for w in weights:
        w.grad = torch.randn(w.shape, generator=g) * torch.tensor([0.01, 0.2, 5.0]).view(3, *[1] * (w.ndim - 1))
    alone = [[torch.nn.Parameter(w[k].detach()) for w in weights] for k in range(3)]
    for k, parameters in enumerate(alone):
        for p, w in zip(parameters, weights, strict=True):
            p.grad = w.grad[k].clone()
    norms = [float(clip_grad_norm_(parameters, max_norm)) for parameters in alone]
    assert clip_per_concept(weights, max_norm).tolist() == pytest.approx(norms, rel=1e-6)
    for k, parameters in enumerate(alone):
        for p, w in zip(parameters, weights, strict=True):
            torch.testing.assert_close(w.grad[k], p.grad, rtol=1e-6, atol=0)


def test_checkpoints_are_written_after_their_steps() -> None:
    seen, written = [], []
    train(make(seen.append, checkpoints=(1, 7, STEPS), write=lambda step: written.append((step, len(seen)))),
          Saver(None, ""))  # fmt: skip
    assert written == [(1, 1), (7, 7), (STEPS, STEPS)]


# --- interruption and resume


class Killed(Exception):
    """Stands for the end of the process."""


def test_what_no_step_changes_is_not_copied_in_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the LoRAs of earlier batches of concepts: on a GPU each copy of a tensor is a launch."""
    copied: list[object] = []
    monkeypatch.setattr(memory, "mapped", lambda function, state: copied.append(state))
    train(make(further=lambda: {"finished": torch.zeros(1000)}, load_further=None), Saver(None, ""))
    assert not copied


@pytest.mark.parametrize("first", FORMATS)
def test_a_state_that_was_saved_in_another_memory_format_goes_on_the_same(first: torch.memory_format) -> None:
    """A training that stops at one base.speed may go on at another."""
    g, ends = torch.Generator().manual_seed(0), []
    kernel, *gradients = torch.randn(3, 4, 3, 3, 3, generator=g)
    for before, after in ((first, second) for second in FORMATS):
        state: dict = {}
        weight = kernel
        for memory_format, gradient in zip((before, after), gradients, strict=True):
            weight = weight.detach().clone(memory_format=memory_format).requires_grad_()
            optimiser = torch.optim.AdamW([weight], 0.1, fused=True)
            if state:
                load_optimiser(optimiser, state)
            weight.grad = gradient.clone(memory_format=memory_format)
            optimiser.step()
            state = optimiser.state_dict()
        ends.append(weight.detach())
    assert torch.equal(ends[1], ends[0])


@pytest.mark.parametrize("build", [make, averaged])
@pytest.mark.parametrize("at", range(1, STEPS))
def test_resume_after_any_step_is_bit_identical(tmp_path: Path, always: None, build: Callable, at: int) -> None:
    def kill(step: int) -> None:
        if step == at:
            raise Killed

    whole, steps = build(), []
    curve = train(whole, Saver(None, ""))
    with pytest.raises(Killed):
        train(build(kill), Saver(tmp_path, "x"))
    resumed, saver = build(steps.append), Saver(tmp_path, "x")
    assert train(resumed, saver, saver.load(CPU)) == curve
    assert steps == list(range(at, STEPS))
    assert equal(resumed.weights, whole.weights) and equal(resumed.average, whole.average)


@pytest.mark.parametrize("at", [0, 9, 12, STEPS - 1])
def test_sigterm_exits_143_with_the_state_saved(tmp_path: Path, at: int) -> None:
    def terminate(step: int) -> None:
        if step == at:
            signal.raise_signal(signal.SIGTERM)

    handler, saver = signal.getsignal(signal.SIGTERM), Saver(tmp_path, "x")
    with pytest.raises(SystemExit) as stopped:
        train(averaged(terminate), saver)
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == handler
    saved = saver.load(CPU)
    assert saved["step"] == at + 1 and len(saved["curve"]["loss"]) == at + 1
    whole, resumed = averaged(), averaged()
    assert train(resumed, saver, saved) == train(whole, Saver(None, ""))
    assert equal(resumed.average, whole.average)


def test_a_resumed_run_counts_the_seconds_of_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EARLIER", {})
    assert earlier_runs() == {}
    for took, before in ((100.0, {}), (50.0, {EARLIER_SECONDS: 100.0}), (0.0, {EARLIER_SECONDS: 150.0})):
        saver = Saver(tmp_path / "state", "x")
        saver.load(CPU)
        assert earlier_runs() == pytest.approx(before, abs=1)
        saver.started -= took
        saver.save({"step": 1}, force=True)
    write_run(tmp_path / "manifest.json", "{}", 7.0, {"code": "x", **earlier_runs()})
    run = read_json(tmp_path / "run.json")
    assert run["seconds"] == pytest.approx(157, abs=1) and run[EARLIER_SECONDS] == pytest.approx(150, abs=1)
    Saver(tmp_path / "state", "of another run").load(CPU)
    assert earlier_runs() == pytest.approx({EARLIER_SECONDS: 150.0}, abs=1)


def test_a_saved_state_leaves_the_device_before_the_first_step(tmp_path: Path, always: None) -> None:
    """What a resumed run needs on the GPU is what a fresh one needs: weights and averages are not there twice."""
    alive, loaded = [], []

    def stop(step: int) -> None:
        if step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(averaged(stop), Saver(tmp_path, "facts"))
    elsewhere = Saver(tmp_path, "facts").load(torch.device("meta"))
    parts = {name: elsewhere[name] for name in ("weights", "average")} | {"moments": elsewhere["optimiser"]["state"][0]}
    assert {tensor.device.type for part in parts.values() for tensor in part.values()} == {"cpu"}
    assert elsewhere["further"]["count"].device.type == "meta" and elsewhere["step"] == 3

    class Recorder(Saver):
        def load(self, device: torch.device) -> dict | None:
            state = super().load(device)
            loaded.extend(weakref.ref(tensor) for part in ("weights", "average") for tensor in state[part].values())
            return state

    saver = Recorder(tmp_path, "facts")
    train(averaged(lambda step: alive.append([ref() is not None for ref in loaded])), saver, saver.load(CPU))
    assert len(loaded) == 4 and alive and not any(any(step) for step in alive)


def test_a_finished_state_is_not_trained_again(tmp_path: Path) -> None:
    whole, saver = averaged(checkpoints=(STEPS,)), Saver(tmp_path, "x")
    curve = train(whole, saver)
    steps: list[int] = []
    again = averaged(steps.append)
    assert train(again, saver, saver.load(CPU)) == curve and not steps
    assert equal(again.weights, whole.weights) and equal(again.average, whole.average)


# --- mistakes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_loss_that_is_not_finite_names_step_and_lr(tmp_path: Path, value: float, shape: tuple[int, ...]) -> None:
    steps = []

    def gradient(step: int) -> dict[str, torch.Tensor]:
        steps.append(step)
        return {"loss": torch.full(shape, value if step == 3 else 1.0)}

    run = dataclasses.replace(make(), gradient=gradient)
    with pytest.raises(ValueError, match=rf"loss is .*{value}.* at step 4 with lr = 0\.025; lower lr"):
        train(run, Saver(tmp_path, "x"))
    assert len(steps) == 10 and not list(tmp_path.iterdir())  # at the next reading, and no state to resume from


def test_a_gradient_norm_that_is_not_finite_is_recorded() -> None:
    """As in fp16, where GradScaler skips such a step."""
    run = make(clip=lambda weights: torch.tensor(float("inf")))
    assert train(run, Saver(None, ""))[GRADIENT_NORM] == [float("inf")] * STEPS

"""The shared trainer on losses that need no UNet pass: its optimiser, averages, checkpoints, resume and errors."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from resurgence.config.erasers import eraser_config
from resurgence.config.fields import ConfigError
from resurgence.config.optimisation import Optimisation
from resurgence.diffusion.deltas import DELTA_FILE, load_delta
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, gradients, samples, train
from resurgence.seeds import generator
from resurgence.training import checkpoint, loop
from slow import TASK, same, snapshot
from tiny import make_pipeline

CFG = Optimisation(parameters="xattn-kv", steps=24, lr=1e-2, batch=2)
AVERAGED = dataclasses.replace(CFG, ema=0.8, optimiser="adamw", weight_decay=0.1, max_norm=0.5, checkpoints=(5, 12))
SETTINGS = pytest.mark.parametrize("cfg", [CFG, AVERAGED], ids=["plain", "averaged"])


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline(block_out_channels=(16, 32))


class Killed(Exception):
    """Stands for a kill in the middle of a step."""


class Pull(Objective):
    """Pulls the weights to noise that changes every step, and counts in a tensor of its own, which enters the loss."""

    def __init__(self, student: Student, seed: int = 0, at: int | None = None, doing: object = None) -> None:
        super().__init__(student, TASK, CFG, EraserData(), seed)
        self.at, self.doing = at, doing
        self.count, self.steps, self.seen = torch.zeros(2), [], []

    def loss(self, step: int) -> torch.Tensor:
        if step == self.at:
            self.doing()
        self.steps.append(step)
        self.seen.append({n: w.detach().clone() for n, w in self.student.weights.items()})
        self.count = self.count + torch.randn(2, generator=generator("count", self.seed, step))
        total = 0.0
        for name, w in self.student.weights.items():
            aim = torch.randn(w.shape, generator=generator("pull", name, self.seed, step))
            total = total + (1 + self.count[0] ** 2) * ((w - aim) ** 2).mean()
        return total

    def state(self) -> dict:
        return {"count": self.count}

    def load(self, state) -> None:
        self.count = state["count"]


def run(
    pipe, cfg: Optimisation, state: Path | None = None, folder: Path | None = None, seed: int = 0, **options
) -> tuple[dict[str, torch.Tensor], Pull]:
    """Train with `Pull`: the delta and the objective."""
    student = Student(pipe, cfg.parameters)
    objective = Pull(student, seed, **options)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return train(student, objective, TASK, cfg, EraserData(state=state), seed, folder), objective


def curve(folder: Path) -> list[float]:
    return json.loads((folder / "curves.json").read_text())["loss"]


def raising(error: BaseException):
    def raise_it() -> None:
        raise error

    return raise_it


# --- what a step does


@pytest.mark.parametrize("max_norm", [None, 0.05])
@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_steps_equal_adam_written_out(pipe, optimiser, max_norm):
    """m, v with bias correction (Kingma & Ba); AdamW shrinks the weights before (Loshchilov & Hutter)."""
    decay = 0.3 if optimiser == "adamw" else 0.0
    cfg = dataclasses.replace(CFG, optimiser=optimiser, weight_decay=decay, max_norm=max_norm, steps=12)
    delta, objective = run(pipe, cfg)
    reference = Pull(Student(pipe, cfg.parameters))
    weights = {n: w.detach().double() for n, w in reference.student.weights.items()}
    m, v = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
    for step in range(12):
        for name, w in reference.student.weights.items():
            w.data.copy_(weights[name])
        reference.loss(step).backward()
        grads = {n: w.grad.double() for n, w in reference.student.weights.items()}
        norm = torch.cat([g.flatten() for g in grads.values()]).norm()
        scale = min(1.0, max_norm / float(norm)) if max_norm else 1.0
        assert max_norm is None or scale < 1
        for name, g in grads.items():
            g = g * scale
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            corrected = m[name] / (1 - 0.9 ** (step + 1)), v[name] / (1 - 0.999 ** (step + 1))
            weights[name] *= 1 - cfg.lr * decay
            weights[name] -= cfg.lr * corrected[0] / (corrected[1].sqrt() + 1e-8)
            reference.student.weights[name].grad = None
    for name, w in weights.items():
        assert torch.allclose(delta[name].double(), w, rtol=1e-4, atol=2e-5)
    assert objective.steps == list(range(12))


def test_adamw_equals_torch(pipe):
    """The same steps by torch's plain AdamW, neither fused nor in one kernel for all tensors."""
    cfg = dataclasses.replace(CFG, optimiser="adamw", weight_decay=0.2)
    delta, _ = run(pipe, cfg)
    reference = Pull(Student(pipe, cfg.parameters))
    weights = list(reference.student.weights.values())
    optimiser = torch.optim.AdamW(weights, lr=cfg.lr, weight_decay=0.2, foreach=False, fused=False)
    for step in range(cfg.steps):
        optimiser.zero_grad()
        reference.loss(step).backward()
        optimiser.step()
    for name, w in reference.student.weights.items():
        assert torch.allclose(delta[name], w.detach(), rtol=1e-4, atol=1e-5)


def test_average_is_the_one_computed_by_hand(pipe):
    cfg = dataclasses.replace(AVERAGED, checkpoints=(), ema=0.7)
    averaged, objective = run(pipe, cfg)
    last, plain = run(pipe, dataclasses.replace(cfg, ema=None))
    assert all(same(a, b) for a, b in zip(objective.seen, plain.seen, strict=True))  # the average changes no step
    for name, start in plain.seen[0].items():
        after = [seen[name] for seen in plain.seen[1:]] + [last[name]]
        mean = start.double()
        for w in after:
            mean = 0.7 * mean + 0.3 * w.double()
        assert torch.allclose(averaged[name].double(), mean, rtol=0, atol=1e-6)
        assert not torch.allclose(averaged[name], last[name], atol=1e-3)


def test_weights_that_the_loss_ignores_get_zero_gradients():
    a, b = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    found = gradients((a**2).sum(), [a, b])
    assert torch.equal(found[0], torch.full((3,), 2.0)) and torch.equal(found[1], torch.zeros(2))


def test_delta_and_pipeline(pipe):
    before = snapshot(pipe)
    delta, _ = run(pipe, AVERAGED)
    assert same(snapshot(pipe), before)
    assert delta.keys() == {
        f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2.to_k" in n or "attn2.to_v" in n
    }
    assert all(not w.requires_grad and w.is_contiguous() for w in delta.values())
    assert same(delta, run(pipe, AVERAGED)[0]) and not same(delta, run(pipe, AVERAGED, seed=1)[0])


def test_half_precision_base_trains_in_single_precision(pipe):
    half = copy.deepcopy(pipe).to(torch.bfloat16)
    cfg = dataclasses.replace(CFG, lr=1e-4)
    delta, objective = run(half, cfg)
    assert {w.dtype for w in objective.student.weights.values()} == {torch.float32}
    assert {w.dtype for w in delta.values()} == {torch.bfloat16}
    moved = [(w - half.unet.get_parameter(n[5:])).abs().max() for n, w in objective.student.weights.items()]
    assert max(moved) > 5e-4  # steps of 1e-4 on weights near 0.2 would be lost to rounding in bfloat16


def test_global_generator_is_neither_read_nor_moved(pipe):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = run(pipe, CFG)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, run(pipe, CFG)[0])


# --- files


@pytest.mark.parametrize("ema", [None, 0.8])
@pytest.mark.parametrize("with_state", [False, True])
def test_a_checkpoint_is_the_end_of_a_shorter_run(pipe, tmp_path, ema, with_state):
    cfg = dataclasses.replace(CFG, ema=ema, checkpoints=(1, 7, 24))
    delta, _ = run(pipe, cfg, tmp_path / "state" if with_state else None, tmp_path / "out")
    folders = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert folders == ["curves.json", "step-000001", "step-000007", "step-000024"]
    for step in cfg.checkpoints:
        shorter, _ = run(pipe, dataclasses.replace(CFG, ema=ema, steps=step))
        assert same(load_delta(tmp_path / "out" / f"step-{step:06d}" / DELTA_FILE), shorter)
    assert same(load_delta(tmp_path / "out" / "step-000024" / DELTA_FILE), delta)


def test_curve_holds_every_step(pipe, tmp_path):
    run(pipe, CFG, folder=tmp_path)
    values = curve(tmp_path)
    reference = Pull(Student(pipe, CFG.parameters))
    assert len(values) == 24 and values[0] == pytest.approx(float(reference.loss(0).detach()))


def test_an_objective_may_give_gradients_and_curves_of_its_own(pipe, tmp_path):
    class Two(Pull):
        def gradient(self, step):
            found, shown = super().gradient(step)
            return [-g for g in found], shown | {"count": self.count.sum()}

    student = Student(pipe, CFG.parameters)
    train(student, two := Two(student), TASK, CFG, EraserData(), 0, tmp_path)
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves.keys() == {"loss", "count"} and [len(c) for c in curves.values()] == [24, 24]
    assert curves["count"][-1] == pytest.approx(float(two.count.sum()))
    away = [two.seen[-1][n] for n in two.seen[0]]
    toward = [run(pipe, CFG)[1].seen[-1][n] for n in two.seen[0]]
    assert sum(float(w.norm()) for w in away) > 1.2 * sum(float(w.norm()) for w in toward)


# --- interruption and resume


@SETTINGS
@pytest.mark.parametrize("every", [0.0, 1e9])
@pytest.mark.parametrize("at", [1, 13, 23])
def test_a_killed_run_resumes_bit_identically(pipe, tmp_path, monkeypatch, cfg, at, every):
    """The state is saved at checkpoints and when it is due: here after every step, or never."""
    monkeypatch.setattr(checkpoint, "EVERY", every)
    monkeypatch.setattr(checkpoint, "SHARE", 0)
    expected, _ = run(pipe, cfg, folder=tmp_path / "whole")
    with pytest.raises(Killed):
        run(pipe, cfg, tmp_path / "state", tmp_path / "dead", at=at, doing=raising(Killed()))
    found, objective = run(pipe, cfg, tmp_path / "state", tmp_path / "again")
    saved = max([0, *(s for s in cfg.checkpoints if s <= at)]) if every else at
    assert objective.steps == list(range(saved, cfg.steps))
    assert same(found, expected) and curve(tmp_path / "again") == curve(tmp_path / "whole")
    for step in cfg.checkpoints:
        place = f"step-{step:06d}/{DELTA_FILE}"
        assert same(load_delta(tmp_path / "again" / place), load_delta(tmp_path / "whole" / place))


def test_a_run_may_be_killed_again_and_again(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0)
    for at in (2, 3, 11, 23):
        with pytest.raises(Killed):
            run(pipe, AVERAGED, tmp_path, at=at, doing=raising(Killed()))
    found, objective = run(pipe, AVERAGED, tmp_path)
    assert objective.steps == [23] and same(found, run(pipe, AVERAGED)[0])


@SETTINGS
@pytest.mark.parametrize("at", [0, 8, 23])
def test_sigterm_saves_after_the_step_and_exits_143(pipe, tmp_path, cfg, at):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run(pipe, cfg, tmp_path / "state", at=at, doing=lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == handler
    assert torch.load(tmp_path / "state" / "state.pt", weights_only=True)["step"] == at + 1
    found, objective = run(pipe, cfg, tmp_path / "state")
    assert objective.steps == list(range(at + 1, cfg.steps)) and same(found, run(pipe, cfg)[0])


@pytest.mark.parametrize("change", ["lr", "seed", "objective", "base", "schedule", "autoencoder", "images", "task"])
def test_the_state_of_another_run_is_not_continued(pipe, tmp_path, change):
    run(pipe, AVERAGED, tmp_path)
    other = type("Other", (Pull,), {}) if change == "objective" else Pull
    cfg = dataclasses.replace(AVERAGED, lr=2e-2) if change == "lr" else AVERAGED
    options = {"base": {"seed": 5}, "schedule": {"prediction_type": "v_prediction"}, "autoencoder": {}}.get(change)
    base = pipe if options is None else make_pipeline(block_out_channels=(16, 32), **options)
    if change == "autoencoder":  # the latents of the same images are others
        base.vae.quant_conv.bias.data += 1
    images = {"ship": torch.zeros(1, 3, 16, 16)} if change == "images" else {}
    task = dataclasses.replace(TASK, retain=("queen",), labels=()) if change == "task" else TASK
    student = Student(base, cfg.parameters)
    objective = other(student)
    train(student, objective, task, cfg, EraserData(state=tmp_path, images=images), int(change == "seed"))
    assert objective.steps == list(range(24))


def test_a_finished_state_is_not_trained_again(pipe, tmp_path):
    cfg = dataclasses.replace(AVERAGED, checkpoints=(24,))  # a state is written at every checkpoint
    expected, _ = run(pipe, cfg, tmp_path / "state", tmp_path / "a")
    found, objective = run(pipe, cfg, tmp_path / "state", tmp_path / "b")
    assert objective.steps == [] and same(found, expected) and curve(tmp_path / "b") == curve(tmp_path / "a")


# --- mistakes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_names_step_and_lr(pipe, tmp_path, value):
    class Broken(Pull):
        def loss(self, step):
            return super().loss(step) * (value if step == 6 else 1)

    student = Student(pipe, CFG.parameters)
    broken = Broken(student)
    with pytest.raises(ValueError, match=rf"loss is {value} at step 7 with lr = 0\.01; lower lr"):
        train(student, broken, TASK, CFG, EraserData(state=tmp_path / "state"), 0, tmp_path)
    assert not list(tmp_path.iterdir())  # no curve, no state to continue from
    assert len(broken.steps) == loop.CHECK_EVERY  # found at the next look, not at the end


def test_objective_without_a_loss_is_an_error(pipe):
    student = Student(pipe, CFG.parameters)
    with pytest.raises(NotImplementedError):
        train(student, Objective(student, TASK, CFG, EraserData(), 0), TASK, CFG, EraserData(), 0)


# --- samples


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_all_concepts_are_seen_equally_often(batch):
    concepts = ["a", "b", "c", "d", "e"]
    found = [sample.concept for step in range(5) for sample in samples(concepts, batch, 0, step)]
    assert set(Counter(found).values()) == {batch}
    for start in range(0, len(found), 5):
        assert sorted(found[start : start + 5]) == concepts  # each round shows every concept once
    rounds = {tuple(found[start : start + 5]) for start in range(0, len(found), 5)}
    assert batch == 1 or len(rounds) > 1  # in a new order


def test_the_order_of_concepts_does_not_depend_on_the_batch():
    concepts = ["a", "b", "c"]
    single = [samples(concepts, 1, 3, step)[0].concept for step in range(12)]
    fours = [sample.concept for step in range(3) for sample in samples(concepts, 4, 3, step)]
    assert single == fours
    assert single != [samples(concepts, 1, 4, step)[0].concept for step in range(12)]


def test_generators_follow_seed_step_and_number():
    def first(seed: int, step: int) -> list[float]:
        return [float(torch.rand((), generator=sample.generator)) for sample in samples(["a"], 3, seed, step)]

    values = [x for seed in (0, 1) for step in (0, 1) for x in first(seed, step)]
    assert len(set(values)) == 12 and first(0, 1) == values[3:6]


def test_parameters_that_a_method_does_not_use_are_told(pipe):
    class Blind(Objective):
        def loss(self, step: int) -> torch.Tensor:
            return torch.ones((), requires_grad=True).square()

    student = Student(pipe, "xattn-kv")
    with pytest.raises(ValueError, match="none of the trained weights"):
        train(student, Blind(student, TASK, CFG, EraserData(), 0), TASK, CFG, EraserData(), seed=0)


@pytest.mark.parametrize("method", ["esd", "sdd", "spm", "eap"])
def test_methods_that_train_the_unet_refuse_the_text_encoder(method: str) -> None:
    with pytest.raises(ConfigError, match="parameters = 'text-encoder': this method trains the UNet; choose"):
        eraser_config(method)(parameters="text-encoder")


def test_an_edited_file_of_captions_begins_anew(pipe, tmp_path):
    """Settings and paths are the same, so only what was embedded tells the two runs apart."""

    def begins(first: str, second: str) -> int:
        for caption, at in ((first, 12), (second, None)):
            student = Student(pipe, "xattn-kv")
            student.texts([caption])
            objective = Pull(student, at=at, doing=lambda: signal.raise_signal(signal.SIGTERM))
            with contextlib.suppress(SystemExit):
                train(student, objective, TASK, CFG, EraserData(state=tmp_path / f"{first}, {second}"), 0)
        return objective.steps[0]

    assert begins("a ship", "a ship") == 13 and begins("a ship", "a boat") == 0


def test_a_half_precision_base_trains_in_single_precision():
    from resurgence.erasers.gradient import esd

    half = make_pipeline(max_length=32).to(torch.bfloat16)
    before = {f"unet.{name}": p.detach().clone() for name, p in half.unet.named_parameters()}
    cfg = eraser_config("esd")(x_t="base", ddim_steps=2, trajectories=1, steps=3, lr=1e-2)
    delta = esd.erase(half, TASK, cfg, EraserData(), seed=0)
    assert {value.dtype for value in delta.values()} == {torch.bfloat16}
    assert all(not torch.equal(value, before[name]) for name, value in delta.items())
    # steps too small for bfloat16 add up in the float32 leaves
    student = Student(half, "xattn-kv")
    assert {weight.dtype for weight in student.weights.values()} == {torch.float32}

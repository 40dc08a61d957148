"""The space of predictions and targets: weights between the spaces, for every eraser that compares predictions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler

from resurgence.config.erasers import ERASERS, eraser_config
from resurgence.config.fields import ConfigError, build
from resurgence.config.optimisation import Optimisation
from resurgence.erasers import EraserData, method
from resurgence.erasers.gradient.advunlearn import Advunlearn, student_of
from resurgence.erasers.gradient.ca import Ca
from resurgence.erasers.gradient.doco import Doco
from resurgence.erasers.gradient.eap import Eap
from resurgence.erasers.gradient.erasediff import EraseDiff
from resurgence.erasers.gradient.erasure import whole_student
from resurgence.erasers.gradient.esd import Esd
from resurgence.erasers.gradient.salun import Salun
from resurgence.erasers.gradient.scissorhands import ScissorHands
from resurgence.erasers.gradient.sdd import Sdd
from resurgence.erasers.gradient.spm import Membranes, adapted
from resurgence.erasers.gradient.student import Student, in_space
from resurgence.erasers.gradient.trajectories import Points
from resurgence.erasers.gradient.trajectory_configs import TrajectoryOptimisation
from slow import KINDS, TASK, embed, pipeline, predicted, relative, same, shake, shaken, truth
from slow_images import CAPTIONS, pictures

pytest_plugins = ("erasure_fixtures",)

SPACES = ("prediction", "noise", "clean")
T = 700
SHORT = {"ddim_steps": 2, "trajectories": 1, "guidance": 1.0}
IMAGES = {"batch": 1, "captions": CAPTIONS}
CASES = {  # eraser -> objective, settings, the curves that are losses of predictions
    "esd": (Esd, {"x_t": "base", **SHORT}, ["loss"]),
    "sdd": (Sdd, {"z_t": "base", **SHORT}, ["loss"]),
    "spm": (Membranes, {"adapters": "shared", "anchors": 1, **SHORT}, ["loss", "erasing", "anchoring"]),
    "eap": (Eap, {"closest": 6, "search_steps": 0, **SHORT}, ["loss", "erasing", "preservation"]),
    "advunlearn": (Advunlearn, {"warmup": 9, "retain_batch": 1, "gamma": 0.0, **SHORT}, ["loss"]),
    "ca": (Ca, {"loss": "noise-based", "anchor_weight": 0.5, **IMAGES}, ["loss"]),
    "doco": (Doco, {"unlearning": "l2", **IMAGES}, ["loss", "retain"]),
    "salun": (Salun, {"fraction": 1.0, "mask_steps": 1, "alpha": 0.0, **IMAGES}, ["loss"]),
    "erasediff": (EraseDiff, {"inner_steps": 0, **IMAGES}, ["remain", "forget"]),
    "scissorhands": (ScissorHands, {"sparsity": 1.0, "saliency_steps": 1, **IMAGES}, ["remain", "forget"]),
}


def factor(alpha: float, velocity: bool, space: str) -> float:
    """Of the squared error in a space, against that of the prediction itself; e.g. Salimans & Ho 2022, appendix D."""
    if velocity:
        return {"prediction": 1.0, "noise": alpha, "clean": 1 - alpha}[space]
    return {"prediction": 1.0, "noise": 1.0, "clean": (1 - alpha) / alpha}[space]


@pytest.fixture
def at_t(monkeypatch):
    """Every sample is at timestep T, whose weight is then that of the whole loss."""
    original = torch.randint

    def drawn(high, *args, **options):
        return torch.tensor(T) if high == 1000 else original(high, *args, **options)

    monkeypatch.setattr(torch, "randint", drawn)
    monkeypatch.setattr(
        "resurgence.erasers.gradient.trajectories.Trajectories.at",
        lambda self, places: Points(
            torch.stack([self.latents[p.name][0, 0] for p in places]), torch.full((len(places),), T)
        ),
    )
    monkeypatch.setattr(TrajectoryOptimisation, "asks_in_advance", lambda self, concepts: False)


def data() -> EraserData:
    anchors = {name: torch.ones(1, 3, 16, 16) * level for name, level in (("street", 0.4), ("the dog", -0.3))}
    return dataclasses.replace(pictures(), anchors=anchors)


def curves(pipe, eraser: str, space: str) -> dict[str, float]:
    """Losses of a step of an eraser whose model has moved away from the base, the same way in each space."""
    objective, settings, names = CASES[eraser]
    cfg = eraser_config(eraser)(**{"batch": 1, "space": space, **settings})
    make = {"spm": adapted, "advunlearn": student_of}.get(eraser, whole_student)
    student = make(pipe, TASK, cfg, 0)
    goal = objective(student, TASK, cfg, data(), 0)
    if eraser == "spm":
        for w in student.weights.values():
            w.data.add_(0.1)
    else:
        shake(student)
    student.average = shaken(student.weights)
    shown = goal.gradient(1)[1]
    return {name: float(shown[name]) for name in names}


def test_the_cases_are_the_erasers_that_compare_predictions():
    configs = {name: eraser_config(name) for name in ERASERS}
    gradient = {name for name, config in configs.items() if issubclass(config, Optimisation)}
    assert gradient - {"fmn"} == set(CASES)


@pytest.mark.parametrize("eraser", list(CASES))
def test_losses_of_an_eraser_have_the_weights_of_their_space(double, at_t, eraser):
    alpha, velocity = float(double.scheduler.alphas_cumprod[T]), double.scheduler.config.prediction_type != "epsilon"
    reference = curves(double, eraser, "prediction")
    assert all(abs(value) > 1e-9 for value in reference.values())
    for space in SPACES[1:]:
        expected = {name: factor(alpha, velocity, space) * value for name, value in reference.items()}
        assert curves(double, eraser, space) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("space", SPACES)
def test_predictions_and_truth_equal_slow_formulas(double, space):
    student = Student(double, "xattn", space)
    g = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 8, 8, generator=g).double() for _ in range(2))
    text = embed(double, "a photo of the ship")
    for t in (0, 400, 999):
        a = double.scheduler.alphas_cumprod[t]
        x, time = a**0.5 * clean + (1 - a) ** 0.5 * noise, torch.tensor([t])
        result = student.frozen(x[None], time, text[None])[0]
        assert relative(result, predicted(double, double.unet, x, t, text, space)) < 1e-9
        assert relative(student.truth(clean[None], noise[None], time)[0], truth(double, clean, noise, t, space)) < 1e-12
        ideal = truth(double, clean, noise, t)  # predicted by the base, it is the truth of every space
        result = student.in_space(ideal[None], x[None], time)
        assert relative(result, student.truth(clean[None], noise[None], time)) < 1e-9


def zero_snr(pipe):
    """The pipeline with a schedule that ends in pure noise, as Lin et al. 2024 rescale it."""
    scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    assert float(scheduler.alphas_cumprod[-1]) < 1e-7
    scheduler.alphas_cumprod[-1] = 0.0
    pipe.scheduler = scheduler
    return pipe


@pytest.mark.parametrize("space", SPACES)
def test_zero_terminal_snr_is_finite_and_only_predicted_noise_has_no_gradient_there(space):
    """alpha_bar = 0: eps = x_t whatever the model says, v and x_0 are what it decides."""
    pipe = zero_snr(pipeline("velocity"))
    student, t = Student(pipe, "xattn", space), torch.tensor([999])
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8, generator=g), embed(pipe, "a photo of the ship")[None]
    result = student(x, t, text)
    gradients = torch.autograd.grad(result.square().sum(), list(student.weights.values()))
    size = torch.stack([w.abs().max() for w in gradients]).max()
    assert result.isfinite().all() and size.isfinite()
    assert size == 0 if space == "noise" else size > 1e-3


@pytest.mark.parametrize("eraser", ["esd", "ca", "doco"])
@pytest.mark.parametrize("space", SPACES)
def test_training_on_a_base_with_zero_terminal_snr_stays_finite(space, eraser):
    pipe = zero_snr(pipeline("velocity"))
    settings = {**CASES[eraser][1], "batch": 2, "steps": 2, "space": space}
    if eraser == "doco":
        settings |= {"unlearning": "adversarial", "discriminate": "clean", "warmup": 1}
    delta = method(eraser).erase(pipe, TASK, eraser_config(eraser)(**settings), data(), 0)
    before = dict(pipe.unet.named_parameters())
    assert all(w.isfinite().all() for w in delta.values())
    assert any(not torch.equal(w, before[name.removeprefix("unet.")]) for name, w in delta.items())


@pytest.mark.parametrize("kind", list(KINDS))
def test_noise_is_the_prediction_of_an_epsilon_base_alone(kind):
    pipe = pipeline(kind)
    cfg = eraser_config("esd")(x_t="base", steps=2, lr=1e-3, **SHORT)
    deltas = [method("esd").erase(pipe, TASK, dataclasses.replace(cfg, space=s), data(), 0) for s in SPACES]
    assert same(deltas[0], deltas[1]) == (kind == "epsilon")
    assert not same(deltas[0], deltas[2])


def test_a_space_without_effect_is_refused():
    with pytest.raises(ConfigError, match=r"fmn\.space = 'clean': has no effect: this method compares no predictions"):
        build(eraser_config("fmn"), {"space": "clean"}, "fmn")
    with pytest.raises(ConfigError, match=r"esd\.space = 'x0'.*known: clean, noise, prediction"):
        build(eraser_config("esd"), {"space": "x0"}, "esd")


def test_the_prediction_itself_is_returned_unchanged():
    p, x, a = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.rand(2)
    assert in_space(p, x, a, True, "prediction") is p and in_space(p, x, a, False, "noise") is p

"""Trainings in micro-batches, with checkpointed blocks, and after out-of-memory errors: the gradients of whole batches.

In float64, where splitting a batch changes gradients by rounding alone.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resurgence.config.fields import ConfigError, build
from resurgence.config.stages import FinetuneConfig
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.erasers.gradient import doco
from resurgence.erasers.gradient.student import Student
from resurgence.stages.job import split_passes
from resurgence.training import finetune, loop, memory
from resurgence.training.memory import CHECKPOINTING, MICRO_BATCH, PassLimits
from slow import TASK, pipeline, same, snapshot
from slow_images import pictures

discriminator = doco.discriminator
Gradients = list[dict[str, torch.Tensor]]  # of each step, by the name of the weight
SHORT = {"steps": 2, "batch": 4, "lr": 1e-3, "captions": ["a photo of the {}"], "ddim_steps": 2, "trajectories": 1}
ERASURES: dict[str, dict[str, Any]] = {
    "ca": {"anchor_weight": 0.5},
    "fmn": {"parameters": "full"},
    "doco": {"warmup": 1},
    "salun": {"mask_steps": 1, "fraction": 0.7},
    "erasediff": {"multiplier": "value", "eta": 2.0, "inner_steps": 1},
    "scissorhands": {"saliency_steps": 1, "forget": "pseudo", "sparsity": 0.9},
    "esd": {},
    "sdd": {},
    "spm": {"anchors": 1, "adapters": "shared"},
    "eap": {"closest": 5, "search_steps": 1},
    "advunlearn": {"warmup": 1, "attack_steps": 1, "retain_batch": 2},
    "mace": {"lamb": 1.0, "train_preserve_scale": 0.0, "fuse_preserve_scale": 0.0},
}
TUNES: dict[str, dict[str, Any]] = {
    "lora": {"batch": 4, "accumulation": 1},
    "full": {"algorithm": "full", "batch": 2, "accumulation": 2, "ema": True},
}
ALL = [*ERASURES, *TUNES]
READ_ATTENTION = ("fmn", "mace")  # their blocks are not checkpointed
FAST = ("mace", "fmn", "esd", "erasediff", "lora", "full")  # both limits at once; for the others nightly
LIMIT = 2  # samples that fit into the simulated memory


@functools.cache
def base(dtype: torch.dtype = torch.float64):
    return pipeline("epsilon", dtype)


@functools.cache
def data() -> EraserData:
    given, g = pictures(), torch.Generator().manual_seed(3)
    anchors = {name: torch.rand(2, 3, 16, 16, generator=g) * 2 - 1 for name in TASK.mapping.values()}
    masks = {name: images[:, :1] > 0 for name, images in given.images.items()}
    return EraserData(images=given.images, retained=given.retained, anchors=anchors, masks=masks)


def train(name: str, folder: Path) -> None:
    """The training of an eraser or a fine-tune, two steps."""
    if name in TUNES:
        cfg = build(FinetuneConfig, {"steps": 2, "lr": 1e-3} | TUNES[name], name)
        images = torch.cat([*data().images.values()])
        finetune.finetune(base(), images, [f"picture {n}" for n in range(len(images))], cfg, 0, folder)
        return
    config = eraser_config(name)
    fields = {k: v for k, v in {**SHORT, **ERASURES[name]}.items() if k in config.__dataclass_fields__}
    method(name).erase(base(), TASK, build(config, fields, name), data(), 0)


def observed(name: str, folder: Path) -> Gradients:
    """The gradients of each step; the base is left as it was."""
    before, seen, plain = snapshot(base()), [], loop.gradient_of

    def gradient_of(run: loop.Run, step: int) -> Any:
        values = plain(run, step)
        seen.append({n: w.grad.clone() for n, w in run.weights.items() if w.grad is not None})
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "gradient_of", gradient_of)
        patch.setattr(finetune, "check_inputs", lambda *args: None)  # which refuses float64
        patch.setattr(doco, "discriminator", lambda *args: discriminator(*args).double())
        train(name, folder)
    assert same(snapshot(base()), before) and not base().unet.is_gradient_checkpointing
    return seen


@functools.cache
def whole(name: str) -> Gradients:
    """The gradients with all samples in one pass."""
    import tempfile

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv(MICRO_BATCH, "1000")
        return observed(name, Path(folder))


def assert_equal(found: Gradients, expected: Gradients) -> None:
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        scale = max([float(g.abs().max()) for g in theirs.values()], default=0.0)
        assert all(float((g - theirs[n]).abs().max()) <= 1e-10 * scale for n, g in ours.items())


@pytest.fixture
def passes(monkeypatch) -> list[tuple[int, bool, bool]]:
    """Samples of each pass of the UNet, whether it saves activations, and whether its blocks are checkpointed."""
    seen, forward = [], base().unet.forward

    def counted(x: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append((len(x), torch.is_grad_enabled(), base().unet.is_gradient_checkpointing))
        return forward(x, *args, **options)

    monkeypatch.setattr(base().unet, "forward", counted)
    return seen


@pytest.mark.parametrize(
    ("name", "size", "checkpointing"),
    [(name, 1, False) for name in ALL]
    + [(name, 2, True) for name in FAST]
    + [pytest.param(name, 2, True, marks=pytest.mark.nightly) for name in ALL if name not in FAST]
    + [(name, 2, False) for name in ("fmn", "doco", "full")]
    + [(name, 1000, True) for name in ("erasediff", "spm", "lora")],
)
def test_gradients_do_not_depend_on_the_micro_batch(name, size, checkpointing, passes, monkeypatch, tmp_path):
    expected = whole(name)
    monkeypatch.setenv(MICRO_BATCH, str(size))
    monkeypatch.setenv(CHECKPOINTING, str(checkpointing).lower())
    passes.clear()
    assert_equal(observed(name, tmp_path), expected)
    assert max(samples for samples, *_ in passes) == size or size == 1000
    blocks = checkpointing and name not in READ_ATTENTION
    assert {checkpointed for _, graded, checkpointed in passes if graded} == {blocks}
    used = split_passes()
    assert used["checkpointing"] == blocks and (used["micro_batch"] == size or size == 1000)


@pytest.fixture
def small_memory(monkeypatch) -> Callable[[bool], None]:
    """A UNet that is out of memory above LIMIT samples; or with `blocks` for one sample too, unless checkpointed."""
    forward = base().unet.forward

    def simulate(blocks: bool) -> None:
        def limited(x: torch.Tensor, *args: Any, **options: Any) -> Any:
            fits = len(x) <= LIMIT if not blocks else len(x) == 1 and base().unet.is_gradient_checkpointing
            if not fits and torch.is_grad_enabled():
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return forward(x, *args, **options)

        monkeypatch.setattr(base().unet, "forward", limited)

    return simulate


@pytest.mark.parametrize("name", ALL)
def test_a_step_out_of_memory_is_repeated_with_the_same_draws(name, small_memory, monkeypatch, tmp_path, caplog):
    expected = whole(name)
    if name in TUNES:
        monkeypatch.setenv(MICRO_BATCH, "4")
    small_memory(blocks=False)
    with caplog.at_level(logging.WARNING, memory.__name__):
        assert_equal(observed(name, tmp_path), expected)
    used = split_passes()
    assert 1 <= used["micro_batch"] <= LIMIT and not used["checkpointing"]  # 12, 6, 3, 1 for the twelve samples of SPM
    told = [record.message for record in caplog.records]
    ending = f"repeated with micro-batches of {used['micro_batch']}"
    assert not told if name == "mace" else told[-1].endswith(ending)


@pytest.mark.parametrize("name", ["erasediff", pytest.param("advunlearn", marks=pytest.mark.nightly), "eap", "full"])
def test_blocks_are_checkpointed_when_one_sample_does_not_fit(name, small_memory, tmp_path, caplog):
    small_memory(blocks=True)
    with caplog.at_level(logging.WARNING, memory.__name__):
        assert_equal(observed(name, tmp_path), whole(name))
    assert split_passes() == {"micro_batch": 1, "checkpointing": True}
    assert caplog.records[-1].message.endswith("micro-batches of 1 and checkpointing")


def test_the_error_remains_where_nothing_is_left_to_reduce(small_memory, monkeypatch, tmp_path):
    small_memory(blocks=True)
    monkeypatch.setenv(CHECKPOINTING, "false")
    before = snapshot(base())
    for name in ("erasediff", "full"):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            observed(name, tmp_path)
        assert same(snapshot(base()), before)  # also where weights were in main memory


def test_a_resumed_training_keeps_its_micro_batches():
    limits = PassLimits(micro_batch=None, checkpointing=False, may_checkpoint=True)
    limits.load({"micro_batch": 2, "checkpointing": True})
    assert [part.stop - part.start for part in limits.parts(5)] == [2, 2, 1] and limits.checkpointing
    limits = PassLimits(micro_batch=1, checkpointing=False, may_checkpoint=True)
    limits.load({"micro_batch": None, "checkpointing": False})
    assert limits.state() == {"micro_batch": 1, "checkpointing": False}


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        (MICRO_BATCH, "0", "write auto or a number of samples"),
        (MICRO_BATCH, "-1", "write auto or a number of samples"),
        (MICRO_BATCH, "many", "write auto or a number of samples"),
        (CHECKPOINTING, "yes", "write auto, true or false, or unset it"),
    ],
)
def test_values_that_mean_nothing_are_refused(variable, value, remedy, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"the environment variable {variable} = '{value}': {remedy}"):
        PassLimits()


def test_an_original_in_main_memory_is_restored_and_not_read():
    student = Student(base(), "xattn")
    before = snapshot(base())
    x, t, text = torch.zeros(1, 4, 8, 8), torch.tensor([3]), torch.zeros(1, 24, 32)
    trained, frozen = student(x, t, text), student.frozen(x, t, text)
    with student.original_set_aside():
        assert torch.equal(student(x, t, text), trained)
        assert student.frozen(x, t, text).isnan().all()
        assert student.texts(["a ship"]).isnan().all()
    assert same(snapshot(base()), before) and torch.equal(student.frozen(x, t, text), frozen)


def saved_bytes(compute: Callable[[], torch.Tensor]) -> Iterator[int]:
    """Bytes of the tensors that a graph saves for its backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    del result
    return sum(sizes.values())


def test_a_graph_saves_the_activations_of_one_micro_batch():
    x, t, text = torch.randn(8, 4, 8, 8), torch.full((8,), 3), torch.randn(8, 24, 32)

    def bytes_of(limits: dict[str, Any]) -> int:
        student = Student(base(), "attention")
        student.limits = PassLimits(**limits)
        return saved_bytes(lambda: student(x, t, text))

    every = bytes_of({"micro_batch": None, "checkpointing": False})
    two = bytes_of({"micro_batch": 2, "checkpointing": False})
    blocks = bytes_of({"micro_batch": None, "checkpointing": True})
    weights = sum(p.numel() * 8 for p in base().unet.parameters())
    assert two - weights < 0.35 * (every - weights) and blocks - weights < 0.5 * (every - weights)


def test_a_pass_with_weights_in_place_of_others_does_not_list_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a search for tied weights would, in each pass."""
    pipe = base()
    student = Student(pipe, "xattn")
    inputs = torch.zeros(1, 4, 8, 8, dtype=torch.float64), torch.tensor([5]), student.texts(["a"])
    expected, parameters = student.frozen(*inputs), type(pipe.unet).named_parameters

    def named_parameters(self: torch.nn.Module, *args: Any, remove_duplicate: bool = True, **options: Any) -> Any:
        assert remove_duplicate
        return parameters(self, *args, **options)

    monkeypatch.setattr(type(pipe.unet), "named_parameters", named_parameters, raising=False)
    assert torch.equal(student(*inputs), expected)

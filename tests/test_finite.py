"""Weights that are NaN or infinite are refused when they are read, written or merged: file, tensor, remedy."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import load_file, save_file

from resurgence.config.task import Task
from resurgence.data.moments import load_moments, save_moments
from resurgence.diffusion import deltas
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.pipeline import export, load_base
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.diffusion.text import Encoder
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form import solver
from resurgence.erasers.gradient.spm_transport import opened
from resurgence.erasers.lora import load_loras, save_loras
from resurgence.erasers.mace import method as mace
from resurgence.erasers.mace.config import MaceConfig
from resurgence.pretrained.finite import check_finite, is_finite
from resurgence.pretrained.loading import read_tensors
from resurgence.scorers import clip
from resurgence.scorers.configs import ClipConfig
from resurgence.scorers.recogniser_model import Recogniser, load_recogniser, save_recogniser
from resurgence.training.checkpoint import Saver
from resurgence.training.loop import GRADIENT_NORM, Run, train
from resurgence.training.lora import prepare, restore, save_checkpoint
from tiny import make_pipeline, save_lora

BAD = [math.nan, math.inf, -math.inf]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
PROJECTION = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
bad_values = pytest.mark.parametrize("value", BAD)


def spoilt(tensor: torch.Tensor, value: float, place: int = 0) -> torch.Tensor:
    """A copy with one value replaced; `place` counts from the end if it is negative."""
    copy = tensor.clone()
    copy.view(-1)[place] = value
    return copy


def spoil(file: Path, name: str, value: float) -> None:
    """Replace the last value of a tensor in a file."""
    tensors = load_file(file)
    save_file({**tensors, name: spoilt(tensors[name], value, -1)}, file)


# --- the check


@bad_values
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 31, 70_000, -1])
def test_one_value_anywhere_is_noticed_in_every_type(value: float, dtype: torch.dtype, place: int) -> None:
    values = torch.randn(300, 257, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert is_finite(values)
    with pytest.raises(ValueError, match=rf"^file: b has 1 of 77100 values .*\({str(dtype)[6:]}\); do this$"):
        check_finite({"a": values, "b": spoilt(values, value, place)}, "file", "do this")
    assert not is_finite(spoilt(values, value, place).T)  # not contiguous


@pytest.mark.parametrize(("dtype", "value"), [(torch.float8_e4m3fn, math.nan), (torch.float8_e5m2, math.inf)])
def test_8_bit_floats(dtype: torch.dtype, value: float) -> None:
    values = torch.linspace(-4, 4, 9)
    check_finite({"a": values.to(dtype)}, "file", "")
    with pytest.raises(ValueError, match=r"file: a has 1 of 9 values that are NaN or infinite \(float8"):
        check_finite({"a": spoilt(values, value).to(dtype)}, "file", "")


@pytest.mark.parametrize(
    "values", [torch.tensor([]), torch.tensor(3), torch.tensor([True]), torch.tensor(1e300, dtype=torch.float64)]
)
def test_empty_whole_and_huge_values_are_finite(values: torch.Tensor) -> None:
    check_finite({"a": values}, "file", "")


@settings(max_examples=200, deadline=None)
@given(arrays(st.sampled_from([np.float16, np.float32, np.float64]), array_shapes(max_dims=3, max_side=5),
              elements={"allow_nan": True, "allow_infinity": True, "allow_subnormal": False}))  # fmt: skip
def test_the_same_as_numpy(values: np.ndarray) -> None:
    assert is_finite(torch.from_numpy(values)) == bool(np.isfinite(values).all())


# --- bases


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_pipeline().save_pretrained(folder)
    return folder


PARTS = {
    "unet": ("diffusion_pytorch_model.safetensors", "conv_out.weight"),
    "vae": ("diffusion_pytorch_model.safetensors", "decoder.conv_out.bias"),
    "text_encoder": ("model.safetensors", "text_model.final_layer_norm.weight"),
}


@bad_values
@pytest.mark.parametrize("part", PARTS)
def test_a_base(base: Path, tmp_path: Path, part: str, value: float) -> None:
    copy = shutil.copytree(base, tmp_path / "copy")
    file, name = PARTS[part]
    name = name if name in load_file(copy / part / file) else name.removeprefix("text_model.")
    spoil(copy / part / file, name, value)
    with pytest.raises(ValueError, match=rf"copy/?.*{part}.*: {name} has 1 of .* fetch"):
        load_base(copy)


def test_a_base_too_large_for_fp16_is_refused_in_fp16_only(base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(base, tmp_path / "copy")
    spoil(copy / "unet/diffusion_pytorch_model.safetensors", "conv_out.weight", 7e4)
    for precision in ("fp32", "bf16"):
        load_base(copy, precision=precision)
    with pytest.raises(ValueError, match=r"copy/unet: conv_out\.weight .*\(float16\); .* or use precision fp32"):
        load_base(copy, precision="fp16")


def with_schedule(base: Path, copy: Path, **options: object) -> Path:
    """A copy of a base with other entries in the configuration of its scheduler."""
    file = shutil.copytree(base, copy) / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))
    return copy


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_zero_terminal_snr_needs_another_prediction_than_the_noise(base: Path, tmp_path: Path, spacing: str) -> None:
    """The last alpha_bar of such a schedule is 0 (Lin et al. 2024), and DDIM divides by its root."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": spacing}
    message = (
        r"noise/scheduler: prediction_type = 'epsilon', but alpha_bar is 0 at timestep 999.* correct prediction_type"
    )
    with pytest.raises(ValueError, match=message):
        load_base(with_schedule(base, tmp_path / "noise", **options))
    pipe = load_base(with_schedule(base, tmp_path / "velocity", prediction_type="v_prediction", **options))
    assert float(pipe.scheduler.alphas_cumprod[-1]) == 0
    rows = pd.DataFrame({"prompt": ["a photo of the ship"] * 2, "seed": [0, 1]})
    images = [np.asarray(image) for _, image in sample(pipe, rows, SamplingConfig(steps=3, guidance=3.0))]
    assert len(images) == 2 and min(image.std() for image in images) > 5


@pytest.mark.parametrize("betas", [[0.1, 1.5, 0.2], [0.1, math.nan, 0.2], [0.1, math.inf, 0.2], [-0.1, 0.2, 0.2]])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_schedule_outside_of_its_range(base: Path, tmp_path: Path, betas: list[float], kind: str) -> None:
    copy = with_schedule(base, tmp_path / "copy", trained_betas=betas, prediction_type=kind)
    with pytest.raises(ValueError, match=rf"copy/scheduler: prediction_type = '{kind}', but alpha_bar is"):
        load_base(copy)


# --- deltas and LoRAs


@bad_values
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_a_delta(tmp_path: Path, base: Path, value: float, dtype: torch.dtype) -> None:
    pipe, file = make_pipeline(), tmp_path / deltas.DELTA_FILE
    name = f"unet.{PROJECTION}.weight"
    delta = {name: spoilt(deltas.parameters(pipe)[name].detach().to(dtype), value, -1)}
    message = rf"delta\.safetensors: {name} has 1 of .* values that are NaN or infinite \({str(dtype)[6:]}\); "
    with pytest.raises(ValueError, match=message):
        deltas.save_delta(delta, file)
    assert not list(tmp_path.iterdir())
    save_file(delta, file)
    before = {n: p.clone() for n, p in deltas.parameters(pipe).items()}
    for read in (lambda: deltas.load_delta(file), lambda: deltas.apply_folder(pipe, tmp_path)):
        with pytest.raises(ValueError, match=message):
            read()
    with pytest.raises(ValueError, match=message):
        export(base, [tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=f"delta: {name} has 1 of"):
        deltas.apply_delta(pipe, delta)
    assert all(torch.equal(p, before[n]) for n, p in deltas.parameters(pipe).items())


@pytest.mark.parametrize(("precision", "value"), [("fp16", 7e4), ("fp16", -7e4), ("bf16", 3.4e38)])
def test_a_delta_too_large_for_a_pipeline_in_half_precision(tmp_path: Path, precision: str, value: float) -> None:
    dtype, name = deltas.DTYPES[precision], f"unet.{PROJECTION}.weight"
    pipe = make_pipeline()
    delta = {"unet.conv_out.bias": torch.zeros(4), name: spoilt(deltas.parameters(pipe)[name].detach(), value)}
    deltas.save_delta(delta, tmp_path / deltas.DELTA_FILE)
    deltas.apply_folder(pipe, tmp_path)
    pipe = make_pipeline().to(dtype=dtype)
    before = deltas.parameters(pipe)["unet.conv_out.bias"].clone()
    with pytest.raises(ValueError, match=rf"{name} has 1 of .*\({str(dtype)[6:]}\); use precision fp32"):
        deltas.apply_folder(pipe, tmp_path)
    assert torch.equal(deltas.parameters(pipe)["unet.conv_out.bias"], before)  # all or none


def lora_file(folder: Path) -> Path:
    save_lora(make_pipeline(), folder, True, r=2, lora_alpha=4)
    return folder / deltas.LORA_FILE


@bad_values
@pytest.mark.parametrize("side", ["lora_A", "lora_B", "alpha"])
def test_a_lora(tmp_path: Path, side: str, value: float) -> None:
    file, name = lora_file(tmp_path), f"unet.{PROJECTION}.{side}" + ("" if side == "alpha" else ".weight")
    tensors = load_file(file)
    save_file({**tensors, name: spoilt(tensors.get(name, torch.ones(1)), value, -1)}, file)
    with pytest.raises(ValueError, match=rf"{deltas.LORA_FILE}: {name} has 1 of .*; fetch it again"):
        deltas.apply_folder(make_pipeline(), tmp_path)


def test_a_lora_whose_product_overflows(tmp_path: Path) -> None:
    file, name = lora_file(tmp_path), f"unet.{PROJECTION}"
    tensors = load_file(file)
    for side in "AB":
        tensors[f"{name}.lora_{side}.weight"] = torch.full_like(tensors[f"{name}.lora_{side}.weight"], 1e20)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"{deltas.LORA_FILE}: {name}\.weight has 2048 of 2048 values"):
        deltas.apply_folder(make_pipeline(), tmp_path)


@bad_values
@pytest.mark.parametrize("side", [0, 1])
def test_the_loras_of_concepts(tmp_path: Path, side: int, value: float) -> None:
    good = {PROJECTION: (torch.ones(2, 32), torch.ones(64, 2))}
    pair = list(good[PROJECTION])
    pair[side] = spoilt(pair[side], value, -1)
    message = rf"a-cat/{deltas.LORA_FILE}: .*{PROJECTION}\.lora_{'AB'[side]}\.weight has 1 of"
    with pytest.raises(ValueError, match=message):
        save_loras({"ship": good, "a cat": {PROJECTION: tuple(pair)}}, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["ship"]
    save_loras({"ship": good, "a cat": good}, tmp_path)
    spoil(tmp_path / "a-cat" / deltas.LORA_FILE, f"unet.{PROJECTION}.lora_{'AB'[side]}.weight", value)
    assert list(load_loras(tmp_path, ["ship"])) == ["ship"]
    with pytest.raises(ValueError, match=message):
        load_loras(tmp_path, ["ship", "a cat"])


@bad_values
@pytest.mark.parametrize("rank", [2, None])
def test_a_checkpoint_of_a_fine_tuning_is_not_written(tmp_path: Path, rank: int | None, value: float) -> None:
    unet = make_pipeline().unet
    before = {} if rank else {name: p.detach().clone() for name, p in unet.state_dict().items()}
    trainable = prepare(unet, rank, 0)
    name = next(name for name in trainable if PROJECTION in name)
    trainable[name].data = spoilt(trainable[name].data, value, -1)
    with pytest.raises(
        ValueError, match=rf"safetensors: .*{PROJECTION}.* has 1 of .*; the step diverged: lower its lr"
    ):
        save_checkpoint(unet, trainable, before, tmp_path / "step-000001")
    assert not list(tmp_path.iterdir())
    restore(unet, before)


def test_adapters_that_overflow_when_they_are_opened() -> None:
    unet = make_pipeline().unet.half()
    before = unet.get_parameter(f"{PROJECTION}.weight").clone()
    pair = torch.full((1, 32), 200.0), torch.full((64, 1), 200.0)  # 4e4; both together leave fp16
    adapters = {"ship": {PROJECTION: pair}, "cat": {PROJECTION: pair}}
    message = rf"opened adapters: {PROJECTION} .*\(float16\); use precision fp32"
    with pytest.raises(ValueError, match=message), opened(unet, adapters, {"ship": 1.0, "cat": 1.0}):
        pass
    assert torch.equal(unet.get_parameter(f"{PROJECTION}.weight"), before)
    with opened(unet, adapters, {"ship": 1.0, "cat": 0.0}):
        assert is_finite(unet.get_parameter(f"{PROJECTION}.weight"))


# --- scorers and moments


@bad_values
def test_a_recogniser(tmp_path: Path, value: float) -> None:
    save_recogniser(Recogniser(3, 4, 16), ["a", "b", "c"], tmp_path)
    spoil(tmp_path / "model.safetensors", "head.weight", value)
    with pytest.raises(ValueError, match=r"model\.safetensors': head\.weight has 1 of 72 values .* `make world`"):
        load_recogniser(tmp_path)


@bad_values
@pytest.mark.parametrize("name", ["visual.proj", "token_embedding.weight"])
def test_a_clip(tmp_path: Path, name: str, value: float) -> None:
    from workflow.small_world import make_clip

    make_clip(tmp_path / "clip")
    clip.load(ClipConfig(str(tmp_path / "clip")))
    spoil(tmp_path / "clip/open_clip_model.safetensors", name, value)
    with pytest.raises(ValueError, match=rf"scorers\.clip: \S*/clip: {name} has 1 of"):
        clip.load(ClipConfig(str(tmp_path / "clip")))


@bad_values
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_other_published_weights(tmp_path: Path, suffix: str, value: float) -> None:
    file, tensors = tmp_path / f"x.{suffix}", {"a": torch.ones(3), "b": spoilt(torch.ones(3), value)}
    save_file(tensors, file) if suffix == "safetensors" else torch.save(tensors, file)
    with pytest.raises(ValueError, match=rf"^scorers\.x\.path = '.*x\.{suffix}': b has 1 of 3 values .*; fetch it$"):
        read_tensors(file, "scorers.x.path", "fetch it")


@bad_values
def test_second_moments(tmp_path: Path, value: float) -> None:
    moment, file = torch.eye(4, dtype=torch.float64), tmp_path / "moments.safetensors"
    with pytest.raises(ValueError, match=r"moments\.safetensors: C has 1 of 16 values"):
        save_moments(file, spoilt(moment, value, 7), 3)
    save_file({"C": spoilt(moment, value, 7), "count": torch.tensor(3)}, file)
    with pytest.raises(ValueError, match=r"moments\.safetensors'?: C has 1 of 16 values .*; run its stage again"):
        load_moments(file)


# --- erasers and trainings

TASK = Task(name="x", kind="object", erase=("ship", "cat"), retain=("dog",), mapping={"ship": "sky", "cat": "sky"},
            templates=("a photo of the {}",), seeds={"erase": 1, "retain": 1, "synonym": 1})  # fmt: skip


@bad_values
def test_a_system_of_a_closed_form(value: float) -> None:
    system = torch.eye(5, dtype=torch.float64)
    system[1, 2] = system[2, 1] = value
    with pytest.raises(
        ValueError, match=r"closed form with lamb = 3: the system has 2 of 25 values .*; check the base"
    ):
        solver.factorise(system, "lamb = 3")


@bad_values
def test_solved_weights(value: float) -> None:
    weights = {"a": torch.ones(2, 3), "b": torch.ones(4, 3)}
    edit = solver.Edit(torch.zeros(3, 3, dtype=torch.float64), 1.0)
    solver.edited_delta("uce", weights, edit)
    edit.matrix[0, 2] = value
    with pytest.raises(ValueError, match=r"^uce: a has 2 of 6 values .*; raise lamb$"):
        solver.edited_delta("uce", weights, edit)


def test_solved_weights_too_large_for_their_type() -> None:
    edit = solver.Edit(torch.full((3, 3), 1e39, dtype=torch.float64), 1.0)
    with pytest.raises(ValueError, match=r"^time: a has 6 of 6 values that are NaN or infinite \(float32\)"):
        solver.edited_delta("time", {"a": torch.ones(2, 3)}, edit)


@bad_values
@pytest.mark.parametrize("fusion", ["closed-form", "constrained"])
def test_a_fusion(fusion: str, value: float) -> None:
    """A LoRA that is not finite spoils its projection, which must not reach the solver of the constrained form."""
    pipe = make_pipeline(max_length=24)
    factors = {
        n: (torch.zeros(1, w.shape[1]), torch.zeros(len(w), 1)) for n, w in projection_weights(pipe.unet).items()
    }
    spoilt_factors = {**factors, PROJECTION: (factors[PROJECTION][0], spoilt(factors[PROJECTION][1], value))}
    cfg = MaceConfig(captions=("a photo of {}",), lamb=1.0, fuse_preserve_scale=0.0, fusion=fusion)
    with pytest.raises(ValueError, match=rf"^fusion: {PROJECTION} has .*; raise lamb$"):
        mace.fuse(pipe, TASK, cfg, EraserData(), {}, {"ship": factors, "cat": spoilt_factors})
    mace.fuse(pipe, TASK, replace(cfg, fusion="closed-form"), EraserData(), {}, {"ship": factors, "cat": factors})


def diverging(weights: dict[str, torch.Tensor], steps: int, **options: object) -> Run:
    """A training with a finite loss whose gradient becomes NaN in the last step: as that of sqrt(x) at 0."""

    def gradient(step: int) -> dict[str, torch.Tensor]:
        loss = torch.stack([w.sum() for w in weights.values()]).sum() if step < steps - 1 else weights["a"].sub(
            weights["a"].detach()).abs().sqrt().sum()  # fmt: skip
        loss.backward()
        for w in weights.values():
            w.grad = torch.zeros_like(w) if w.grad is None else w.grad
        return {"loss": loss.detach()}

    optimiser = torch.optim.SGD(weights.values(), 0.1)
    return Run("test", steps, weights, optimiser, gradient, lambda step: 0.5 / (1 + step), **options)


@pytest.fixture
def weights() -> Iterator[dict[str, torch.Tensor]]:
    yield {"a": torch.ones(3, requires_grad=True), "b": torch.ones(2, requires_grad=True)}


@pytest.mark.parametrize("steps", [1, 4, 10, 13])
@pytest.mark.parametrize("checkpoints", [(), True])
def test_weights_that_the_last_step_made_nan(weights: dict, steps: int, checkpoints: object) -> None:
    """No loss is computed from them any more."""
    written: list[int] = []
    options = {"checkpoints": (steps,), "write": written.append} if checkpoints else {}
    message = (
        rf"^test: step {steps} with lr = {0.5 / steps:g}: a has 3 of 3 values .*; lower lr, or use precision fp32$"
    )
    with pytest.raises(ValueError, match=message):
        train(diverging(weights, steps, **options), Saver(None, ""))
    assert not written


def scaled(weights: dict, norms: Callable[[int], float], steps: int) -> Run:
    """A training with a GradScaler, which skips a step whose gradient is not finite."""
    taken: list[int] = []

    def gradient(step: int) -> dict[str, torch.Tensor]:
        taken.append(step)
        for w in weights.values():
            w.grad = torch.full_like(w, norms(step))
        return {"loss": torch.tensor(1.0)}

    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.tensor(1.0))
    clip_to = lambda ws: torch.nn.utils.clip_grad_norm_(ws, 1.0)  # noqa: E731
    return Run("test", steps, weights, torch.optim.SGD(weights.values(), 0.1), gradient, lambda step: 0.1,
               clip=clip_to, scaler=scaler)  # fmt: skip


@bad_values
def test_a_training_in_fp16_that_never_took_a_step(weights: dict, value: float) -> None:
    with pytest.raises(
        ValueError, match=r"test: step 5 with lr = 0\.1: no gradient of 5 steps is finite.* use precision bf16"
    ):
        train(scaled(weights, lambda step: value, 5), Saver(None, ""))
    assert torch.equal(weights["a"], torch.ones(3))


def test_a_training_in_fp16_that_took_one_step(weights: dict) -> None:
    curve = train(scaled(weights, lambda step: 1.0 if step == 4 else math.inf, 5), Saver(None, ""))
    assert np.isfinite(curve[GRADIENT_NORM]).sum() == 1 and not torch.equal(weights["a"], torch.ones(3))


@bad_values
def test_a_text_encoder_that_is_not_finite_ends_a_closed_form(value: float) -> None:
    pipe = make_pipeline(max_length=24)
    with torch.no_grad():
        pipe.text_encoder.get_parameter(next(n for n, _ in pipe.text_encoder.named_parameters() if "final" in n))[0] = (
            value
        )
    rows = Encoder(pipe)(["a photo of the ship"])[0]
    with pytest.raises(ValueError, match="the system has"):
        solver.shared_edit(rows.T @ rows, solver.system(rows.T @ rows, 1.0), "lamb = 1")

"""Loading and exporting tiny random pipelines; devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from resurgence.diffusion import deltas, device, pipeline
from resurgence.diffusion.unet import ddim_of
from tiny import make_pipeline, predict, save_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny"
    make_pipeline(prediction_type="v_prediction", pad="zero").save_pretrained(path)
    return path


def test_loads_a_folder_with_ddim_from_its_own_schedule(folder: Path) -> None:
    pipe = pipeline.load_base(folder)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    config = pipe.scheduler.config
    assert (config.prediction_type, config.timestep_spacing, config.steps_offset) == ("v_prediction", "leading", 1)
    assert not config.set_alpha_to_one and not config.clip_sample and config.beta_start == 0.00085
    assert pipe.safety_checker is None and not pipe.unet.training and not pipe.text_encoder.training
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    assert pipe.tokenizer.pad_token_id == 0
    assert torch.allclose(predict(pipe), predict(make_pipeline(prediction_type="v_prediction", pad="zero")), atol=1e-5)


def test_trailing_spacing_is_kept() -> None:
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing", prediction_type="v_prediction")
    made = ddim_of(scheduler)
    assert made.config.timestep_spacing == "trailing" and made.config.prediction_type == "v_prediction"


def test_dtype(folder: Path) -> None:
    assert pipeline.load_base(folder, precision="bf16").unet.dtype == torch.bfloat16


def test_missing_base_says_where_it_looked_and_how_to_fetch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        pipeline.load_base("someone/no-such-base", revision="abc123")
    text = str(error.value)
    assert "hf download someone/no-such-base --revision abc123" in text and "hf auth login" in text
    assert str(Path("someone/no-such-base").absolute()) in text and constants.HF_HUB_CACHE in text


def test_a_base_that_is_not_there_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("no/such/base", str(tmp_path / "gone")):
        with pytest.raises(FileNotFoundError) as error:
            pipeline.load_base(path)
        assert str(error.value).count(path) == 1 and str(tmp_path) in str(error.value)


def test_folder_without_index_and_other_pipelines_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        pipeline.load_base(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline"):
        pipeline.load_base(tmp_path)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="safetensors"):
        pipeline.load_base(tmp_path / "model.ckpt")
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(FileNotFoundError, match="safetensors"):
        pipeline.load_base(tmp_path / "pickled")


def test_single_file_takes_its_configuration_from_the_folder_beside_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.safetensors"
    save_file({}, file)
    (tmp_path / "tiny").symlink_to(folder)
    seen = {}

    def from_single_file(path: str, **options) -> StableDiffusionPipeline:
        seen.update(options, path=path)
        return make_pipeline(prediction_type="v_prediction")

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", from_single_file)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = pipeline.load_base(file)
    assert seen["path"] == str(file) and seen["config"] == str(tmp_path / "tiny") and seen["local_files_only"]
    assert isinstance(pipe.scheduler, DDIMScheduler) and pipe.scheduler.config.prediction_type == "v_prediction"


def test_damaged_single_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises((FileNotFoundError, ValueError), match=r"bad\.safetensors"):
        pipeline.load_base(tmp_path / "bad.safetensors")


def test_a_single_file_without_configuration_names_the_folder_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_file(
        {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}, tmp_path / "tiny.safetensors"
    )
    with pytest.raises(FileNotFoundError) as error:
        pipeline.load_base(tmp_path / "tiny.safetensors")
    assert f"a diffusers base of the same kind to {tmp_path / 'tiny'}, or set HF_HUB_OFFLINE=0" in str(error.value)


def test_resolve_device() -> None:
    assert device.resolve_device("cpu") == torch.device("cpu")
    assert device.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="CUDA devices are visible"):
        device.resolve_device("cuda:99")
    with pytest.raises(ValueError, match="tpuu"):
        device.resolve_device("tpuu")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lora_is_merged_in_fp32_and_then_cast(folder: Path, tmp_path: Path, precision: str) -> None:
    """W + B A of the file's own weights; W rounded first gives other weights."""
    save_lora(pipeline.load_base(folder), tmp_path / "lora", True, r=2, lora_alpha=4)
    layers = load_file(tmp_path / "lora/pytorch_lora_weights.safetensors")
    name = next(n.removesuffix(".lora_A.weight").removeprefix("unet.") for n in layers if "unet" in n and "to_k" in n)
    down, up = (layers[f"unet.{name}.lora_{side}.weight"].double() for side in "AB")
    weight, dtype = (
        load_file(folder / "unet/diffusion_pytorch_model.safetensors")[f"{name}.weight"],
        device.DTYPES[precision],
    )
    merged = pipeline.load_model(folder, [tmp_path / "lora"], precision=precision)
    result = merged.unet.get_parameter(f"{name}.weight")
    expected = ((weight.double() + 2 * up @ down).float()).to(dtype)  # alpha / r = 2
    assert merged.unet.dtype == merged.vae.dtype == merged.text_encoder.dtype == result.dtype == dtype
    assert (result != expected).float().mean() < 0.01  # fp32 and fp64 may round to two neighbours
    rounded_first = (weight.to(dtype).double() + 2 * up @ down).to(dtype)
    assert (result != rounded_first).float().mean() > 0.1


def test_weights_beyond_half_precision_are_named(folder: Path, tmp_path: Path) -> None:
    weight = pipeline.load_base(folder).unet.conv_out.bias.detach().clone()
    deltas.save_delta({"unet.conv_out.bias": torch.full_like(weight, 1e6)}, tmp_path / "erased" / deltas.DELTA_FILE)
    with pytest.raises(ValueError, match=r"erased: conv_out.bias has \d+ of .* infinite .*use precision fp32 or bf16"):
        pipeline.load_model(folder, [tmp_path / "erased"], precision="fp16")
    assert pipeline.load_model(folder, [tmp_path / "erased"], precision="bf16").unet.conv_out.bias.isfinite().all()


def test_export_writes_a_folder_that_diffusers_loads(folder: Path, tmp_path: Path) -> None:
    save_lora(pipeline.load_base(folder), tmp_path / "lora", True, r=2, lora_alpha=4)
    erased = pipeline.load_base(folder)
    erased.unet.conv_out.bias.data.add_(0.5)
    delta = deltas.changed(pipeline.load_base(folder).unet.state_dict(), erased.unet.state_dict(), "unet")
    deltas.save_delta(delta, tmp_path / "erased" / deltas.DELTA_FILE)
    pipeline.export(folder, [tmp_path / "erased", tmp_path / "lora"], tmp_path / "out")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    deltas.apply_folder(erased, tmp_path / "lora")
    assert torch.equal(predict(loaded), predict(erased))
    assert not torch.allclose(predict(loaded), predict(pipeline.load_base(folder)))
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert not (tmp_path / ".out.partial").exists()

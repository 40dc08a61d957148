"""Loading, deltas, LoRA merging and export on tiny random pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict

from resurgence.diffusion import deltas, pipeline
from resurgence.diffusion.deltas import in_precision, store
from tiny import make_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny"
    make_pipeline(prediction_type="v_prediction", pad="zero").save_pretrained(path)
    return path


def predict(pipe: StableDiffusionPipeline, prompt: str = "a photo of the ship") -> torch.Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = pipe.tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.unet(x, 501, pipe.text_encoder(ids).last_hidden_state).sample


def save_lora(pipe: StableDiffusionPipeline, out: Path, metadata: bool, **config) -> None:
    """Save a random LoRA of the UNet and of the text encoder the way diffusers' own scripts do."""
    layers, meta = {}, {}
    for part, targets in (("unet", ["to_k", "to_v", "to_out.0", "conv1"]), ("text_encoder", ["q_proj", "out_proj"])):
        module = getattr(pipe, part)
        module.add_adapter(LoraConfig(target_modules=targets, **config))
        for name, p in sorted(module.named_parameters()):
            if "lora_" in name:
                p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(module)
        values = module.peft_config["default"].to_dict()
        meta[f"{part}_lora_adapter_metadata"] = json.loads(json.dumps(values, default=list))
    StableDiffusionPipeline.save_lora_weights(out, **layers, **(meta if metadata else {}))


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
    made = pipeline.ddim_of(scheduler)
    assert made.config.timestep_spacing == "trailing" and made.config.prediction_type == "v_prediction"


def test_dtype(folder: Path) -> None:
    assert pipeline.load_base(folder, dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_missing_base_says_where_it_looked_and_how_to_fetch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        pipeline.load_base("someone/no-such-base", revision="abc123")
    text = str(error.value)
    assert "hf download someone/no-such-base --revision abc123" in text and "hf auth login" in text
    assert str(Path("someone/no-such-base").absolute()) in text and constants.HF_HUB_CACHE in text


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
    file.write_bytes(b"")
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


def test_resolve_device() -> None:
    assert pipeline.resolve_device("cpu") == torch.device("cpu")
    assert pipeline.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="CUDA devices are visible"):
        pipeline.resolve_device("cuda:99")
    with pytest.raises(ValueError, match="tpuu"):
        pipeline.resolve_device("tpuu")


def test_exact_turns_tf32_off_on_a_gpu_only_and_puts_everything_back() -> None:
    def flags() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()

    before = flags()
    with pipeline.exact(torch.device("cpu")):
        assert flags() == before
    with pytest.raises(KeyError), pipeline.exact(torch.device("cuda")):
        assert flags() == (False, True, True)
        raise KeyError
    assert flags() == before


def test_delta_round_trip_holds_only_what_changed_and_restores_it_exactly(tmp_path: Path) -> None:
    before, after = make_pipeline(), make_pipeline()
    touched = [n for n, _ in after.unet.named_parameters() if "attn2.to_k" in n]
    for name in touched:
        after.unet.get_parameter(name).data.mul_(1.5)
    delta = deltas.changed(before.unet.state_dict(), after.unet.state_dict(), "unet")
    assert set(delta) == {f"unet.{n}" for n in touched}
    deltas.save_delta(delta, tmp_path / "a" / "delta.safetensors")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["delta.safetensors"]
    deltas.apply_folder(before, tmp_path / "a")
    assert torch.equal(predict(before), predict(after))
    assert not torch.equal(predict(make_pipeline()), predict(after))


def test_changed_copies_so_that_later_edits_do_not_reach_the_delta() -> None:
    a, b = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    delta = deltas.changed(a, b, "unet")
    b["w"].zero_()
    assert delta["unet.w"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="one side only"):
        deltas.changed({"w": torch.zeros(1)}, {"v": torch.zeros(1)}, "unet")


def test_empty_delta_is_a_valid_file(tmp_path: Path) -> None:
    deltas.save_delta({}, tmp_path / "delta.safetensors")
    assert deltas.load_delta(tmp_path / "delta.safetensors") == {}


def test_apply_delta_refuses_strangers_and_changes_nothing() -> None:
    pipe = make_pipeline()
    name, value = next(iter(pipe.unet.named_parameters()))
    kept = value.clone()
    good = {f"unet.{name}": torch.zeros_like(value)}
    with pytest.raises(ValueError, match=r"unet\.nowhere"):
        deltas.apply_delta(pipe, {**good, "unet.nowhere": torch.zeros(1)})
    with pytest.raises(ValueError, match="shape"):
        deltas.apply_delta(pipe, {**good, "unet.conv_out.bias": torch.zeros(9)})
    assert torch.equal(pipe.unet.get_parameter(name), kept)


def test_text_encoder_delta_and_half_precision_base(folder: Path) -> None:
    pipe = pipeline.load_base(folder, dtype=torch.bfloat16)
    name, value = next(iter(pipe.text_encoder.named_parameters()))
    deltas.apply_delta(pipe, {f"text_encoder.{name}": torch.full(value.shape, 1 / 3)})
    assert torch.equal(value, torch.full(value.shape, 1 / 3).bfloat16())


def test_missing_and_damaged_deltas_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        deltas.load_delta(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 30)
    with pytest.raises(ValueError, match=r"bad\.safetensors is damaged"):
        deltas.load_delta(tmp_path / "bad.safetensors")
    (tmp_path / "step-000100").mkdir()
    deltas.save_delta({}, tmp_path / "step-000100" / "delta.safetensors")
    with pytest.raises(FileNotFoundError, match="step-000100"):
        deltas.apply_folder(make_pipeline(), tmp_path)


@pytest.mark.filterwarnings("ignore:The following")  # the text encoder has none of the patterns' modules
@pytest.mark.parametrize(
    ("metadata", "config"),
    [
        (False, {"r": 3, "lora_alpha": 3}),
        (True, {"r": 3, "lora_alpha": 6}),
        (True, {"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_k": 8}, "rank_pattern": {"to_v": 2}}),
        (True, {"r": 4, "lora_alpha": 2, "use_rslora": True}),
    ],
)
def test_merged_lora_equals_load_lora_weights_unfused(tmp_path: Path, metadata: bool, config: dict) -> None:
    save_lora(make_pipeline(), tmp_path, metadata, **config)
    unfused, merged, base = make_pipeline(), make_pipeline(), make_pipeline()
    unfused.load_lora_weights(tmp_path)
    deltas.apply_folder(merged, tmp_path)
    difference = (predict(merged) - predict(unfused)).abs().max()
    effect = (predict(merged) - predict(base)).abs().max()
    assert effect > 0.05 and difference < 1e-5 * max(1.0, float(predict(base).abs().max())), (effect, difference)


def test_merged_weight_is_w_plus_scale_b_a_in_float64(tmp_path: Path) -> None:
    pipe = make_pipeline()
    save_lora(make_pipeline(), tmp_path, True, r=3, lora_alpha=6)
    delta = pipeline.lora_delta(pipe, tmp_path / deltas.LORA_FILE)
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / deltas.LORA_FILE)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    a, b = (next(t for n, t in tensors.items() if n.startswith(f"{name}.lora") and s in n) for s in ("_A", "_B"))
    w = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
    expected = w.double() + 2.0 * b.double() @ a.double()
    assert torch.allclose(delta[f"{name}.weight"].double(), expected, atol=1e-6, rtol=0)


def test_lora_of_another_base_or_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    pair = {"unet.nowhere.to_q.lora_A.weight": torch.ones(1, 4), "unet.nowhere.to_q.lora_B.weight": torch.ones(4, 1)}
    save_file(pair, tmp_path / deltas.LORA_FILE)
    with pytest.raises(ValueError, match=r"unet\.nowhere\.to_q"):
        deltas.apply_folder(make_pipeline(), tmp_path)
    save_file({**pair, "unet.nowhere.to_q.hada_w1": torch.ones(1)}, tmp_path / deltas.LORA_FILE)
    with pytest.raises(ValueError, match="hada_w1"):
        deltas.apply_folder(make_pipeline(), tmp_path)


def test_export_writes_a_folder_that_diffusers_loads(folder: Path, tmp_path: Path) -> None:
    save_lora(pipeline.load_base(folder), tmp_path / "lora", True, r=2, lora_alpha=4)
    erased = pipeline.load_base(folder)
    erased.unet.conv_out.bias.data.add_(0.5)
    delta = deltas.changed(pipeline.load_base(folder).unet.state_dict(), erased.unet.state_dict(), "unet")
    deltas.save_delta(delta, tmp_path / "erased" / deltas.DELTA_FILE)
    deltas.export(folder, [tmp_path / "erased", tmp_path / "lora"], tmp_path / "out")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    deltas.apply_folder(erased, tmp_path / "lora")
    assert torch.equal(predict(loaded), predict(erased))
    assert not torch.allclose(predict(loaded), predict(pipeline.load_base(folder)))
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert not (tmp_path / ".out.partial").exists()


def test_deltas_in_half_precision(tmp_path: Path) -> None:
    """Half the bytes, every value within the precision's rounding, applied to a base in fp32."""
    pipe = make_pipeline()
    delta = {f"unet.{name}": p.detach() + 0.1 for name, p in pipe.unet.named_parameters() if "attn2" in name}
    for step in ("step-000001", "step-000002"):
        deltas.save_delta(delta, tmp_path / step / deltas.DELTA_FILE)
    whole = (tmp_path / "step-000001" / deltas.DELTA_FILE).stat().st_size
    store(tmp_path, "fp32")
    assert (tmp_path / "step-000002" / deltas.DELTA_FILE).stat().st_size == whole
    for precision, bits in (("fp16", 11), ("bf16", 8)):
        deltas.save_delta(delta, tmp_path / "step-000002" / deltas.DELTA_FILE)
        store(tmp_path / "step-000002", precision)
        file = tmp_path / "step-000002" / deltas.DELTA_FILE
        assert file.stat().st_size < 0.6 * whole
        stored = deltas.load_delta(file)
        assert all((stored[n].float() - v).abs().le(v.abs() * 2.0**-bits + 1e-7).all() for n, v in delta.items())
        deltas.apply_delta(pipe, stored)
        name = next(iter(delta))
        assert torch.equal(pipe.unet.get_parameter(name.removeprefix("unet.")), stored[name].float())
    with pytest.raises(ValueError, match=r"unet\.a holds 70000, too large for fp16; set base\.delta_precision to bf16"):
        in_precision({"unet.a": torch.tensor([7e4])}, "fp16")

"""Deltas and LoRA files: saved, applied, merged, on tiny random pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resurgence.diffusion import deltas
from resurgence.diffusion.deltas import in_precision, round_deltas
from tiny import make_pipeline, predict, save_lora


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


def test_text_encoder_delta_and_half_precision_base() -> None:
    pipe = make_pipeline()
    pipe.text_encoder.bfloat16()
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
    delta = deltas.lora_delta(pipe, tmp_path / deltas.LORA_FILE)
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


def test_deltas_in_half_precision(tmp_path: Path) -> None:
    """Half the bytes, every value within the precision's rounding, applied to a base in fp32."""
    pipe = make_pipeline()
    delta = {f"unet.{name}": p.detach() + 0.1 for name, p in pipe.unet.named_parameters() if "attn2" in name}
    for step in ("step-000001", "step-000002"):
        deltas.save_delta(delta, tmp_path / step / deltas.DELTA_FILE)
    whole = (tmp_path / "step-000001" / deltas.DELTA_FILE).stat().st_size
    round_deltas(tmp_path, "fp32")
    assert (tmp_path / "step-000002" / deltas.DELTA_FILE).stat().st_size == whole
    for precision, bits in (("fp16", 11), ("bf16", 8)):
        deltas.save_delta(delta, tmp_path / "step-000002" / deltas.DELTA_FILE)
        round_deltas(tmp_path / "step-000002", precision)
        file = tmp_path / "step-000002" / deltas.DELTA_FILE
        assert file.stat().st_size < 0.6 * whole
        stored = deltas.load_delta(file)
        assert all((stored[n].float() - v).abs().le(v.abs() * 2.0**-bits + 1e-7).all() for n, v in delta.items())
        deltas.apply_delta(pipe, stored)
        name = next(iter(delta))
        assert torch.equal(pipe.unet.get_parameter(name.removeprefix("unet.")), stored[name].float())
    with pytest.raises(ValueError, match=r"unet\.a holds 70000, too large for fp16; set base\.delta_precision to bf16"):
        in_precision({"unet.a": torch.tensor([7e4])}, "fp16")

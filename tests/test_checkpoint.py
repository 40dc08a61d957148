"""Erased models from elsewhere: every format gives the delta of the model that was saved in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

import tiny
from resurgence.config.fields import ConfigError
from resurgence.config.load import make_study
from resurgence.config.task import make_task
from resurgence.diffusion.deltas import Delta, apply_delta, lora_delta, parameters, save_delta
from resurgence.diffusion.model_files import read_erased_model
from resurgence.diffusion.model_headers import check_lora, check_model
from resurgence.erasers import EraserData, method
from resurgence.erasers.checkpoint.config import CheckpointConfig
from resurgence.workflow import graph
from test_bad_lora import kohya_lora
from test_config import TASK, config, write_world  # noqa: F401, config is a fixture

BLOCK = "unet.up_blocks.1.attentions.0.transformer_blocks.0"
KEY, VALUE = (f"{BLOCK}.attn2.{name}.weight" for name in ("to_k", "to_v"))
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj.weight"
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return tiny.make_pipeline()


def erasure(base: StableDiffusionPipeline, *names: str) -> Delta:
    """Random changes of some tensors of the base."""
    weights = parameters(base)
    draws = torch.Generator().manual_seed(1)
    return {name: weights[name].detach() + 0.1 * torch.randn(weights[name].shape, generator=draws) for name in names}


def erased(base: StableDiffusionPipeline, delta: Delta) -> StableDiffusionPipeline:
    """The tiny base once more, with a delta applied."""
    pipe = tiny.make_pipeline()
    pipe.unet.load_state_dict(base.unet.state_dict())
    pipe.text_encoder.load_state_dict(base.text_encoder.state_dict())
    apply_delta(pipe, delta)
    return pipe


def compvis_name(name: str, layers: int, with_attention: set[str]) -> str:
    """The name in Stable Diffusion's first code of a UNet's parameter in diffusers."""
    fixed = {
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    }  # fmt: skip
    for old, new in fixed.items():
        if name.startswith(f"{old}."):
            return name.replace(old, new, 1)
    side, *rest = name.split(".")
    if side == "mid_block":
        kind, number, *rest = rest
        place = f"middle_block.{2 * int(number) if kind == 'resnets' else 1}"
    else:
        block, kind, number, *rest = rest
        index = int(block) * (layers + 1) + int(number)
        if kind == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{rest[-1]}"
        if kind == "upsamplers":
            part = 2 if f"up_blocks.{block}" in with_attention else 1
            return f"output_blocks.{int(block) * (layers + 1) + layers}.{part}.conv.{rest[-1]}"
        place = f"input_blocks.{index + 1}" if side == "down_blocks" else f"output_blocks.{index}"
        place += ".0" if kind == "resnets" else ".1"
    if kind == "resnets":
        rest = [RESNET[rest[0]], *rest[1:]]
    return ".".join([place, *rest])


def in_compvis(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """All tensors of UNet and text encoder in the names of Stable Diffusion's first code."""
    unet = pipe.unet.state_dict()
    with_attention = {".".join(name.split(".")[:2]) for name in unet if ".attentions." in name}
    layers = pipe.unet.config.layers_per_block
    named = {f"model.diffusion_model.{compvis_name(n, layers, with_attention)}": t for n, t in unet.items()}
    text = {f"cond_stage_model.transformer.text_model.{n}": t for n, t in pipe.text_encoder.state_dict().items()}
    return {name: tensor.clone().contiguous() for name, tensor in (named | text).items()}


def equal(found: Delta, expected: Delta) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def write_folder(pipe: StableDiffusionPipeline, delta: Delta, place: Path) -> Path:
    pipe.save_pretrained(place)
    return place


def write_half_folder(pipe: StableDiffusionPipeline, delta: Delta, place: Path) -> Path:
    """Half precision rounds all tensors; only those of the delta count as changed."""
    tensors = {name: value.half().float() for name, value in delta.items()}
    delta.update(tensors)
    pipe.to(torch.float16).save_pretrained(place)
    return place


def write_unet(pipe: StableDiffusionPipeline, delta: Delta, place: Path) -> Path:
    """As UCE and ESD publish: the changed tensors alone, in the names of the UNet."""
    file = place.with_suffix(".safetensors")
    save_file({name.removeprefix("unet."): value for name, value in delta.items()}, file)
    return file


def write_pickle(pipe: StableDiffusionPipeline, delta: Delta, place: Path) -> Path:
    file = place.with_suffix(".pt")
    torch.save({"state_dict": {n.removeprefix("unet."): v for n, v in delta.items()}}, file)
    return file


def write_parts(pipe: StableDiffusionPipeline, delta: Delta, place: Path) -> Path:
    """A dict of parts of the pipeline, each with names of its own."""
    file = place.with_suffix(".pt")
    parts = {part: {n.removeprefix(f"{part}."): v for n, v in delta.items() if n.startswith(f"{part}.")}
             for part in ("unet", "text_encoder")}  # fmt: skip
    torch.save(parts, file)
    return file


def write_unet_folder(pipe: StableDiffusionPipeline, delta: Delta, place: Path) -> Path:
    pipe.unet.save_pretrained(place / "unet")
    return place


def write_delta(pipe: StableDiffusionPipeline, delta: Delta, place: Path) -> Path:
    place.mkdir()
    save_delta(delta, place / "delta.safetensors")
    return place


def write_compvis(pipe: StableDiffusionPipeline, delta: Delta, place: Path) -> Path:
    file = place.with_suffix(".ckpt")
    torch.save({"state_dict": in_compvis(pipe)}, file)
    return file


WRITERS = (
    write_folder, write_half_folder, write_unet, write_pickle, write_parts, write_unet_folder, write_delta,
    write_compvis,
)  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_delta(base: StableDiffusionPipeline, write: Callable, tmp_path: Path) -> None:
    with_text = write in (write_folder, write_half_folder, write_parts, write_delta, write_compvis)
    delta = erasure(base, KEY, VALUE, *([TEXT] if with_text else []))
    place = write(erased(base, delta), delta, tmp_path / "erased")
    kind, found = read_erased_model(base, str(place))
    assert equal(found, delta)
    assert kind == {
        "write_delta": "delta",
        "write_parts": "delta",
        "write_unet": "unet",
        "write_pickle": "unet",
        "write_unet_folder": "unet",
    }.get(write.__name__, "pipeline")


def test_a_lora_is_merged_with_its_scale_in_any_names(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(kohya_lora(base), file)
    whole, weights = lora_delta(base, file), parameters(base)
    kind, once = read_erased_model(base, str(file))
    assert kind == "lora" and equal(once, whole)
    twice = read_erased_model(base, str(file), scale=2.0)[1]
    for name, value in twice.items():
        torch.testing.assert_close(value - weights[name], 2 * (whole[name] - weights[name]), rtol=1e-4, atol=1e-6)


def test_a_scale_for_what_is_no_lora_is_refused(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    save_delta(erasure(base, KEY, VALUE), tmp_path / "delta.safetensors")
    with pytest.raises(ValueError, match=r"is a delta: scale = 0\.5 multiplies LoRAs and adapters alone; leave it"):
        read_erased_model(base, str(tmp_path), scale=0.5)


def test_a_model_that_is_the_base_has_no_delta(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "same")
    assert read_erased_model(base, str(tmp_path / "same")) == ("pipeline", {})


def save(tensors: dict[str, torch.Tensor], place: Path) -> Path:
    save_file(tensors, place)
    return place


def bad_inputs(folder: Path) -> dict[str, tuple[Path, type[Exception], str]]:
    """Name -> what is given, the class of its error, and its message."""
    (folder / "empty").mkdir()
    (folder / "two").mkdir()
    for name in "ab":
        save({"x": torch.ones(1)}, folder / "two" / f"{name}.safetensors")
    (folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "notes.txt").write_text("no weights")
    torch.save(Path("code"), folder / "code.pt")
    torch.save([torch.ones(2)], folder / "list.pt")
    torch.save({"x.lora_down.weight": torch.ones(2)}, folder / "lora.pt")
    torch.save({f"{BLOCK}.adapter": {"down.weight": torch.ones(2)}}, folder / "receler.pt")
    other = "end.to_k.weight"
    return {
        "missing": (folder / "nothing", FileNotFoundError, "no hub id; correct the path"),
        "empty": (folder / "empty", FileNotFoundError, "holds 0 .safetensors files and no model_index.json; name one"),
        "two": (folder / "two", FileNotFoundError, "holds 2 .safetensors files and no model_index.json"),
        "pointer": (folder / "pointer.safetensors", ValueError, "Git LFS"),
        "text": (folder / "notes.txt", ValueError, "is no file of weights; give a diffusers folder"),
        "code": (folder / "code.pt", ValueError, "not a file of tensors only"),
        "list": (folder / "list.pt", ValueError, "is not a table of tensors by name"),
        "pickled LoRA": (folder / "lora.pt", ValueError, "is a pickled LoRA; save it as .safetensors"),
        "no tensors": (save({}, folder / "none.safetensors"), ValueError, "holds no tensors"),
        "another base": (save({other: torch.ones(2)}, folder / "other.safetensors"), ValueError,
                         r"unet.end.to_k.weight is not in the base \(1 of 1 tensors\), so it is of another base; give "
                         "the base that the model was made from$"),
        "Receler": (save({f"{BLOCK}.adapter.down.weight": torch.ones(2)}, folder / "receler.safetensors"),
                    ValueError, r"unet\..*\.adapter\.down\.weight is of an adapter .* which acts at inference, so"),
        "Receler, pickled": (folder / "receler.pt", ValueError, rf"{BLOCK}\.adapter is of an adapter as Receler has"),
        "autoencoder": (save({"encoder.weight": torch.ones(2), "W_dec": torch.ones(2)}, folder / "sae.safetensors"),
                        ValueError, r"unet\.W_dec is .* or an autoencoder as SAeUron has, which acts at inference"),
        "another shape": (save({KEY: torch.ones(2, 2)}, folder / "shape.safetensors"), ValueError,
                          r"attn2.to_k.weight has the shape \(2, 2\), in the base \(\d+, \d+\); give the base"),
        "not finite": (save({KEY: torch.full((2, 2), torch.nan)}, folder / "nan.safetensors"), ValueError,
                       "4 of 4 values"),
    }  # fmt: skip


NAMES = (
    "missing", "empty", "two", "pointer", "text", "code", "list", "pickled LoRA", "no tensors", "another base",
    "another shape", "not finite", "Receler", "Receler, pickled", "autoencoder",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_erased_model_of_the_base_is_refused(
    base: StableDiffusionPipeline, name: str, tmp_path: Path
) -> None:
    place, error, message = bad_inputs(tmp_path)[name]
    with pytest.raises(error, match=message) as caught:
        read_erased_model(base, str(place))
    assert re.search(re.escape(place.name), str(caught.value))


@pytest.fixture(scope="module")
def folder(base: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as a diffusers folder."""
    place = tmp_path_factory.mktemp("base")
    base.save_pretrained(place)
    return place


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_is_accepted_by_its_header(base, folder: Path, write: Callable, tmp_path: Path) -> None:
    delta = erasure(base, KEY, VALUE)
    check_model(folder, write(erased(base, delta), delta, tmp_path / "erased"), "checkpoint")


@pytest.mark.parametrize("name", sorted({*NAMES} - {"missing", "text"}))
def test_headers_refuse_what_reading_refuses_but_for_values(folder: Path, name: str, tmp_path: Path) -> None:
    place, error, message = bad_inputs(tmp_path)[name]
    if name == "not finite":
        message = r"has the shape \(2, 2\)"  # its values are not read
    with pytest.raises(error, match=message):
        check_model(folder, place, "checkpoint")


def test_headers_of_another_pipeline_and_of_loras(base, folder: Path, tmp_path: Path) -> None:
    wider = tiny.make_pipeline()
    wider.unet = type(wider.unet).from_config({**wider.unet.config, "cross_attention_dim": 48})
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(ValueError, match=r"wider: unet.*has the shape .*; give the base"):
        check_model(folder, tmp_path / "wider", "checkpoint")
    tensors = kohya_lora(base)
    file = save(tensors, tmp_path / "style.safetensors")
    check_lora(folder, file, "--lora")
    check_model(folder, file, "checkpoint")
    for text, change in (("the base has no module", {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}),
                         ("are not of one rank", {name: value[:1] for name, value in tensors.items()
                                                  if name.endswith("lora_down.weight")})):  # fmt: skip
        other = save({**tensors, **change}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=text):
            check_lora(folder, other, "--lora")
    (tmp_path / "short.safetensors").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"short.safetensors is damaged"):
        check_lora(folder, tmp_path / "short.safetensors", "--lora")
    with pytest.raises(ValueError, match=r"--lora = '.*lora.pt' is no .safetensors file"):
        torch.save(tensors, tmp_path / "lora.pt")
        check_lora(folder, tmp_path / "lora.pt", "--lora")


def test_the_eraser_writes_what_it_read(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    delta = erasure(base, KEY)
    place = write_unet(base, delta, tmp_path / "uce")
    task = make_task(TASK)
    before = {name: value.clone() for name, value in parameters(base).items()}
    found = method("checkpoint").erase(base, task, CheckpointConfig(str(place)), EraserData(), 0, tmp_path)
    assert equal(found, delta) and equal(parameters(base), before)
    report = json.loads((tmp_path / "closed_form.json").read_text())["checkpoint"]
    assert report["changed"] == [KEY]
    keys = [value.flatten() for name, value in before.items() if "attn2.to_k" in name]
    moved = torch.linalg.vector_norm((delta[KEY] - before[KEY]).double())
    unet = torch.cat([value.flatten() for name, value in before.items() if name.startswith("unet.")])
    expected = {"UNet": moved / unet.double().norm(), "values of its cross-attentions": 0.0, "text encoder": 0.0,
                "keys of its cross-attentions": moved / torch.cat(keys).double().norm()}  # fmt: skip
    assert report["distances"] == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)


def test_a_study_reads_the_files_of_a_checkpoint_and_refuses_a_missing_one(
    tmp_path: Path,
    config: dict[str, Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    config["erasers"]["theirs"] = {"method": "checkpoint", "path": "theirs.safetensors"}
    with pytest.raises(ConfigError, match=r"erasers.theirs.path = 'theirs.safetensors': no such folder"):
        make_study(config, tmp_path)
    save({KEY: torch.ones(2, 2)}, tmp_path / "theirs.safetensors")
    study = make_study(config, tmp_path)
    erasure = next(e for e in study.erasures() if e.eraser == "theirs")
    assert graph.named_files(study, erasure) == {"path": ["theirs.safetensors"]}
    config["erasers"]["theirs"]["revision"] = "main"
    with pytest.raises(ConfigError, match=r"erasers.theirs.revision = 'main': only a hub id has revisions"):
        make_study(config, tmp_path)

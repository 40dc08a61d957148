"""Every loader of weights from elsewhere with files that are cut, incomplete or of another architecture.

The detector of celebrities and Inception are in test_celebrity.py and test_inception.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from resurgence.config.fields import ConfigError
from resurgence.data.segmenters.grounded_sam import GroundedSam
from resurgence.diffusion.pipeline import load_base
from resurgence.scorers import ClipConfig, clip
from test_masks import folders  # noqa: F401 (a fixture)
from test_scorers import write_clip
from tiny import make_pipeline

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def damage(file: Path, how: str) -> str:
    """Change a file of weights; returns the name of the tensor that was taken out or replaced."""
    tensors = load_file(file)
    name = sorted(tensors)[3]
    if how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "gone":
        file.unlink()
    else:
        kept = {key: value for key, value in tensors.items() if key != name}
        save_file(kept if how == "missing" else {**kept, name: torch.zeros(7, 7)}, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["cut", "gone", "missing", "shape"])
def test_a_base_that_is_not_whole(part: str, how: str, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "base")
    name = damage(tmp_path / "base" / part / f"{PARTS[part]}.safetensors", how)
    kind, message = {
        "cut": (FileNotFoundError, r"(cannot load the base|cannot be loaded from) .*(copy or fetch|fetch it again)"),
        "gone": (FileNotFoundError, f"base/{part} holds no safetensors, only config.json; fetch it again"),
        "missing": (ValueError, f"base\\.path = .*lacks '{name}' \\(1 of .*another architecture.*fetch"),
        "shape": (ValueError, r"base\.path = .*(do not fit its config\.json .*expected shape|another architecture)"),
    }[how]
    with pytest.raises(kind, match=message):
        load_base(tmp_path / "base")


def test_a_text_encoder_in_the_older_layout_of_the_hub_is_whole(tmp_path: Path) -> None:
    """Published files name their tensors text_model.* and hold position_ids, which is no parameter any more."""
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "base")
    file = tmp_path / "base/text_encoder/model.safetensors"
    older = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    older["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(older, file, metadata={"format": "pt"})
    loaded = load_base(tmp_path / "base").text_encoder.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in pipe.text_encoder.state_dict().items())


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("how", ["cut", "gone", "missing", "shape", "other"])
def test_a_segmenter_that_is_not_whole(at: int, how: str, folders: tuple[str, str], tmp_path: Path) -> None:  # noqa: F811
    import shutil

    places, key = list(folders), ["masks.detector", "masks.sam"][at]
    places[at] = str(tmp_path / "copy")
    shutil.copytree(folders[1 - at] if how == "other" else folders[at], places[at])
    name = "" if how == "other" else damage(tmp_path / "copy/model.safetensors", how)
    kind, message = {
        "cut": (FileNotFoundError, f"{key}: .* cannot be loaded from .*copy.*copy or fetch the folder again"),
        "gone": (FileNotFoundError, f"{key}: .* cannot be loaded from .*copy.*copy or fetch the folder again"),
        "missing": (ValueError, f"{key} = .*copy': the file of weights lacks '.*{name.split('.')[-1]}' \\([14] of"),
        "shape": (ValueError, f"{key} = .*copy': the weights of another architecture"),
        "other": (ValueError, f"{key} = .*copy': holds a model of type '(sam|grounding-dino)', not "),
    }[how]
    with pytest.raises(kind, match=message):
        GroundedSam.load(places[0], None, places[1], None, "cpu")


CLIP_FILES: dict[str, tuple[type[Exception], str]] = {
    "cut": (ValueError, r"scorers\.clip\.path = .*truncated or of another architecture"),
    "gone": (
        FileNotFoundError,
        r"scorers\.clip\.path = .*open_clip_model\.safetensors.: no such file; run `make setup`",
    ),
    "missing": (ValueError, r"scorers\.clip\.path = .*Missing key"),
    "shape": (ValueError, r"scorers\.clip\.path = .*another architecture"),
}


@pytest.mark.parametrize("how", CLIP_FILES)
def test_a_clip_that_is_not_whole(how: str, tmp_path: Path) -> None:
    write_clip(tmp_path)
    damage(tmp_path / "open_clip_model.safetensors", how)
    kind, message = CLIP_FILES[how]
    with pytest.raises(kind, match=message):
        clip.load(ClipConfig(str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ViT-B-33", "pretrained": "openai"}, r"scorers\.clip\.name = 'ViT-B-33': not known.*did you mean"),
        ({"name": "ViT-B-32", "pretrained": "openia"}, r"scorers\.clip\.pretrained = 'openia'.*did you mean 'openai'"),
    ],
)
def test_an_unknown_clip_is_told(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clip.load(ClipConfig(**settings))


def test_a_clip_that_is_not_in_the_cache_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse: Callable = lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("not in the cache"))  # noqa: E731
    monkeypatch.setattr("open_clip.factory.download_pretrained", refuse)
    with pytest.raises(FileNotFoundError, match=r"'ViT-B-32-quickgelu' with the tag 'openai' cannot be loaded.*online"):
        clip.load(ClipConfig(name="ViT-B-32-quickgelu", pretrained="openai"))


@pytest.mark.parametrize("what", ["base", "detector", "sam", "clip"])
def test_another_checksum_than_the_table_has(
    what: str,
    folders: tuple[str, str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path(folders[what == "sam"]) if what in ("detector", "sam") else tmp_path / what
    if what == "base":
        make_pipeline().save_pretrained(place)
    elif what == "clip":
        write_clip(place)
    file = {"base": "unet/diffusion_pytorch_model.safetensors", "clip": "open_clip_model.safetensors"}
    name = file.get(what, "model.safetensors")
    load = {
        "base": lambda: load_base(place),
        "clip": lambda: clip.load(ClipConfig(str(place))),
    }.get(what, lambda: GroundedSam.load(folders[0], None, folders[1], None, "cpu"))
    GroundedSam.load.cache_clear()
    load()
    Path("config").mkdir()
    entry = {"licence": "none", "files": {name: "0" * 64}, "get": "make it again"}
    Path("config/weights.yaml").write_text(json.dumps({str(place): entry}))
    GroundedSam.load.cache_clear()
    with pytest.raises(ValueError, match=f"{name} .* has the SHA-256 [0-9a-f]{{64}}, expected 0{{64}}.*make it again"):
        load()


def test_a_pipeline_of_another_class_is_told(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "base")
    index = tmp_path / "base/model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(ValueError, match=r"StableDiffusionXLPipeline': give a StableDiffusionPipeline"):
        load_base(tmp_path / "base")

"""The trainings of a world, from drawings to the tables of its quality, on drawings of four concepts."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from resurgence.diffusion.pipeline import load_base
from resurgence.files import read_lines
from resurgence.miniature import training
from resurgence.miniature.build import build_part, emphasised, tasks_of
from resurgence.scorers import clip
from resurgence.scorers.configs import ClipConfig
from resurgence.scorers.recogniser_model import load_recogniser

ROOT = Path(__file__).parents[1]
CONCEPTS = {"ship": "object", "cat": "object", "judge": "person", "zorb": "character"}
STYLES = ("sepia", "neon")
TRAINED = {"autoencoder": 4, "base": 5, "recogniser": 4, "clip": 3}  # part -> steps


def drawing(seed: int) -> dict[str, Any]:
    """A disc of one colour as a drawing's cell."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    disc = ((x - 32) ** 2 + (y - 32) ** 2 < 24**2) * 255
    colour = np.broadcast_to(draws.integers(0, 256, 3), (64, 64, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([colour, disc]).astype(np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{seed}.png"}


def write_world(root: Path) -> dict[str, Any]:
    """Words, tasks and drawings of a small world below root; returns its configuration."""
    entries = [
        {"name": name, "kind": kind, "icon": name, "synonyms": [f"{name}let"], "hypernyms": ["thing"]}
        for name, kind in CONCEPTS.items()
    ]
    words = {
        "artists": {"noto": "a", "emojione": "b", "twemoji": "c"},
        "scenes": [{"name": "sky", "low": [0.5, 0.7, 0.9], "high": [0.8, 0.9, 1.0]}],
        "styles": [{"name": name, "kind": "style", "synonyms": [], "hypernyms": ["art"]} for name in STYLES],
        "concepts": entries[:-1],
        "characters": entries[-1:],
    }
    (root / "concepts.yaml").write_text(yaml.safe_dump(words))
    tasks = {
        "ship": {"kind": "object", "erase": ["ship"], "retain": ["cat", "judge", "zorb"], "mapping": "sky",
                 "templates": ["a photo of the {}"]},
        "sepia": {"kind": "style", "erase": ["sepia"], "retain": ["neon"], "mapping": "art",
                  "templates": ["a photo of the ship in the style of {}"]},
    }  # fmt: skip
    (root / "tasks").mkdir()
    for name, task in tasks.items():
        task |= {"name": name, "seeds": {"erase": 1, "retain": 1}, "finetune": []}
        (root / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))
    splits = {"noto": "training", "emojione": "validation", "twemoji": "test"}
    rows = [
        (name, artist, name, drawing(10 * i + j), split)
        for i, name in enumerate(CONCEPTS)
        for j, (artist, split) in enumerate(splits.items())
    ]
    (root / "drawings").mkdir()
    columns = ["concept", "artist", "icon", "image", "split"]
    pd.DataFrame(rows, columns=columns).to_parquet(root / "drawings/drawings.parquet")
    one = {"batch": 4, "lr": 1e-3, "precision": "fp32", "seed": 1}
    phase = {"copies": 2, "emphasis": 2.0, "jitter": {"degrees": 3, "scale": [0.9, 1.0], "shift": 0.01}}
    return {
        "concepts": str(root / "concepts.yaml"),
        "templates": str(ROOT / "config/prompts/closed_form.txt"),
        "tasks": str(root / "tasks"),
        "vocabulary": 700,
        "captions": {"synonym": 0.2, "hypernym": 0.1, "styled": 0.5, "style": 0.9, "dropout": 0.1},
        "autoencoder": {**one, "steps": TRAINED["autoencoder"], "latent_channels": 12},
        "base": {**one, "steps": TRAINED["base"], "warmup": 2, "ema_decay": 0.9,
                 "phases": [{"until": 3, **phase}, {"until": 5, **phase, "emphasis": 1.0}]},
        "recogniser": {**one, "steps": TRAINED["recogniser"], "splits": ["training", "test"], "width": 8, "batch": 12},
        "clip": {"seed": 1, "lr": 1e-3, "precision": "fp32", "steps": TRAINED["clip"], "drawn_by": ["twemoji", "noto"],
                 "vision": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}, "half": True,
                 "composition": {"degrees": 5, "stretch": 0.1, "textured": 0.5}},
        "quality": {"seed": 1, "copies": 1, "seeds_per_concept": 1, "steps": 2, "guidance": 2.0, "batch": 8},
    }  # fmt: skip


def digests(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A world that was trained without interruption."""
    root = tmp_path_factory.mktemp("world")
    config = write_world(root)
    for part in (*TRAINED, "quality"):
        build_part(part, config, root, "cpu")
    return root, config


@pytest.mark.parametrize(("part", "at"), [("autoencoder", 2), ("base", 1), ("base", 4), ("recogniser", 3), ("clip", 1)])
def test_a_part_that_is_stopped_at_any_step_ends_with_the_same_bytes(
    world: tuple[Path, dict[str, Any]], part: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, config = world
    out = tmp_path / "world"
    out.mkdir()
    for needed in {"drawings", "autoencoder"} - {part}:
        (out / needed).symlink_to(whole / needed)
    draws = training.step_generator

    def stopping(seed: int, step: int) -> torch.Generator:
        if step == at:
            signal.raise_signal(signal.SIGTERM)
        return draws(seed, step)

    module = {"base": "text_to_image"}.get(part, part)
    with monkeypatch.context() as context, pytest.raises(SystemExit):
        context.setattr(f"resurgence.miniature.{module}.step_generator", stopping)
        build_part(part, config, out, "cpu")
    assert not (out / part).exists() and (out / "scratch" / part).is_dir()
    build_part(part, config, out, "cpu")
    assert not (out / "scratch" / part).exists()
    assert digests(out / part) == digests(whole / part)


def test_the_models_are_of_the_published_classes_and_know_the_worlds_labels(world: tuple[Path, dict[str, Any]]) -> None:
    root, config = world
    pipe = load_base(root / "base")
    assert pipe.unet.config.sample_size == 8 and pipe.vae.config.latent_channels == 12
    _, labels = load_recogniser(root / "recogniser")
    assert labels.classes == [*CONCEPTS, "sky", "none"] and labels.styles == ["plain", *STYLES]
    assert all(0.25 <= value <= 4 for value in labels.temperatures)
    scorer = clip.load(ClipConfig(str(root / "clip")))
    assert scorer.text_features(["a photo of the ship"]).shape == (1, 96)
    assert type(scorer.model.visual).__name__ == "ModifiedResNet"
    stored = load_file(root / "clip/open_clip_model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    loaded = scorer.model.state_dict()
    assert all(torch.equal(loaded[name].float(), value.float()) for name, value in stored.items())
    assert len(read_lines(Path(config["templates"]))) == 30


def test_the_tables_of_quality_count_every_picture(world: tuple[Path, dict[str, Any]]) -> None:
    root, _ = world
    tables = {name: pd.read_csv(root / f"quality/{name}.csv") for name in ("drawings", "base", "styles", "summary")}
    assert len(tables["drawings"]) == len(CONCEPTS) * 3 and set(tables["drawings"]["n"]) == {1}
    assert tables["base"]["concept"].tolist() == list(CONCEPTS) and tables["base"]["n"].sum() == len(CONCEPTS)
    assert tables["styles"]["style"].tolist() == list(STYLES) and tables["styles"]["n"].sum() == 2
    shares = tables["summary"].set_index("measure")["value"]
    assert ((shares >= 0) & (shares <= 1)).all()
    assert {f"recogniser, {split} drawings" for split in ("training", "validation", "test")} <= set(shares.index)
    assert "base's images of characters" in shares.index and "base's images of styles, content" in shares.index
    assert (root / "quality/base.png").is_file() and (root / "quality/styles.png").is_file()


def test_concepts_are_emphasised_by_the_tasks_but_for_stated_changes(world: tuple[Path, dict[str, Any]]) -> None:
    _, config = world
    tasks = tasks_of(config)
    by_tasks = emphasised(tasks)
    assert {"ship", "cat", "judge", "zorb", "sky", "sepia", "neon", "art"} == by_tasks
    assert emphasised(tasks, {"cat": False, "dog": True, "ship": True}) == by_tasks - {"cat"} | {"dog"}

"""The inputs of an audit: its models, checked, lists of words, links in its folder and its real pictures.

The real pictures are the user's, or composed of a base's drawings.

The study names the links, so the folder holds no path of the machine, and a rerun gives the same bytes.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from resurgence.config.audit_bases import AuditBase
from resurgence.config.fields import ConfigError
from resurgence.config.task import Task
from resurgence.files import PEFT_WEIGHTS, digest_of_text, known_sha256, read_lines, resolve_path
from resurgence.workflow.graph import files_of

PER_CONCEPT = 6
"""Real pictures of each concept that are composed of drawings."""
SPLITS = ("training",)
"""Of these drawings: on other artists' a LoRA unlearns concepts before it brings one back."""


def linked(out: Path, name: str, source: str, option: str, hub: bool = False) -> str:
    """Link a file or folder below out/inputs, and return the path in out; a hub id stays as it is.

    Raises:
        ConfigError: there is no such file or folder, or the folder holds another link of this name.
    """
    path = Path(source)
    if path.is_file() and path.name == PEFT_WEIGHTS:
        path = path.parent  # with the configuration beside it
    if not path.exists():
        if hub and source.count("/") == 1 and not path.parent.exists():
            return source
        raise ConfigError(option, source, "no such file or folder; correct the path")
    link = out / "inputs" / (name + (path.suffix if path.is_file() else ""))
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() != path.resolve():
        raise ConfigError(option, source, f"{link} is of another audit, of {link.resolve()}; name another --out")
    if not link.is_symlink():
        link.symlink_to(path.resolve())
    configuration = path.with_suffix("")  # of a single file, which diffusers reads beside it
    if path.is_file() and configuration.is_dir() and not link.with_suffix("").is_symlink():
        link.with_suffix("").symlink_to(configuration.resolve())
    return link.relative_to(out).as_posix()


def check_weights(args: Namespace) -> None:
    """Check the audited model and the LoRAs against the model before erasing, else against each other, by the headers
    of their files; where that is a hub id or a single file, its names are known only when it is loaded.

    Raises:
        FileNotFoundError, ValueError: a file that is damaged, or of another base; see `check_model`.
    """
    from resurgence.diffusion.model_headers import check_lora, check_model, folder_header

    base = Path(args.original or args.checkpoint)
    if not (base / "model_index.json").is_file():
        return
    if args.original is None:
        folder_header(base, "checkpoint")
    elif Path(args.checkpoint).exists():
        check_model(base, Path(args.checkpoint), "checkpoint")
    for lora in filter(os.path.exists, args.lora):  # what is missing is named when it is linked
        check_lora(base, Path(lora), "--lora")


def retained_concepts(source: str, model: Task, erased: Sequence[str]) -> tuple[str, ...]:
    """The concepts that must stay: of a file, or those of the shipped task."""
    if source == "auto":
        return tuple(word for word in model.retain if word not in erased)
    if not Path(source).is_file():
        raise ConfigError("--retained", source, "no such file; write concepts one a line, or auto")
    words = tuple(dict.fromkeys(line.strip() for line in read_lines(Path(source)) if line.strip()))
    if not words:
        raise ConfigError("--retained", source, "holds no concept; write them one a line, or auto")
    return words


def implicit_captions(file: Path | None, erased: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Erased concept -> captions that do not name it."""
    if file is None:
        return {}
    if not file.is_file():
        raise ConfigError("--implicit", str(file), "no such file; write captions one a line")
    captions: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, read_lines(file))):
        concept, colon, caption = line.partition(": ")
        if len(erased) > 1 and (not colon or concept not in erased):
            raise ConfigError("--implicit", line, f"write CONCEPT: caption, with one of {', '.join(erased)}")
        if word := next((word for word in erased if re.search(rf"\b{re.escape(word)}\b", caption or line, re.I)), None):
            raise ConfigError("--implicit", line, f"names {word}; write captions that mean it without its name")
        captions.setdefault(concept if len(erased) > 1 else erased[0], []).append(caption if len(erased) > 1 else line)
    if not captions:
        raise ConfigError("--implicit", str(file), "holds no caption; write them one a line")
    return {concept: tuple(dict.fromkeys(of)) for concept, of in captions.items()}


def weights_digest(checkpoint: str) -> str | None:
    """Digest of a model's weights and settings; None for a hub id, which its revision fixes."""
    path = Path(checkpoint)
    if path.is_file():
        return known_sha256(path)
    if not path.is_dir():
        return None
    return digest_of_text(
        {Path(file).relative_to(path).as_posix(): known_sha256(Path(file)) for file in files_of(path)}
    )


def drawn_pictures(base: AuditBase, concepts: Sequence[str], file: Path) -> None:
    """Compose real pictures of concepts from the drawings of a base, on light backgrounds, and write them as a Parquet
    image set; nothing where the file has those of these concepts.

    Raises:
        ConfigError: a concept without a drawing.
    """
    if base.drawings is None or base.concepts is None:
        return
    import numpy as np
    import pandas as pd
    from PIL import Image

    from resurgence.diffusion.image_sets import read_prompts, write_image_set
    from resurgence.miniature.captions import CaptionConfig, caption, draw, read_templates
    from resurgence.miniature.compositions import compose
    from resurgence.miniature.drawings import load_drawings
    from resurgence.seeds import generator

    if file.is_file() and read_prompts([file])["concept"].unique().tolist() == list(concepts):
        return
    table, rgba = load_drawings(Path(resolve_path(base.drawings)), *SPLITS)
    templates, rows = read_templates(Path(resolve_path(base.captions))), []
    for name in concepts:
        drawings = table.index[table["concept"] == name]
        if drawings.empty:
            raise ConfigError("--images", name, f"{base.drawings} has no drawing of it; give pictures with --images")
        draws = generator("audit", name)
        for _ in range(PER_CONCEPT):
            row = int(drawings[draw(len(drawings), draws)])
            rows.append((caption({"name": name}, None, templates, CaptionConfig(), draws), name, row))
    signed = compose(rgba[[row for _, _, row in rows]], generator("audit", "pictures"))
    pixels = ((signed + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    images = (Image.fromarray(np.ascontiguousarray(image)) for image in pixels)
    file.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame([(text, name) for text, name, _ in rows], columns=["prompt", "concept"])
    write_image_set(file, frame, enumerate(images))


def shown_concepts(path: Path, option: str) -> tuple[str, ...]:
    """The concepts that pictures name, in their order; none where they name none.

    Raises:
        FileNotFoundError, ValueError: no pictures, or pictures without captions; see `training_set`.
    """
    from resurgence.data.training_images import training_set

    sources, _ = training_set(path)
    if not sources:
        raise ConfigError(option, str(path), "holds no pictures with captions; see docs/adding.md")
    return tuple(dict.fromkeys(source.concept for source in sources if source.concept))


def pictures(
    args: Namespace, out: Path, base: AuditBase, task: Task, outside: Sequence[str]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Domain -> real pictures and the concepts that they name: the user's, else composed of the base's drawings."""
    options: Mapping[str, tuple[str, str | None, Sequence[str]]] = {
        "domain": ("--images", args.images, task.finetune),
        "outside": ("--outside-images", args.outside_images, outside),
    }
    sets: dict[str, tuple[str, tuple[str, ...]]] = {}
    for place, (option, path, concepts) in options.items():
        if path is not None:
            sets[place] = linked(out, f"images-{place}", path, option), shown_concepts(Path(path), option)
        elif place == "domain" and not concepts:
            remedy = (
                f"every shipped {task.kind} is erased or retained, so no model can make pictures of others; give some"
            )
            raise ConfigError(option, "none", remedy)
        elif base.drawings is not None and concepts:
            drawn_pictures(base, concepts, out / f"inputs/{place}.parquet")
            sets[place] = f"inputs/{place}.parquet", tuple(concepts)
    return sets

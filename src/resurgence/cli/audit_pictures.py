"""The real pictures of an audit: the user's, checked before the run, or composed of the drawings of a base."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.config.audit_bases import AuditBase
from resurgence.config.counting import counted
from resurgence.config.fields import ConfigError
from resurgence.config.naming import named_word
from resurgence.files import resolve_path

if TYPE_CHECKING:
    from resurgence.data.image_folder import Source
    from resurgence.data.training_images import TrainingSet

PER_CONCEPT = 6
"""Real pictures of each concept that are composed of drawings."""
SPLITS = ("training",)
"""Of these drawings: on other artists' a LoRA unlearns concepts before it brings one back."""
HEADERS = 2000
"""Pictures whose headers are read before the run; the first job reads all of them whole."""
ENLARGED = 2
"""So often a picture may be enlarged to the size of the model's images."""


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


def shown_concepts(paths: Sequence[str], option: str, names: Collection[str], size: int) -> tuple[str, ...]:
    """The concepts that the user's pictures name, in their order; none where they name none.

    Args:
        option: that named the pictures, for messages. names: of the erased concepts, which no picture may show.
        size: pixels a side of the model's images.

    Raises:
        FileNotFoundError, ValueError: no pictures, or pictures without captions; see `training_set`.
        ConfigError: pictures that no caption names, are too small or no pictures, captions that name what was
            erased, or one of several folders alone that names no concepts.
    """
    shown = {path: dict.fromkeys(checked_concepts(path, option, names, size)) for path in paths}
    if any(shown.values()) and (nameless := next((path for path in paths if not shown[path]), None)):
        raise ConfigError(option, nameless, "has no column of concepts, as others have; give one to all, or to none")
    return tuple(dict.fromkeys(concept for concepts in shown.values() for concept in concepts))


def checked_concepts(path: str, option: str, names: Collection[str], size: int) -> Iterator[str]:
    """The concepts of the pictures of one folder or file, which are checked; see `shown_concepts`."""
    from resurgence.data.training_images import training_set

    if not Path(path).exists():
        raise ConfigError(option, path, "no such file or folder; correct the path")
    given = training_set(Path(path))
    check_captions(given, option, path, names)
    for source in given.sources[:HEADERS]:
        check_header(source, option, -(-size // ENLARGED))
    return (source.concept for source in given.sources if source.concept)


def check_captions(given: TrainingSet, option: str, path: str, names: Collection[str]) -> None:
    """Raise ConfigError for pictures without captions, and for captions that name an erased concept."""
    if without := given.left_out.get("without caption"):
        pictures = counted(len(given.sources) + len(without), "picture")
        cause = f"has no caption for {len(without)} of {pictures}, such as {without[0]}"
        raise ConfigError(option, path, f"{cause}; write the captions, or move such pictures away")
    captions = counted(len(given.sources), "caption")
    for name in names:
        if naming := [s for s in given.sources if named_word(f"{s.caption} | {s.concept}", (name,))]:
            raise ConfigError(option, path, f"names {name} in {len(naming)} of {captions}, such as that of "
                              f"{naming[0].name}; take out the pictures that show what was erased")  # fmt: skip


def check_header(source: Source, option: str, least: int) -> None:
    """Raise ConfigError for a file that is no picture or too small, by its header."""
    from PIL import Image, UnidentifiedImageError

    from resurgence.diffusion.pictures import DAMAGE, FORMATS, MOST

    picture = source.picture
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS) as image:
            width, height = image.size
    except FileNotFoundError as error:
        raise ConfigError(option, source.name, "is missing; add the picture, or remove its caption") from error
    except UnidentifiedImageError as error:
        raise ConfigError(option, source.name, "is no picture; replace it by one, or remove it") from error
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ConfigError(option, source.name, f"cannot be read ({error}); replace it, or remove it") from error
    if width * height > MOST:
        raise ConfigError(option, source.name, f"has {width} x {height} pixels, at most {MOST:,}; scale it down")
    if min(width, height) < least:
        raise ConfigError(option, source.name, f"has {width} x {height} pixels, and would be enlarged more than "
                          f"{ENLARGED} times; give pictures of at least {least} pixels a side")  # fmt: skip

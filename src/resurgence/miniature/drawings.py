"""Render the labelled drawings of the miniature world: concepts x artists -> one Parquet file.

Inputs: the concept list of the world and the npm packages of open emoji sets, as fetched by `npm pack`. Output:
`drawings.parquet` in the Hugging Face image convention, one RGBA PNG a row: concept, artist, icon, image (and split
where the list has `splits`). Takes about 10 s on two cores for 932 drawings.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from resurgence.config.fields import known
from resurgence.files import GET_SHIPPED, atomic_file
from resurgence.miniature.characters import character_svg

SIZE = 64  # pixels, height and width of a drawing
CHARACTER_ARTIST = "miniature"  # of the drawings that this package composes itself


def fetch_icon_set(package: str, version: str, folder: Path) -> Path:
    """Fetch one iconify package with `npm pack` and return the path of its tarball.

    Raises:
        RuntimeError: npm is missing or the package cannot be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", f"{package}@{version}"]
    try:
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        raise RuntimeError(
            f"cannot fetch {package}@{version}: {reason}; install npm, or take the shipped drawings: {GET_SHIPPED}"
        ) from error
    return folder / process.stdout.strip().splitlines()[-1]


def read_icon_set(tarball: Path) -> dict:
    """Read `icons.json` of an iconify tarball without unpacking it."""
    with tarfile.open(tarball) as archive:
        member = archive.extractfile("package/icons.json")
        if member is None:
            raise ValueError(f"{tarball} holds no package/icons.json: not an iconify package; correct `packages`")
        return json.load(member)


def icon_svg(icons: dict, name: str) -> str | None:
    """The SVG text of one icon, resolving aliases; None if the set does not have it."""
    for _ in range(5):
        if name in icons["icons"]:
            break
        if name not in icons.get("aliases", {}):
            return None
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f'viewBox="{left} {top} {width} {height}" width="{SIZE}" height="{SIZE}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{icon["body"]}</svg>'


def render(svg: str, size: int = SIZE) -> bytes:
    """Rasterise an SVG to an RGBA PNG of size x size pixels with resvg."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def concept_drawings(concept: dict, icons: dict, size: int) -> list[tuple[str, bytes]]:
    """Name and PNG of one artist's drawings of a concept; icons that are drawn alike count once."""
    drawings = dict[bytes, str]()
    for icon in concept["icons"] if "icons" in concept else [concept["icon"]]:
        svg = icon_svg(icons, icon)
        if svg is not None:
            drawings.setdefault(render(svg, size), icon)
    return [(icon, png) for png, icon in drawings.items()]


def render_world(world: dict, tarballs: dict[str, Path], size: int = SIZE) -> pd.DataFrame:
    """Render every concept in the style of every artist that has it, and characters in poses: one row a drawing.

    Raises:
        ConfigError: an artist is in no split of a list that has some, or a split names an unknown pose.
    """
    rows = []
    splits = {name: split for split, members in world.get("splits", {}).items() for name in chain(*members.values())}
    for artist, tarball in tarballs.items():
        if splits:
            known("artists", artist, splits)
        icons = read_icon_set(tarball)
        for concept in world["concepts"]:
            if concept["kind"] != "character":
                drawings = concept_drawings(concept, icons, size)
                rows += [(concept["name"], artist, icon, png, splits.get(artist)) for icon, png in drawings]
    for concept in world["concepts"]:
        if concept["kind"] == "character":
            poses = {pose: render(character_svg(concept, pose), size) for pose in splits if pose not in tarballs}
            rows += [(concept["name"], CHARACTER_ARTIST, pose, png, splits[pose]) for pose, png in poses.items()]
    table = pd.DataFrame(rows, columns=["concept", "artist", "icon", "image", "split"])
    paths = table["artist"] + "/" + table["icon"] + ".png"
    table["image"] = [{"bytes": png, "path": path} for png, path in zip(table["image"], paths, strict=True)]
    return table if splits else table.drop(columns="split")


def load_world(path: Path) -> dict:
    """Read a concept list of the miniature world (keys artists, scenes, concepts); characters count as concepts."""
    world = yaml.safe_load(Path(path).read_text())
    world["concepts"] += world.get("characters", [])
    return world


def load_drawings(path: Path, *splits: str) -> tuple[pd.DataFrame, torch.Tensor]:
    """Read `drawings.parquet`.

    Args:
        splits: read the drawings of these only, where the list has splits; all without any.

    Returns:
        The table (concept, artist, icon; split, where the list has splits) and the drawings, uint8 RGBA (N, 4, H, W).
    """
    table = pd.read_parquet(path)
    if splits and "split" in table:
        table = table[table["split"].isin(splits)].reset_index(drop=True)
    images = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in table["image"]]
    return table.drop(columns="image"), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def main(concepts: Path, out: Path, downloads: Path, versions: dict[str, str], size: int = SIZE) -> None:
    """Fetch, render and write the drawings.

    Args:
        versions: npm package -> version. size: pixels a side.
    """
    world = load_world(concepts)
    tarballs = {a: fetch_icon_set(p, versions[p], downloads) for a, p in world["artists"].items()}
    table = render_world(world, tarballs, size)
    with atomic_file(out) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")

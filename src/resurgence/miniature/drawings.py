"""Render the labelled drawings of the miniature world: concepts x artists -> one Parquet file.

Inputs: the concept list (config/concepts/miniature.yaml) and the six npm packages of open emoji sets, as
fetched by `npm pack`. Output: `drawings.parquet` in the Hugging Face image convention, one 64 x 64 RGBA PNG
a row (columns concept, artist, icon, image). Costs about 10 s on two cores.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from resurgence.files import atomic_file

SIZE = 64  # pixels, height and width of a drawing


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
        raise RuntimeError(f"cannot fetch {package}@{version}: {reason}; install npm, or use the shipped drawings "
                           "(`dvc pull data/miniature/dvc.yaml`)") from error  # fmt: skip
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


def render(svg: str) -> bytes:
    """Rasterise an SVG to a SIZE x SIZE RGBA PNG with resvg."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def render_world(world: dict, tarballs: dict[str, Path]) -> pd.DataFrame:
    """Render every concept in the style of every artist that has it: one row a drawing."""
    rows = []
    for artist, tarball in tarballs.items():
        icons = read_icon_set(tarball)
        for concept in world["concepts"]:
            svg = icon_svg(icons, concept["icon"])
            if svg is not None:
                path = f"{artist}/{concept['icon']}.png"
                rows.append((concept["name"], artist, concept["icon"], {"bytes": render(svg), "path": path}))
    return pd.DataFrame(rows, columns=["concept", "artist", "icon", "image"])


def load_world(path: Path) -> dict:
    """Read a concept list of the miniature world (keys artists, scenes, concepts)."""
    return yaml.safe_load(Path(path).read_text())


def load_drawings(path: Path) -> tuple[pd.DataFrame, torch.Tensor]:
    """Read `drawings.parquet`.

    Returns:
        The table (concept, artist, icon) and the drawings as uint8 (N, 4, 64, 64), RGBA.
    """
    table = pd.read_parquet(path)
    images = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in table["image"]]
    return table.drop(columns="image"), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def main(concepts: Path, out: Path, downloads: Path, versions: dict[str, str]) -> None:
    """Fetch, render and write the drawings."""
    world = load_world(concepts)
    tarballs = {a: fetch_icon_set(p, versions[p], downloads) for a, p in world["artists"].items()}
    table = render_world(world, tarballs)
    with atomic_file(out) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")

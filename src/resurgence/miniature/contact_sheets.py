"""Contact sheets of the second miniature, beside its drawings: concepts in each style, characters in each pose."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.utils import save_image

from resurgence.files import atomic_file
from resurgence.miniature.compositions import compose
from resurgence.miniature.drawings import load_drawings, load_world
from resurgence.miniature.styles import apply_styles
from resurgence.seeds import generator

COLUMNS = 12  # concepts on the sheet of styles
ENLARGED = 2  # times the size of a drawing


def sheet(images: torch.Tensor, columns: int, path: Path) -> None:
    """Write pictures in [-1, 1] as one PNG, enlarged so that single pixels can be seen."""
    large = images.repeat_interleave(ENLARGED, -2).repeat_interleave(ENLARGED, -1)
    with atomic_file(path) as temporary:
        save_image((large + 1) / 2, temporary, nrow=columns, padding=2, format="png")


def main(concepts: Path, drawings: Path, out: Path) -> None:
    """Write styles.png (rows: no style, then each) and characters.png (rows: characters), where the world has such."""
    world, (table, rgba) = load_world(concepts), load_drawings(drawings)
    draws = generator("contact sheets")
    styles = [style["name"] for style in world.get("styles", [])]
    if styles:
        names = [c["name"] for c in world["concepts"]]
        picks = [table.index[table["concept"] == name][0] for name in names[:: max(1, len(names) // COLUMNS)][:COLUMNS]]
        images = compose(rgba[picks], draws)
        rows = [images, *(apply_styles(images, [style] * len(images), draws) for style in styles)]
        sheet(torch.cat(rows), len(images), out / "styles.png")
    characters = table["concept"].isin([c["name"] for c in world.get("characters", [])])
    if characters.any():
        rows_of = table[characters].sort_values(["concept", "icon"])
        poses = int(rows_of.groupby("concept").size().iloc[0])
        sheet(compose(rgba[rows_of.index.tolist()], draws, 0.0, (1.0, 1.0), 0.0), poses, out / "characters.png")

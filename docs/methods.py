"""Write the results of the study `methods` into docs: the table of all erasers, and each method's rows and pictures.

    python docs/methods.py results

Reads results/cost/compare_recogniser_accuracy.*, results/grids and results/figures, and replaces the text between
`<!-- results -->` and `<!-- end of results -->` in docs/results.md and docs/methods/*.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from parts import fill
from PIL import Image

from resurgence.analysis.headline import markdown_table

DOCS = Path(__file__).parent
PICTURES = """![Erased and retained concepts of each eraser, before and after fine-tuning](images/compare.png)

![Resurgence of each eraser with its interval, seconds and size of the delta](images/compare_cost.png)"""
COLOURS = 96  # of a picture, which then has a quarter of the bytes


def picture(source: Path, out: Path) -> None:
    """Copy a PNG with fewer colours."""
    out.parent.mkdir(exist_ok=True)
    with Image.open(source) as image:
        image.convert("RGB").quantize(COLOURS).save(out, optimize=True)


def section(rows: pd.DataFrame, eraser: str, grids: Path) -> str:
    """The section of a method: its rows and its grids of erased concepts."""
    source = "From [all erasers](../results.md#all-erasers), where the columns are explained; three seeds."
    parts = ["## On the first miniature", source, markdown_table(rows.drop(columns="eraser"))]
    for task in dict.fromkeys(rows["task"]):
        name = f"images/{eraser}-{task}.png"
        picture(grids / task / eraser / "erase.png", DOCS / "methods" / name)
        parts.append(f"![{task}: base, after {eraser}, after fine-tuning, same prompts and seeds]({name})")
    return "\n\n".join(parts)


def main() -> None:
    """Write the table, the pictures and the sections of the methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder of the finished study")
    results = parser.parse_args().results
    table = pd.read_csv(results / "cost/compare_recogniser_accuracy.csv", dtype=str, keep_default_na=False)
    fill(DOCS / "results.md", {"results": f"{markdown_table(table)}\n\n{PICTURES}"})
    picture(results / "figures/compare_recogniser_accuracy.png", DOCS / "images/compare.png")
    picture(results / "cost/compare_recogniser_accuracy.png", DOCS / "images/compare_cost.png")
    picture(results / "figures/sensitive_identities-10_eap.png", DOCS / "methods/images/eap-sensitive.png")
    for eraser, rows in table.groupby("eraser"):
        fill(DOCS / f"methods/{eraser}.md", {"results": section(rows, str(eraser), results / "grids")})


if __name__ == "__main__":
    main()

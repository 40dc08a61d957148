"""Write the tables of docs/miniature.md, each between its marks, from data/miniature-2/quality:

snakemake --cores all -- results/world/quality/base.csv && cp results/world/quality/*.csv data/miniature-2/quality/
python docs/miniature.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from parts import fill

from resurgence.analysis.headline import markdown_table

PAGE = Path(__file__).parent / "miniature.md"
QUALITY = Path(__file__).parents[1] / "data/miniature-2/quality"


def percent(values: pd.Series) -> pd.Series:
    """Shares as percent with one decimal."""
    return (100 * values).map("{:.1f}".format)


def summary() -> str:
    """The means, and from how many pictures."""
    table = pd.read_csv(QUALITY / "summary.csv")
    return markdown_table(table.assign(value=percent(table["value"])).rename(columns={"value": "%"}))


def concepts() -> str:
    """Task concepts in the base's images, the weakest first."""
    base, drawn = pd.read_csv(QUALITY / "base.csv"), pd.read_csv(QUALITY / "drawings.csv")
    unseen = drawn[drawn["split"].isin(["validation", "test"])]
    right = (unseen["accuracy"] * unseen["n"]).groupby(unseen["concept"]).sum()
    base["drawings"] = base["concept"].map(right / unseen.groupby("concept")["n"].sum())
    base = base.sort_values(["accuracy", "concept"], kind="stable").fillna({"most_often_taken_for": ""})
    return markdown_table(
        pd.DataFrame(
            {
                "concept": base["concept"],
                "kind": base["kind"],
                "base's images": percent(base["accuracy"]),
                "CLIP agrees": percent(base["clip_agrees"]),
                "false alarms": percent(base["false_alarms"]),
                "drawings by unseen artists": percent(base["drawings"]).replace("nan", "-"),
                "most often taken for": base["most_often_taken_for"],
            }
        )
    )


def styles() -> str:
    """Styles in the base's images."""
    table = pd.read_csv(QUALITY / "styles.csv")
    shares = {
        "style": percent(table["accuracy"]), "content": percent(table["content"]),
        "CLIP agrees": percent(table["clip_agrees"]),
    }  # fmt: skip
    return markdown_table(pd.DataFrame({"asked for": table["style"], "n": table["n"], **shares}))


def parts() -> dict[str, str]:
    """The generated parts by name."""
    return {"summary": summary(), "concepts": concepts(), "styles": styles()}


if __name__ == "__main__":
    fill(PAGE, parts())

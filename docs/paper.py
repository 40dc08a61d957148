"""Put the experiments of the reference run into docs/results.md.

    python docs/paper.py

Reads reference/miniature-full/results, which `resurgence archive --reference` has written from a finished study, and
replaces what stands between `<!-- paper -->` and `<!-- end of paper -->`: what was run, then the page that the graph
has made of all experiments (results/experiments/results.md), its headings one level lower and its pictures from there.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

from resurgence.provenance.manifest_table import TABLE, read_manifests

DOCS = Path(__file__).parent
PAGE = DOCS / "results.md"
REFERENCE = DOCS.parent / "reference/miniature-full/results"
MARKS = "<!-- paper -->", "<!-- end of paper -->"


def run_of(reference: Path) -> str:
    """Commits, versions and devices of the run, from the run records of the scores."""
    rows = read_manifests(reference / "scores" / TABLE)
    runs = [json.loads(row["run"]) for row in rows if Path(row["folder"]).name == "scores"]
    commits = Counter(run["commit"][:7] for run in runs)
    told = [f"{len(runs)} models (bases included) were scored"]
    told.append("commits " + ", ".join(f"{commit} ({number})" for commit, number in commits.most_common()))
    versions = {", ".join(f"{name} {found}" for name, found in run["versions"].items()) for run in runs}
    told += [*sorted(versions), ", ".join(sorted({run["device"] for run in runs}))]
    return "; ".join(told) + "."


def section(reference: Path) -> str:
    """The page of all experiments as a part of docs/results.md."""
    text = (reference / "experiments/results.md").read_text(encoding="utf-8")
    place = os.path.relpath(reference / "experiments", DOCS)
    text = re.sub(r"\]\((\w+/\w+\.png)\)", rf"]({place}/\1)", text)
    _, _, body = text.partition("\n")  # its title says the study's name
    return f"{run_of(reference)}\n\n{re.sub('^#', '##', body.strip(), flags=re.MULTILINE)}"


def filled(page: str, reference: Path) -> str:
    """The page with its part made again.

    Raises:
        ValueError: a page without one pair of marks.
    """
    new = f"{MARKS[0]}\n{section(reference)}\n{MARKS[1]}"
    text, number = re.subn("{}.*?{}".format(*MARKS), lambda _: new, page, flags=re.DOTALL)
    if number != 1:
        raise ValueError(f"{PAGE} has {number} pairs of marks; write one: {' and '.join(MARKS)}")
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), REFERENCE), encoding="utf-8")

"""Write the experiments of the reference run into docs/results.md.

    python docs/paper.py

Reads reference/miniature-full/results, written by `resurgence archive --reference` from a finished study, and replaces
the text between `<!-- paper -->` and `<!-- end of paper -->`: a record of the run, then the page of all experiments
(results/experiments/results.md) with its headings one level lower and its links to pictures adapted.
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
    parts = [f"{len(runs)} models (bases included) were scored"]
    parts.append("commits " + ", ".join(f"{commit} ({number})" for commit, number in commits.most_common()))
    versions = {", ".join(f"{name} {version}" for name, version in run["versions"].items()) for run in runs}
    parts += [*sorted(versions), ", ".join(sorted({run["device"] for run in runs}))]
    return "; ".join(parts) + "."


def section(reference: Path) -> str:
    """The page of all experiments as a part of docs/results.md."""
    text = (reference / "experiments/results.md").read_text(encoding="utf-8")
    folder = os.path.relpath(reference / "experiments", DOCS)
    text = re.sub(r"\]\((\w+/\w+\.png)\)", rf"]({folder}/\1)", text)
    _, _, body = text.partition("\n")  # without the title
    return f"{run_of(reference)}\n\n{re.sub('^#', '##', body.strip(), flags=re.MULTILINE)}"


def filled(page: str, reference: Path) -> str:
    """The page with a new text between the marks.

    Raises:
        ValueError: a page without exactly one pair of marks.
    """
    new = f"{MARKS[0]}\n{section(reference)}\n{MARKS[1]}"
    text, number = re.subn("{}.*?{}".format(*MARKS), lambda _: new, page, flags=re.DOTALL)
    if number != 1:
        raise ValueError(f"{PAGE} has {number} pairs of marks; write one: {' and '.join(MARKS)}")
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), REFERENCE), encoding="utf-8")

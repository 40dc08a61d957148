"""The page of all experiments: verdicts on the claims first, then each figure with its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from resurgence.analysis.claims import FLOOR, VERDICTS, claims_table, judge
from resurgence.config.counting import counted
from resurgence.files import write_text
from resurgence.provenance.manifest import read_manifest
from resurgence.stages.job import Job, start

HOLM = "decided at the level of the intervals after Holm's adjustment for all of them; below, each claim alone"


def page(out: Path, names: Sequence[str], level: float) -> list[str]:
    """Verdicts on the claims of some experiments, and their pages, with links relative to the folder of all, `out`."""
    files = {name: out / name / f"{name}_claims.csv" for name in names}
    claims = [pd.read_csv(file).assign(experiment=name) for name, file in files.items() if file.is_file()]
    parts = []
    if claims:
        every = judge(pd.concat(claims, ignore_index=True), level)
        counts = every["verdict"].value_counts()
        verdicts = ", ".join(f"{counts.get(word, 0)} {word}" for word in (*VERDICTS.values(), FLOOR))
        settings = [
            read_manifest(out / name / "made.json")["parameters"] for name in dict.fromkeys(every["experiment"])
        ]
        by = "study" if any(each.get("claims_by") == "study" for each in settings) else "paper"
        heading = "What the paper claims" if by == "paper" else "Claims"
        parts += [f"## {heading}\n\n{counted(len(every), 'claim')}: {verdicts}; {HOLM}.", claims_table(every, by)]
    for name in names:
        text = (out / name / f"{name}.md").read_text(encoding="utf-8")
        parts.append(text.replace(f"]({name}.png)", f"]({name}/{name}.png)").rstrip())
    return parts


def make(job: Job) -> None:
    """Write results/experiments/results.md; its links to pictures are relative to that folder."""
    out, settings = job.out.parent, job.settings
    title = f"# Experiments of the study {settings['study']} on {settings['base']}"
    parts = [title, *page(out, settings["experiments"], settings["level"])]
    write_text(out / "results.md", "\n\n".join(parts) + "\n")
    job.write_made("results", [out / "results.md"])


if __name__ == "__main__":
    make(start())

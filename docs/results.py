"""Write the generated parts of docs/results.md (docs/parts.py).

    python docs/results.py                     of the reference run: what changed, findings, the paper; and the pages of
                                               the evaluations of DoCo and EAP that have a reference (results-NAME.md)
    python docs/results.py --study results     also `default study`, from the results of `make study` in this folder

The reference run (reference/miniature-full) is written by `resurgence archive --reference` from a finished study, and
its experiments again by tools/reference_again.py. Headings of its pages become lower, links to pictures are adapted.
No number of these parts is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from pathlib import Path

import pandas as pd
from parts import fill

from resurgence.analysis.claims import FLOOR, UNDECIDED, VERDICTS, judge
from resurgence.analysis.headline import markdown_table, number
from resurgence.config.fields import read_yaml
from resurgence.config.load import load_study
from resurgence.config.study import Study
from resurgence.figures.numbers import Numbers
from resurgence.figures.page import answers, leading_metrics
from resurgence.files import plain, read_json
from resurgence.provenance.manifest import read_manifest, run_file
from resurgence.provenance.manifest_table import TABLE, read_manifests
from resurgence.provenance.runs import device_of
from resurgence.stages.results import page
from resurgence.workflow import experiment_settings

DOCS = Path(__file__).parent
PAGE = DOCS / "results.md"
REFERENCE = DOCS.parent / "reference/miniature-full/results"
NOT_RUN = "not run"
EVALUATIONS = {
    "eap": ("eap", "eap-lpips"),
    "eap-synonyms": ("eap", "eap-synonyms"),
    "doco": ("doco",),
    "doco-captions": ("doco", "doco-captions"),
}
"""Studies of other papers, each with a page where reference/NAME is: name -> studies laid over params.yaml. A page has
the experiments of the study NAME and of those laid over it."""
BEFORE = DOCS / "verdicts-before.csv"  # claim, verdict: with bootstrap intervals over concepts, seeds as fixed
WORDS = (*VERDICTS.values(), FLOOR)
LEADS = {"same": "Confirmed", "different": "Contradicted", FLOOR: "At the floor on both sides"}


def run_of(reference: Path) -> str:
    """Commits, versions and devices of the run, from the records of the scores; without models, of the experiments."""
    runs, parts = [], ["no model was scored"]
    if (reference / "scores" / TABLE).is_file():
        rows = read_manifests(reference / "scores" / TABLE)
        runs = [json.loads(row["run"]) for row in rows if Path(row["folder"]).name == "scores"]
        parts = [f"{len(runs)} models (bases included) were scored"]
    if not runs:
        records = (run_file(record) for record in sorted((reference / "experiments").glob("*/made.json")))
        runs = [read_json(record) for record in records if record.is_file()]
    commits = Counter(run.get("commit", "none")[:7] for run in runs)  # none: not in a git repository
    parts.append("commits " + ", ".join(f"{commit} ({count})" for commit, count in commits.most_common()))
    versions = {", ".join(f"{name} {version}" for name, version in run["versions"].items()) for run in runs}
    parts += [*sorted(versions), ", ".join(sorted({device_of(run) for run in runs}))]
    return "; ".join(parts) + "."


def paper(reference: Path) -> str:
    """The page of all experiments as a part of docs/results.md."""
    text = (reference / "experiments/results.md").read_text(encoding="utf-8")
    folder = os.path.relpath(reference / "experiments", DOCS)
    text = re.sub(r"\]\((\w+/\w+\.png)\)", rf"]({folder}/\1)", text)
    _, _, body = text.partition("\n")  # without the title
    return f"{run_of(reference)}\n\n{re.sub('^#', '##', body.strip(), flags=re.MULTILINE)}"


def claims_of(reference: Path) -> pd.DataFrame:
    """All claims of the experiments, with `alone`, the verdict of each by itself, and `verdict`, that with all."""
    folder = reference / "experiments"
    if (folder / "made.json").is_file():
        names = read_manifest(folder / "made.json")["parameters"]["experiments"]
    else:  # of a study that has run in part
        names = sorted(file.parent.name for file in folder.glob("*/made.json"))
    (level,) = {read_manifest(folder / name / "made.json")["parameters"]["statistics"]["level"] for name in names}
    files = [folder / name / f"{name}_claims.csv" for name in names]
    claims = pd.concat([pd.read_csv(file) for file in files if file.is_file()], ignore_index=True)
    return judge(claims.assign(alone=claims["verdict"]), level)


def counts(verdicts: pd.Series) -> str:
    """How many claims have each verdict."""
    numbers = verdicts.value_counts()
    return ", ".join(f"{numbers[word]} {word}" for word in WORDS if word in numbers)


def findings(reference: Path) -> str:
    """A sentence for each claim that is decided with all others, and how many are open."""
    claims = claims_of(reference)
    lines = [
        f"{len(claims)} claims: alone {counts(claims['alone'])}; with all of them together {counts(claims['verdict'])}."
    ]
    for word, lead in LEADS.items():
        for claim in claims[claims["verdict"] == word].to_dict("records"):
            value = f"{number(claim['value'])} [{number(claim['low'])}, {number(claim['high'])}]"
            but = "" if pd.isna(claim.get("differences")) else f"; the sides differ in {claim['differences']}"
            lines.append(f"- {lead}: *{claim['claim']}* {value}: {claim['compared']}{but}.")
    is_open = claims["verdict"] == VERDICTS[None]
    floors = int(claims["compared"].str.endswith(UNDECIDED).sum())
    of_these = f" {floors} of them are {UNDECIDED}." if floors else ""
    lines.append(f"- {is_open.sum()} are open at this size, which is not the same as no difference.{of_these}")
    return "\n".join([lines[0], "", *lines[1:]])


def changed(reference: Path) -> str:
    """Which verdicts moved since the intervals were bootstrap intervals over concepts alone, and counts of both."""
    before = pd.read_csv(BEFORE).set_index("claim")["verdict"]
    claims = claims_of(reference)
    claims["before"] = claims["claim"].map(before)
    moved = claims[claims["before"].notna() & (claims["before"] != claims["alone"])]
    names = {"alone": "now alone", "verdict": "now with all"}
    table = moved[["claim", "before", "alone", "verdict"]].rename(columns=names)
    before, alone, together = (counts(claims[column]) for column in ("before", "alone", "verdict"))
    return f"Before: {before}. Now alone: {alone}; with all {together}. Moved:\n\n{markdown_table(table)}"


def study(results: Path) -> str:
    """The answers of a study as sentences, and its tables with their headings two levels lower."""
    numbers = Numbers(results / "tables")
    leading, lines = leading_metrics(numbers.resurgence), []
    for task, metric in leading.items():
        every = numbers.resurgence
        rows = every[(every["task"] == task) & (every["metric"] == metric) & (every["role"] == "erase")]
        lines += [f"- **{task}:** {item['text']}" for item in answers(numbers, rows, frozenset())]
    text = (results / "tables/resurgence.md").read_text(encoding="utf-8").partition("\n")[2]
    return "\n".join(lines) + "\n\n" + re.sub("^#", "##", text.strip(), flags=re.MULTILINE)


def evaluation(name: str, root: Path = DOCS.parent) -> str | None:
    """The page docs/results-NAME.md of the study `name`, from what reference/NAME holds of it; None without one.

    Args:
        root: of the repository; studies, tasks and base are read from there.
    """
    reference = root / "reference" / name / "results"
    if not (reference / "made.json").is_file():
        return None
    first, *_ = names = EVALUATIONS[name]
    layers = {each: root / "studies" / f"{each}.yaml" for each in names}
    study = load_study([root / "params.yaml", *layers.values()], root)
    shown_here = [read_yaml(layers[each]).get("experiments", {}) for each in names[names.index(name) :]]
    folder = reference / "experiments"
    states = {each: state_of(study, each, folder / each / "made.json")
              for each in study.experiments if any(each in declared for declared in shown_here)}  # fmt: skip
    there = [each for each, state in states.items() if state != NOT_RUN]
    relative = os.path.relpath(folder, root / "docs")
    shown = "\n\n".join(page(folder, there, study.statistics.level))
    targets = pd.DataFrame(
        {"target": f"`{each}`", "what it shows": study.experiments[each].title, "state": state}
        for each, state in states.items()
    )
    parts = [
        f"# Results of the study {name}",
        f"What each experiment stands for, and what is small: [{first}.md]({first}.md). By `python docs/results.py` "
        f"from the stored scores: {run_of(reference)}",
        f"## What has run\n\n{len(there)} of {len(states)} targets. How to run one and store it: "
        "[reproduce.md](reproduce.md#the-evaluations-of-eap-and-doco-target-by-target).",
        markdown_table(targets),
        *([f"## What it says\n\n{findings(reference)}"] if any(folder.glob("*/*_claims.csv")) else []),
        re.sub(r"\]\((\w+/\w+\.png)\)", rf"]({relative}/\1)", shown),
    ]
    return "\n\n".join(parts) + "\n"


def state_of(study: Study, name: str, record: Path) -> str:
    """Whether an experiment has run, and with the settings that it has now."""
    if not record.is_file():
        return NOT_RUN
    same = read_manifest(record)["parameters"] == plain(experiment_settings.experiment(study, name))
    return "run" if same else "run with other settings than now"


def parts_of(reference: Path) -> dict[str, str]:
    """The parts that follow from a reference run."""
    return {"changed": changed(reference), "findings": findings(reference), "paper": paper(reference)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, metavar="RESULTS", help="results of the default study")
    folder = parser.parse_args().study
    fill(PAGE, parts_of(REFERENCE) | ({"default study": study(folder)} if folder else {}))
    for name in EVALUATIONS:
        if text := evaluation(name):
            (DOCS / f"results-{name}.md").write_text(text, encoding="utf-8")

"""Write the results of studies of the second miniature into their pages, each between two marks.

    python docs/studies.py sources results     docs/sources.md and its picture, after studies/sources.yaml
    python docs/studies.py quick results       the table of docs/sources.md, after studies/sources-quick.yaml over it
    python docs/studies.py tuning results      docs/tuning.md and tuning.csv, after any targets of studies/tuning.yaml
    python docs/studies.py tuning-eap results  docs/tuning.md and tuning-eap.csv; tuning-doco likewise

No number of these parts is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from parts import fill
from results import findings

from resurgence.analysis.headline import markdown_table, number
from resurgence.analysis.tuning import CHOSEN, FRONT, LEAST_KEPT, RULE, on_front
from resurgence.files import read_json
from resurgence.provenance.manifest import read_manifest

DOCS = Path(__file__).parent
PEOPLE, MOST_LEFT = "tuning-people", 10.0  # percent of ten people, the aim of the search
FIRST = DOCS.parent / "reference/miniature-full/results"
# fine-tune of a miniature -> who made its pictures, learning rate; the sets have 84 and 80 of them
QUICK = {"default": ("base", "2e-3"), "gentle": ("base", "5e-4"), "drawings": ("artists", "5e-4")}
QUICK_FIRST = {"random-80": ("base", "2e-3")}
ONE_RUN = {"metric": "recogniser_accuracy", "step": 300, "finetune": "lora", "variant": "default", "erase_seed": 0,
           "finetune_seed": 0}  # fmt: skip


def quick(results: Path) -> str:
    """Erased and retained concepts of ship and ten people, both miniatures, one pair of seeds and 300 steps of LoRA."""
    rows = []
    for title, folder, shown in (("second", results, QUICK), ("first", FIRST, QUICK_FIRST)):
        table = pd.read_csv(folder / "tables/resurgence.csv")
        is_shown = table["task"].isin(["ship", "identities-10"]) & table["eraser"].isin(["uce", "mace"])
        is_shown &= table["role"].isin(["erase", "retain"]) & table["finetune_variant"].isin(shown)
        for column, value in ONE_RUN.items():
            is_shown &= table[column] == value
        for row in table[is_shown].to_dict("records"):
            states = " -> ".join(number(row[f"{state}_value"]) for state in ("base", "erased", "finetuned"))
            change = f"{number(row['resurgence'])} [{number(row['resurgence_low'])}, {number(row['resurgence_high'])}]"
            maker = shown[row["finetune_variant"]]
            rows.append([row["task"], row["role"], row["eraser"], title, *maker, row["n"], states, change])
    names = ["task", "role", "eraser", "miniature", "pictures by", "learning rate", "images",
             "base -> erased -> fine-tuned", "change, this run"]  # fmt: skip
    return markdown_table(pd.DataFrame(sorted(rows), columns=names))


def sources(results: Path, images: Path) -> str:
    """A sentence for each decided claim, then the page of the experiment; its picture is copied to `images`."""
    folder = results / "experiments/sources"
    shutil.copyfile(folder / "sources.png", images / "sources.png")
    text = (folder / "sources.md").read_text(encoding="utf-8").replace("](sources.png)", "](images/sources.png)")
    return f"{findings(results)}\n\n{re.sub('^#', '##', text.strip(), flags=re.MULTILINE)}"


def seconds(results: Path, base: str, eraser: str, task: str, seed: int) -> tuple[int, str]:
    """Seconds of erasing a task, trainings of LoRAs included, and the commit that erased."""
    folder = results / f"erased/{base}/{task}/{eraser}/s{seed}"
    runs = [read_json(folder / part / "run.json") for part in ("delta", "loras") if (folder / part).is_dir()]
    return round(sum(float(run["seconds"]) for run in runs)), runs[0]["commit"][:10]


def ran(results: Path, name: str, written: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of one eraser: its experiment's table, with the seconds of each task."""
    folder = results / "experiments" / name
    read_manifest(folder / "made.json")  # a finished experiment
    table = pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
    (seed,), base = written["seeds"]["erase"], written["base"]["name"]
    for task in written["tasks"]["names"]:
        spent, commits = zip(*(seconds(results, base, eraser, task, seed) for eraser in table["eraser"]), strict=True)
        table[f"seconds {task}"] = spent
    return table.drop(columns="runs").assign(commit=commits)


def tuning(results: Path, study: Path, known: Path) -> str:
    """One table of all settings that have run, and what was chosen.

    Args:
        study: the file of the study, whose order the table has.
        known: the table of all runs so far. The erasers that have run in `results` take the place of their rows in it.

    Raises:
        ValueError: nothing has run.
    """
    written = yaml.safe_load(study.read_text(encoding="utf-8"))
    before = pd.read_csv(known, keep_default_na=False) if known.is_file() else pd.DataFrame({"eraser": []})
    parts = []
    for name, experiment in written["experiments"].items():
        if (results / "experiments" / name / "made.json").is_file():
            parts.append(ran(results, name, written))
        else:
            parts.append(before[before["eraser"].isin(experiment["erasers"])])
    if not (parts := [part for part in parts if len(part)]):
        raise ValueError(f"{results} has no finished experiment of {study}; run the study first")
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(known, index=False, lineterminator="\n")
    rows, tasks = [], written["tasks"]["names"]
    for row in table.to_dict("records"):
        each = {t: f"{number(row[f'left {t}'])} / {number(row[f'kept {t}'])}" for t in tasks}
        shown = {"eraser": row["eraser"], "setting": row["setting"]}
        shown |= {"left": number(row["left"]), "kept": number(row["kept"])} | each
        shown["seconds"] = " / ".join(str(row[f"seconds {task}"]) for task in each)
        rows.append(shown | {"choice": row["choice"]})
    chosen = table.loc[table["choice"] == CHOSEN, "eraser"]
    fronts = table.loc[table["choice"] == FRONT, "eraser"].str.split(".").str[0].unique()
    lines = [RULE, f"Chosen: {', '.join(chosen) or 'none'}. No setting keeps enough: {', '.join(fronts) or 'none'}."]
    head = "Of each task left / kept in percent; seconds of erasing in the order of the tasks."
    aims = [aim(table, PEOPLE)] if PEOPLE in tasks else []
    return "\n\n".join([*lines, head, markdown_table(pd.DataFrame(rows)), *aims, fronts_by_task(table, tasks)])


def aim(table: pd.DataFrame, task: str) -> str:
    """Which settings meet the aim, which is about one task, and which erasers have none that does."""
    met = (table[f"left {task}"] <= MOST_LEFT) & (table[f"kept {task}"] >= LEAST_KEPT)
    methods = table["eraser"].str.split(".").str[0]
    without = [name for name in methods.unique() if not met[methods == name].any()]
    erasers = f"met by {', '.join(table.loc[met, 'eraser']) or 'none'}; by no setting of {', '.join(without) or 'none'}"
    return f"Aim: of {task} at most {MOST_LEFT:g} % left and at least {LEAST_KEPT:g} % kept: {erasers}."


def fronts_by_task(table: pd.DataFrame, tasks: Iterable[str]) -> str:
    """Of each eraser and task the settings of which no other leaves less and keeps as much, the least left first."""
    lines = []
    for name, part in table.groupby(table["eraser"].str.split(".").str[0], sort=False):
        cells = []
        for task in tasks:
            shown = part[["eraser", f"left {task}", f"kept {task}"]].set_axis(["eraser", "left", "kept"], axis=1)
            best = shown[on_front(shown)].sort_values("left").drop_duplicates(["left", "kept"])
            names = best["eraser"].str.partition(".")[2].replace("", "default")
            rows = zip(names, best["left"].map(number), best["kept"].map(number), strict=True)
            cells.append("; ".join(f"{setting} {left} / {kept}" for setting, left, kept in rows))
        lines.append([name, *cells])
    return "The front of each task:\n\n" + markdown_table(pd.DataFrame(lines, columns=["eraser", *tasks]))


def main() -> None:
    """Write one page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("sources", "quick", "tuning", "tuning-eap", "tuning-doco"))
    parser.add_argument("results", type=Path, help="the folder of the finished study")
    args = parser.parse_args()
    page = DOCS / ("tuning.md" if args.study.startswith("tuning") else "sources.md")
    if args.study == "quick":
        text = quick(args.results)
    elif args.study == "sources":
        text = sources(args.results, DOCS / "images")
    else:
        text = tuning(args.results, DOCS.parent / f"studies/{args.study}.yaml", DOCS / f"{args.study}.csv")
    fill(page, {f"{args.study} study": text})


if __name__ == "__main__":
    main()

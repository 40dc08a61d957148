"""Write the results of studies of the second miniature into their pages, each between two marks.

    python docs/studies.py sources results     docs/sources.md and its picture, after studies/sources.yaml
    python docs/studies.py quick results       the table of docs/sources.md, after studies/sources-quick.yaml over it
    python docs/studies.py tuning results      docs/tuning.md, tuning.csv, parts of docs/methods/*.md, after any targets
                                               of studies/tuning.yaml
    python docs/studies.py tuning-eap results  docs/tuning.md and tuning-eap.csv; tuning-doco likewise

No number of these parts is typed by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from parts import fill
from results import findings

from resurgence.analysis.headline import (
    MARK,
    SMALL,
    changed_note,
    markdown_table,
    marked,
    number,
    outcome,
    outcome_text,
)
from resurgence.analysis.tuning import CHOSEN, FRONT, LEAST_KEPT, RULE, on_front
from resurgence.config.erasers import eraser_config
from resurgence.config.fields import build
from resurgence.files import read_json
from resurgence.provenance.manifest import read_manifest

DOCS = Path(__file__).parent
PEOPLE, MOST_LEFT = "tuning-people", 10.0  # percent of ten people, the aim of the search
HALF = 50.0  # percent; a chosen setting that leaves more does not erase
FIRST = DOCS.parent / "reference/miniature-full/results"
PAPER = {"identities-10": "celebrities come back", "ship": "objects hardly come back"}
PAPER |= {"automobile": PAPER["ship"]}
STAYS = 5.0  # points, the margin of the claims about retained concepts in studies/miniature-full.yaml
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
            ends = row["resurgence_low"], row["resurgence_high"]
            change = f"{number(row['resurgence'])} [{number(ends[0])}, {number(ends[1])}]"
            word = outcome_text(*ends, row["base_value"], row["metric"]) if row["role"] == "erase" else "-"
            maker = shown[row["finetune_variant"]]
            rows.append([row["task"], row["role"], row["eraser"], title, *maker, row["n"], states, change, word])
    names = ["task", "role", "eraser", "miniature", "pictures by", "learning rate", "images",
             "base -> erased -> fine-tuned", "change, this run", "came back"]  # fmt: skip
    return markdown_table(pd.DataFrame(sorted(rows), columns=names))


def sources(results: Path) -> dict[str, str]:
    """The parts of docs/sources.md: a sentence for each decided claim, task and eraser; the page of the experiment."""
    folder = results / "experiments/sources"
    text = (folder / "sources.md").read_text(encoding="utf-8").replace("](sources.png)", "](images/sources.png)")
    level = read_manifest(folder / "made.json")["parameters"]["statistics"]["level"]
    tables = (pd.read_csv(folder / f"sources{part}.csv") for part in ("", "_checks"))
    table, beside = tables
    text_of_findings = f"{findings(results)}\n\n{came_back(table, beside, level)}\n\n{paper_by_maker(table, level)}"
    return {"sources findings": text_of_findings, "sources study": re.sub("^#", "##", text.strip(), flags=re.MULTILINE)}


def outcomes(table: pd.DataFrame, level: float) -> dict[tuple[str, str], dict[str, tuple[str, str]]]:
    """Task and eraser -> fine-tune -> whether the erased concepts came back, and by how much.

    Args:
        table: of `cells.table`, rows of one metric.
    """
    found: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
    for row in table[table["role"] == "erase"].to_dict("records"):
        ends = row["resurgence_low"], row["resurgence_high"]
        word = outcome(*ends, row["base_value"])
        word = "open" if word == "yes" and not row["p_holm"] <= 1 - level else word
        text = f"{number(row['resurgence'])} [{number(ends[0])}, {number(ends[1])}]"
        found.setdefault((row["task"], row["eraser"]), {})[row["finetune"]] = word, text
    return found


def came_back(table: pd.DataFrame, checks: pd.DataFrame, level: float) -> str:
    """A sentence for each task and eraser: after which fine-tunes the erased concepts came back, and what is open; and
    where CLIP says otherwise.

    Args:
        table: of `cells.table`. checks: of `scorer_checks.checks`.
    """
    little = f"by its interval alone, at most {100 * SMALL:g} % of the base's value came back after"
    words, lines = {"yes": "came back after", "open": "open after", "no": little}, []
    by_clip = outcomes(checks[checks["metric"] == "clip_accuracy"], level)
    for cell, found in outcomes(table, level).items():
        other = {f: says for f, says in by_clip[cell].items() if says[0] != found[f][0]}
        clauses = [*said(found, words), *(f"by CLIP {text}" for text in said(other, words))]
        lines.append(f"- **{', '.join(cell)}:** {'. '.join(text[0].upper() + text[1:] for text in clauses)}.")
    head = (
        "Of each task and eraser, resurgence of the erased concepts in points after each fine-tune, by the recogniser. "
        f"*Came back*: the interval lies above 0, and p after Holm's adjustment for all these rows is at most "
        f"{1 - level:.2g}. Else *open*. Where an interval ends at or below {100 * SMALL:g} % of the base's value, that "
        "is said; it is of each interval alone, not adjusted for the number of rows. *By CLIP*: where CLIP's accuracy "
        "on the same images says otherwise, by the same rule. CLIP chooses among the concepts of a task, the "
        "recogniser among all that it knows."
    )
    return "\n".join([head, "", *lines])


def paper_by_maker(table: pd.DataFrame, level: float) -> str:
    """What the paper says of one maker, for each: whether erased concepts come back and retained ones stay.

    Args:
        table: of `cells.table`.
    """
    found, rows = outcomes(table, level), []
    for (task, eraser), erased in found.items():
        says = PAPER.get(task, "-")
        cells = {name: f"{word}, {text}" for name, (word, text) in erased.items()}
        rows.append({"task": task, "the paper": says, "eraser": eraser, **cells})
    for (task, eraser), part in table[table["role"] == "retain"].groupby(["task", "eraser"], sort=False):
        cells = {row["finetune"]: stays(row) for row in part.to_dict("records")}
        rows.append({"task": task, "the paper": "retained ones stay nearly constant", "eraser": eraser, **cells})
    head = (
        "What the paper found with pictures of the base, by who made them: whether the erased concepts came back (yes, "
        f"no, or open, by the rules above), and whether the retained ones stay: the interval within {STAYS:g} points "
        "of no change (stay), outside (move), or open. Resurgence in points; a dash where a base has no pictures."
    )
    return f"{head}\n\n{markdown_table(pd.DataFrame(rows).fillna('-'))}"


def stays(row: Mapping[str, Any]) -> str:
    """Whether the retained concepts of a row of `cells.table` stay, and their change."""
    low, high = row["resurgence_low"], row["resurgence_high"]
    word = "stay" if low >= -STAYS and high <= STAYS else "move" if low > STAYS or high < -STAYS else "open"
    return f"{word}, {number(row['resurgence'])} [{number(low)}, {number(high)}]"


def said(found: Mapping[str, tuple[str, str]], words: Mapping[str, str]) -> list[str]:
    """A clause for each outcome: the fine-tunes that have it, with what they bring back."""
    listed = {word: [f"`{name}`, {text}" for name, (its, text) in found.items() if its == word] for word in words}
    return [f"{lead} {'; '.join(listed[word])}" for word, lead in words.items() if listed[word]]


def seconds(results: Path, base: str, eraser: str, task: str, seed: int) -> tuple[int, str]:
    """Seconds of erasing a task, trainings of LoRAs included, and the commit that erased."""
    folder = results / f"erased/{base}/{task}/{eraser}/s{seed}"
    runs = [read_json(folder / part / "run.json") for part in ("delta", "loras") if (folder / part).is_dir()]
    return round(sum(float(run["seconds"]) for run in runs)), runs[0]["commit"][:10]


def has_run(results: Path, name: str, written: Mapping[str, Any]) -> bool:
    """Whether an experiment is finished, with the settings that the study has now."""
    made = results / "experiments" / name / "made.json"
    if not made.is_file():
        return False
    parameters = read_manifest(made)["parameters"]
    settings, shown = parameters["settings"], written["experiments"][name]["erasers"]
    is_same = list(parameters["erasers"]) == list(shown) and all(
        settings_of(written, eraser).items() <= settings.get(eraser, {}).items() for eraser in shown
    )
    if not is_same:
        print(f"{made.parent} has run with other settings than the study has now; its rows stay as they were")
    return is_same


def settings_of(written: Mapping[str, Any], eraser: str) -> dict[str, Any]:
    """What a study writes for an eraser with its variant, beside params.yaml."""
    method, _, variant = eraser.partition(".")
    block = written.get("erasers", {}).get(method) or {}
    default = {key: value for key, value in block.items() if key != "variants"}
    return default | (block.get("variants", {}).get(variant or "default") or {})


def changed_objectives(written: Mapping[str, Any]) -> dict[str, str]:
    """Eraser with its variant -> the settings that change its objective, of those where any do."""
    found = {}
    for experiment in written["experiments"].values():
        for eraser in experiment["erasers"]:
            config = eraser_config(eraser.partition(".")[0])
            names = {field.name for field in dataclasses.fields(config)}
            settings = {key: value for key, value in settings_of(written, eraser).items() if key in names}
            if text := build(config, settings, eraser).changed_objective():
                found[eraser] = text
    return found


def ran(results: Path, name: str, written: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of one eraser: its experiment's table, with the seconds of each task, and the commits that erased."""
    table = pd.read_csv(results / f"experiments/{name}/{name}.csv", keep_default_na=False)
    (seed,), base, by = written["seeds"]["erase"], written["base"]["name"], [dict[str, None]() for _ in table.index]
    for task in written["tasks"]["names"]:
        spent, commits = zip(*(seconds(results, base, eraser, task, seed) for eraser in table["eraser"]), strict=True)
        table[f"seconds {task}"] = spent
        for row, commit in zip(by, commits, strict=True):
            row[commit] = None
    return table.drop(columns="runs").assign(commit=[" ".join(row) for row in by])


def tuning(results: Path, study: Path, known: Path) -> str:
    """One table of all settings that have run, and what was chosen.

    Args:
        study: the file of the study, whose order the table has.
        known: the table of all runs so far. The erasers that have run in `results` with the settings of the study take
            the place of their rows in it.

    Raises:
        ValueError: nothing has run.
    """
    written = yaml.safe_load(study.read_text(encoding="utf-8"))
    before = pd.read_csv(known, keep_default_na=False) if known.is_file() else pd.DataFrame({"eraser": []})
    parts = []
    for name, experiment in written["experiments"].items():
        if has_run(results, name, written):
            parts.append(ran(results, name, written))
        else:
            parts.append(before[before["eraser"].isin(experiment["erasers"])])
    if not (parts := [part for part in parts if len(part)]):
        raise ValueError(f"{results} has no finished experiment of {study}; run the study first")
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(known, index=False, lineterminator="\n")
    rows, tasks, changed = [], written["tasks"]["names"], changed_objectives(written)
    has_base = any(f"base {task}" in table for task in tasks)
    for row in table.to_dict("records"):
        each = {t: f"{number(row[f'left {t}'])} / {number(row[f'kept {t}'])}" for t in tasks}
        shown = {"eraser": marked(row["eraser"], changed), "setting": row["setting"]}
        shown |= {"base": bases(row, tasks)} if has_base else {}
        shown |= {"left": number(row["left"]), "kept": number(row["kept"])} | each
        shown["seconds"] = " / ".join(str(row[f"seconds {task}"]) for task in each)
        rows.append(shown | {"choice": row["choice"]})
    chosen = table.loc[table["choice"] == CHOSEN, "eraser"]
    fronts = table.loc[table["choice"] == FRONT, "eraser"].str.split(".").str[0].unique()
    lines = [RULE, f"Chosen: {', '.join(chosen) or 'none'}. No setting keeps enough: {', '.join(fronts) or 'none'}."]
    if PEOPLE in tasks:
        names = settings_for_methods(table).values()
        rule = (
            "the chosen setting; where there is none, or it leaves more than half, that of the largest kept minus left"
        )
        lines.append(f"In `studies/methods.yaml`, {rule}: {', '.join(names)}.")
    head = "Of each task left / kept in percent; seconds of erasing in the order of the tasks"
    head += ", and so `base`, the percent of the erased concepts before erasing." if has_base else "."
    aims = [aim(table, PEOPLE)] if PEOPLE in tasks else []
    note = [changed_note({name: changed[name] for name in table["eraser"] if name in changed})]
    page = [*lines, head, markdown_table(pd.DataFrame(rows)), *filter(None, note), *aims]
    return "\n\n".join([*page, fronts_by_task(table, tasks)])


def settings_for_methods(table: pd.DataFrame) -> dict[str, str]:
    """Eraser -> its setting in studies/methods.yaml: the chosen one; where there is none, or it leaves more than half,
    the one whose kept minus left is the largest.

    Args:
        table: the table of all runs so far.
    """
    found = {}
    for name, part in table.groupby(table["eraser"].str.partition(".")[0], sort=False):
        chosen = part[(part["choice"] == CHOSEN) & (part["left"] <= HALF)]
        row = chosen.iloc[0] if len(chosen) else part.loc[(part["kept"] - part["left"]).idxmax()]
        found[str(name)] = str(row["eraser"])
    return found


def bases(row: Mapping[str, Any], tasks: Iterable[str]) -> str:
    """The base's value of the erased concepts of each task; a dash for rows that were written without."""
    values = (pd.to_numeric(row.get(f"base {task}"), errors="coerce") for task in tasks)
    return " / ".join(number(float("nan" if value is None else value)) for value in values)


def methods(known: Path, study: Path) -> dict[str, str]:
    """Eraser -> the part `tuning` of its page: what each of its settings leaves and keeps, and the front of each task.

    Args:
        known: the table of all runs so far. study: the file of their study.
    """
    table, written = pd.read_csv(known, keep_default_na=False), yaml.safe_load(study.read_text(encoding="utf-8"))
    tasks, changed = written["tasks"]["names"], changed_objectives(written)
    return {
        name: method(part, tasks, changed)
        for name, part in table.groupby(table["eraser"].str.split(".").str[0], sort=False)
    }


def method(table: pd.DataFrame, tasks: Sequence[str], changed: Mapping[str, str]) -> str:
    """The part of one eraser."""
    names = table["eraser"].str.partition(".")[2].replace("", "default")
    labels = [
        f"{name} {MARK}" if eraser in changed else name for name, eraser in zip(names, table["eraser"], strict=True)
    ]
    cells = {"setting": labels, "differs in": table["setting"]}
    if any(f"base {task}" in table for task in tasks):
        cells["base"] = [bases(row, tasks) for row in table.to_dict("records")]
    for task in tasks:
        front = on_front(table[[f"left {task}", f"kept {task}"]].set_axis(["left", "kept"], axis=1))
        pairs = zip(table[f"left {task}"].map(number), table[f"kept {task}"].map(number), front, strict=True)
        cells[task] = [f"**{left} / {kept}**" if best else f"{left} / {kept}" for left, kept, best in pairs]
    spent = [table[f"seconds {task}"].astype(str) for task in tasks]
    cells["seconds"] = [" / ".join(row) for row in zip(*spent, strict=True)]
    cells["choice"] = table["choice"]
    met = ", ".join(meets(table, PEOPLE)) if PEOPLE in tasks else ""
    reached = f"met by {met}" if met else "met by no setting; the bold cells are what these runs reach"
    return "\n\n".join([
        "## Settings on the second miniature",
        "From [tuning](../tuning.md#on-the-second-miniature): one seed, concepts and noise that no reported number "
        "uses, recogniser accuracy. Of each task the percent of the erased concepts that is left / the percent of the "
        "base's value of the retained ones that is kept; **bold** where no other of these settings leaves less and "
        "keeps as much; seconds of erasing in the order of the tasks. These are single runs without intervals.",
        markdown_table(pd.DataFrame(cells)),
        *filter(None, [changed_note({name: changed[name] for name in table["eraser"] if name in changed})]),
        *([f"Aim, at most {MOST_LEFT:g} % of {PEOPLE} left and at least {LEAST_KEPT:g} % kept: {reached}."]
          if PEOPLE in tasks else []),
    ])  # fmt: skip


def meets(table: pd.DataFrame, task: str) -> list[str]:
    """The settings that meet the aim on a task."""
    met = (table[f"left {task}"] <= MOST_LEFT) & (table[f"kept {task}"] >= LEAST_KEPT)
    return list(table.loc[met, "eraser"])


def aim(table: pd.DataFrame, task: str) -> str:
    """Which settings meet the aim, which is about one task, and which erasers have none that does."""
    met = meets(table, task)
    names = table["eraser"].str.split(".").str[0].unique()
    without = [name for name in names if name not in {setting.partition(".")[0] for setting in met}]
    erasers = f"met by {', '.join(met) or 'none'}; by no setting of {', '.join(without) or 'none'}"
    return f"Aim: of {task} at most {MOST_LEFT:g} % left and at least {LEAST_KEPT:g} % kept: {erasers}."


def fronts_by_task(table: pd.DataFrame, tasks: Iterable[str]) -> str:
    """Of each eraser and task the settings of which no other leaves less and keeps as much, the least left first."""
    lines = []
    for name, part in table.groupby(table["eraser"].str.split(".").str[0], sort=False):
        cells = []
        for task in tasks:
            shown = part[["eraser", f"left {task}", f"kept {task}"]].set_axis(["eraser", "left", "kept"], axis=1)
            shown["eraser"] = shown["eraser"].str.partition(".")[2].replace("", "default")
            equal = shown[on_front(shown)].groupby(["left", "kept"], sort=True)["eraser"]  # settings with equal values
            rows = [f"{', '.join(names)} {number(left)} / {number(kept)}" for (left, kept), names in equal]
            cells.append("; ".join(rows))
        lines.append([name, *cells])
    return "The front of each task:\n\n" + markdown_table(pd.DataFrame(lines, columns=["eraser", *tasks]))


def main() -> None:
    """Write one page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("sources", "quick", "tuning", "tuning-eap", "tuning-doco"))
    parser.add_argument("results", type=Path, help="the folder of the finished study")
    args = parser.parse_args()
    if args.study == "quick":
        fill(DOCS / "sources.md", {"quick study": quick(args.results)})
    elif args.study == "sources":
        shutil.copyfile(args.results / "experiments/sources/sources.png", DOCS / "images/sources.png")
        fill(DOCS / "sources.md", sources(args.results))
    else:
        study, known = DOCS.parent / f"studies/{args.study}.yaml", DOCS / f"{args.study}.csv"
        fill(DOCS / "tuning.md", {f"{args.study} study": tuning(args.results, study, known)})
        if args.study == "tuning":
            for name, text in methods(known, study).items():
                fill(DOCS / f"methods/{name}.md", {"tuning": text})


if __name__ == "__main__":
    main()

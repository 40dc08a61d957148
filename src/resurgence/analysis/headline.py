"""The resurgence table as text: Markdown for the report, aligned columns for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from resurgence.config.model_path import method_name
from resurgence.config.scorers import BLANK, HARMONIC, ranked

BLANK_LIMIT = 1.0  # percent of an image set, above which there is a warning
ROLES = {
    "erase": "erased concepts", "all": "all", "synonym": "their synonyms", "retain": "retained concepts",
    "synonym-retain": "synonyms of retained", "general": "general prompts",
}  # fmt: skip
MARK = "†"  # of erasers whose objective is not the published one
SMALL = 0.1  # of the base's value: a concept has not come back if the interval ends below this
Outcome = Literal["yes", "no", "open"]
CELL = ["base", "task", "eraser", "variant", "finetune", "finetune_variant"]


def titles() -> dict[str, str]:
    """Metric -> its title, in the order of the reports."""
    return {name: metric.title for name, metric in ranked().items()} | HARMONIC


def title_of(metric: str) -> str:
    """The title of a metric; its name if no scorer declares it."""
    return titles().get(metric, metric)


def number(value: float) -> str:
    """One decimal, or two significant digits below 1; a dash for NaN. Below 1e-4, as ends of intervals can be, 0.0."""
    if not math.isfinite(value):
        return "-"
    value = 0.0 if abs(value) < 1e-4 else value  # no minus zero either
    return f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"


def last_steps(resurgence: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of each cell's last step."""
    keys = [*CELL, "erase_seed", "finetune_seed"]
    return resurgence[resurgence["step"] == resurgence.groupby(keys)["step"].transform("max")]


def cell_row(rows: pd.DataFrame, seeds: pd.DataFrame) -> pd.Series | None:
    """The row of seeds.csv if the cell has several runs, its row of resurgence.csv if it has one; None without runs."""
    if len(rows) < 2:
        return rows.iloc[0] if len(rows) else None
    keys = [*CELL, "step", "role", "metric"]
    return seeds[(seeds[keys] == rows.iloc[0][keys]).all(axis=1)].iloc[0]


def gain(rows: pd.DataFrame, seeds: pd.DataFrame) -> str:
    """Resurgence of a cell and role with its interval, which is about this run where one seed ran; with several seeds
    the mean over them, then median ± largest deviation.

    Args:
        rows: of resurgence.csv, one a seed. seeds: seeds.csv.
    """
    row = cell_row(rows, seeds)
    if row is None:
        return "-"
    value = row["resurgence_mean" if len(rows) > 1 else "resurgence"]
    text = f"{number(value)} [{number(row['resurgence_low'])}, {number(row['resurgence_high'])}]"
    if len(rows) == 1:
        return f"{text} this run"
    return f"{text}, {len(rows)} runs: {spread_text(row['resurgence_median'], row['resurgence_deviation'])}"


def spread_text(median: float, deviation: float) -> str:
    """Median ± largest deviation over seeds; `-` without a deviation, where one seed ran."""
    return "-" if math.isnan(deviation) else f"{number(median)} ± {number(deviation)}"


def outcome(low: float, high: float, base: float) -> Outcome:
    """Whether concepts came back, by the interval of their resurgence.

    Yes if it lies above 0; no if it ends at or below SMALL times the base's value; open otherwise, also if it is NaN.
    """
    if low > 0:
        return "yes"
    return "no" if high <= SMALL * base else "open"


def verdict(rows: pd.DataFrame, seeds: pd.DataFrame) -> str:
    """The outcome of a cell and role as text: no with the upper end of its interval; with several seeds, also in how
    many runs the interval lies above 0."""
    row = cell_row(rows, seeds)
    if row is None:
        return "-"
    ends = row["resurgence_low"], row["resurgence_high"]
    word = outcome_text(*ends, rows["base_value"].median(), row["metric"])
    return word if len(rows) == 1 else f"{word} ({(rows['resurgence_low'] > 0).sum()} of {len(rows)})"


def outcome_text(low: float, high: float, base: float, metric: str) -> str:
    """The outcome as text: no with the upper end of its interval."""
    word: str = outcome(low, high, base)
    return f"no (up to {number(high)}{unit(metric)})" if word == "no" and high > 0 else word


def unit(metric: str) -> str:
    """The unit of a metric after a number: " %" for a share, else an empty text."""
    declared = ranked().get(metric)
    return " %" if declared is not None and declared.share else ""


def states_text(rows: pd.DataFrame) -> str:
    """base -> erased -> fine-tuned, medians over seeds."""
    return " -> ".join(number(rows[name].median()) for name in ("base_value", "erased_value", "finetuned_value"))


def marked(eraser: str, changed: Mapping[str, str]) -> str:
    """The name of an eraser in a table, with a dagger if its objective is not the published one."""
    return f"{eraser} {MARK}" if eraser in changed else eraser


def changed_note(changed: Mapping[str, str]) -> str:
    """What the dagger means, with the settings; empty without changed objectives."""
    if not changed:
        return ""
    return f"{MARK} not the published objective: {'; '.join(f'{name} has {how}' for name, how in changed.items())}."


def headline(
    resurgence: pd.DataFrame, seeds: pd.DataFrame, metric: str, changed: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """One row a cell at its last step, over its seeds: base -> erased -> fine-tuned of each role, as text.

    The column `came back` is only for metrics that increase with the concept.

    Args:
        changed: eraser -> the settings that change its objective.
    """
    rows, declared = [], ranked().get(metric)
    for key, group in last_steps(resurgence[resurgence["metric"] == metric]).groupby(CELL, sort=False):
        _, task, eraser, variant, finetune, finetune_variant = key
        row = {"task": task, "eraser": marked(method_name(eraser, variant), changed or {})}
        row["fine-tune"] = method_name(finetune, finetune_variant)
        row["step"] = "/".join(str(int(step)) for step in sorted(set(group["step"])))
        parts = {role: group[group["role"] == role] for role in ROLES if (group["role"] == role).any()}
        for role in [role for role in ("erase", "all") if role in parts]:
            row[ROLES[role]], row["resurgence"] = states_text(parts[role]), gain(parts[role], seeds)
            if declared is not None and declared.shows_concept:
                row["came back"] = verdict(parts[role], seeds)
            row["recovered"] = number(parts[role]["recovered_fraction"].median())
        row |= {ROLES[role]: states_text(part) for role, part in parts.items() if role not in ("erase", "all")}
        rows.append(row)
    return pd.DataFrame(rows).fillna("-")


def accuracies(resurgence: pd.DataFrame) -> dict[str, str]:
    """Task -> its first accuracy; a detector of people does not score objects."""
    metrics = resurgence.groupby("task", sort=False)["metric"].agg(set)
    order = [metric for metric, declared in ranked().items() if declared.accuracy]
    return {task: next(m for m in order if m in scored) for task, scored in metrics.items() if scored & set(order)}


def metrics(resurgence: pd.DataFrame) -> dict[str, Any]:
    """Task > eraser > fine-tune > numbers at the last step, medians over seeds, of the task's first accuracy.

    base, erased, finetuned and resurgence are those of the erased concepts; with the prefix retained_, of the others.
    """
    chosen = resurgence[resurgence["metric"] == resurgence["task"].map(accuracies(resurgence))]
    numbers: dict[str, Any] = {}
    for key, group in last_steps(chosen).groupby(CELL, sort=False):
        _, task, eraser, variant, finetune, finetune_variant = key
        values = {}
        for role, prefix in {"erase": "", "retain": "retained_"}.items():
            rows = group[group["role"] == role]
            for name in ("base", "erased", "finetuned", "resurgence") if len(rows) else ():
                median = rows[name if name == "resurgence" else f"{name}_value"].median()
                values[prefix + name] = float(f"{median:.6g}") if math.isfinite(median) else None
        finetunes = numbers.setdefault(task, {}).setdefault(method_name(eraser, variant), {})
        finetunes[method_name(finetune, finetune_variant)] = values
    return numbers


def drop_repeats(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Blank cells of the leading columns that repeat those of the row above."""
    blanked = table.copy()
    for depth, name in enumerate(columns):
        same = (table[columns[: depth + 1]] == table[columns[: depth + 1]].shift()).all(axis=1)
        blanked.loc[same, name] = ""
    return blanked


def aligned(table: pd.DataFrame) -> str:
    """Columns padded to equal width, names to the left, numbers to the right."""
    texts = [list(table.columns), *table.astype(str).values.tolist()]
    widths = [max(len(row[i]) for row in texts) for i in range(len(table.columns))]
    names = {"task", "eraser", "fine-tune"}
    lines = [
        "  ".join(t.ljust(w) if name in names else t.rjust(w) for t, w, name in zip(row, widths, table, strict=True))
        for row in texts
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def terminal(
    resurgence: pd.DataFrame, seeds: pd.DataFrame, level: float, changed: Mapping[str, str] | None = None
) -> str:
    """The tables at the end of a study: each task by its first accuracy, one table for each accuracy."""
    chosen, parts = accuracies(resurgence), []
    for metric, heading in titles().items():
        if metric not in chosen.values():
            continue
        rows = resurgence[resurgence["task"].map(chosen) == metric]
        table = headline(rows, seeds, metric, changed).drop(
            columns=["their synonyms", "synonyms of retained"], errors="ignore"
        )
        title = f"Resurgence: {heading}, base -> erased -> fine-tuned, at the last step"
        parts.append(f"{title}\n\n{aligned(drop_repeats(table, ['task', 'eraser']))}\n\n")
    if not parts:
        return "No fine-tuned model has an accuracy: no resurgence table.\n"
    note = (f"Brackets: {100 * level:g} % interval of fine-tuned minus erased over concepts and seeds, or of this run; "
            "came back: it lies above 0.")  # fmt: skip
    return "\n".join(filter(None, [f"{''.join(parts)}{note}", changed_note(changed or {})])) + "\n"


def blank_warning(cells: pd.DataFrame) -> str:
    """One sentence if more than 1 % of the images of an image set are blank, else an empty text.

    Args:
        cells: cells.csv.
    """
    keys = [*CELL, "erase_seed", "finetune_seed", "state", "step"]
    rows = cells[cells["metric"] == BLANK].dropna(subset="value")
    sums = rows.assign(blank=rows["n"] * rows["value"]).groupby(keys, sort=False, dropna=False)[["blank", "n"]].sum()
    shares = (sums["blank"] / sums["n"].astype(float)).sort_values(ascending=False, kind="stable")
    above = int((shares > BLANK_LIMIT).sum())
    if not above:
        return ""
    worst = dict(zip(keys, shares.index[0], strict=True))
    name = ", ".join(f"{key} {worst[key]}" for key in keys if pd.notna(worst[key]) and worst[key] != "")
    return (f"Warning: in {above} of {len(shares)} image sets more than {BLANK_LIMIT:g} % of the images are blank, "
            f"{number(shares.iloc[0])} % in the worst ({name}). They count as not recognised, as if their concept "
            "were erased.")  # fmt: skip


def markdown_table(table: pd.DataFrame) -> str:
    """A Markdown table; `|` in a cell is escaped."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def makers_table(makers: Mapping[str, Sequence[str]]) -> str:
    """Who made the images that each fine-tune was trained on, as Markdown; empty without makers.

    Args:
        makers: fine-tune -> fine-tuning set, and who made its images.
    """
    if not makers:
        return ""
    ordered = sorted(makers.items())  # as a manifest has them, from which a reference is made again
    rows = pd.DataFrame([(name, *of) for name, of in ordered], columns=["fine-tune", "set", "images made by"])
    return f"Who made the images of the fine-tuning sets:\n\n{markdown_table(rows)}"


def markdown(
    resurgence: pd.DataFrame,
    seeds: pd.DataFrame,
    units: pd.DataFrame,
    level: float,
    changed: Mapping[str, str] | None = None,
) -> str:
    """resurgence.md: one table a metric at the last step, and how the intervals are computed."""
    parts = [
        "# Resurgence",
        "At the last step of each fine-tune: base -> erased -> fine-tuned; resurgence is fine-tuned minus erased, same "
        f"prompts and seeds, with its {100 * level:g} % interval over concepts (images where there is one concept) and "
        "seeds, or of `this run` where one seed ran; `came back`: yes if it lies above 0, no if it ends at or below "
        f"{100 * SMALL:g} % of the base's value, else open; `recovered` is (fine-tuned - erased) / (base - erased).",
    ]
    for metric, title in titles().items():
        if (resurgence["metric"] == metric).any():
            parts += [f"## {title}", markdown_table(headline(resurgence, seeds, metric, changed))]
    parts += filter(None, [changed_note(changed or {})])
    runs = int(seeds["runs"].max()) if len(seeds) else 0
    if runs > 1:
        parts.append(
            f"Cells with several seeds (up to {runs} runs): medians over the seeds; of the resurgence the mean with "
            "its interval, then median ± largest deviation; `came back` (in how many runs alone)."
            " All of it is in seeds.csv."
        )
    method = ("Random units and seeds, Satterthwaite's degrees of freedom. Shares: Clopper and Pearson's interval at "
              "the effective number of images (Korn and Graubard); their differences and harmonic means: MOVER. Other "
              "means: Student's t; Fréchet distance: the jackknife.")  # fmt: skip
    parts += ["## Intervals", method, markdown_table(units)]
    return "\n\n".join(parts) + "\n"

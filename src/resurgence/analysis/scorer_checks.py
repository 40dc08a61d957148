"""What the other scores say beside an accuracy: the other detectors, their agreement, blank images, false alarms."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from resurgence.analysis.cells import CELL, pool_seeds, table
from resurgence.analysis.estimates import estimates
from resurgence.analysis.headline import marked, number, title_of
from resurgence.analysis.metric_tables import cell
from resurgence.analysis.score_sets import ImageSet
from resurgence.analysis.tables import erased_rows, paired_rows
from resurgence.analysis.task_means import pool_tasks
from resurgence.config.scorers import AGREEMENT, BLANK, FALSE_ALARM, metrics, ranked, ranked_names
from resurgence.scorers import compared

ROLE_OF = {AGREEMENT: "erase", FALSE_ALARM: "retain"}
"""Of which images a check is shown; the others, of erased and of retained concepts."""
OF = {"erase": "erased", "retain": "retained"}
NOTE = (
    "The same images by the other scores, in percent; of two values the interval is of the last. Where the detectors "
    "disagree, an accuracy is the answer of one of them."
)


def with_checks(images: ImageSet) -> ImageSet:
    """The set with `agreement` and `false_alarm`, which scores that were stored before these columns lack."""
    if AGREEMENT in images.rows and FALSE_ALARM in images.rows:
        return images
    erased = images.rows.loc[images.rows["role"] == "erase", "concept"].unique()
    added = compared(images.rows.copy(), list(erased), ranked_names())
    return replace(images, rows=images.rows.assign(**{name: added[name] for name in ROLE_OF if name in added}))


def check_names(shown: Collection[str]) -> list[str]:
    """The metrics that stand beside accuracies: the other accuracies and what all scores have; none beside others."""
    declared = metrics()
    if not any(name in declared and declared[name].accuracy for name in shown):
        return []
    others = [name for name, metric in ranked().items() if metric.accuracy and name not in shown]
    return [*others, *(name for name in (AGREEMENT, FALSE_ALARM, BLANK) if name not in shown)]


def checks(
    sets: Iterable[ImageSet], cells: pd.DataFrame, shown: Sequence[str], level: float, over_tasks: bool = False
) -> pd.DataFrame:
    """The rows of `cells.table` of the metrics beside some accuracies, for the cells of a table, at its last steps.

    Args:
        cells: of `cells.table`, whose cells and roles the rows have. shown: the metrics of that table.
        over_tasks: whether it has means over tasks.

    Returns:
        No rows where the scores have none of these metrics.
    """
    if not (names := check_names(shown)):
        return pd.DataFrame()
    every, _ = estimates([with_checks(images) for images in sets], only=names)
    if every.empty:
        return every
    pair = paired_rows if (cells["finetune"] != "").any() else erased_rows
    rows = pool_seeds(row for row in pair(every) if row["role"] in {*cells["role"]} & set(OF))
    order = list(dict.fromkeys(cells[CELL].itertuples(index=False, name=None)))
    wanted = []
    for row in pool_tasks(rows) if over_tasks else rows:
        cell_of = tuple(row[key] for key in CELL)
        if cell_of in order and ROLE_OF.get(row["metric"], row["role"]) == row["role"]:
            wanted.append((order.index(cell_of), names.index(row["metric"]), row))
    wanted.sort(key=lambda item: item[:2])
    return table([row for *_, row in wanted], level)


def checks_page(frame: pd.DataFrame, changed: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The rows of `checks` as text: a row a cell, a column a metric of the erased or retained concepts.

    Args:
        changed: eraser -> the settings that change its objective, which its name is marked for.
    """
    records: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in frame.to_dict("records"):
        title = title_of(row["metric"])
        column = title if row["metric"] in ROLE_OF else f"{title}, {OF[row['role']]} concepts"
        key = (row["task"], marked(row["eraser"], changed or {}), row["finetune"])
        text = cell(row, "finetuned" if row["finetune"] else "erased")
        text = f"{number(row['erased_value'])} -> {text}" if row["finetune"] else text
        records.setdefault(key, {})[column] = text
    rows = [{"task": task, "eraser": eraser, "fine-tune": finetune} | values
            for (task, eraser, finetune), values in records.items()]  # fmt: skip
    page = pd.DataFrame(rows).fillna("-")
    return page if page.empty or (page["fine-tune"] != "").any() else page.drop(columns="fine-tune")

"""An experiment: the figure, its data as CSV, and a page of text with the claims of the paper, or of the study.

Writes NAME.csv, NAME.md and NAME.png (and NAME.svg unless it is a grid of images), NAME_claims.csv where something is
claimed, and NAME_checks.csv, what the other scores say, beside an accuracy. Inputs are scores, and for a grid the
images of the first seeds; for a list of members the terciles.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml
from matplotlib.figure import Figure

from resurgence.analysis import cells, claims
from resurgence.analysis.concept_means import agreement, by_concept, extremes, lost_concepts, with_similarity
from resurgence.analysis.estimates import estimates
from resurgence.analysis.half_recovery import half_recovery_table
from resurgence.analysis.headline import changed_note, makers_table, markdown_table, marked, number, title_of
from resurgence.analysis.measures import recovered_fraction
from resurgence.analysis.metric_tables import column_titles, wide
from resurgence.analysis.score_folders import by_step, entry
from resurgence.analysis.score_sets import ImageSet, read_states
from resurgence.analysis.scorer_checks import NOTE, checks, checks_page
from resurgence.analysis.tables import erased_rows, paired_rows
from resurgence.analysis.task_means import pool_tasks
from resurgence.analysis.tuning import CHOSEN, RULE, left_and_kept, tuning_table
from resurgence.analysis.weight_movement import MEASURES, correlations, within_tasks
from resurgence.config.experiment import Claim
from resurgence.config.fields import build
from resurgence.config.model_path import ModelPath, method_name
from resurgence.config.scorers import metrics
from resurgence.figures import experiments as draw
from resurgence.figures.image_grids import save as save_grid
from resurgence.figures.metrics import concept_dots, metric_bars
from resurgence.figures.metrics import histogram as draw_histogram
from resurgence.figures.scatter import scatter as draw_scatter
from resurgence.figures.style import save
from resurgence.figures.tuning import tuning as draw_tuning
from resurgence.files import write_text
from resurgence.stages.experiment_grids import grid
from resurgence.stages.experiment_words import Result, members, similarity, words
from resurgence.stages.job import Job, start


class Measurements(NamedTuple):
    """Scores of the experiment's models in its roles."""

    sets: list[ImageSet]
    rows: list[dict]  # of `paired_rows`: one for each fine-tuned model and seed
    curves: list[dict]  # of `pool_seeds`, at every step
    ends: list[dict]  # of `pool_seeds`, at the last steps


def bars(job: Job, data: Measurements) -> Result:
    """Bars of the last steps along a field of the experiment."""
    table = cells.table(data.ends, job.settings["statistics"]["level"])
    return Result(table, draw.bars(table, job.settings["along"], job.settings["title"]))


def line(job: Job, data: Measurements) -> Result:
    """The last steps over the value of a setting of the erasers, column `x`."""
    table = cells.table(data.ends, job.settings["statistics"]["level"])
    table["x"] = table["eraser"].map(job.settings["x"])
    return Result(table, draw.line(table, job.settings["along"], job.settings["title"]))


def curves(job: Job, data: Measurements) -> Result:
    """The metric at every checkpoint, and the steps to half recovery."""
    level = job.settings["statistics"]["level"]
    table, halves = cells.table(data.curves, level), half_recovery_table(data.curves, level)
    halves = halves[["task", "eraser", "finetune", "text"]].rename(columns={"text": "steps to half recovery"})
    legend = "Steps to half recovery, linear between checkpoints, with their interval:"
    return Result(table, draw.curves(table, job.settings["title"]), [legend, markdown_table(halves)])


def table(job: Job, data: Measurements) -> Result:
    """Several metrics of base, erased and fine-tuned models side by side."""
    frame = cells.table(data.ends, job.settings["statistics"]["level"])
    title = job.settings["title"]
    several_concepts = "concept" in frame and frame["concept"].nunique() > 1
    picture = concept_dots(frame, title) if several_concepts else metric_bars(frame, column_titles(frame), title)
    legend = ["±: standard deviation over the tasks."] if job.settings.get("over_tasks") else []
    return Result(frame, picture, legend)


def histogram(job: Job, data: Measurements) -> Result:
    """The metric of each concept of the roles: its distribution, and the concepts at its ends."""
    frame = by_concept(data.sets, job.settings["metric"], job.settings["roles"])
    picture = draw_histogram(frame, job.settings["metric"], job.settings["title"])
    return Result(frame, picture, [markdown_table(extremes(frame))])


def weights(job: Job, data: Measurements) -> Result:
    """Resurgence against how far and in which direction the weights move, with rank correlations."""
    table, statistics = weight_table(job, data.rows), job.settings["statistics"]
    columns = [f"{group}_{measure}" for group in ("erased", "all") for measure in MEASURES]
    draws = statistics["resamples"], statistics["level"], statistics["seed"]
    spearman = correlations(table, "resurgence", columns, *draws)
    ranks = within_tasks(table, ["resurgence", *columns])
    summary = spearman[["measure", "clusters"]].assign(
        **{"rho": correlation_texts(spearman),
           "within tasks": correlation_texts(correlations(ranks, "resurgence", columns, *draws)),
           "with the recovered share": correlation_texts(correlations(table, "recovered", columns, *draws))}
    )  # fmt: skip
    legend = ("Spearman's rank correlation with resurgence over the fine-tuned models; those of one eraser and task "
              "are resampled together. Within tasks: of ranks within each task, so that no task is compared with "
              "another. Recovered share: (fine-tuned - erased) / (base - erased).")  # fmt: skip
    return Result(table, draw.weights(table, spearman, job.settings["title"]), [legend, markdown_table(summary)])


def heatmap(job: Job, data: Measurements) -> Result:
    """The metric of each concept of the roles in the base, the erased model and at each checkpoint."""
    metric, shown = job.settings["metric"], by_concept(data.sets, job.settings["metric"], job.settings["roles"])
    several = shown.groupby(["task", "concept"])["role"].transform("nunique") > 1
    table = shown.assign(concept=shown["concept"].where(~several, shown["concept"] + ", " + shown["role"]))
    table, counts = table.drop(columns="role"), metrics()[metric].share and metrics()[metric].shows_concept
    return Result(table, draw.heatmap(table, metric, job.settings["title"]), [lost_concepts(table)] if counts else [])


def scatter(job: Job, data: Measurements) -> Result:
    """The metric of each concept of the roles over the similarity of its word to the erased concept."""
    settings = job.settings
    metric, shown = settings["metric"], by_concept(data.sets, settings["metric"], settings["roles"])
    table = with_similarity(shown[shown["column"] == "erased"], data.sets)
    return Result(table, draw_scatter(table, metric, settings["title"]), [markdown_table(agreement(table))])


MEASURED: dict[str, Callable[[Job, Measurements], Result]] = {
    "bars": bars, "line": line, "curves": curves, "weights": weights, "heatmap": heatmap,
    "table": table, "histogram": histogram, "scatter": scatter,
}  # fmt: skip


def measured(job: Job) -> Result:
    """An experiment that is computed from scores."""
    settings, statistics = job.settings, job.settings["statistics"]
    sets = read_states(by_step(entry(settings, model) for model in settings["models"]))
    shown = settings.get("metrics") or [settings["metric"]]
    every, _ = estimates(sets, only=shown, each_concept=settings.get("each_concept", False))
    pair = paired_rows if settings["finetunes"] else erased_rows
    rows = [row for row in pair(every) if row["role"] in settings["roles"]]
    if lacking := [metric for metric in shown if all(row["metric"] != metric for row in rows)]:
        raise ValueError(f"experiments.{settings['name']}: no image has {lacking[0]} in the roles "
                         f"{', '.join(settings['roles'])}; name its roles, or add its scorer")  # fmt: skip

    def position(row: dict) -> tuple:
        tuned = settings["finetunes"].index(row["finetune"]) if row["finetune"] else 0
        places = [settings[f"{field}s"].index(row[field]) for field in ("task", "eraser", "role")]
        return (*places[:2], tuned, places[2], row.get("concept", ""), shown.index(row["metric"]), row["step"])

    steps, ends = (sorted(cells.pool_seeds(rows, last), key=position) for last in (False, True))
    if settings.get("over_tasks"):
        ends = pool_tasks(ends)
    first = {"metric": shown[0]} if len(shown) > 1 else {}
    claimed = [build(Claim, {**first, **claim}, "claims") for claim in settings["claims"]]
    visible = [metric for metric in shown if metric in metrics() and metrics()[metric].shows_concept]
    decided = claims.evaluate_claims(ends, claimed, statistics["level"], settings["differences"], visible, sets)
    decided = claims.without_floors(decided, claims.have_floor(settings))
    result = MEASURED[settings["kind"]](job, Measurements(sets, rows, steps, ends))
    paragraphs, changed = result.paragraphs, settings.get("changed_objectives", {})
    more = {}
    if "resurgence_low" in result.table:
        page = wide if settings["kind"] == "table" else cells.display_table
        text = [markdown_table(page(result.table, changed)), changed_note(changed)]
        paragraphs = [*filter(None, text), *paragraphs]
        beside = checks(sets, result.table, shown, statistics["level"], settings.get("over_tasks", False))
        paragraphs += [NOTE, markdown_table(checks_page(beside, changed))] if len(beside) else []
        more = {"checks": beside} if len(beside) else {}
    return result._replace(
        more=more,
        paragraphs=paragraphs,
        heading=[f"{'Metric' if len(shown) == 1 else 'Metrics'}: {'; '.join(map(title_of, shown))}."],
        claims=decided,
    )


def correlation_texts(table: pd.DataFrame) -> list[str]:
    """Correlations with their intervals, and the number of models."""
    return [f"{r:.2f} [{a:.2f}, {b:.2f}], n {n:.0f}" for r, a, b, n in table[["rho", "low", "high", "n"]].to_numpy()]


def weight_table(job: Job, rows: list[dict]) -> pd.DataFrame:
    """One row a fine-tuned model at its last step: resurgence, and the measures of its weights by group."""
    table = []
    for row in rows:
        if row["eraser"] in job.settings["controls"]:
            continue
        file = Path(f"results/scores/{job.settings['base']}/{ModelPath.of_columns(row)}/geometry/geometry.json")
        steps = json.loads(file.read_text())
        if row["step"] != max(map(int, steps)):
            continue
        names = method_name(row["eraser"], row["variant"]), method_name(row["finetune"], row["finetune_variant"])
        cell = {"task": row["task"], "eraser": names[0], "finetune": names[1], "erase_seed": row["erase_seed"]}
        cell |= {"finetune_seed": row["finetune_seed"], "role": row["role"], "n": row["estimates"]["gain"].n}
        values = [row["estimates"][state].value for state in ("base", "erased", "finetuned")]
        cell |= {"resurgence": row["estimates"]["gain"].value, "recovered": recovered_fraction(*values)}
        groups = steps[str(row["step"])]
        table.append(cell | {f"{g}_{m}": value for g, measures in groups.items() for m, value in measures.items()})
    frame = pd.DataFrame(table)
    numbers = [name for name in frame if name.endswith(MEASURES)]
    return frame.astype(dict.fromkeys(numbers, float))


def tuning(job: Job) -> Result:
    """What each setting of some erasers leaves and keeps, and the one that the rule chooses, as YAML for a study."""
    settings, written = job.settings, job.settings["settings"]
    sets = read_states(by_step(entry(settings, model) for model in settings["models"]))
    shown = {name: written[name] for name in settings["erasers"]}
    frame = tuning_table(left_and_kept(sets, settings["metric"]), shown, settings["tasks"])
    numbers = frame.drop(columns="choice").map(lambda value: number(value) if isinstance(value, float) else value)
    chosen = {name: written[name] for name in frame.loc[frame["choice"] == CHOSEN, "eraser"]}
    changed = settings.get("changed_objectives", {})
    numbers["eraser"] = [marked(eraser, changed) for eraser in frame["eraser"]]
    parts = [markdown_table(numbers.assign(choice=frame["choice"])), changed_note(changed)]
    parts.append(f"Chosen:\n\n```yaml\n{yaml.safe_dump(chosen, sort_keys=False)}```" if chosen else "")
    heading = f"{title_of(settings['metric'])} after erasing. {RULE}"
    return Result(frame, draw_tuning(frame, settings["title"]), list(filter(None, parts)), [heading])


def make(job: Job) -> None:
    """Write results/experiments/NAME."""
    settings, out = job.settings, job.out.parent
    name, files = settings["name"], []
    kinds = {"grid": grid, "members": members, "words": words, "tuning": tuning, "similarity": similarity}
    result = kinds.get(settings["kind"], measured)(job)
    if isinstance(result.picture, Figure):
        save(result.picture, out / name)
        files.append(out / f"{name}.svg")
    else:
        save_grid(result.picture, out / f"{name}.png")
    by = settings.get("claims_by", "paper")
    lead = "Differs from the paper" if by == "paper" else "Note"
    note = [f"{lead}: {settings['note']}"] if settings["note"] else []
    text = [f"## {name}: {settings['title']}", *result.heading, *note, f"![{name}]({name}.png)"]
    if len(result.claims):
        text.append(claims.claims_table(result.claims, by))
        files.append(out / f"{name}_claims.csv")
        write_text(files[-1], result.claims.to_csv(index=False, lineterminator="\n"))
    for part, table in result.more.items():
        files.append(out / f"{name}_{part}.csv")
        write_text(files[-1], table.to_csv(index=False, lineterminator="\n"))
    write_text(out / f"{name}.csv", result.table.to_csv(index=False, lineterminator="\n"))
    makers = filter(None, [makers_table(settings.get("makers", {}))])
    write_text(out / f"{name}.md", "\n\n".join([*text, *result.paragraphs, *makers]) + "\n")
    job.write_made("experiment", [*files, *(out / f"{name}.{kind}" for kind in ("csv", "md", "png"))])


if __name__ == "__main__":
    make(start())

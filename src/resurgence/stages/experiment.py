"""One experiment: the figure, the CSV that it is drawn from, and a page of text with the paper's claims.

Writes NAME.csv, NAME.md and NAME.png (and NAME.svg unless it is a grid of images), and NAME_claims.csv where the paper
claims something. Inputs are scores, and for a grid the images of the first seeds; for a list of members the terciles.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from resurgence.analysis import bootstrap
from resurgence.analysis import claims as findings
from resurgence.analysis.estimates import ImageSet, estimates, read_states
from resurgence.analysis.headline import markdown_table, title_of
from resurgence.analysis.score_folders import by_step, entry
from resurgence.analysis.tables import paired, write
from resurgence.analysis.weight_movement import MEASURES, correlations, within_tasks
from resurgence.config.experiment import Claim
from resurgence.config.fields import build
from resurgence.config.model_path import ModelPath, method_name
from resurgence.config.scorers import metrics
from resurgence.figures import experiments as draw
from resurgence.figures.image_grids import sample_grid
from resurgence.figures.image_grids import save as save_grid
from resurgence.figures.style import save
from resurgence.scorers import read_scores
from resurgence.stages.grids import last_images
from resurgence.stages.job import Job, start

log = logging.getLogger(__name__)


def by_concept(sets: list[ImageSet], metric: str) -> pd.DataFrame:
    """Share of recognised images of each erased concept in the base, the erased model and each checkpoint, in percent.

    The mean over seeds; columns task, eraser, finetune, concept, column, value, n.
    """
    column, scale = metrics()[metric].column, metrics()[metric].scale
    parts = []
    for one in sets:
        rows = one.rows[one.rows["role"] == "erase"]
        means = (scale * rows.groupby("concept")[column].mean()).rename("value").reset_index()
        parts.append(means.assign(**one.key, n=len(rows) // max(1, len(means))))
    every = pd.concat(parts, ignore_index=True)
    made = []
    names = ["task", "eraser", "variant", "finetune", "finetune_variant"]
    for key, tuned in every[every["state"] == "finetuned"].groupby(names, sort=False):
        task, eraser, variant, finetune, finetune_variant = key
        own = every[(every["task"] == task)]
        before = own[(own["state"] == "erased") & (own["eraser"] == eraser) & (own["variant"] == variant)]
        steps = {str(int(step)): part for step, part in tuned.groupby("step")}
        for title, part in {"base": own[own["state"] == "base"], "erased": before, **steps}.items():
            middle = part.groupby("concept", sort=False).agg(value=("value", "mean"), n=("n", "sum")).reset_index()
            shown = {"eraser": method_name(eraser, variant), "finetune": method_name(finetune, finetune_variant)}
            made.append(middle.assign(task=task, column=title, **shown))
    return pd.concat(made, ignore_index=True)[["task", "eraser", "finetune", "concept", "column", "value", "n"]]


def never_back(concepts: pd.DataFrame) -> str:
    """Which erased concepts no image shows at the last step of a fine-tune."""
    lines = []
    for (task, eraser, finetune), part in concepts.groupby(["task", "eraser", "finetune"], sort=False):
        last = part[part["column"] == list(dict.fromkeys(part["column"]))[-1]]
        gone = sorted(last.loc[last["value"] == 0, "concept"])
        told = ", ".join(gone) or "none"
        lines.append(f"- {task}, {eraser} + {finetune}: {len(gone)} of {len(last)} concepts never come back ({told}).")
    return "\n".join(lines)


def measured(job: Job) -> tuple[pd.DataFrame, Figure, list[str], pd.DataFrame]:
    """Table, figure, further paragraphs and claims of an experiment that is read from scores."""
    block = job.settings
    stats, metric, level = block["statistics"], block["metric"], block["statistics"]["level"]
    sets = read_states(by_step(entry(block, model) for model in block["models"]))
    every, _ = estimates(sets, stats["resamples"], stats["seed"], only=metric)
    rows = [row for row in paired(every) if row["role"] in block["roles"]]
    curves = sorted(findings.pooled(rows, last=False), key=lambda row: place_of(block, row))
    ends = sorted(findings.pooled(rows), key=lambda row: place_of(block, row))
    claims = findings.judged(ends, [build(Claim, c, "claims") for c in block["claims"]], level)
    frame = findings.table(curves if block["kind"] == "curves" else ends, level)
    more: list[str] = []
    if block["kind"] == "bars":
        figure = draw.bars(frame, block["along"], block["title"])
    elif block["kind"] == "line":
        frame["x"] = frame["eraser"].map(block["x"])
        figure = draw.line(frame, block["along"], block["title"])
    elif block["kind"] == "weights":
        frame = explained(job, rows)
        columns = [f"{group}_{measure}" for group in ("erased", "all") for measure in MEASURES]
        draws = stats["resamples"], level, stats["seed"]
        found = correlations(frame, "resurgence", columns, *draws)
        others = {
            "within tasks": correlations(within_tasks(frame, ["resurgence", *columns]), "resurgence", columns, *draws),
            "with the recovered share": correlations(frame, "recovered", columns, *draws),
        }
        told = found[["measure", "clusters"]].assign(rho=in_words(found))
        told = told.assign(**{name: in_words(other) for name, other in others.items()})
        more += ["Spearman's rank correlation with resurgence over the fine-tuned models; those of one eraser and task "
                 "are resampled together. Within tasks: of ranks within each task, so that no task is compared with "
                 "another. Recovered share: (fine-tuned - erased) / (base - erased).",
                 markdown_table(told)]  # fmt: skip
        figure = draw.weights(frame, found, block["title"])
    elif block["kind"] == "curves":
        halves = findings.half_rows(curves, level)
        told = halves[["task", "eraser", "finetune", "told"]].rename(columns={"told": "steps to half recovery"})
        more += ["Steps to half recovery, linear between checkpoints, with the interval over concepts:",
                 markdown_table(told)]  # fmt: skip
        figure = draw.curves(frame, block["title"])
    else:
        concepts = by_concept(sets, metric)
        more.append(never_back(concepts))
        figure, frame = draw.heatmap(concepts, block["title"]), concepts
    return frame, figure, more, claims


def in_words(found: pd.DataFrame) -> list[str]:
    """Correlations with their intervals, and the number of models."""
    return [f"{r:.2f} [{a:.2f}, {b:.2f}], n {n:.0f}" for r, a, b, n in found[["rho", "low", "high", "n"]].to_numpy()]


def place_of(block: dict, row: dict) -> tuple[int, ...]:
    """Where a row stands: tasks, erasers and fine-tunes in the order of the experiment, then roles and steps."""
    keys = (("tasks", "task"), ("erasers", "eraser"), ("finetunes", "finetune"), ("roles", "role"))
    return (*(block[names].index(row[key]) for names, key in keys), row["step"])


def explained(job: Job, rows: list[dict]) -> pd.DataFrame:
    """One row a fine-tuned model at its last step: resurgence, and the measures of its weights by group."""
    made = []
    for row in rows:
        names = method_name(row["eraser"], row["variant"]), method_name(row["finetune"], row["finetune_variant"])
        file = Path(f"results/scores/{job.settings['base']}/{ModelPath.of_columns(row)}/geometry/geometry.json")
        if row["eraser"] in job.settings["controls"]:
            continue
        steps = json.loads(file.read_text())
        if row["step"] != max(map(int, steps)):
            continue
        one = {"task": row["task"], "eraser": names[0], "finetune": names[1], "erase_seed": row["erase_seed"]}
        one |= {"finetune_seed": row["finetune_seed"], "role": row["role"], "n": row["estimates"]["gain"].n}
        values = [row["estimates"][state].value for state in ("base", "erased", "finetuned")]
        one |= {"resurgence": row["estimates"]["gain"].value, "recovered": bootstrap.recovered_fraction(*values)}
        measured = steps[str(row["step"])]
        made.append(one | {f"{g}_{m}": value for g, values in measured.items() for m, value in values.items()})
    frame = pd.DataFrame(made)
    numbers = [name for name in frame if name.endswith(MEASURES)]
    return frame.astype(dict.fromkeys(numbers, float))


def largest(metric: str, erased: Path, finetuned: Path) -> list[str]:
    """Concepts in the order of how much their metric changes by fine-tuning, the largest change first.

    Args:
        erased, finetuned: folders of scores.
    """
    column = metrics()[metric].column
    means = []
    for folder in (erased, finetuned):
        rows, _ = read_scores(sorted(folder.glob("step-*"))[-1])
        means.append(rows[rows["role"] == "erase"].groupby("concept")[column].mean())
    return list((means[1] - means[0]).abs().sort_values(ascending=False, kind="stable").index)


def pictured(job: Job) -> tuple[Image.Image, pd.DataFrame]:
    """Grids of images one below the other: for each cell base, erased and fine-tuned model on the same seeds."""
    parts, listed = [], []
    # a block sorts its keys, so that 10 people come before 5; shown in the order of the experiment
    order = {task: place for place, task in enumerate(job.settings["tasks"])}
    cells = sorted(job.settings["columns"].items(), key=lambda cell: order[cell[0].split(", ")[0]])
    for title, columns in cells:
        sets = {name: last_images(folder) for name, folder in columns.items()}
        if job.settings["choose"] == "largest":
            scores = map(Path, job.settings["scores"][title])
            places = {concept: place for place, concept in enumerate(largest(job.settings["metric"], *scores))}
            ranked = {}
            for name, (prompts, images) in sets.items():
                found = prompts["concept"].map(places).fillna(len(places)).argsort(kind="stable").to_numpy()
                ranked[name] = (prompts.iloc[found].reset_index(drop=True), images[found])
            sets = ranked
        for role in job.settings["roles"]:
            parts.append(sample_grid(sets, role, job.settings["samples"], f"{title}: {role}"))
            prompts = next(iter(sets.values()))[0]
            chosen = prompts[prompts["role"] == role].drop_duplicates("concept").head(job.settings["samples"])
            listed.append(chosen[["concept", "prompt", "seed"]].assign(shown=title, role=role))
    canvas = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    return canvas, pd.concat(listed, ignore_index=True)


def make(job: Job) -> None:
    """Write results/experiments/NAME."""
    block, out = job.settings, job.out.parent
    name, kinds = block["name"], ["csv", "md", "png"]
    text = [f"## {name}: {block['title']}"]
    if block["kind"] == "grid":
        image, frame = pictured(job)
        save_grid(image, out / f"{name}.png")
        rule = "the concepts that fine-tuning changed most" if block["choose"] == "largest" else "the first concepts"
        text.append(f"Shown by rule: {rule}, the first image of the first template of each, the same seed in a row.")
        claims, more = pd.DataFrame(), []
    elif block["kind"] == "members":
        frame = pd.concat([members(path) for path in job.inputs["artefacts"]], ignore_index=True)
        save(draw.similarities(frame, block["title"]), out / name)
        claims, more = pd.DataFrame(), [markdown_table(listed_members(frame))]
        kinds.append("svg")
    else:
        frame, figure, more, claims = measured(job)
        save(figure, out / name)
        text.append(f"Metric: {title_of(block['metric'])}.")
        if "resurgence_low" in frame:
            more = [markdown_table(findings.shown(frame)), *more]
        kinds.append("svg")
    if block["note"]:
        text.append(f"Differs from the paper: {block['note']}")
    text.append(f"![{name}]({name}.png)")
    if len(claims):
        text.append(findings.claims_table(claims))
        write(out / f"{name}_claims.csv", claims.to_csv(index=False, lineterminator="\n"))
    write(out / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    write(out / f"{name}.md", "\n\n".join([*text, *more]) + "\n")
    files = [out / f"{name}.{kind}" for kind in kinds] + ([out / f"{name}_claims.csv"] if len(claims) else [])
    job.write_made("experiment", files)


def members(manifest: Path) -> pd.DataFrame:
    """Candidates of a tercile artefact: task, concept, similarity, tercile, drawn."""
    stored = json.loads((manifest.parent / "terciles.json").read_text())
    return pd.DataFrame(stored["candidates"]).assign(task=stored["task"])


def listed_members(frame: pd.DataFrame) -> pd.DataFrame:
    """The drawn concepts of each tercile, with the ends of its similarities."""
    rows = []
    for (task, tercile), part in frame.groupby(["task", "tercile"], sort=True):
        drawn = part[part["drawn"]]
        ends = f"{part['similarity'].min():.2f} to {part['similarity'].max():.2f}"
        told = ", ".join(drawn["concept"])
        rows.append(
            {"task": task, "tercile": str(tercile), "candidates": str(len(part)), "similarity": ends, "drawn": told}
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    make(start())

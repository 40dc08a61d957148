"""The command score: the images that `resurgence sample` wrote, by any scorer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.cli.guard import output
from resurgence.cli.key_values import settings
from resurgence.config.fields import ConfigError
from resurgence.config.scorers import code_of, metrics
from resurgence.config.task import Task, load_task
from resurgence.provenance.code_version import code_version
from resurgence.provenance.manifest import read_manifest, write_artefact
from resurgence.scorers import load_scorers, write_scores

if TYPE_CHECKING:
    from argparse import Namespace

    import pandas as pd


def chosen_scorers(args: Namespace) -> dict[str, dict[str, Any]]:
    """Name of each scorer that the options name -> its settings.

    Raises:
        ConfigError: no scorer, or one that two options name.
    """
    paths = {name: getattr(args, name) for name in ("recogniser", "celebrity", "inception")}
    chosen: dict[str, dict[str, Any]] = {name: {"path": str(path)} for name, path in paths.items() if path}
    if args.clip:
        name, colon, tag = args.clip.partition(":")
        chosen["clip"] = {"name": name, "pretrained": tag} if colon else {"path": args.clip}
    for name, *pairs in args.scorer:
        if name in chosen:
            raise ConfigError("--scorer", name, "is given twice; give each scorer once")
        chosen[name] = settings(pairs, "--scorer")
    if not chosen:
        raise ConfigError("--recogniser, --clip, --celebrity, --inception, --scorer", None, "give at least one scorer")
    return chosen


def check_task(file: Path, task: Task, rows: pd.DataFrame) -> None:
    """Raise ConfigError for a task that does not erase or retain what the images were made of."""
    of_role = {"erase": task.erase, "retain": task.retain, "synonym": (*task.erase, *task.retain)}
    for role, concept in rows[["role", "concept"]].drop_duplicates().itertuples(index=False):
        if concept not in of_role.get(role, (concept,)):
            raise ConfigError("--task", str(file), f"has no {concept!r} for the images of role {role}; give the task "
                              "whose prompts were sampled")  # fmt: skip


def score(args: Namespace) -> None:
    """Score image sets: scores.parquet with a row for each image; prints the means by role."""
    from resurgence.diffusion.device import resolve_device
    from resurgence.diffusion.image_sets import image_files, read_prompts
    from resurgence.scorers.score_files import base_files, score_files

    chosen = chosen_scorers(args)
    task, sets = load_task(args.task), image_files(args.images)
    read_manifest(args.images)
    for files in sets.values():
        check_task(args.task, task, read_prompts(files))
    base = None if args.base_images is None else base_files(args.base_images)
    paths = {name: Path(block["path"]) for name, block in chosen.items() if "path" in block}
    inputs = {"images": args.images, "task": args.task, "base images": args.base_images, **paths}
    inputs = {name: path for name, path in inputs.items() if path is not None and path.exists()}
    run = {"argv": sys.argv, "code": code_version("resurgence.cli.score:score", *code_of(chosen))}
    with output(args, inputs) as out, write_artefact(out, "scores", {"scorers": chosen}, inputs, {}, run) as folder:
        scorers = load_scorers(chosen, resolve_device(args.device))
        featured = [name for name, loaded in scorers.items() if loaded.config.gives_features]
        for name, files in sets.items():
            scores, features = score_files(files, task, scorers, featured, base)
            write_scores(folder if len(sets) == 1 else folder / name, scores, features)
            print(f"{name}\n{means(scores).to_string(float_format='%.1f')}")


def means(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each metric for each role, and the number of images."""
    known = {name: metric for name, metric in metrics().items() if metric.column in scores}
    groups = scores.groupby("role", sort=False)
    table = groups.size().to_frame("images")
    return table.assign(**{name: groups[m.column].mean() * m.scale for name, m in known.items()})

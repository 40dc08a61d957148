"""Experiments about words, not made from scores: what searches ended at, members of terciles, similarities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from resurgence.analysis.headline import markdown_table
from resurgence.config.fields import build
from resurgence.figures import experiments as draw
from resurgence.figures.scatter import similarity_matrix, visible
from resurgence.figures.sensitive_words import read_words, words_figure
from resurgence.scorers.configs import ClipConfig
from resurgence.stages.job import Job


class Result(NamedTuple):
    """What an experiment shows."""

    table: pd.DataFrame
    picture: Figure | Image.Image
    paragraphs: Sequence[str] = ()  # below picture and claims
    heading: Sequence[str] = ()  # above the picture
    claims: pd.DataFrame = pd.DataFrame()
    more: Mapping[str, pd.DataFrame] = MappingProxyType({})  # part of a file's name -> a table beside the first


def words(job: Job) -> Result:
    """The words that EAP's search ended at: task, eraser, concept, rank, word, value; the first ten are drawn."""
    table, panels = read_words(job.settings["words"])
    tops = table[table["rank"] <= 10].groupby(["task", "eraser", "concept"], sort=False)["word"].agg(", ".join)
    return Result(table, words_figure(panels), [markdown_table(tops.reset_index())])


def members(job: Job) -> Result:
    """Candidates of the terciles: task, concept, similarity, tercile, drawn; and the drawn ones of each tercile."""
    stored = [json.loads((folder / "terciles.json").read_text()) for folder in job.folders("artefacts")]
    parts = [pd.DataFrame(tercile["candidates"]).assign(task=tercile["task"]) for tercile in stored]
    table, rows = pd.concat(parts, ignore_index=True), []
    for (task, tercile), part in table.groupby(["task", "tercile"], sort=True):
        similarity = f"{part['similarity'].min():.2f} to {part['similarity'].max():.2f}"
        row = {"task": task, "tercile": str(tercile), "candidates": str(len(part)), "similarity": similarity}
        rows.append({**row, "drawn": ", ".join(part[part["drawn"]]["concept"])})
    return Result(table, draw.similarities(table, job.settings["title"]), [markdown_table(pd.DataFrame(rows))])


def similarity(job: Job) -> Result:
    """Cosines of CLIP's text embeddings, each text by itself: columns word, text, similarity."""
    from resurgence.scorers.clip import load

    words, texts = job.settings["words"], job.settings["texts"]
    scorer = load(build(ClipConfig, job.settings["clip"], "scorers.clip"))
    cosines = scorer.text_features(list(words)) @ scorer.text_features(list(texts)).T  # (words, texts)
    matrix = pd.DataFrame(cosines.double().numpy(), index=pd.Index(words, name="word"), columns=texts)
    table = matrix.reset_index().melt("word", var_name="text", value_name="similarity")
    page = markdown_table(matrix.map("{:.3f}".format).rename(visible, axis=0).rename(visible, axis=1).reset_index())
    return Result(table, similarity_matrix(matrix, job.settings["title"]), [page])

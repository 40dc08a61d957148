"""Concepts of a fine-tuning set drawn from a tercile: candidates, their similarities to the erased ones, the draw."""

from __future__ import annotations

import logging
from pathlib import Path

from resurgence.config.fields import build
from resurgence.config.spelling import normal_form
from resurgence.config.stages import TercileConfig
from resurgence.data.terciles import draw_concepts, similarities, terciles
from resurgence.files import read_lines, write_json
from resurgence.scorers.clip import load
from resurgence.scorers.configs import ClipConfig
from resurgence.stages.job import Job, main

log = logging.getLogger(__name__)


def make(job: Job, folder: Path) -> dict:
    """Write terciles.json: task, number, concepts (drawn), candidates of this third."""
    cfg, task = build(TercileConfig, job.settings["tercile"], "tercile"), job.settings["task"]
    excluded = {normal_form(word) for words in (task["erase"], *task["synonyms"].values()) for word in words}
    spellings: dict[str, str] = {}  # the first of each name
    for line in read_lines(Path(cfg.candidates)):
        spellings.setdefault(normal_form(line), line)
    names = [name for form, name in spellings.items() if form not in excluded]
    scorer = load(build(ClipConfig, job.settings["clip"], "scorers.clip"), "cpu")
    texts = [scorer.text_features([cfg.template.format(n) for n in group]) for group in (task["erase"], names)]
    values = similarities(*texts, cfg.similarity)
    pairs = zip(names, values, terciles(values, cfg.bins), strict=True)
    candidates = {name: float(value) for name, value, third in pairs if third == cfg.number}
    if not candidates:
        raise ValueError(f"no candidate of {cfg.candidates} is in tercile {cfg.number}; use bins: count")
    concepts = draw_concepts(list(candidates), cfg.size, cfg.seed, task["name"])
    if len(concepts) < cfg.size:
        log.warning("tercile %d has %d candidates, %d were wanted", cfg.number, len(concepts), cfg.size)
    rows = [
        {"concept": name, "similarity": round(value, 6), "tercile": cfg.number, "drawn": name in concepts}
        for name, value in sorted(candidates.items(), key=lambda item: item[1])
    ]
    result = {"task": task["name"], "number": cfg.number, "concepts": concepts, "candidates": rows}
    write_json(folder / "terciles.json", result)
    return {"candidates": len(names)}


if __name__ == "__main__":
    main("terciles", make)

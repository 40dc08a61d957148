"""The concepts of a fine-tuning set that is a tercile: candidates, their similarities to the erased ones, the draw."""

from __future__ import annotations

import logging
from pathlib import Path

from resurgence.config.fields import build
from resurgence.config.stages import TercileConfig
from resurgence.data.terciles import drawn, similarities, terciles
from resurgence.files import write_json
from resurgence.scorers.clip import load
from resurgence.scorers.configs import ClipConfig
from resurgence.stages.job import Job, main

log = logging.getLogger(__name__)


def make(job: Job, folder: Path) -> dict:
    """Write terciles.json: task, number, concepts (drawn), candidates of this third."""
    chosen, task = build(TercileConfig, job.settings["tercile"], "tercile"), job.settings["task"]
    left_out = set(task["erase"]) | {word for words in task["synonyms"].values() for word in words}
    lines = Path(chosen.candidates).read_text(encoding="utf-8").splitlines()
    names = [n for n in dict.fromkeys(line.strip() for line in lines if line.strip()) if n not in left_out]
    scorer = load(build(ClipConfig, job.settings["clip"], "scorers.clip"), "cpu")
    texts = [scorer.text_features([chosen.template.format(n) for n in group]) for group in (task["erase"], names)]
    values = similarities(*texts, chosen.similarity)
    thirds = terciles(values, chosen.bins)
    own = [name for name, third in zip(names, thirds, strict=True) if third == chosen.number]
    if not own:
        raise ValueError(f"no candidate of {chosen.candidates} is in tercile {chosen.number}; use bins: count")
    picked = drawn(own, chosen.size, chosen.seed, task["name"])
    if len(picked) < chosen.size:
        log.warning("tercile %d has %d candidates, %d were wanted", chosen.number, len(picked), chosen.size)
    found = [
        {"concept": name, "similarity": round(float(value), 6), "tercile": int(third), "drawn": name in picked}
        for name, value, third in sorted(zip(names, values, thirds, strict=True), key=lambda row: row[1])
        if third == chosen.number
    ]
    write_json(folder / "terciles.json", {"task": task["name"], "number": chosen.number, "concepts": picked,
                                          "candidates": found})  # fmt: skip
    return {"candidates": len(names)}


if __name__ == "__main__":
    main("terciles", make)

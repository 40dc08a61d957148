"""Fine-tune an erased model, or the base itself, on a fine-tuning set; weights at every checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from resurgence.config.fields import build
from resurgence.diffusion.deltas import DELTA_FILE, apply_folder, round_deltas
from resurgence.diffusion.image_sets import read_image_set
from resurgence.diffusion.text_checks import check_benign, count_long, erased_by
from resurgence.stages.base import load_pipe
from resurgence.stages.job import SCRATCH, Job, main
from resurgence.training.finetune import FinetuneConfig, finetune


def make(job: Job, folder: Path) -> dict:
    """Write step-NNNNNN/ for each checkpoint, and curve.json."""
    pipe = load_pipe(job)
    for change in job.folders("changes"):
        apply_folder(pipe, change if (change / DELTA_FILE).is_file() else max(change.glob("step-*")))
    rows, images = read_image_set(job.folder("set") / "images.parquet")
    cfg = build(FinetuneConfig, job.settings["settings"], "settings")
    check_benign(pipe.tokenizer, rows["concept"], erased_by(job.folders("changes")))
    signed, captions = images.float() / 127.5 - 1, rows["prompt"].tolist()
    curve = finetune(pipe, signed, captions, cfg, job.settings["seed"], folder, job.state, SCRATCH / "latents")
    round_deltas(folder, job.settings["delta_precision"])
    (folder / "curve.json").write_text(json.dumps(curve, indent=1))
    return {"images": len(rows), "long_captions": count_long(pipe.tokenizer, captions), "steps": cfg.steps}


if __name__ == "__main__":
    main("fine-tuned weights", make)

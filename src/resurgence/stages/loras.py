"""One LoRA per erased concept, and the refinement that they belong on: the slow part of an eraser such as MACE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from resurgence.config.fields import build
from resurgence.diffusion.attention import from_delta, swapped
from resurgence.diffusion.deltas import save_delta
from resurgence.erasers.lora import save_loras
from resurgence.erasers.mace.method import MaceConfig, refine, train_loras
from resurgence.stages.base import load_pipe
from resurgence.stages.eraser_data import eraser_data
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write refined.safetensors, loras/<concept>/, curves.json and closed_form.json."""
    pipe, task = load_pipe(job), job.task
    cfg = build(MaceConfig, job.settings["settings"], "settings")
    data = eraser_data(job)
    refined, report = refine(pipe, task, cfg, data)
    with swapped(pipe.unet, from_delta(refined, pipe.unet)):
        loras, curves = train_loras(pipe, task, cfg, data, job.settings["seed"])
    save_delta(refined, folder / "refined.safetensors")
    save_loras(loras, folder / "loras")
    (folder / "curves.json").write_text(json.dumps(curves, indent=1))
    (folder / "closed_form.json").write_text(json.dumps({"refinement": report}, indent=1))
    shutil.rmtree(job.state, ignore_errors=True)
    return {"concepts": len(loras), "steps": cfg.steps}


if __name__ == "__main__":
    main("concept LoRAs", make)

"""LoRAs of the erased concepts, and the delta that they are added to: the training of an eraser such as MACE."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from resurgence.config.fields import build
from resurgence.diffusion.deltas import save_delta
from resurgence.diffusion.device import exact
from resurgence.diffusion.text_checks import check_erasure
from resurgence.erasers import eraser_config, method
from resurgence.erasers.lora import SUMS, save_loras
from resurgence.stages.base import load_pipe
from resurgence.stages.eraser_data import eraser_data
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write refined.safetensors, loras/<concept>/, curves.json, closed_form.json and, if there are any, the sums."""
    settings, task, data = job.settings, job.task, eraser_data(job)
    pipe = load_pipe(job, changes=job.folders("changes"))
    cfg = build(eraser_config(settings["method"]), settings["settings"], "settings")
    check_erasure(pipe.tokenizer, task, cfg)
    with exact(pipe.device):
        trained = method(settings["method"]).train_loras(pipe, task, cfg, data, settings["seed"])
    save_delta(trained.refined, folder / "refined.safetensors")
    save_loras(trained.loras, folder / "loras")
    if trained.sums:
        save_file({name: total.cpu().contiguous() for name, total in trained.sums.items()}, folder / SUMS)
    (folder / "curves.json").write_text(json.dumps(trained.curves, indent=1))
    (folder / "closed_form.json").write_text(json.dumps({"refinement": trained.refinement}, indent=1))
    return {"concepts": len(trained.loras), "steps": max(map(len, trained.curves.values()), default=0)}


if __name__ == "__main__":
    main("concept LoRAs", make)

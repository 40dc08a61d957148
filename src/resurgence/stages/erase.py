"""Erase: the tensors of the base that an eraser changes. With trained LoRAs as input only their fusion is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from resurgence.config.fields import build
from resurgence.diffusion.deltas import load_delta, save_delta, store
from resurgence.erasers import eraser_config, method
from resurgence.stages.base import load_pipe
from resurgence.stages.eraser_data import eraser_data
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> None:
    """Write delta.safetensors, and what else the eraser has to show."""
    block, task, data, pipe = job.settings, job.task, eraser_data(job), load_pipe(job)
    eraser, cfg = method(block["method"]), build(eraser_config(block["method"]), block["settings"], "settings")
    trained = job.optional("loras")
    if trained is None:
        delta = eraser.erase(pipe, task, cfg, data, block["seed"], folder)
    else:
        from resurgence.erasers.lora import load_loras

        loras, refined = load_loras(trained / "loras", task.erase), load_delta(trained / "refined.safetensors")
        delta, report = eraser.fuse(pipe, task, cfg, data, refined, loras)
        (folder / "closed_form.json").write_text(json.dumps({"fusion": report}, indent=1))
    save_delta(delta, folder / "delta.safetensors")
    store(folder, block["delta_precision"])
    shutil.rmtree(job.state, ignore_errors=True)


if __name__ == "__main__":
    main("erased delta", make)

"""Erase: the tensors of the base that an eraser changes. With trained LoRAs as input only their fusion is left."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

from resurgence.config.fields import build
from resurgence.diffusion.deltas import load_delta, save_delta, store
from resurgence.stages.base import load_pipe
from resurgence.stages.eraser_data import eraser_data
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> None:
    """Write delta.safetensors, and what the eraser tells about it."""
    block, task, data, pipe = job.settings, job.task, eraser_data(job), load_pipe(job)
    module = importlib.import_module(block["method"])
    cfg = build(module.ERASER.config, block["settings"], "settings")
    trained = job.optional("loras")
    if trained is None:
        delta = module.ERASER.erase(pipe, task, cfg, data, block["seed"], folder)
    else:
        from resurgence.erasers.lora import load_loras

        loras = load_loras(trained / "loras", task.erase)
        delta, report = module.fuse(pipe, task, cfg, data, load_delta(trained / "refined.safetensors"), loras)
        (folder / "closed_form.json").write_text(json.dumps({"fusion": report}, indent=1))
    save_delta(delta, folder / "delta.safetensors")
    store(folder, block["delta_precision"])
    shutil.rmtree(job.state, ignore_errors=True)


if __name__ == "__main__":
    main("erased delta", make)

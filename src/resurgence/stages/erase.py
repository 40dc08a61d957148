"""Erase: the tensors of the base that an eraser changes. If its LoRAs are inputs, only their fusion is computed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from resurgence.config.fields import build
from resurgence.diffusion.deltas import load_delta, round_deltas, save_delta
from resurgence.diffusion.device import exact
from resurgence.diffusion.text_checks import check_erasure
from resurgence.erasers import eraser_config, method
from resurgence.pretrained.loading import read_safetensors
from resurgence.stages.base import load_pipe
from resurgence.stages.eraser_data import eraser_data
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> None:
    """Write delta.safetensors, and the eraser's reports."""
    settings, task, data = job.settings, job.task, eraser_data(job)
    pipe = load_pipe(job, changes=job.folders("changes"))
    eraser, cfg = method(settings["method"]), build(eraser_config(settings["method"]), settings["settings"], "settings")
    check_erasure(pipe.tokenizer, task, cfg)
    trained = job.optional("loras")
    if trained is None:
        with exact(pipe.device):
            delta = eraser.erase(pipe, task, cfg, data, settings["seed"], folder)
    else:
        from resurgence.erasers.lora import SUMS, load_loras

        loras, refined = load_loras(trained / "loras", task.erase), load_delta(trained / "refined.safetensors")
        if (trained / SUMS).is_file():
            data = replace(data, sums=read_safetensors(trained / SUMS)[0])
        with exact(pipe.device):
            delta, report = eraser.fuse(pipe, task, cfg, data, refined, loras)
        (folder / "closed_form.json").write_text(json.dumps({"fusion": report}, indent=1))
    save_delta(delta, folder / "delta.safetensors")
    round_deltas(folder, settings["delta_precision"])


if __name__ == "__main__":
    main("erased delta", make)

"""Second moment of a corpus: the general captions (prior), or the retain concepts in the caption templates (domain)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.data.moments import moment_and_count, precision_of, save_moments
from resurgence.diffusion.text import check_lengths, fill
from resurgence.files import read_lines
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main
from resurgence.training.checkpoint import Saver, fingerprint, stop_on_sigterm

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)


def captions_of(job: Job) -> list[str]:
    """The captions of the corpus."""
    lines = read_lines(Path(job.settings["captions"]))
    if job.settings["corpus"] == "prior":
        return lines
    return [caption for concept in job.settings["concepts"] for caption in fill(lines, concept)]


def resumable(
    pipe: StableDiffusionPipeline, captions: list[str], precision: str, state: Path
) -> tuple[torch.Tensor, int]:
    """The moment and the number of captions; the sum so far is saved at intervals, and at SIGTERM.

    Raises:
        SystemExit: 143 after SIGTERM, with the sum saved.
    """
    facts = ("second moment", precision, captions)
    saver = Saver(state, fingerprint(facts, pipe.text_encoder.state_dict().values()))
    saved = saver.load(pipe.device)

    with stop_on_sigterm() as stop:

        def save(moment: torch.Tensor, count: int) -> None:
            ending = stop.is_set() and count < len(captions)
            saver.save({"moment": moment, "step": count}, force=ending)
            if ending:
                log.warning("SIGTERM: second moment stopped after caption %d of %d", count, len(captions))
                raise SystemExit(143)

        start = (saved["moment"], saved["step"]) if saved else None
        return moment_and_count(pipe, captions, precision=precision, start=start, save=save)


def make(job: Job, folder: Path) -> dict:
    """Write moments.safetensors."""
    pipe, captions = load_pipe(job), captions_of(job)
    check_lengths(pipe.tokenizer, captions)  # of all, before minutes are spent on the first
    precision = precision_of(job.settings["encoder_precision"], pipe.device)
    log.info("text encoder in %s, sum in fp64", precision)
    moment, count = resumable(pipe, captions, precision, job.state)
    save_moments(folder / "moments.safetensors", moment, count)
    return {"captions": count, "encoder_precision": precision}


if __name__ == "__main__":
    main("{corpus} moments", make)

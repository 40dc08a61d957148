"""Second moment of a corpus: the general captions (prior), or the retain concepts in the caption templates (domain)."""

from __future__ import annotations

from pathlib import Path

from resurgence.data.moments import moment_and_count, save_moments
from resurgence.diffusion.text import check_lengths, fill
from resurgence.files import read_lines
from resurgence.stages.base import load_pipe
from resurgence.stages.job import Job, main


def captions_of(job: Job) -> list[str]:
    """The captions of the corpus."""
    lines = read_lines(Path(job.settings["captions"]))
    if job.settings["corpus"] == "prior":
        return lines
    return [caption for concept in job.settings["concepts"] for caption in fill(lines, concept)]


def make(job: Job, folder: Path) -> dict:
    """Write moments.safetensors."""
    pipe, captions = load_pipe(job), captions_of(job)
    check_lengths(pipe.tokenizer, captions)  # of all, before minutes are spent on the first
    moment, count = moment_and_count(pipe, captions)
    save_moments(folder / "moments.safetensors", moment, count)
    return {"captions": count}


if __name__ == "__main__":
    main("{corpus} moments", make)

"""The table of docs/large-runs.md: memory of every stage of Stable Diffusion 1.4 and 2.1, counted on the meta device.

PYTHONPATH=src:tests python tests/full_size_table.py [STAGE ...]      prints it, or some rows; ten minutes for all
"""

from __future__ import annotations

import sys

import diffusers

from full_size_memory import ERASERS, PUBLISHED, TUNES, Need, need, published_batch
from full_size_stages import CLOSED_FORMS, SCORERS, WITH_BASE, WITHOUT_BASE, stage_need

BASES = ("sd14", "sd21")
TRAININGS = {
    **{name: f"eraser {name}" for name in ERASERS},
    "mace": "eraser mace, LoRAs",
    **{name: f"fine-tune, {name}" for name in TUNES},
}  # name -> title of its row
TITLES = {
    **{name: name for name in (*WITH_BASE, *WITHOUT_BASE)},
    **TRAININGS,
    **{name: f"eraser {name}" for name in CLOSED_FORMS},
    **{name: f"scorer {name}" for name in SCORERS},
}  # of all rows, in their order
HEAD = "| stage | samples a step | micro-batch | SD 1.4, GiB | SD 2.1, GiB |\n|---|---|---|---|---|"


def needs_of(name: str) -> list[Need]:
    """What a stage needs with each of BASES; torch.cuda.OutOfMemoryError if that is more than CAPACITY."""
    if name in TRAININGS:
        return [need(base, name, **PUBLISHED.get(name, {})) for base in BASES]
    return [stage_need(base, name) for base in BASES]


def row(name: str, needs: list[Need]) -> str:
    """The row of a stage; two micro-batches where they differ."""
    passes = dict.fromkeys(f"{n.micro_batch}{', checkpointing' * n.checkpointing}" for n in needs)
    samples = published_batch(name) if name in TRAININGS else needs[0].micro_batch
    return (
        f"| {TITLES[name]} | {samples} | {' / '.join(passes)} | {' | '.join(f'{n.peak / 2**30:.1f}' for n in needs)} |"
    )


def main() -> None:
    """Print the table."""
    diffusers.utils.logging.set_verbosity_error()
    print(HEAD)
    for name in sys.argv[1:] or TITLES:
        print(row(name, needs_of(name)), flush=True)


if __name__ == "__main__":
    main()

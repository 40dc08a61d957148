"""What the closed forms cost with more erased concepts, captions of a concept, and cross-attentions.

    PYTHONPATH=src python benchmarks/growth.py [--csv docs/growth.csv]    in a minute of one core
    PYTHONPATH=src python docs/performance.py                             table and figure of docs/performance.md

Random weights: a text encoder of one of CLIP's layers, a twelfth as wide as SD 1.4's, and cross-attentions of SD 1.4's
widths. Each case runs twice. The first run is counted: passes of captions through the encoder, systems that are solved,
values that operations return, and bytes of tensors at the peak beyond those that were there, which are the base in
float64 and the LoRAs. The second is timed, in seconds of the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from bases import WIDTHS, people, random_loras, wide_base
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from live_bytes import Live
from resurgence.config.fields import build
from resurgence.config.task import Task
from resurgence.diffusion.attention import as_delta, projection_weights
from resurgence.diffusion.text import CAPTIONS
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.erasers.mace import method as mace

ROOT = Path(__file__).parents[1]
Pipe = Any  # of bases.py
Run = Callable[[], Any]
MACE = {"preserve_weight": 0.0, "lamb": 1.0, "train_preserve_scale": 0.0, "fuse_preserve_scale": 0.0}


@dataclass(frozen=True)
class Size:
    """The cases: one of three numbers grows, the others stay."""

    dimension: int = 64  # of the embeddings
    widths: tuple[int, ...] = tuple(WIDTHS)  # of the cross-attentions of SD 1.4
    concepts: tuple[int, ...] = (1, 10, 100, 1000)
    captions: tuple[int, ...] = (1, 10, 30)
    attentions: tuple[int, ...] = (1, 2, 4)  # times the cross-attentions
    few: int = 10  # concepts where another number grows

    def cases(self) -> Iterator[tuple[str, int, int, int]]:
        """What grows; concepts, captions of each, and times the cross-attentions."""
        yield from (("erased concepts", n, 1, 1) for n in self.concepts)
        yield from (("captions of a concept", self.few, n, 1) for n in self.captions)
        yield from (("cross-attentions", self.few, 1, n) for n in self.attentions)


class Work(TorchDispatchMode):
    """Systems that were factorised, and values that operations returned."""

    solves = values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.solves += func.overloadpacket is torch.ops.aten.linalg_cholesky_ex
        self.values += sum(part.numel() for part in tree_leaves(out) if isinstance(part, torch.Tensor))
        return out


def closed_form(name: str, **settings: Any) -> Callable[[Pipe, Task, tuple[str, ...]], Run]:
    """What makes the run of an eraser that reads no corpus."""

    def prepare(pipe: Pipe, task: Task, templates: tuple[str, ...]) -> Run:
        cfg = build(eraser_config(name), settings | {"captions": templates}, "settings")
        return lambda: method(name).erase(pipe, task, cfg, EraserData(), 0)

    return prepare


def fusion(pipe: Pipe, task: Task, templates: tuple[str, ...]) -> Run:
    """MACE's fusion of one LoRA of rank 1 for each concept, which embeds their captions; the LoRAs are there before."""
    cfg = build(eraser_config("mace"), MACE | {"captions": templates}, "settings")
    refined, loras = as_delta(projection_weights(pipe.unet)), random_loras(pipe, task.erase)
    return lambda: mace.fuse(pipe, task, cfg, EraserData(), refined, loras)


FORMS = {
    "MACE, refinement": closed_form("mace-refinement", lamb=1.0, train_preserve_scale=0.0),
    "MACE, fusion": fusion,
    "UCE": closed_form("uce"),
    "RECE": closed_form("rece"),
    "SPEED": closed_form("speed", invariants="centres"),  # as the authors; all rows of "" leave no direction
}


@contextmanager
def passes(pipe: Pipe) -> Iterator[list[int]]:
    """Numbers of captions that pass the text encoder, or a copy of it in another precision, one a batch."""
    numbers: list[int] = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda _, inputs: numbers.append(len(inputs[0])))
    try:
        yield numbers
    finally:
        handle.remove()


def counted(pipe: Pipe, run: Run) -> dict[str, float]:
    """What one run takes, the same on every machine."""
    live, work = Live(), Work()
    with passes(pipe) as numbers, work, live:
        run()
    return {"passes": sum(numbers), "solves": work.solves, "values": work.values, "peak_mib": live.peak / 2**20}


def timed(run: Run) -> float:
    """Seconds of the processor: the least of three runs, or one of two seconds."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < 2:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def rows(size: Size, is_timed: bool = True) -> Iterator[dict[str, Any]]:
    """One row for each closed form and case."""
    for grows, concepts, captions, times in size.cases():
        pipe = wide_base(1, list(size.widths) * times, size.dimension)
        pipe.text_encoder.double()  # otherwise each run copies it
        templates = CAPTIONS[:captions] if captions > 1 else ("{}",)
        for name, prepare in FORMS.items():
            run = prepare(pipe, people(concepts), templates)
            case = {"grows": grows, "closed_form": name, "concepts": concepts, "captions": captions,
                    "cross_attentions": len(size.widths) * times}  # fmt: skip
            yield case | counted(pipe, run) | ({"cpu_seconds": timed(run)} if is_timed else {})


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=ROOT / "docs/growth.csv", help="default: docs/growth.csv")
    file = parser.parse_args().csv
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    table = []
    for row in rows(Size()):
        table.append(row)
        print(*row.values(), sep=", ", flush=True)
    pd.DataFrame(table).to_csv(file, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()

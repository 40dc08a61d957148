"""Trainings within the memory of a GPU: the samples of a step pass the network in micro-batches.

Draws, loss and networks with batch statistics stay those of the whole batch: only the passes of the network are split.
The activations of a micro-batch are computed again in the backward pass, one micro-batch after the other, and their
gradients add up. So the gradient is that of the whole batch to rounding, for any loss. With one micro-batch nothing is
computed twice. Checkpointing does the same within a pass, for each block of the network (Chen et al. 2016).
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from resurgence.config.fields import ConfigError
from resurgence.diffusion.device import is_out_of_memory

log = logging.getLogger(__name__)
MICRO_BATCH = "RESURGENCE_MICRO_BATCH"  # auto or a number; set by the Snakefile from base.micro_batch
CHECKPOINTING = "RESURGENCE_CHECKPOINTING"  # auto, true or false; from base.checkpointing
USED: dict[str, int | bool] = {}  # what the latest training of this process used, for run.json
T = TypeVar("T")


def micro_batch() -> int | None:
    """Return the most samples of a pass at the start of a training, from RESURGENCE_MICRO_BATCH; None: auto.

    Raises:
        ConfigError: neither auto nor a whole number of at least 1.
    """
    value = os.environ.get(MICRO_BATCH, "auto")
    if value == "auto":
        return None
    if not value.isdecimal() or not int(value):
        raise ConfigError(f"the environment variable {MICRO_BATCH}", value, "write auto or a number of samples")
    return int(value)


def checkpointing() -> bool | None:
    """Return whether blocks are checkpointed, from RESURGENCE_CHECKPOINTING; None: auto, when memory does not suffice.

    Raises:
        ConfigError: another value than auto, true or false.
    """
    value = os.environ.get(CHECKPOINTING, "auto")
    if value not in ("auto", "true", "false"):
        raise ConfigError(f"the environment variable {CHECKPOINTING}", value, "write auto, true or false, or unset it")
    return None if value == "auto" else value == "true"


@dataclass
class PassLimits:
    """How a training splits its passes; smaller with each out-of-memory error."""

    micro_batch: int | None = field(default_factory=micro_batch)  # most samples of a pass; None: all
    checkpointing: bool = field(default_factory=lambda: bool(checkpointing()))  # of the blocks of the network
    may_checkpoint: bool = field(default_factory=lambda: checkpointing() is not False)  # when memory does not suffice
    largest: int = 0  # samples of the largest call since the present step began

    def without_checkpointing(self) -> None:
        """Exclude it: for passes that read attention maps, which a second pass through a block would read again."""
        self.checkpointing = self.may_checkpoint = False

    def parts(self, count: int) -> list[slice]:
        """The micro-batches of `count` samples."""
        self.largest = max(self.largest, count)
        size = min(count, self.micro_batch or count)
        return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))]

    def split(self, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Call a function of inputs (B, ...) for each micro-batch, and join its outputs (B, ...).

        The graph of the last micro-batch is held, as the backward pass begins with it; the others are computed again.
        """
        *first, last = self.parts(len(inputs[0]))
        if not first:
            return function(*inputs)
        outputs = [
            checkpoint(function, *(v[part] for v in inputs), use_reentrant=False, preserve_rng_state=False)
            for part in first
        ]
        return torch.cat([*outputs, function(*(v[last] for v in inputs))])

    def shrink(self) -> bool:
        """Halve the micro-batch, or where it is 1 checkpoint blocks; False where nothing is left to reduce."""
        size = self.used()["micro_batch"]
        if size > 1:
            self.micro_batch = size // 2
        elif self.may_checkpoint and not self.checkpointing:
            self.checkpointing = True
        else:
            return False
        log.warning(
            "out of memory: the step is repeated with micro-batches of %d%s",
            *(self.micro_batch or 1, " and checkpointing" if self.checkpointing else ""),
        )
        return True

    def used(self) -> dict[str, int]:
        """The samples of the largest pass since the present step began, and whether blocks are checkpointed."""
        return {
            "micro_batch": min(self.micro_batch or self.largest, self.largest),
            "checkpointing": self.checkpointing,
        }

    def state(self) -> dict[str, int | None]:
        """What a resumed training needs to split its passes in the same way."""
        return {"micro_batch": self.micro_batch, "checkpointing": self.checkpointing}

    def load(self, state: Mapping[str, int | None]) -> None:
        """Go on as a saved training: smaller passes than those of the settings stay smaller."""
        self.micro_batch = min(filter(None, (self.micro_batch, state["micro_batch"])), default=None)
        self.checkpointing = self.checkpointing or bool(state["checkpointing"])

    def fitting(self, compute: Callable[[], T], reset: Callable[[], object] = lambda: None) -> T:
        """Return compute(), repeated with smaller passes while the memory of the GPU does not suffice.

        Args:
            reset: undoes what an interrupted call has changed.

        Raises:
            RuntimeError: of `is_out_of_memory`, as one sample does not fit either.
        """
        while True:
            self.largest = 0
            try:
                return compute()
            except RuntimeError as error:
                if not is_out_of_memory(error) or not self.shrink():
                    raise
            reset()  # outside of the except block, which keeps the tensors of the failed call alive
            gc.collect()  # graphs of checkpointed passes refer to themselves
            torch.cuda.empty_cache()


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in main memory."""
    return tensor.detach().to("cpu", copy=True)


def mapped(function: Callable[[torch.Tensor], torch.Tensor], state: Any) -> Any:
    """A state of tensors and plain values in dictionaries, lists and tuples, with a function's value of each tensor."""
    if isinstance(state, torch.Tensor):
        return function(state)
    if isinstance(state, Mapping):
        return {key: mapped(function, value) for key, value in state.items()}
    return type(state)(mapped(function, value) for value in state) if isinstance(state, list | tuple) else state

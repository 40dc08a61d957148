"""How the UNet of a base runs on a GPU: memory format, compilation, CUDA graphs; `base.speed` names the choice.

Numbers change by rounding alone. Compiled kernels are stored in the user's cache folder, from which later jobs with the
same base, batch and card read them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from resurgence.config.fields import ConfigError
from resurgence.provenance.outputs import check_writable

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

VARIABLE = "RESURGENCE_SPEED"  # a key of SPEEDS, or auto; set by the Snakefile from base.speed
CACHE = "TORCHINDUCTOR_CACHE_DIR"
COMPILERS = ("cc", "gcc", "clang")


class Speed(NamedTuple):
    """What is done to a UNet."""

    channels_last: bool = False
    compile: bool = False
    graphs: bool = False  # CUDA graphs of the compiled UNet, in sampling: one launch a pass

    def __or__(self, other: tuple[bool, ...]) -> Speed:
        return Speed(*(a or b for a, b in zip(self, other, strict=True)))


SPEEDS = {
    "eager": Speed(),
    "channels-last": Speed(channels_last=True),
    "compiled": Speed(channels_last=True, compile=True),
    "graphs": Speed(channels_last=True, compile=True, graphs=True),
}
_used: set[Speed] = set()


def of_card(capability: tuple[int, int]) -> str:
    """The choice of `auto` for a card of this compute capability; docs/large-runs.md has the reasons.

    Hopper and later: graphs, as they wait for launches; Ampere and Ada: compiled; older ones, for which tensor cores
    only need the memory format: channels-last.
    """
    if capability >= (9, 0):
        return "graphs"
    return "compiled" if capability >= (8, 0) else "channels-last"


def chosen(device: str | torch.device) -> Speed:
    """The speed of RESURGENCE_SPEED, by default eager; on a device that is no GPU always eager.

    Raises:
        ConfigError: the variable has an unknown value.
    """
    name = os.environ.get(VARIABLE, "eager")
    if name not in (*SPEEDS, "auto"):
        raise ConfigError(f"the environment variable {VARIABLE}", name, f"write auto or one of {', '.join(SPEEDS)}")
    if torch.device(device).type != "cuda":
        return SPEEDS["eager"]
    return SPEEDS[of_card(torch.cuda.get_device_capability(device)) if name == "auto" else name]


def used() -> str:
    """The fastest choice that this process has applied, by its name: for run.json."""
    return next((name for name, speed in reversed(SPEEDS.items()) if speed in _used), "eager")


def prepare_compiler() -> None:
    """Name the cache folder of compiled kernels, unless TORCHINDUCTOR_CACHE_DIR does.

    Raises:
        ConfigError: no C compiler, which torch.compile calls. OSError: the folder cannot be written.
    """
    if "CC" not in os.environ and not any(map(shutil.which, COMPILERS)):
        raise ConfigError("base.speed", os.environ.get(VARIABLE, "compiled"), "calls a C compiler and none of "
                          f"{', '.join(COMPILERS)} is on the PATH; install gcc, or write channels-last")  # fmt: skip
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resurgence" / "inductor"
    check_writable([Path(os.environ.setdefault(CACHE, str(folder)))])


def apply_speed(unet: UNet2DConditionModel, speed: Speed, vae: AutoencoderKL | None = None) -> None:
    """Convert a UNet, and an autoencoder, to a memory format, and compile the UNet once, for fixed shapes."""
    _used.add(speed)
    if speed.channels_last:
        for part in filter(None, (unet, vae)):
            part.to(memory_format=torch.channels_last)
    if speed.compile and not is_compiled(unet):
        prepare_compiler()
        unet.compile(dynamic=False, **({"mode": "reduce-overhead"} if speed.graphs else {}))


def is_compiled(unet: UNet2DConditionModel) -> bool:
    """Whether calls of the UNet run its compiled form, which is compiled again for each shape of its inputs."""
    return unet._compiled_call_impl is not None


@contextmanager
def fast_training(unet: UNet2DConditionModel, speed: Speed | None = None) -> Iterator[None]:
    """Within the block the UNet trains at a speed, by default that of its device; afterwards it runs as before.

    Without CUDA graphs, which would keep the activations of a backward pass from one accumulated pass to the next.
    """
    speed = (chosen(unet.device) if speed is None else speed)._replace(graphs=False)
    compiled = unet._compiled_call_impl
    unet._compiled_call_impl = None  # of sampling, perhaps with graphs
    apply_speed(unet, speed)
    try:
        yield
    finally:
        unet._compiled_call_impl = compiled
        if speed.channels_last:
            unet.to(memory_format=torch.contiguous_format)

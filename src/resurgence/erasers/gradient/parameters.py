"""Which parameters an eraser trains: one selector for all methods. A delta holds exactly what it selects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# the output layers and the time embedding, which ESD's first script leaves out of its "noxattn"
OUTER = ("time_embedding.", "conv_norm_out.", "conv_out.")


def is_cross(name: str) -> bool:
    """Whether a UNet parameter belongs to an attention over text."""
    return ".attn2." in name


def is_self(name: str) -> bool:
    """Whether a UNet parameter belongs to an attention of the image over itself."""
    return ".attn1." in name


def is_norm(name: str) -> bool:
    """Whether a UNet parameter belongs to a normalisation layer: all others are linear or convolution layers."""
    return "norm" in name.split(".")[-2]


RULES: dict[str, Callable[[str], bool]] = {
    "xattn": is_cross,
    "xattn-kv": lambda name: is_cross(name) and (".to_k." in name or ".to_v." in name),
    "selfattn": is_self,
    "attention": lambda name: is_self(name) or is_cross(name),
    "noxattn": lambda name: not is_cross(name),
    "noxattn-official": lambda name: not is_cross(name) and not name.startswith(OUTER),
    "noxattn-2025": lambda name: not is_cross(name) and not is_norm(name),
    "full": lambda name: True,
}


def selected(pipe: StableDiffusionPipeline, selection: str) -> dict[str, nn.Parameter]:
    """The parameters of a selection by the name that a delta gives them, `unet.` or `text_encoder.` in front.

    Args:
        selection: a key of RULES, or `text-encoder`; see optimisation.Selection.

    Raises:
        ValueError: an unknown selection, or one that selects nothing in this base.
    """
    if selection != "text-encoder" and selection not in RULES:
        raise ValueError(f"parameters = {selection!r}: known are {', '.join([*RULES, 'text-encoder'])}")
    if selection == "text-encoder":
        part, module, rule = "text_encoder", pipe.text_encoder, RULES["full"]
    else:
        part, module, rule = "unet", pipe.unet, RULES[selection]
    parameters = {f"{part}.{name}": p for name, p in module.named_parameters() if rule(name)}
    if not parameters:
        raise ValueError(f"parameters = {selection!r} selects nothing in this base; choose another, e.g. full")
    return parameters

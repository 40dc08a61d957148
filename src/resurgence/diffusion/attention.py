"""The cross-attentions of a UNet: their projections, their probabilities, and MACE's attention loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from resurgence.diffusion.unet import predict

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

Receive = Callable[[str, torch.Tensor], None]  # (name of the cross-attention, probabilities (B, heads, Q, L))


def cross_attentions(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The attentions over text, by name, in the order of the UNet.

    Raises:
        ValueError: if there is none, or one with features that Stable Diffusion does not use.
    """
    from diffusers.models.attention_processor import Attention

    attentions = {n: m for n, m in unet.named_modules() if isinstance(m, Attention) and m.is_cross_attention}
    if not attentions:
        raise ValueError("the UNet has no cross-attention over text; an eraser has nothing to change in this base")
    for name, module in attentions.items():
        extras = ("added_kv_proj_dim", "norm_cross", "group_norm", "spatial_norm", "residual_connection")
        if used := [extra for extra in extras if getattr(module, extra, None)]:
            raise ValueError(f"cross-attention {name} has {', '.join(used)}: use a base of the Stable Diffusion family")
    return attentions


def projections(unet: UNet2DConditionModel) -> dict[str, nn.Linear]:
    """The text projections W of every cross-attention: to_k and to_v, by name."""
    return {f"{n}.{p}": getattr(m, p) for n, m in cross_attentions(unet).items() for p in ("to_k", "to_v")}


def projection_weights(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The weights (out, d) of `projections`, detached, by projection name."""
    return {name: module.weight.detach() for name, module in projections(unet).items()}


def as_delta(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by projection name -> delta of the base, by parameter name."""
    return {f"unet.{name}.weight": weight.cpu().contiguous() for name, weight in weights.items()}


def from_delta(delta: Mapping[str, torch.Tensor], unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The projections' weights in a delta; the UNet's for those that the delta lacks."""
    weights = projection_weights(unet)
    return {name: delta.get(f"unet.{name}.weight", weight).to(weight.device) for name, weight in weights.items()}


@contextmanager
def swapped(unet: UNet2DConditionModel, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Replace the weights of projections within the block, and restore them after it."""
    modules = projections(unet)
    originals = {name: modules[name].weight.data for name in weights}
    try:
        for name, weight in weights.items():
            modules[name].weight.data = weight.to(originals[name])
        yield
    finally:
        for name, weight in originals.items():
            modules[name].weight.data = weight


class LastMapReached(Exception):
    """Ends a forward pass after the last attention map."""


class Capture:
    """Attention processor that passes the softmax probabilities to `receive`; otherwise diffusers' plain attention."""

    def __init__(self, name: str, receive: Receive) -> None:
        self.name, self.receive = name, receive

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,  # (B, Q, c)
        encoder_hidden_states: torch.Tensor,  # (B, L, d)
        attention_mask: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor:
        """Attend from the image to the text; the probabilities (B, heads, Q, L) go to `receive`."""
        mask = attn.prepare_attention_mask(attention_mask, encoder_hidden_states.shape[1], len(hidden_states))
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        probabilities = attn.get_attention_scores(query, key, mask)  # (B * heads, Q, L)
        self.receive(self.name, probabilities.unflatten(0, (-1, attn.heads)))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        out = attn.batch_to_head_dim(probabilities @ value)
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


def attention_maps(
    unet: UNet2DConditionModel,
    receive: Receive,
    noisy: torch.Tensor,
    t: torch.Tensor,
    texts: torch.Tensor,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Run the UNet up to its last cross-attention and pass the probabilities of each to `receive`.

    What follows the last map (its values, the rest of the UNet) is not computed: no map depends on it.

    Args:
        noisy: (B, C, h, w). t: (B,). texts: (B, L, d). parameters: replace the UNet's, as in `predict`.
    """
    processors, left = unet.attn_processors, set(cross_attentions(unet))

    def receive_until_last(name: str, probabilities: torch.Tensor) -> None:
        receive(name, probabilities)
        left.discard(name)
        if not left:
            raise LastMapReached

    capturing = {f"{name}.processor": Capture(name, receive_until_last) for name in left}
    try:
        unet.set_attn_processor({**processors, **capturing})
        predict(unet, noisy, t, texts, parameters)
    except LastMapReached:
        pass
    finally:
        unet.set_attn_processor(processors)


def grid_of(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of an attention map with that many pixels, for latents height x width.

    Raises:
        ValueError: if no number of halvings (rounded up, as by the UNet's stride-2 convolutions) gives that many.
    """
    h, w = height, width
    while h * w > pixels:
        h, w = (h + 1) // 2, (w + 1) // 2
    if h * w != pixels:
        raise ValueError(f"a map of {pixels} pixels does not fit latents {height} x {width}; check the image size")
    return h, w


def resize_mask(masks: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Masks (B, 1, H, W) bool to an attention grid: nearest pixel, > 0.5, flattened to (B, Q) bool."""
    return (F.interpolate(masks.float(), size=grid, mode="nearest") > 0.5).flatten(1)


def attention_loss(
    unet: UNet2DConditionModel,
    noisy: torch.Tensor,
    t: torch.Tensor,
    texts: torch.Tensor,
    masks: torch.Tensor | None,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Attention of the concept's pixels M to its tokens S: sum over layers of ||A[:, M, S]||_F (MACE, Eq. 5).

    A are the softmax probabilities of all heads. The norm is not squared; it is 0 with gradient 0 where no pixel or
    no token is selected.

    Args:
        noisy: (B, C, h, w). t: (B,). texts: (B, L, d). tokens: (B, L) bool.
        masks: (B, 1, H, W) bool, or None for the whole map.

    Returns:
        (B,), the loss of each sample.
    """
    norms, grids = [], {}

    def receive(name: str, probabilities: torch.Tensor) -> None:
        a = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32)) * tokens[:, None, None, :]
        if masks is not None:
            grid = grid_of(a.shape[2], *noisy.shape[-2:])
            if grid not in grids:
                grids[grid] = resize_mask(masks, grid)
            a = a * grids[grid][:, None, :, None]
        norms.append(torch.linalg.vector_norm(a.flatten(1), dim=1))

    attention_maps(unet, receive, noisy, t, texts)
    return torch.stack(norms).sum(0)

"""The tokens of a caption whose attention an eraser lowers: shared by MACE and FMN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch

from resurgence.diffusion.text import concept_positions, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EndTokens(Protocol):
    """Settings that say which tokens at the end of a caption belong to the set."""

    @property
    def use_pooler(self) -> bool:
        """Whether the end of the caption belongs to the set."""

    @property
    def pooler_tokens(self) -> Literal["end-and-padding", "end", "same-id"]:
        """Which tokens at the end."""


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, caption: str, concept: str, length: int, cfg: EndTokens
) -> torch.Tensor:
    """The set S of the attention loss: the concept's tokens and, with use_pooler, the end of the caption: (L,) bool.

    The end is `end-and-padding` (the first end token and all behind it), `end` (that one token), or `same-id` (every
    token with the end token's id, as the official code: on SD 1.x, which pads with it, end and padding; on SD 2.x,
    which pads with id 0, the end token alone).
    """
    selected = torch.zeros(length, dtype=torch.bool)
    selected[concept_positions(tokenizer, caption, concept)] = True
    if cfg.use_pooler:
        end = len(token_ids(tokenizer, caption)) - 1
        same = tokenizer.pad_token_id == tokenizer.eos_token_id
        padding = {"end-and-padding": True, "end": False, "same-id": same}[cfg.pooler_tokens]
        selected[end : length if padding else end + 1] = True
    return selected

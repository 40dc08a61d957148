"""Fine-tuning sets: the concepts that they show, and who made their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from resurgence.config.fields import ConfigError, Count, Seed
from resurgence.config.names import check_distinct
from resurgence.config.stages import TercileConfig

Maker = Literal["base", "erased", "real", "other"]
OF_SAMPLED = {"templates": "task", "images_per_prompt": None, "first_seed": None}  # keys of sampled sets -> default
MAKERS = {"base": "the base", "erased": "each erased model", "real": "real pictures", "other": "another base"}


@dataclass(frozen=True)
class OtherBase:
    """Another text-to-image model, which samples the images of a set."""

    base: str
    """A local diffusers folder, or a hub id."""
    revision: str | None = None
    """Commit of a hub id."""


@dataclass(frozen=True)
class FinetuneSet:
    """Images of concepts that are not erased; of a total size, or of a number a prompt."""

    concepts: Literal["task", "retain"] | dict[str, tuple[str, ...]] | tuple[str, ...] = "task"
    """Concepts of the images: task (its random concepts), retain, a list, or kind of task -> list."""
    made_by: OtherBase | Literal["base", "erased", "real"] = "base"
    """Who made the images: base, erased (each erased model its own), real (pictures of yours), or {base: PATH}."""
    images: str | dict[str, str] | None = None
    """Of a real set: a Parquet file, a folder, or a pattern of such files or folders; or kind of task -> one such."""
    templates: Literal["task"] | tuple[str, ...] = "task"
    """Of the prompts: task (its templates), or a list."""
    tercile: TercileConfig | None = None
    """Instead of concepts: drawn from a file of candidates by their CLIP similarity to the erased ones."""
    images_per_prompt: Count | None = None
    """Images of each prompt."""
    size: Count | None = None
    """Images in all, spread evenly over the prompts, instead of images_per_prompt: for sets matched in size.
    Of a real set: spread evenly over its concepts; null: all."""
    first_seed: Seed | None = None
    """Image i of every prompt has seed first_seed + i; null: seeds derived from prompt and number."""

    @classmethod
    def keys_without_effect(cls, values: Mapping[str, Any]) -> set[str]:
        """The keys that do not go with the maker of the images, or with another key, that is written."""
        real = values.get("made_by") == "real"
        refused = {*OF_SAMPLED, "tercile"} if real else {"images"} if "made_by" in values else set()
        if not real and {"images_per_prompt", "size"} & set(values):
            refused |= {"images_per_prompt", "size"}
        return refused | ({"concepts", "made_by", "images"} if "tercile" in values else set())

    def __post_init__(self) -> None:
        self.check_maker()
        if self.maker != "real" and (self.images_per_prompt is None) == (self.size is None):
            raise ConfigError(
                "images_per_prompt", self.images_per_prompt, "give either this or size, not both, not none"
            )
        if self.tercile is not None and self.concepts != "task":
            raise ConfigError("concepts", list(self.concepts), "give either this or tercile, not both")
        for key, words in self.lists().items():
            check_distinct((key, word) for word in words)
            if not words:
                raise ConfigError(key, [], "must not be empty; name at least one, or write task")

    @property
    def maker(self) -> Maker:
        """Who made the images; `other` is another base."""
        return "other" if isinstance(self.made_by, OtherBase) else self.made_by

    def check_maker(self) -> None:
        """Raise ConfigError for keys that do not go with the maker of the images."""
        if self.tercile is not None and self.maker != "base":
            raise ConfigError("made_by", self.maker, "only the base makes the images of a tercile; remove made_by")
        if self.maker != "real":
            if self.images is not None:
                raise ConfigError("images", self.images, "belongs to real pictures; write made_by: real, or remove it")
            return
        if not self.images:
            raise ConfigError("images", self.images, "is missing, and made_by is real; name a Parquet file or a folder")
        for key, default in OF_SAMPLED.items():
            if (value := getattr(self, key)) != default:
                raise ConfigError(key, value, "real pictures have their captions and number; remove it, or write size")

    def lists(self) -> dict[str, tuple[str, ...]]:
        """The lists of concepts and templates, by their keys in the block of the set."""
        concepts = self.concepts if isinstance(self.concepts, dict) else {"": self.concepts}
        words = {**{f"concepts.{kind}".rstrip("."): of for kind, of in concepts.items()}, "templates": self.templates}
        return {key: of for key, of in words.items() if isinstance(of, tuple)}

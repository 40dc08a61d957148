"""CLIP score and CLIP accuracy with any open_clip model.

With e the embedding of an image and t that of a text, both of length 1:
  clip_score        100 cos(e, t of the prompt), as `logits_per_image` of Hugging Face's CLIP; negative values are kept.
  clip_probability  softmax over the task's labels of 100 cos(e, t of "a photo of the {label}"), at the concept; `label`
                    is another text, for styles say.
  clip_correct      1 when the concept is the most probable label. The mean of it is the CLIP accuracy of the study;
                    MACE's published script returns the mean probability, hence the column above.
  clip_top1         the most probable label, also in rows without a concept.
Rows of role `synonym` have the class as their concept; rows of role `general` have no concept, and only a score and
a label.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from resurgence.config.fields import known
from resurgence.config.names import Form, check_distinct
from resurgence.diffusion.image_sets import ahead, threads
from resurgence.files import read_json
from resurgence.pretrained.checksums import verify_loaded
from resurgence.pretrained.finite import check_finite
from resurgence.pretrained.loading import check_file
from resurgence.scorers.concept_columns import concept_columns
from resurgence.scorers.configs import ClipConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from resurgence.config.task import Task

log = logging.getLogger(__name__)
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
LOGIT_SCALE = 100.0


def label_columns(cosines: np.ndarray, labels: list[str], concepts: list[str]) -> dict[str, Any]:
    """clip_correct, clip_probability and clip_top1 from the cosines of images and label texts (N, L); no concept gives
    NaN in the first two.

    Raises:
        ValueError: a concept that is not among the labels.
    """
    logits = LOGIT_SCALE * cosines.astype(np.float64)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    fault = "is not among the labels of the task; add it to `labels`"
    columns = concept_columns("clip", logits, probabilities, labels, concepts, fault)
    return {**columns, "clip_top1": [labels[i] for i in logits.argmax(1)]}


@dataclass
class ClipScorer:
    """An open_clip model with its own preprocessing and tokenizer."""

    model: torch.nn.Module
    preprocess: Callable[[Any], torch.Tensor]
    tokenizer: Callable[[list[str]], torch.Tensor]
    device: torch.device | str = "cpu"
    batch: int = 128
    label: str = ClipConfig.label

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Image embeddings of length 1, (N, d) float32 on the CPU; images uint8 (N, 3, H, W).

        Threads resize the images of the next batch meanwhile; PIL releases the interpreter's lock.
        """
        with threads() as pool:
            batches = (torch.stack(list(pool.map(self.prepared, part))) for part in images.cpu().split(self.batch))
            parts = [self.model.encode_image(x.to(self.device)).float() for x in ahead(batches)]
        return torch.cat([F.normalize(part, dim=-1).cpu() for part in parts])

    def prepared(self, image: torch.Tensor) -> torch.Tensor:
        """One image uint8 (3, H, W) as the model reads it."""
        from PIL import Image

        return self.preprocess(Image.fromarray(image.permute(1, 2, 0).numpy()))

    @torch.inference_mode()
    def text_features(self, texts: list[str]) -> torch.Tensor:
        """Text embeddings of length 1, (T, d) float32 on the CPU."""
        ids = self.tokenizer(texts).split(self.batch)
        parts = [F.normalize(self.model.encode_text(part.to(self.device)).float(), dim=-1).cpu() for part in ids]
        return torch.cat(parts)

    def warn_of_long(self, texts: list[str]) -> None:
        """Log how many texts are longer than CLIP reads: with room for one more token, another is in the last place."""
        ids = self.tokenizer(texts)
        length = ids.shape[1]
        if number := int((self.tokenizer(texts, length + 1)[:, :length] != ids).any(1).sum()):
            log.warning("%d of %d prompts are longer than the %d tokens that CLIP reads; it scores their beginnings",
                        number, len(texts), length)  # fmt: skip

    def score(
        self, images: torch.Tensor, prompts: pd.DataFrame, task: Task, base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Columns clip_*, one row an image; images uint8 (N, 3, H, W).

        Raises:
            ConfigError: two labels are one to CLIP, so that rounding would choose between them.
        """
        e = self.features(images)  # (N, d)
        codes, unique = pd.factorize(prompts["prompt"])
        self.warn_of_long(list(unique))
        t = self.text_features(list(unique))[codes]  # (N, d)
        labels = list(task.labels or task.erase + task.retain)
        texts = [self.label.format(label) for label in labels]
        ids = dict(zip(labels, map(tuple, self.tokenizer(texts).tolist()), strict=True))
        check_distinct([("labels", label) for label in labels], Form(ids.__getitem__, "tokens of CLIP"))
        cosines = e @ self.text_features(texts).T  # (N, L)
        columns = label_columns(cosines.numpy(), labels, prompts["concept"].fillna("").tolist())
        return {"clip_score": LOGIT_SCALE * (e * t).sum(1).double().numpy(), **columns}


def load(config: ClipConfig, device: torch.device | str = "cpu", key: str = "scorers.clip") -> ClipScorer:
    """Load open_clip from a folder, or by architecture name and pretrained tag.

    Args:
        config: its path is a folder with open_clip_config.json, open_clip_model.safetensors and, when the configuration
            names a Hugging Face tokenizer, its files there or in the subfolder that `hf_tokenizer_name` names. The
            weights of name and pretrained come from open_clip's cache or its hub.
        key: the scorer's block of the configuration, for messages.

    Raises:
        FileNotFoundError, ValueError: a missing file, or weights that do not fit the configuration or are not finite.
    """
    import open_clip

    path, name, pretrained = config.path, config.name, config.pretrained
    if name is not None:
        known(f"{key}.name", name, open_clip.list_models())
        known(f"{key}.pretrained", pretrained, open_clip.list_pretrained_tags_by_model(name))
    if path is not None:
        for file in (CONFIG, WEIGHTS):  # pickled weights are not read
            check_file(Path(path) / file, None, f"{key}.path", config.fetch)
        verify_loaded(path)
    source = f"local-dir:{path}" if path is not None else str(name)
    with warnings.catch_warnings():
        # with weights of the other activation open_clip only warns, and then scores with the wrong activation
        warnings.filterwarnings("error", message="QuickGELU mismatch")
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(source, pretrained, device=device)
        except UserWarning as warning:
            raise ValueError(f"{key}.name = {name!r}: {warning}; write {name}-quickgelu") from warning
        except (RuntimeError, AssertionError, OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            if path is not None:
                raise ValueError(f"{key}.path = {str(path)!r}: the weights are truncated or of another "
                                 f"architecture ({reason}); {config.fetch}") from error  # fmt: skip
            raise FileNotFoundError(
                f"{key}: {name!r} with the tag {pretrained!r} cannot be loaded ({reason}). Run once while "
                'online, `python -c "import open_clip; open_clip.create_model_and_transforms'
                f"('{name}', '{pretrained}')\"`, which fills the hub's cache, or name a folder by {key}.path"
            ) from error
    check_finite(model.state_dict(), f"{key}: {path or name}", config.fetch)
    return ClipScorer(model.eval(), preprocess, load_tokenizer(source, path), device, label=config.label)


def load_tokenizer(source: str, path: str | Path | None) -> Callable[[list[str]], torch.Tensor]:
    """The tokenizer that the model's configuration names, also in a subfolder, where open_clip does not look."""
    import open_clip

    if path is not None:
        text = read_json(Path(path) / CONFIG)["model_cfg"]["text_cfg"]
        folder = Path(path) / text.get("hf_tokenizer_name", ".")
        if folder.is_dir() and folder.resolve() != Path(path).resolve():
            length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
            return open_clip.tokenizer.HFTokenizer(str(folder), length, **text.get("tokenizer_kwargs", {}))
    return open_clip.get_tokenizer(source)

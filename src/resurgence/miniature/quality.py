"""Quality of a miniature world, measured by its judges, the recogniser and the CLIP.

Writes below `quality`:
  drawings.csv  concepts under transformations that training never used (checkered backgrounds, other proportions,
                tints), by judge and split of the drawings: `seen` ones of the judge's training, or held-out ones
  base.csv      task concepts in images of the base: accuracy, agreement of the judges, false alarms
  styles.csv    styles in images of the base: accuracy, and how often the content that the prompt names is kept
  summary.csv   the means of these, and how often pictures of nothing are recognised as such
  base.png, styles.png  the images
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torchvision.utils import save_image

from resurgence.config.fields import build
from resurgence.config.task import Task
from resurgence.data.prompts import expand
from resurgence.diffusion.pipeline import load_base
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.files import atomic_file
from resurgence.miniature.compositions import affine, nothing, uniform
from resurgence.miniature.drawings import load_drawings
from resurgence.miniature.styles import draw_and_apply_styles
from resurgence.scorers import clip
from resurgence.scorers.configs import ClipConfig
from resurgence.scorers.recogniser import named_class, to_input
from resurgence.scorers.recogniser_model import NONE, PLAIN, Labels, Recogniser, load_recogniser
from resurgence.seeds import generator

log = logging.getLogger(__name__)
EMPTY = 480  # pictures of nothing
PURPOSE = "world quality"  # of the noise of the base's images


def held_out(drawings: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Transform drawings in ways that training never used: checkered background, aspect ratio, tint.

    Args:
        drawings: uint8 RGBA (B, 4, H, W).

    Returns:
        Images in [-1, 1], (B, 3, H, W).
    """
    n, _, height, width = drawings.shape
    rgba = drawings.float() / 255
    alpha = rgba[:, 3:]
    stretch = uniform((2,), 0.85, 1.0, generator)
    size = [round(height * float(stretch[0])), round(width * float(stretch[1]))]
    small = F.interpolate(torch.cat([rgba[:, :3] * alpha, alpha], 1), size=size, mode="bilinear", antialias=True)
    pad = [(width - size[1]) // 2, width - size[1] - (width - size[1]) // 2]
    pad += [(height - size[0]) // 2, height - size[0] - (height - size[0]) // 2]
    moved = affine(F.pad(small, pad), generator, degrees=12, scale=(0.75, 1.0), shift=0.06)
    cells = torch.arange(height)[:, None] // 8 + torch.arange(width)[None] // 8
    colours = uniform((n, 2, 3, 1, 1), 0.75, 1.0, generator)
    checker = torch.where((cells % 2 == 0)[None, None], colours[:, 0], colours[:, 1])
    tint = uniform((n, 3, 1, 1), 0.9, 1.1, generator)
    return ((moved[:, :3] * tint).clamp(0, 1) + checker * (1 - moved[:, 3:])).clamp(0, 1) * 2 - 1


class Judges:
    """Recogniser and CLIP of a world; images are uint8 (N, 3, H, W)."""

    def __init__(self, world: Path, device: str) -> None:
        self.device = device
        self.recogniser: Recogniser
        self.labels: Labels
        self.recogniser, self.labels = load_recogniser(world / "recogniser", device)
        self.clip = clip.load(ClipConfig(str(world / "clip")), device)
        self.names = [name for name in self.labels.classes if name != NONE]
        self.texts = self.clip.text_features([ClipConfig.label.format(name) for name in self.names])

    @torch.inference_mode()
    def recognise(self, images: torch.Tensor) -> pd.DataFrame:
        """The most probable class and style (PLAIN without styles) of each image: columns recogniser, style."""
        parts = [self.recogniser(to_input(part.to(self.device), self.recogniser.size)) for part in images.split(128)]
        classes, styles = (torch.cat(logits) for logits in zip(*parts, strict=True))
        top = [self.labels.classes[i] for i in classes.argmax(1).tolist()]
        of_styles = [self.labels.styles[i] for i in styles.argmax(1).tolist()] if self.labels.styles else PLAIN
        return pd.DataFrame({"recogniser": top}).assign(style=of_styles)

    def by_clip(self, images: torch.Tensor) -> list[str]:
        """The class whose label is nearest to each image in CLIP's space."""
        return [self.names[i] for i in (self.clip.features(images) @ self.texts.T).argmax(1).tolist()]


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as uint8."""
    return ((images + 1) * 127.5).round().to(torch.uint8)


def on_drawings(judges: Judges, drawings: Path, world: dict, cfg: dict, drawn_by: Sequence[str] | None) -> pd.DataFrame:
    """Each drawing `cfg.copies` times under held-out transformations, half of the copies in a style.

    Args:
        drawn_by: artists and poses that the CLIP has seen; None: all.

    Returns:
        One row a picture: concept, split (of the recogniser), seen_by_clip, true_style, recogniser, style, clip.
    """
    table, rgba = load_drawings(drawings)
    seen = table["artist"].isin(drawn_by) | table["icon"].isin(drawn_by) if drawn_by else True
    facts = table[["concept"]].assign(split=table.get("split", "training"), seen_by_clip=seen)
    rows = []
    for copy in range(cfg["copies"]):
        draws = generator(PURPOSE, "drawings", cfg["seed"], copy)
        images, styles = draw_and_apply_styles(held_out(rgba, draws), world, 0.5, draws)
        names = [PLAIN, *(style["name"] for style in world.get("styles", []))]
        pixels = to_bytes(images)
        judged = judges.recognise(pixels).assign(clip=judges.by_clip(pixels))
        rows.append(facts.assign(true_style=[names[i + 1] for i in styles.tolist()]).join(judged))
    return pd.concat(rows, ignore_index=True)


def prompts_of(kinds: dict[str, str], tasks: Sequence[Task], n: int) -> pd.DataFrame:
    """The prompts of each task concept and, in the templates of the tasks of styles, of each style; n images each.

    Args:
        kinds: concept -> kind.
    """
    rows = []
    for concept, kind in kinds.items():
        template = "a portrait of the {}" if kind == "person" else "a photo of the {}"
        rows += expand([(concept, concept)], [template], n, kind, PURPOSE)
    of_styles = [task for task in tasks if task.kind == "style"]
    styles = dict.fromkeys(name for task in of_styles for name in (*task.erase, *task.retain))
    templates = dict.fromkeys(template for task in of_styles for template in task.templates)
    rows += expand([(style, style) for style in styles], list(templates), n, "style", PURPOSE)
    return pd.DataFrame(rows)


def by_concept(images: pd.DataFrame) -> pd.DataFrame:
    """Table of the base's images of concepts: one row a concept."""
    concepts = images[images["role"] != "style"].assign(right=lambda rows: rows["recogniser"] == rows["concept"])
    table = concepts.groupby("concept", sort=False).agg(
        kind=("role", "first"), n=("right", "size"), accuracy=("right", "mean"), clip_agrees=("agree", "mean")
    )
    wrong = concepts[~concepts["right"]]
    others = len(concepts) - table["n"]
    table["false_alarms"] = wrong["recogniser"].value_counts().reindex(table.index, fill_value=0) / others
    table["most_often_taken_for"] = wrong.groupby("concept")["recogniser"].agg(lambda names: names.mode().iloc[0])
    return table


def by_style(images: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Table of the base's images of styles: one row a style."""
    styled = images[images["role"] == "style"]
    content = [named_class(prompt, classes) for prompt in styled["prompt"]]
    return (
        styled.assign(right=styled["style"] == styled["concept"], kept=styled["recogniser"] == content)
        .groupby("concept", sort=False)
        .agg(n=("right", "size"), accuracy=("right", "mean"), content=("kept", "mean"), clip_agrees=("agree", "mean"))
        .rename_axis("style")
    )


def summary(drawn: pd.DataFrame, concepts: pd.DataFrame, styles: pd.DataFrame, empty: float) -> pd.DataFrame:
    """The means: columns measure, value (a share), n (pictures)."""
    rows = [
        (f"recogniser, {split} drawings", (part["recogniser"] == part["concept"]).mean(), len(part))
        for split, part in drawn.groupby("split", sort=False)
    ]
    rows += [
        (f"style, {split} drawings", (part["style"] == part["true_style"]).mean(), len(part))
        for split, part in drawn.groupby("split", sort=False)
    ]
    rows += [
        (f"CLIP, drawings of artists {'of its' if seen else 'outside its'} training",
         (part["clip"] == part["concept"]).mean(), len(part))
        for seen, part in drawn.groupby("seen_by_clip", sort=False)
    ]  # fmt: skip
    images = concepts["n"].sum()
    rows += [
        ("base's images of task concepts, mean", np.average(concepts["accuracy"], weights=concepts["n"]), images),
        ("base's images of task concepts, least of a concept", concepts["accuracy"].min(), concepts["n"].min()),
        (
            "base's images, recogniser and CLIP agree",
            np.average(concepts["clip_agrees"], weights=concepts["n"]),
            images,
        ),
    ]
    characters = concepts[concepts["kind"] == "character"]
    if len(characters):
        rows.append(("base's images of characters", characters["accuracy"].mean(), characters["n"].sum()))
    if len(styles):
        rows.append(("base's images of styles, style", styles["accuracy"].mean(), styles["n"].sum()))
        rows.append(("base's images of styles, content", styles["content"].mean(), styles["n"].sum()))
    rows.append(("pictures of nothing", empty, EMPTY))
    return pd.DataFrame(rows, columns=["measure", "value", "n"])


def main(
    world: Path, words: dict, tasks: Sequence[Task], kinds: dict[str, str], cfg: dict, drawn_by: Sequence[str] | None,
    device: str = "cpu",
) -> None:  # fmt: skip
    """Write the tables and contact sheets below the folder of the world.

    Args:
        words: the concept list. kinds: task concept -> kind. drawn_by: artists and poses that the CLIP has seen.
        cfg: seed, copies (of each drawing), seeds_per_concept, and steps, guidance and batch of sampling.
    """
    sampling = build(SamplingConfig, {key: cfg[key] for key in ("steps", "guidance", "batch")}, "quality")
    torch.set_flush_denormal(True)
    judges, out = Judges(world, device), world / "quality"
    drawn = on_drawings(judges, world / "drawings" / "drawings.parquet", words, cfg, drawn_by)
    prompts = prompts_of(kinds, tasks, cfg["seeds_per_concept"])
    images = [
        image for _, image in sorted(sample(load_base(world / "base", device), prompts, sampling), key=lambda i: i[0])
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    judged = prompts.join(judges.recognise(pixels)).assign(clip=judges.by_clip(pixels))
    judged["agree"] = judged["recogniser"] == judged["clip"]
    draws = generator(PURPOSE, "nothing", cfg["seed"])
    pictures = torch.rand((EMPTY, 3, *pixels.shape[-2:]), generator=draws) * 2 - 1
    empty = judges.recognise(to_bytes(nothing(pictures, draws)))["recogniser"].eq(NONE).mean()
    concepts, styles = by_concept(judged), by_style(judged, judges.names)
    drawings = drawn.assign(right=drawn["recogniser"] == drawn["concept"], clip_right=drawn["clip"] == drawn["concept"])
    tables = {
        "drawings": drawings.groupby(["split", "concept"], sort=False)
        .agg(n=("right", "size"), accuracy=("right", "mean"), clip_accuracy=("clip_right", "mean"))
        .reset_index(),
        "base": concepts.reset_index(),
        "styles": styles.reset_index(),
        "summary": summary(drawn, concepts, styles, float(empty)),
    }
    for role, name in (("style", "styles"), ("concept", "base")):
        rows = (judged["role"] == "style") == (role == "style")
        if rows.any():
            with atomic_file(out / f"{name}.png") as temporary:
                chosen = pixels[torch.tensor(rows.tolist())].float() / 255
                save_image(chosen, temporary, nrow=4 * cfg["seeds_per_concept"], padding=1, format="png")
    for name, table in tables.items():
        with atomic_file(out / f"{name}.csv") as temporary:
            table.round(4).to_csv(temporary, index=False)
    log.info("%s", tables["summary"].to_string(index=False))

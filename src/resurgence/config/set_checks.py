"""Checks of where data come from: who makes the images of the fine-tuning sets (candidates of terciles, real pictures,
other bases), and whose text encoder the second moments.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.config.fields import ConfigError
from resurgence.config.finetune_sets import OtherBase
from resurgence.config.model_path import method_name
from resurgence.config.study_names import sets_of
from resurgence.files import files_at, read_lines

if TYPE_CHECKING:
    from resurgence.config.study import Study

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LONGEST = 100_000  # characters of the files of a set; Linux refuses a command with an argument of 128 KiB


def check_model(key: str, path: str, revision: str | None, root: Path, fetch: str = "") -> None:
    """A model's path, of this key, is there, or may be a hub id, which alone has a revision in the key beside."""
    is_hub_id = HUB_ID.fullmatch(path) and not (root / path.split("/")[0]).exists()
    if not (root / path).exists() and not is_hub_id:
        raise ConfigError(key, path, f"no such folder; {fetch}write a hub id such as CompVis/name")
    if revision is not None and not is_hub_id:
        raise ConfigError(
            f"{key.rpartition('.')[0]}.revision", revision, "only a hub id has revisions; remove it for a folder"
        )


def check_makers(study: Study, root: Path) -> None:
    """Other bases are there, and have a size; so are the pictures of the real sets that some model is trained on."""
    for name, images in study.finetune_sets.items():
        if isinstance(images.made_by, OtherBase):
            place = f"finetune_sets.{name}.made_by"
            check_model(f"{place}.base", images.made_by.base, images.made_by.revision, root)
            if study.sampling.size is None:
                remedy = f"{place} is another base, whose images may have another size; write that of {study.base.name}"
                raise ConfigError("sampling.size", None, remedy)
    for task, name in sets_of(study):
        if study.finetune_sets[name].maker == "real":
            check_pictures(f"finetune_sets.{name}.images", study.pictures_of(name, task), root)


def check_pictures(key: str, path: str, root: Path) -> None:
    """Raise ConfigError for a path of pictures that holds no files, or more than a job can be told."""
    files = files_at(root / path)
    if not files:
        raise ConfigError(key, path, "holds no files; write a Parquet file, a folder, or a pattern of these")
    if sum(len(str(file)) + 10 for file in files) > LONGEST:
        remedy = f"holds {len(files)} files, too many for a command; write them as one Parquet file (docs/adding.md)"
        raise ConfigError(key, path, remedy)


def check_terciles(study: Study, root: Path) -> None:
    """Terciles have candidates, and a CLIP that compares them."""
    terciles = {name: images.tercile for name, images in study.finetune_sets.items() if images.tercile is not None}
    for name, tercile in terciles.items():
        place, file = f"finetune_sets.{name}.tercile", tercile.candidates
        if "clip" not in study.scorers:
            raise ConfigError(place, tercile.number, "needs scorers.clip, which compares the names; add it")
        if not (root / file).is_file():
            raise ConfigError(f"{place}.candidates", file, "no such file; write names, one a line")
        if len(read_lines(root / file)) < 3:
            raise ConfigError(f"{place}.candidates", file, "has no terciles; write at least three names, one a line")


def check_moments(study: Study) -> None:
    """Raise ConfigError for an eraser that reads second moments after one that trains the text encoder.

    They are of the base's embeddings, and the captions that it edits would be embedded by another encoder.
    """
    for erasure in filter(study.before, study.erasures()):
        config = study.eraser_config(*erasure[:3])
        if config is None or not config.reads(study.task(erasure.task).kind) & {"prior", "domain"}:
            continue
        for earlier in study.chain(erasure)[:-1]:
            if getattr(study.eraser_config(*earlier[:3]), "parameters", None) == "text-encoder":
                key = f"erasers.{erasure.eraser}.variants.{erasure.variant}.after"
                remedy = (
                    "trains the text encoder, of which the second moments are those of the base; erase with "
                    f"{erasure.eraser} first, or train other parameters"
                )
                raise ConfigError(key, method_name(*earlier[1:3]), remedy)

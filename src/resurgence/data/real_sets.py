"""A fine-tuning set of real pictures: those of the set's concepts, as many as it wants, with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from resurgence.data.image_folder import LeftOut, Source
from resurgence.data.training_images import set_paths, training_set


class RealSet(NamedTuple):
    """Pictures of a set before they are read, and the rows of its image set.

    rows: prompt, concept, role, index, file; the concept is empty where the pictures name none, the index counts the
        pictures of a concept.
    left_out: reason -> names of what is not used.
    """

    sources: list[Source]
    rows: pd.DataFrame
    left_out: LeftOut


def real_set(path: Path, concepts: Sequence[str], size: int | None) -> RealSet:
    """Choose the pictures of a set: of its concepts, where the pictures name theirs, spread evenly over them.

    Args:
        path: a Parquet file, a folder, or a pattern of such files or folders; see `training_set`.
        concepts: of the set. size: number of pictures; None: all.

    Raises:
        FileNotFoundError, ValueError: naming the file, its fault and the remedy.
    """
    sources, left_out = training_set(path)
    for source in sources:
        if isinstance(source.picture, Path) and not any(map(Path.is_dir, set_paths(path))):
            raise ValueError(f"{source.name} lies beside {path}, where its changes are not noticed; write its bytes "
                             "into the Parquet file, or name a folder")  # fmt: skip
    if any(source.concept for source in sources):
        sources = of_concepts(path, sources, concepts, left_out)
    place = f"{path if path.is_dir() else path.parent}/"  # a manifest holds no paths of a machine
    rows = pd.DataFrame({
        "prompt": [source.caption for source in sources],
        "concept": [source.concept for source in sources],
        "role": "finetune",
        "file": [source.name.removeprefix(place) for source in sources],
    })  # fmt: skip
    rows.insert(3, "index", rows.groupby("concept").cumcount())
    if size is not None and size > len(rows):
        raise ValueError(f"{path} has {len(rows)} pictures of the set, {size} are wanted; add pictures, or lower size")
    order = rows.sort_values("index", kind="stable")
    if rest := order["file"].iloc[len(rows) if size is None else size :].tolist():
        left_out["more than size"] = rest
    order = order.head(len(rows) if size is None else size)
    left_out = {reason: [name.removeprefix(place) for name in names] for reason, names in left_out.items()}
    return RealSet([sources[number] for number in order.index], order.reset_index(drop=True), left_out)


def of_concepts(path: Path, sources: Sequence[Source], concepts: Sequence[str], left_out: LeftOut) -> list[Source]:
    """The pictures of the set's concepts; adds the others to `left_out`.

    Raises:
        ValueError: a concept without pictures, or a set without concepts.
    """
    there = dict.fromkeys(source.concept for source in sources)
    if absent := [concept for concept in concepts if concept not in there]:
        raise ValueError(f"{path} has no picture of {', '.join(absent)}, only of {', '.join(there)}; add pictures, or "
                         "take these concepts out of the set")  # fmt: skip
    if not concepts:
        raise ValueError(
            f"{path} has pictures of {', '.join(there)}, and the set has no concepts; list some in the set"
        )
    if others := [source.name for source in sources if source.concept not in concepts]:
        left_out["of other concepts"] = others
    return [source for source in sources if source.concept in concepts]

"""A reference: the tables and experiments of a study with the scores that they follow from, for the repository itself.

resurgence archive --reference reference/eap --overlay studies/eap.yaml
resurgence verify reference/eap/results
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from resurgence.files import atomic_folder, files_below, write_json, write_text
from resurgence.provenance.manifest import RUN, described, files_of, read_manifest, run_file
from resurgence.provenance.manifest_table import TABLE, pack_manifests, without_command

RESULTS = "results"
SCORES = "scores"  # folder in it
LARGE = ("features.safetensors",)  # of the scores, eleven times their size: a reference leaves them out


def tree(place: Path) -> list[Path]:
    """A file, or all files below a folder but caches and unfinished artefacts."""
    files = [place] if place.is_file() else files_below(place)
    hidden = ("__pycache__", ".egg-info")

    def shown(path: Path) -> bool:
        parts = path.relative_to(place.parent).parts
        return not any(part.endswith(hidden) or part.startswith(".") for part in parts)

    return [path for path in files if shown(path)]


def write_reference(out: Path, root: Path = Path(), only: Collection[str] | None = None, *, add: bool = False) -> int:
    """Write the reference of a finished study to out/results; returns the bytes of all files.

    Tables, figures and experiments are copied; scores, weight movements and manifests of its models are packed into the
    few Parquet files of out/results/scores, which DVC carries. Scores of other studies in the same tree stay out. Of a
    study that has run in part, without tables, these are its finished experiments and the scores of their models.

    Args:
        only: the experiments of the study, if the tree may hold those of another one; then no tables. None: all.
        add: keep what `out` holds, if anything, of the experiments of `only` that the tree lacks: they ran before.

    Raises:
        FileNotFoundError: the study has neither tables nor an experiment.
        FileExistsError: `out` holds a reference. ValueError: a model of both has other scores in each.
    """
    place, new = root / RESULTS, out / RESULTS
    if not settings_of(place, only):
        raise FileNotFoundError(f"{place} holds no tables and no experiment that is finished; run `make study` first")
    if new.exists() and not add:
        raise FileExistsError(f"{new} exists; remove it, add to it by --add, or name another folder")
    with atomic_folder(new) as temporary:
        for path in [path for part in shown_parts(place, only) if part.exists() for path in tree(part)]:
            copy = temporary / path.relative_to(place)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.name.endswith(RUN):
                copy.write_text(without_command(path), encoding="utf-8")
            else:
                shutil.copyfile(path, copy)
        pack_models(place, temporary, only)
        if (new / "made.json").is_file():
            keep_earlier(new, temporary, only)
        write_dvc_file(out, temporary, root, only is not None)
    return sum(path.stat().st_size for path in tree(new))


def shown_parts(place: Path, only: Collection[str] | None) -> list[Path]:
    """Tables, figures and the experiments of the study in a results tree, with the page of all experiments."""
    page = place / "experiments" / "made.json"
    if only is not None or not (place / "tables" / "made.json").is_file():
        return [record.parent for record in finished(place, only)]
    names = read_manifest(page)["parameters"]["experiments"] if page.is_file() else ()
    pages = [page, run_file(page), page.with_name("results.md")] if names else []
    return [place / "tables", place / "figures", *(page.parent / name for name in names), *pages]


def finished(place: Path, only: Collection[str] | None = None) -> list[Path]:
    """The records of the experiments in a results tree, of whatever study, or of these names."""
    records = sorted((place / "experiments").glob("*/made.json"))
    return [record for record in records if only is None or record.parent.name in only]


def settings_of(place: Path, only: Collection[str] | None) -> list[dict[str, Any]]:
    """The settings that name base and models of a results tree: of the tables, else of the experiments."""
    tables = place / "tables" / "made.json"
    whole = only is None and tables.is_file()
    return [read_manifest(path)["parameters"] for path in ([tables] if whole else finished(place, only))]


def pack_models(place: Path, out: Path, only: Collection[str] | None) -> None:
    """Pack what a results tree holds of the models that it shows into out/scores; out/made.json names the files.

    Experiments that show no model, such as the similarity of words, need no scores.
    """
    from resurgence.analysis.score_archive import pack
    from resurgence.analysis.score_folders import entry

    shown = settings_of(place, only)
    folders = {place.parent / entry(block, model)["path"] for block in shown for model in block.get("models", ())}
    artefacts = {*folders, *(f.with_name("geometry") for f in folders if f.with_name("geometry").is_dir())}
    listed = {Path(name).name for folder in artefacts for name in read_manifest(folder)["files"]}
    files: dict[str, str] = {}
    if folders:
        packed = out / SCORES
        packed.mkdir()
        pack(place / SCORES, folders, packed)
        pack_manifests(place, artefacts, packed / TABLE)
        files = {f"{packed.name}/{name}": digest for name, digest in files_of(packed).items()}
    parameters = {"base": shown[0]["base"], "models": len(folders), "left_out": sorted(listed & set(LARGE))}
    write_json(out / "made.json", {**described("reference", parameters, {}, {}), "files": files})


def keep_earlier(earlier: Path, out: Path, only: Collection[str] | None) -> None:
    """Take over the experiments of an earlier reference that `out` lacks, with the scores of the models that they show.

    Raises:
        ValueError: a model has other scores in both, or the earlier one is of a whole study.
        FileNotFoundError: the earlier scores are not here.
    """
    from resurgence.analysis.score_archive import PACKED, add_models, names_of
    from resurgence.analysis.score_folders import entry
    from resurgence.provenance.manifest_table import add_manifests

    if (earlier / "tables").exists():
        raise ValueError(
            f"{earlier} holds the tables of a whole study; leave --add, and store this study in another folder"
        )
    kept = [record for record in finished(earlier, only) if not (out / "experiments" / record.parent.name).exists()]
    for record in kept:
        shutil.copytree(record.parent, out / record.parent.relative_to(earlier))
    shown = [read_manifest(record)["parameters"] for record in kept]
    paths = (Path(entry(block, model)["path"]) for block in shown for model in block.get("models", ()))
    models = {names_of(path, Path(RESULTS, SCORES)) for path in paths}
    made, packed = read_manifest(out / "made.json"), out / SCORES
    left_out = {*made["parameters"]["left_out"], *read_manifest(earlier / "made.json")["parameters"]["left_out"]}
    number = made["parameters"]["models"]
    if models:
        for file in (earlier / SCORES / TABLE, earlier / SCORES / PACKED):
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing; run `dvc pull {earlier.parent / 'dvc.yaml'}`")
        packed.mkdir(exist_ok=True)
        add_manifests(packed / TABLE, earlier / SCORES / TABLE, models)
        number = add_models(packed, earlier / SCORES, models)
    parameters = {**made["parameters"], "models": number, "left_out": sorted(left_out)}
    files = {f"{SCORES}/{name}": digest for name, digest in files_of(packed).items()} if packed.is_dir() else {}
    write_json(out / "made.json", {**described("reference", parameters, {}, {}), "files": files})


def write_dvc_file(out: Path, results: Path, root: Path, of_study: bool) -> None:
    """Write out/dvc.yaml, by which DVC carries the scores, if there are any and `out` is in a repository with DVC."""
    place, file = Path(os.path.relpath(out, root)), out / "dvc.yaml"
    if file.exists() or not (results / SCORES).is_dir() or not (root / ".dvc").is_dir() or ".." in place.parts:
        return
    study = f" --overlay studies/{out.name}.yaml" if of_study else ""
    stage = {
        "wdir": os.path.relpath(root, out),
        "cmd": f"resurgence archive --reference {place.as_posix()}{study}",
        "frozen": True,  # `dvc repro` never makes a reference of whatever is in results/
        "outs": [{(place / RESULTS / SCORES).as_posix(): {"persist": True, "remote": "shipped"}}],
    }
    write_text(file, yaml.safe_dump({"stages": {"scores": stage}}, sort_keys=False))

"""The inputs of an audit: its models, checked, lists of words, and links in its folder.

The study names the links, so the folder holds no path of the machine, and a rerun gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resurgence.cli.audit_hub import Model, OtherAudit
from resurgence.config.audit_kinds import spellings
from resurgence.config.fields import ConfigError
from resurgence.config.naming import named_word
from resurgence.config.spelling import normal_form
from resurgence.config.task import Task
from resurgence.files import PEFT_WEIGHTS, digest_of_text, known_sha256, read_json, read_lines
from resurgence.workflow.graph import files_of

PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth")
LEAST_RETAINED = 2
"""Concepts that must stay: of several, a model that draws the same for every prompt loses at least half."""
STABLE_DIFFUSION = 512
"""Pixels a side of the images of Stable Diffusion 1."""
WHOLE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
"""Beginnings of the names in a single file of a whole Stable Diffusion."""
CONVERT = (
    "are pickled, can execute code and are not read; convert them to safetensors, as by "
    "save_pretrained(DIR, safe_serialization=True)"
)

STATE = (
    "is pickled, so it is read as tensors of a known model alone; name the model that it was made from in --original, "
    "or convert a whole model to safetensors"
)
"""Of a file such as those that ESD and UCE write."""


def linked(out: Path, name: str, source: str | Path, option: str) -> str:
    """Link a file or folder below out/inputs, and return the path in out.

    Raises:
        ConfigError: there is no such file or folder. OtherAudit: the folder holds another link of this name.
    """
    path = Path(source)
    if path.is_file() and path.name == PEFT_WEIGHTS:
        path = path.parent  # with the configuration beside it
    if not path.exists():
        raise ConfigError(option, str(source), "no such file or folder; correct the path")
    link = out / "inputs" / (name + (path.suffix if path.is_file() else ""))
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() != path.resolve():
        raise OtherAudit(option, str(source), f"{link} is of another audit, of {link.resolve()}; name another --out")
    if not link.is_symlink():
        link.symlink_to(path.resolve())
    configuration = path.with_suffix("")  # of a single file, which diffusers reads beside it
    if path.is_file() and configuration.is_dir() and not link.with_suffix("").is_symlink():
        link.with_suffix("").symlink_to(configuration.resolve())
    return link.relative_to(out).as_posix()


def together(out: Path, name: str, sources: Sequence[str], option: str) -> str:
    """Link folders, or Parquet files, of pictures below out/inputs, and return the path or the pattern of all in out.

    Raises:
        ConfigError: see `linked`; one is given twice, or files beside folders.
    """
    if len(sources) == 1:
        return linked(out, name, sources[0], option)
    places, of = [Path(source).resolve() for source in sources], f"of-{len(sources)}"
    if twice := next((source for n, source in enumerate(sources) if places[n] in places[:n]), None):
        raise ConfigError(option, twice, "is given twice; name it once")
    links = [linked(out, f"{name}-{n}-{of}", source, option) for n, source in enumerate(sources, 1)]
    if len(suffixes := {Path(link).suffix for link in links}) > 1:
        raise ConfigError(option, list(sources), "are files and folders; give Parquet files alone, or folders alone")
    return f"inputs/{name}-*-{of}{suffixes.pop()}"


def check_base(path: Path, option: str) -> None:
    """Check a whole pipeline before it is loaded: a diffusers folder, or a single file.

    Raises:
        ConfigError: neither, or pickled weights alone.
        FileNotFoundError, ValueError: parts that are missing or of another pipeline; see `check_folder`.
    """
    from resurgence.diffusion.base_checks import check_folder
    from resurgence.diffusion.model_files import FETCH
    from resurgence.pretrained.loading import PICKLED as TENSORS
    from resurgence.pretrained.loading import read_header

    if path.is_file():
        if path.suffix != ".safetensors":
            if path.suffix not in TENSORS:
                raise ConfigError(option, str(path), f"is no file of weights; {FETCH}")
            raise ConfigError(option, str(path), STATE if option == "checkpoint" else f"its weights {CONVERT}")
        names = read_header(path, option, FETCH)
        if lacking := [part for part in WHOLE if not any(name.startswith(part) for name in names)]:
            remedy = f"is no whole Stable Diffusion 1 or 2 in one file, as it has no {lacking[0]}*; "
            other = "name the model it changes in --original" if option == "checkpoint" else "name another one"
            raise ConfigError(option, str(path), remedy + other)
        return
    if not (path / "model_index.json").is_file():
        other = "; name the model it changes in --original" if option == "checkpoint" else "; name one"
        raise ConfigError(option, str(path), f"is no whole pipeline, as it has no model_index.json{other}")
    check_pickled(path, option)
    check_folder(path)


def check_pickled(path: Path, option: str) -> None:
    """Raise ConfigError for a folder, or a part of a pipeline, that has pickled weights alone."""
    for folder in (path, *(path / part for part in ("unet", "vae", "text_encoder"))):
        pickled = [file for pattern in PICKLED for file in sorted(folder.glob(pattern))]
        if pickled and not any(folder.glob("*.safetensors")):
            raise ConfigError(option, str(path), f"its weights, such as {pickled[0].name}, {CONVERT}")


def check_weights(checkpoint: Model, original: Model | None, loras: Sequence[Model]) -> None:
    """Check the audited model and the LoRAs against the model before erasing, else against each other, by the headers
    of their files; where that is a single file, its names are known only when it is loaded.

    Raises:
        FileNotFoundError, ValueError: a file that is damaged, or of another base; see `check_model`.
    """
    from resurgence.diffusion.model_headers import check_lora, check_model, folder_header

    base, option = (checkpoint, "checkpoint") if original is None else (original, "--original")
    check_base(base.path, option)
    if not base.path.is_dir():
        return
    if original is None:
        folder_header(base.path, option)
    else:
        if (checkpoint.path / "model_index.json").is_file():
            check_base(checkpoint.path, "checkpoint")
        check_pickled(checkpoint.path, "checkpoint")
        check_model(base.path, checkpoint.path, "checkpoint")
    for lora in loras:
        check_lora(base.path, lora.path, "--lora")


def pixels(model: Path, sampling: Mapping[str, Any]) -> int:
    """Pixels a side of a model's images."""
    if "size" in sampling:
        return int(sampling["size"])
    files = [model / part / "config.json" for part in ("unet", "vae")]
    if not all(file.is_file() for file in files):
        return STABLE_DIFFUSION
    unet, vae = map(read_json, files)
    return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)


def retained_concepts(source: str, model: Task, erased: Sequence[str]) -> tuple[str, ...]:
    """The concepts that must stay: of a file, or those of the shipped task.

    Raises:
        ConfigError: no such file, no concept in it, or a single one, which a scorer that chooses among the labels may
            see in every image of a model that draws noise.
    """
    if source == "auto":
        words = tuple(word for word in model.retain if normal_form(word) not in spellings(erased))
    elif Path(source).is_file():
        words = tuple(dict.fromkeys(line.strip() for line in read_lines(Path(source)) if line.strip()))
    else:
        raise ConfigError("--retained", source, "no such file; write concepts one a line, or auto")
    if not words:
        raise ConfigError("--retained", source, "holds no concept; write them one a line, or auto")
    if len(words) < LEAST_RETAINED:
        raise ConfigError("--retained", source, f"holds {words[0]} alone, so a model that draws one thing for every "
                          f"prompt may keep all of it; name at least {LEAST_RETAINED} in a file")  # fmt: skip
    return words


def implicit_captions(file: Path | None, task: Task) -> dict[str, tuple[str, ...]]:
    """Erased concept -> captions that name neither an erased concept nor a synonym of one.

    Raises:
        ConfigError: no such file, no caption in it, one that names what was erased, or that is of no erased concept.
    """
    if file is None:
        return {}
    if not file.is_file():
        raise ConfigError("--implicit", str(file), "no such file; write captions one a line")
    captions: dict[str, list[str]] = {}
    concepts = {normal_form(concept): concept for concept in task.erase}
    for line in filter(None, map(str.strip, read_lines(file))):
        before, _, caption = line.partition(": ")
        concept = concepts.get(normal_form(before))
        if concept is None:  # a colon of the caption's own
            if len(concepts) > 1:
                raise ConfigError("--implicit", line, f"write CONCEPT: caption, with one of {', '.join(task.erase)}")
            concept, caption = task.erase[0], line
        if word := named_word(caption, erased_words(task)):
            raise ConfigError("--implicit", line, f"names {word}; write captions that mean it without its name")
        captions.setdefault(concept, []).append(caption)
    if not captions:
        raise ConfigError("--implicit", str(file), "holds no caption; write them one a line")
    return {concept: tuple(dict.fromkeys(of)) for concept, of in captions.items()}


def erased_words(task: Task) -> tuple[str, ...]:
    """The erased concepts and their synonyms: what no picture may show and no implicit caption name."""
    return (*task.erase, *(word for concept in task.erase for word in task.synonyms.get(concept, ())))


def weights_digest(checkpoint: Model) -> str | None:
    """Digest of a model's weights and settings; None for a hub id, which its commit fixes."""
    path = checkpoint.path
    if checkpoint.hub is not None:
        return None
    if path.is_file():
        return known_sha256(path)
    return digest_of_text(
        {Path(file).relative_to(path).as_posix(): known_sha256(Path(file)) for file in files_of(path)}
    )

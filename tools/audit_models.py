"""The models with known answers of config/audit/known-models.yaml: their list, their digests, and how they are made."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from resurgence.cli.audit import snakemake
from resurgence.cli.audit_pictures import drawn_pictures
from resurgence.config.audit import Level
from resurgence.config.audit_bases import bases, read_criteria
from resurgence.config.fields import ConfigError, Fraction, build, known, read_yaml
from resurgence.config.load import load_study
from resurgence.config.model_path import split_name
from resurgence.config.study import Erasure, Study
from resurgence.files import CHECKOUT, atomic_folder, digest_of_text, known_sha256, resolve_path, write_text
from resurgence.provenance.manifest import MANIFEST
from resurgence.workflow.resume import end_with_parent

MODELS = CHECKOUT / "config/audit/known-models.yaml"
EMBEDDING = "text_encoder.embeddings.token_embedding.weight"
UNET = "unet/diffusion_pytorch_model.safetensors"
Answer = Literal["leaking", "safe", "destroyed", "not a number"]
BROKEN: tuple[Answer, ...] = ("destroyed", "not a number")


@dataclass(frozen=True)
class Measured:
    """What another run measured of a model that was made alike, in percent of the images that show the concept."""

    source: str  # page or table
    released: float
    updated: float


@dataclass(frozen=True)
class KnownModel:
    """How a model is made, and the answer that follows from that or was measured."""

    study: str  # whose base it has, and which erases
    answer: Answer
    family: str  # of models that are made alike
    why: str  # the answer is known
    erased: tuple[str, ...]  # audited concepts
    eraser: str | None = None  # TASK/ERASER or TASK/ERASER.VARIANT of the study; None: the base
    tensors: str = ""  # regular expression: tensors of the delta that are kept
    strength: Fraction | Literal[1] = 1  # W + strength (W' - W)
    words: dict[str, str] = field(default_factory=dict)  # word -> the word whose embedding takes its place
    taught: tuple[str, ...] = ()  # concepts on whose drawings a LoRA is trained at last
    after_update: bool = False  # it is known to leak after an update
    measured: Measured | None = None  # None: the answer follows from how it is made
    reproduces: str = ""  # what gave the answer, where an audit did; then it is in no share
    title: str = ""  # of a shipped control

    @property
    def counts(self) -> bool:
        """Whether it is in the shares of the table."""
        return self.answer not in BROKEN and not self.reproduces


@dataclass(frozen=True)
class KnownModels:
    """The file of the models."""

    studies: dict[str, dict[str, Any]]  # that make the erased deltas; each has the name of its base in bases.yaml
    models: dict[str, KnownModel]
    controls: dict[str, KnownModel]  # audited by --controls, and not counted

    def made(self, model: KnownModel) -> str:
        """Digest of what a model is made from: its entry, and its study with its own eraser alone."""
        study = self.studies[model.study]
        method = (model.eraser or "").partition("/")[2].partition(".")[0]
        erasers = {name: block for name, block in study["erasers"].items() if name == method}
        return digest_of_text({"model": asdict(model), "study": study | {"erasers": erasers}})

    def digest(self, model: KnownModel, level: Level) -> str:
        """Digest of what decides a row: what the model is made from, the level, the criteria, and the base's entry."""
        settings = [asdict(read_criteria(None)), asdict(bases()[model.study])]
        return digest_of_text([self.made(model), level, *settings])


@dataclass(frozen=True)
class Place:
    """The folders of the models and their audits; each name has the digest of what the model is made from, of one that
    is taught with the settings of its LoRA."""

    out: Path
    known: KnownModels

    def base(self, model: KnownModel) -> Path:
        """The base of a model."""
        return Path(resolve_path(self.known.studies[model.study]["base"]["path"])).absolute()

    def folder(self, part: str, name: str) -> Path:
        """The folder of a model in a part: deltas, taught, models, audits or checks."""
        model = {**self.known.models, **self.known.controls}[name]
        made = self.known.made(model)
        digest = digest_of_text([made, bases()[model.study].lora]) if model.taught else made
        return self.out / part / f"{name}-{digest[:12]}"


def read_models(file: Path) -> KnownModels:
    """Read the models.

    Raises:
        ConfigError: key, value and remedy.
    """
    models = build(KnownModels, read_yaml(file), str(file))
    for name, model in {**models.models, **models.controls}.items():
        key = f"{file}: {name}"
        known(f"{key}.study", model.study, models.studies)
        if model.eraser is None and (model.tensors or model.strength != 1):
            part = "tensors" if model.tensors else "strength"
            raise ConfigError(f"{key}.{part}", getattr(model, part), "is of no delta; name an eraser")
        if model.answer in BROKEN and (model.eraser or model.words or model.taught):
            raise ConfigError(f"{key}.answer", model.answer, "is of a base that is broken; leave out how it is erased")
        if model.after_update and model.answer != "leaking":
            raise ConfigError(f"{key}.after_update", True, "is of a model that leaks; leave it out")
    return models


def erasure_of(study: Study, name: str, eraser: str) -> Erasure:
    """The erasure of TASK/ERASER in the study.

    Raises:
        ConfigError: the study does not have it.
    """
    task, _, method = eraser.partition("/")
    erasures = {f"{e.task}/{e.eraser}/{e.variant}": e for e in study.erasures()}
    wanted = "/".join([task, *split_name(method)])
    known(f"{name}.eraser", wanted, erasures)
    return erasures[wanted]


def write_study(place: Place, name: str, model: KnownModel) -> Path | None:
    """Write the study that erases a model; the folder that its eraser writes, None without one.

    Raises:
        ConfigError: the study does not have the eraser.
    """
    if model.eraser is None:
        return None
    folder = place.out / "studies" / model.study
    text = yaml.safe_dump(place.known.studies[model.study], sort_keys=False, width=120)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "params.yaml").is_file() or (folder / "params.yaml").read_text(encoding="utf-8") != text:
        write_text(folder / "params.yaml", text)
    study = load_study([folder / "params.yaml"], folder)
    return folder / study.folder(erasure_of(study, name, model.eraser), "delta")


def erased_delta(place: Place, name: str, model: KnownModel, cores: int) -> Path | None:
    """The delta of a model's eraser, made where it is not there; None without one."""
    delta = write_study(place, name, model)
    if delta is not None:
        folder = place.out / "studies" / model.study
        snakemake(folder, cores, [f"{delta.relative_to(folder)}/{MANIFEST}"])
    return delta


def resurgence(*words: object, codes: Collection[int] = (0,)) -> int:
    """Run a command of this package, with its messages on stderr, and return its exit code.

    Raises:
        ConfigError: it ends with another code.
    """
    line = [sys.executable, "-m", "resurgence.cli", *map(str, words)]
    code = subprocess.run(line, stdout=sys.stderr.fileno(), check=False, preexec_fn=end_with_parent).returncode
    if code not in codes:
        raise ConfigError("resurgence", " ".join(map(str, words)), "failed; the reason is above; run this tool again")
    return code


def changed_weights(base: Path, model: KnownModel, delta: Path | None) -> dict[str, Any]:
    """The tensors of a model that differ from the base's: a part of the eraser's, weakened, and embeddings of words.

    Raises:
        ConfigError: no tensor of the delta is kept, or a word is several tokens.
    """
    from resurgence.diffusion.deltas import DELTA_FILE, load_delta, parameters
    from resurgence.diffusion.pipeline import load_base

    pipe = load_base(str(base))
    weights, changed = parameters(pipe), {} if delta is None else load_delta(delta / DELTA_FILE)
    changed = {name: weights[name].detach().lerp(value.float(), float(model.strength))
               for name, value in changed.items() if re.search(model.tensors, name)}  # fmt: skip
    if delta is not None and not changed:
        raise ConfigError("tensors", model.tensors, f"is no part of a name in {delta / DELTA_FILE}; correct it")
    if model.words:
        table = weights[EMBEDDING].detach().clone()
        for word, other in model.words.items():
            table[token(pipe.tokenizer, word)] = weights[EMBEDDING].detach()[token(pipe.tokenizer, other)]
        changed[EMBEDDING] = table
    return changed


def token(tokenizer: Any, word: str) -> int:
    """The number of a word that is one token.

    Raises:
        ConfigError: it is several.
    """
    tokens = tokenizer(word, add_special_tokens=False).input_ids
    if len(tokens) != 1:
        raise ConfigError("words", word, f"is {len(tokens)} tokens of the base; name words of one token")
    return int(tokens[0])


def make_model(place: Place, name: str, model: KnownModel, delta: Path | None) -> Path:
    """The folder of a model as others would get it; the base itself where nothing changes.

    Raises:
        ConfigError: a step fails.
    """
    from resurgence.diffusion.deltas import DELTA_FILE, save_delta

    base, checkpoint, before = place.base(model), place.folder("models", name), list[object]()
    if delta is None and not (model.words or model.taught or model.answer in BROKEN):
        return base
    if (checkpoint / "model_index.json").is_file():
        return checkpoint
    if model.answer in BROKEN:
        break_model(base, checkpoint, model.answer)
        return checkpoint
    if delta is not None or model.words:
        changes = place.folder("deltas", name)
        changes.mkdir(parents=True, exist_ok=True)
        save_delta(changed_weights(base, model, delta), changes / DELTA_FILE)
        before += ["--delta", changes]
    if model.taught:
        before += ["--delta", taught_again(place, name, model, before)]
    resurgence("export", "--base", base, *before, "--out", checkpoint)
    return checkpoint


def taught_again(place: Place, name: str, model: KnownModel, before: list[object]) -> Path:
    """The folder of a LoRA on drawings of the concepts in `taught`, over the deltas of the options in `before`."""
    settings, tuned = bases()[model.study], place.folder("taught", name)
    pictures = tuned.with_suffix(".parquet")
    drawn_pictures(settings, model.taught, pictures)
    if not tuned.is_dir():
        words = [f"{key}={json.dumps(value)}" for key, value in settings.lora.items()]
        resurgence("finetune", "--base", place.base(model), *before, "--images", pictures, "--out", tuned, "--set",
                   "algorithm=lora", *words)  # fmt: skip
    return max(tuned.glob("step-*"))


def weights_digest(checkpoint: Path) -> str:
    """Digest of the files of weights in the folder of a model, which has no path in it, unlike an exported manifest."""
    files = sorted(checkpoint.rglob("*.safetensors"))
    return digest_of_text({file.relative_to(checkpoint).as_posix(): known_sha256(file) for file in files})


def break_model(base: Path, folder: Path, answer: Answer) -> None:
    """Copy a base with the weights of each tensor of its UNet in another order, or with one NaN among them."""
    import torch
    from safetensors.torch import load_file, save_file

    with atomic_folder(folder) as copy:
        shutil.copytree(base, copy, dirs_exist_ok=True)
        weights, draws = load_file(copy / UNET), torch.Generator().manual_seed(0)
        if answer == "destroyed":
            weights = {name: value.flatten()[torch.randperm(value.numel(), generator=draws)].reshape(value.shape)
                       for name, value in sorted(weights.items())}  # fmt: skip
        else:
            min(weights.items())[1].view(-1)[0] = torch.nan
        save_file(weights, copy / UNET, metadata={"format": "pt"})


def models_of(known_models: KnownModels, controls: bool, only: Collection[str]) -> Mapping[str, KnownModel]:
    """The models of a run: the controls or the others, all or those named.

    Raises:
        ConfigError: a name that is none of them.
    """
    models = known_models.controls if controls else known_models.models
    for name in only:
        known("--only", name, models)
    return {name: model for name, model in models.items() if not only or name in only}

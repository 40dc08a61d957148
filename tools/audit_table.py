"""Audit models whose answer is known, and count how often the verdict agrees with it.

    python tools/audit_table.py --out DIR                      all models of config/audit/known-models.yaml, quick
    python tools/audit_table.py --out DIR --only ship-never    some of them
    python tools/audit_table.py --out DIR --controls           the shipped controls of config/audit/bases.yaml instead

DIR/study is a study whose graph makes the erased deltas, DIR/deltas and DIR/models hold what is made of them, and
DIR/audits the audits. Models are made and audited one after the other. DIR/rows has a file for each that is finished,
and DIR/table.md is written from these after each, so all of it can be interrupted, and the same command goes on: a
model with a row is skipped, even if its audit was removed, and an audit that was interrupted is resumed. A model that
fails is named, and the others go on. Remove a row to renew it, which computes only what has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from audit_rows import KnownModel, control_lines, finished, row_of, table

from resurgence.analysis.audit.result import EXIT, read_audit
from resurgence.cli.audit import VERDICT, snakemake
from resurgence.cli.audit_pictures import drawn_pictures
from resurgence.config.audit_bases import base_of
from resurgence.config.fields import ConfigError, build, known, read_yaml
from resurgence.config.load import load_study
from resurgence.config.model_path import split_name
from resurgence.config.study import Erasure, Study
from resurgence.files import CHECKOUT, resolve_path, write_json, write_text
from resurgence.provenance.manifest import MANIFEST

MODELS = CHECKOUT / "config/audit/known-models.yaml"
EMBEDDING = "text_encoder.embeddings.token_embedding.weight"


@dataclass(frozen=True)
class KnownModels:
    """The file of the models."""

    study: dict[str, Any]  # that makes the erased deltas
    models: dict[str, KnownModel]
    controls: dict[str, KnownModel]  # audited by --controls, and not counted


@dataclass(frozen=True)
class Place:
    """The folders of a table."""

    out: Path
    known: KnownModels

    @property
    def base(self) -> Path:
        """The base of all models."""
        return Path(resolve_path(self.known.study["base"]["path"])).absolute()

    def audit(self, name: str) -> Path:
        """The folder of an audit."""
        return self.out / "audits" / name

    @property
    def rows(self) -> Path:
        """The folder of the rows of finished models."""
        return self.out / "rows"

    def row(self, name: str) -> Path:
        """The row of a finished model."""
        return self.rows / f"{name}.json"


def read_models(file: Path) -> KnownModels:
    """Read the models.

    Raises:
        ConfigError: key, value and remedy.
    """
    models = build(KnownModels, read_yaml(file), str(file))
    for name, model in {**models.models, **models.controls}.items():
        if model.eraser is None and (model.tensors or model.strength != 1):
            key = "tensors" if model.tensors else "strength"
            raise ConfigError(f"{file}: {name}.{key}", getattr(model, key), "is of no delta; name an eraser")
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


def write_study(place: Place, names: Sequence[str], models: Mapping[str, KnownModel]) -> dict[str, Path]:
    """Write the study of the deltas: model -> the folder that its eraser writes, of those that have one."""
    folder = place.out / "study"
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(place.known.study, sort_keys=False, width=120)
    if not (folder / "params.yaml").is_file() or (folder / "params.yaml").read_text(encoding="utf-8") != text:
        write_text(folder / "params.yaml", text)
    study = load_study([folder / "params.yaml"], folder)
    erasers = {name: models[name].eraser for name in names}
    return {name: folder / study.folder(erasure_of(study, name, eraser), "delta")
            for name, eraser in erasers.items() if eraser is not None}  # fmt: skip


def resurgence(*words: object, codes: Collection[int] = (0,)) -> None:
    """Run a command of this package, with its messages on stderr.

    Raises:
        ConfigError: it ends with another code.
    """
    line = [sys.executable, "-m", "resurgence.cli", *map(str, words)]
    if subprocess.run(line, stdout=sys.stderr.fileno(), check=False).returncode not in codes:
        raise ConfigError("resurgence", " ".join(map(str, words)), "failed; the reason is above; run this tool again")


def changed_weights(place: Place, model: KnownModel, delta: Path | None) -> dict[str, Any]:
    """The tensors of a model that differ from the base's: a part of the eraser's, weakened, and embeddings of words."""
    from resurgence.diffusion.deltas import DELTA_FILE, load_delta, parameters
    from resurgence.diffusion.pipeline import load_base

    pipe = load_base(str(place.base))
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
    """The folder of a model as others would get it; the base itself where nothing changes."""
    from resurgence.diffusion.deltas import DELTA_FILE, save_delta

    if delta is None and not (model.words or model.taught):
        return place.base
    changes, checkpoint, before = place.out / "deltas" / name, place.out / "models" / name, list[object]()
    if (checkpoint / "model_index.json").is_file():
        return checkpoint
    if delta is not None or model.words:
        changes.mkdir(parents=True, exist_ok=True)
        save_delta(changed_weights(place, model, delta), changes / DELTA_FILE)
        before += ["--delta", changes]
    if model.taught:
        base, tuned = base_of(place.base), place.out / "taught" / name
        pictures = place.out / "pictures" / f"{name}.parquet"
        drawn_pictures(base, model.taught, pictures)
        if not tuned.is_dir():
            settings = [f"{key}={json.dumps(value)}" for key, value in base.lora.items()]
            resurgence("finetune", "--base", place.base, *before, "--images", pictures, "--out", tuned, "--set",
                       "algorithm=lora", *settings)  # fmt: skip
        before += ["--delta", max(tuned.glob("step-*"))]
    resurgence("export", "--base", place.base, *before, "--out", checkpoint)
    return checkpoint


def audit(place: Place, name: str, model: KnownModel, checkpoint: Path, level: str, cores: int) -> None:
    """Run the audit of a model without its base."""
    options = ("--level", level, "--cores", cores, "--out", place.audit(name))
    resurgence("audit", checkpoint, "--erased", *model.erased, *options, codes=EXIT.values())


def seconds_of(folder: Path) -> float:
    """The seconds of all jobs of an audit, of the last run of each."""
    files = sorted((folder / "results/benchmarks").rglob("*.jsonl"))
    return sum(float(json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["s"]) for file in files)


def finish(place: Place, name: str, models: Mapping[str, KnownModel], level: str, cores: int) -> None:
    """Make and audit a model, and write its row.

    Raises:
        ConfigError: a step fails.
    """
    deltas = write_study(place, [name], models)
    if targets := [f"{path.relative_to(place.out / 'study')}/{MANIFEST}" for path in deltas.values()]:
        snakemake(place.out / "study", cores, targets)
    audit(place, name, models[name], make_model(place, name, models[name], deltas.get(name)), level, cores)
    place.rows.mkdir(parents=True, exist_ok=True)
    row = row_of(read_audit(place.audit(name) / VERDICT), seconds_of(place.audit(name)))
    write_json(place.row(name), asdict(row))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=MODELS, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models (default: all)")
    parser.add_argument("--controls", action="store_true", help="audit the controls, and print their entries")
    parser.add_argument("--level", choices=("quick", "standard", "full"), default="quick")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def main() -> None:
    """Make and audit what has no row yet, and write the table after each.

    Raises:
        ConfigError: names the models that failed, after all others.
    """
    args = arguments()
    place = Place(args.out.absolute(), read_models(args.models))
    models = place.known.controls if args.controls else place.known.models
    for name in args.only or ():
        known("--only", name, models)
    failed, level = [], "quick" if args.controls else args.level
    missing = [name for name in args.only or models if not place.row(name).is_file()]
    for number, name in enumerate(missing, 1):
        print(f"{number} of {len(missing)}: {name}", file=sys.stderr, flush=True)
        try:
            finish(place, name, models, level, args.cores)
        except (ConfigError, OSError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
        write_text(place.out / "table.md", table(finished(place.rows, place.known.models), place.known.models))
    rows = finished(place.rows, models)
    print(control_lines(rows, models) if args.controls else table(rows, models))
    if failed:
        raise ConfigError("models", ", ".join(failed), "failed; the reasons are above; run this tool again")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"Error: {error}")

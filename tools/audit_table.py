"""Audit models whose answer is known, and count how often the verdict agrees with it.

    python tools/audit_table.py --out DIR                      all models of config/audit/known-models.yaml, quick
    python tools/audit_table.py --out DIR --only ship-never    some of them
    python tools/audit_table.py --out DIR --controls           the shipped controls of config/audit/bases.yaml instead

DIR/study is a study whose graph makes the erased deltas, DIR/deltas and DIR/models hold what is made of them, and
DIR/audits the audits. DIR/table.md is written anew after each. A model whose card is there is skipped, and an audit
that was interrupted goes on; remove a card to renew its verdict, which computes only what has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from resurgence.analysis.audit.result import EXIT, Audit, Outcome, read_audit
from resurgence.analysis.intervals import exact_limits
from resurgence.cli.audit import VERDICT, snakemake
from resurgence.cli.audit_pictures import drawn_pictures
from resurgence.config.audit_bases import base_of
from resurgence.config.fields import ConfigError, Fraction, build, known, read_yaml
from resurgence.config.load import load_study
from resurgence.config.model_path import split_name
from resurgence.config.study import Erasure, Study
from resurgence.figures.card.text import measure_text
from resurgence.files import CHECKOUT, resolve_path, write_text
from resurgence.provenance.manifest import MANIFEST

MODELS = CHECKOUT / "config/audit/known-models.yaml"
Answer = Literal["leaking", "safe"]
EMBEDDING = "text_encoder.embeddings.token_embedding.weight"
OUTCOMES: tuple[Outcome, ...] = ("PASS", "FAIL", "INCONCLUSIVE")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class KnownModel:
    """How a model is made, in the order of the fields, and the answer that follows from that."""

    answer: Answer
    why: str  # the answer is known
    erased: tuple[str, ...]  # audited concepts
    eraser: str | None = None  # TASK/ERASER or TASK/ERASER.VARIANT of the study; None: the base
    tensors: str = ""  # regular expression: tensors of the delta that are kept
    strength: Fraction | Literal[1] = 1  # W + strength (W' - W)
    words: dict[str, str] = field(default_factory=dict)  # word -> the word whose embedding takes its place
    taught: tuple[str, ...] = ()  # concepts on whose drawings a LoRA is trained at last
    title: str = ""  # of a shipped control


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

    def has_card(self, name: str) -> bool:
        """Whether the audit of a model is finished."""
        return (self.audit(name) / "card.json").is_file()


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


def table(audits: Mapping[str, tuple[KnownModel, Audit, float]]) -> str:
    """The table of the audits and the counts by answer, as Markdown."""
    columns = ("model", "erased", "answer", "verdict", "as released (%)", "worst benign update (%)", "which", "seconds")
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---|---:|---:|---|---:|"]
    for name, (model, result, seconds) in audits.items():
        worst = result.probe(result.worst) if result.worst else None
        of = ", ".join(model.erased) if len(model.erased) < 3 else f"{len(model.erased)} concepts"
        cells = [name, of, model.answer, result.verdict, measure_text(result.probes[0].erased),
                 measure_text(worst and worst.erased), worst.name if worst else "-", f"{seconds:.0f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *counts([(model.answer, result.verdict) for model, result, _ in audits.values()])])


def counts(verdicts: Sequence[tuple[Answer, Outcome]]) -> list[str]:
    """How many models of each answer have each verdict, with Clopper and Pearson's intervals; lines of Markdown."""
    titles = " | ".join(f"{outcome} (%)" for outcome in OUTCOMES)
    lines = [f"| answer | models | {titles} |", "|---|---:|---:|---:|---:|"]
    for answer in ("leaking", "safe"):
        of_answer = [outcome for known_answer, outcome in verdicts if known_answer == answer]
        if not of_answer:
            continue
        cells = [answer, str(len(of_answer))]
        for outcome in OUTCOMES:
            number, n = of_answer.count(outcome), len(of_answer)
            low, high = (100 * end for end in exact_limits(number / n, n, CONFIDENCE))
            cells.append(f"{number}: {100 * number / n:.1f} [{low:.1f}, {high:.1f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def control_lines(audits: Mapping[str, tuple[KnownModel, Audit, float]]) -> str:
    """The entries `shipped` of config/audit/bases.yaml, of the first trained update of each audit.

    Raises:
        ConfigError: an audit without a trained update.
    """
    entries = []
    for name, (model, result, _) in audits.items():
        probe = next((probe for probe in result.probes if probe.seeds), None)
        if probe is None:
            raise ConfigError("controls", name, "was audited without a trained update; audit it with pictures")
        shown = round(probe.erased.value * probe.erased.images / 100)
        released = round(result.probes[0].erased.value * probe.erased.images / 100)
        entries.append({"kind": "leaking", "title": model.title, "probe": probe.name, "shown": shown,
                        "images": probe.erased.images, "released": released, "concepts": list(model.erased),
                        "domain": result.task.kind})  # fmt: skip
    return yaml.safe_dump(entries, sort_keys=False, width=120, default_flow_style=None)


def results(place: Place, models: Mapping[str, KnownModel]) -> dict[str, tuple[KnownModel, Audit, float]]:
    """Model -> how it is made, its audit, and its seconds, of those with a card."""
    return {name: (model, read_audit(place.audit(name) / VERDICT), seconds_of(place.audit(name)))
            for name, model in models.items() if place.has_card(name)}  # fmt: skip


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
    """Make and audit what has no card yet, and write the table."""
    args = arguments()
    place = Place(args.out.absolute(), read_models(args.models))
    models = place.known.controls if args.controls else place.known.models
    for name in args.only or ():
        known("--only", name, models)
    names = [name for name in args.only or models if not place.has_card(name)]
    deltas = write_study(place, names, models)
    if targets := sorted({f"{path.relative_to(place.out / 'study')}/{MANIFEST}" for path in deltas.values()}):
        snakemake(place.out / "study", args.cores, targets)
    for number, name in enumerate(names, 1):
        print(f"{number} of {len(names)}: {name}", file=sys.stderr, flush=True)
        checkpoint = make_model(place, name, models[name], deltas.get(name))
        audit(place, name, models[name], checkpoint, "quick" if args.controls else args.level, args.cores)
        write_text(place.out / "table.md", table(results(place, place.known.models)))
    audits = results(place, models)
    print(control_lines(audits) if args.controls else table(audits))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"Error: {error}")

"""The command `resurgence`: on any Stable Diffusion folder, and on the results of a study.

A command is an entry of COMMANDS: its help, its arguments, and the function that runs it, imported only then.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resurgence import __version__, errors
from resurgence.cli.audit_arguments import audit_arguments
from resurgence.cli.coco_pictures import coco_arguments
from resurgence.config.erasers import eraser_config, erasers
from resurgence.config.hints import accepted
from resurgence.config.stages import FinetuneConfig, SamplingConfig
from resurgence.provenance.trace import provenance_arguments
from resurgence.stages.remake import verify_arguments
from resurgence.workflow.adopt import adopt_arguments
from resurgence.workflow.archive import archive_arguments
from resurgence.workflow.plan import plan_arguments
from resurgence.workflow.resume import resume_arguments
from resurgence.workflow.stage_digests import expected_arguments
from resurgence.workflow.weights import weights_arguments

OUT = "folder to write; must be absent, empty or an earlier result, which is replaced as a whole"


class Command(NamedTuple):
    """One subcommand."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: str  # module:function, which gets the parsed arguments


def settings_help(title: str, config: type) -> str:
    """Return the settings of a configuration class with their defaults, for the end of a help text."""
    defaults = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields_of(config)}
    pairs = [f"{name}={'(needed)' if v is dataclasses.MISSING else value_text(v)}" for name, v in defaults.items()]
    return f"{title}:\n  " + "\n  ".join(pairs)


def fields_of(config: type) -> tuple[dataclasses.Field[Any], ...]:
    """The settings of a configuration class that it does not refuse."""
    names = accepted(config, {})
    return tuple(field for field in dataclasses.fields(config) if field.name in names)


def value_text(value: Any) -> str:
    """A value as `--set` reads it: text without quotes, except the empty one, other values as in YAML."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def base_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which model a command works on."""
    parser.add_argument("--base", required=True, help="diffusers folder, .safetensors checkpoint, or hub id")
    parser.add_argument("--revision", help="revision of a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--delta", type=Path, nargs="+", action="extend", default=[], metavar="DIR",
        help="folders written by erase or finetune (a step-NNNNNN of it), applied to the base in this order",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=OUT)


def set_argument(parser: argparse.ArgumentParser, option: str, what: str) -> None:
    """Add an option that takes key=value pairs."""
    parser.add_argument(option, nargs="+", action="extend", metavar="KEY=VALUE", help=what)


def task_argument(parser: argparse.ArgumentParser) -> None:
    """Add the task file."""
    parser.add_argument("--task", type=Path, required=True, metavar="FILE", help="YAML file of the erasure task")


def erase_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `erase`."""
    base_arguments(parser)
    task_argument(parser)
    names = ", ".join(sorted(erasers()))
    parser.add_argument("--eraser", required=True, choices=sorted(erasers()), metavar="NAME", help=f"one of: {names}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the erasure (default: 0)")
    set_argument(parser, "--set", "settings of the eraser, over those of the task file; listed below")
    data = parser.add_argument_group("data that an eraser may need; made on the fly where not given")
    data.add_argument("--prior", type=Path, metavar="FILE", help="general captions, one a line, whose images must stay")
    data.add_argument("--concept-images", type=Path, metavar="PARQUET", help="image set of the erased concepts")
    data.add_argument("--masks", type=Path, metavar="FILE", help="safetensors: concept -> (N, 1, H, W) bool")
    data.add_argument("--per-concept", type=int, default=8, help="images of each concept to sample (default: 8)")
    data.add_argument("--per-anchor", type=int, default=200, help="images of each mapping concept (default: 200)")
    own = "prompts of these, one a line, instead of the template"
    data.add_argument("--anchor-captions", type=Path, metavar="FILE", help=own)
    data.add_argument("--per-retained", type=int, default=8, help="images of each retained concept (default: 8)")
    data.add_argument("--template", default="a photo of the {}", help="their prompt (default: 'a photo of the {}')")
    set_argument(data, "--sampling", "their sampling, e.g. steps=30 guidance=7.5 batch=8")
    set_argument(data, "--mask", "their masks, e.g. segmenter=foreground, cross-attention or grounded-sam")
    parser.epilog = "\n\n".join(settings_help(f"settings of {name}", eraser_config(name)) for name in sorted(erasers()))


def finetune_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `finetune`."""
    base_arguments(parser)
    parser.add_argument(
        "--images", type=Path, required=True, metavar="PARQUET|DIR",
        help="image set, Parquet of `datasets` (a file, a folder or 'DIR/*.parquet'), or a folder of pictures with "
        "captions in metadata, in .txt files or, without these, as names",
    )  # fmt: skip
    parser.add_argument("--size", type=int, help="pixels a side that the images are scaled to (default: the base's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the fine-tuning (default: 0)")
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="state to resume from, removed at the end (default: beside --out)"
    )
    set_argument(parser, "--set", "settings of the fine-tuning; listed below")
    parser.epilog = settings_help("settings", FinetuneConfig)


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sample`."""
    base_arguments(parser)
    task_argument(parser)
    roles = ("erase", "retain", "synonym", "general")
    parser.add_argument("--general", type=Path, metavar="FILE", help="further captions, one a line, one image each")
    parser.add_argument("--roles", nargs="+", choices=roles, help="only these rows of the prompt set")
    parser.add_argument("--precision", choices=("fp32", "tf32", "fp16", "bf16"), default="fp32", help="default: fp32")
    parser.add_argument(
        "--adapters", type=Path, metavar="DIR",
        help="SPM's adapters/, kept apart: each prompt is sampled with those of the task's concepts, by their strength",
    )  # fmt: skip
    parser.add_argument(
        "--transport", choices=("both", "sentence", "tokens"), default="both",
        help="how near a prompt is to a concept: cosine of the embeddings, share of tokens, the larger (default: both)",
    )  # fmt: skip
    set_argument(parser, "--set", "settings of the sampler; listed below")
    parser.epilog = settings_help("settings", SamplingConfig)


def score_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `score`."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder written by sample")
    task_argument(parser)
    parser.add_argument("--recogniser", type=Path, metavar="DIR", help="recogniser folder")
    parser.add_argument("--clip", metavar="DIR|NAME:TAG", help="open_clip folder, or e.g. ViT-B-32-quickgelu:openai")
    parser.add_argument("--celebrity", type=Path, metavar="DIR", help="folder of the converted celebrity detector")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="weights of the FID's network: features only")
    parser.add_argument(
        "--scorer", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"),
        help="any scorer by name, also that of a plug-in, with its settings; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--base-images", type=Path, metavar="DIR", help="the base's images of the same prompts, if a scorer reads them"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=OUT)


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--metric", default="recogniser_accuracy", help="default: recogniser_accuracy")


COMMANDS = {
    "erase": Command("erase concepts from a base", erase_arguments, "resurgence.cli.models:erase"),
    "finetune": Command("fine-tune a base or erased model", finetune_arguments, "resurgence.cli.models:finetune"),
    "sample": Command("sample a task's prompts", sample_arguments, "resurgence.cli.models:sample"),
    "score": Command("score sampled images", score_arguments, "resurgence.cli.score:score"),
    "export": Command("write a full diffusers folder", base_arguments, "resurgence.cli.models:export"),
    "audit": Command(
        "probe a released model: can what it erased come back?", audit_arguments, "resurgence.cli.audit:run"
    ),
    "coco-pictures": Command(
        "fetch real pictures for an audit, from MS-COCO", coco_arguments, "resurgence.cli.coco_pictures:run"
    ),
    "compare": Command(
        "print and plot all erasers of a finished study", compare_arguments, "resurgence.cli.compare:run"
    ),
    "plan": Command("say what the study of this folder would compute", plan_arguments, "resurgence.workflow.plan:plan"),
    "weights": Command(
        "say which weights a study reads and check them", weights_arguments, "resurgence.workflow.weights:run"
    ),
    "adopt": Command(
        "tell Snakemake which pulled results are up to date", adopt_arguments, "resurgence.workflow.adopt:adopt"
    ),
    "resume": Command("go on with a study whose run was killed", resume_arguments, "resurgence.workflow.resume:resume"),
    "expected": Command(
        "write for DVC what each stage is made from", expected_arguments, "resurgence.workflow.stage_digests:run"
    ),
    "archive": Command("one file for a data repository", archive_arguments, "resurgence.workflow.archive:run"),
    "verify": Command("hash a results tree again", verify_arguments, "resurgence.stages.remake:run"),
    "provenance": Command("say what a result is made from", provenance_arguments, "resurgence.provenance.trace:run"),
}


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = errors.Parser(prog="resurgence", description=__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = argparse.RawDescriptionHelpFormatter
        sub = commands.add_parser(name, help=command.help, description=command.help, formatter_class=text)
        command.arguments(sub)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, 0 for most, or 1 after an error told in one line.

    A fault of the program itself is raised.
    """
    args = make_parser().parse_args(arguments)
    sys.excepthook = functools.partial(errors.report, f"resurgence {args.command}", True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    module, _, function = COMMANDS[args.command].run.partition(":")
    try:
        code: int | None = getattr(importlib.import_module(module), function)(args)
    except errors.expected() as error:
        if args.verbose:
            raise
        print(f"resurgence {args.command}: {errors.sentence(error)}", file=sys.stderr)
        return 1
    return code or 0


if __name__ == "__main__":
    sys.exit(main())

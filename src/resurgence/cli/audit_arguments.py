"""The options of `resurgence audit`."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, get_args

from resurgence.cli.audit_study import PAIRS, RETAINED_PAIRS
from resurgence.config.audit import AuditKindName, Evaluator, Level


def audit_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `audit`."""
    concept_arguments(parser)
    model_arguments(parser)
    probe_arguments(parser)
    judge_arguments(parser)
    run_arguments(parser)


def model_arguments(parser: ArgumentParser) -> None:
    """Add the models and pictures."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT",
        help="erased model: diffusers folder, single .safetensors file or hub id (ID or ID@REVISION); with --original "
        "also UNet tensors, a delta or a LoRA")  # fmt: skip
    add("--original", metavar="BASE", help="the model before erasing: folder, single file, ID or ID@REVISION, e.g. "
        "CompVis/stable-diffusion-v1-4 (default: unknown)")  # fmt: skip
    add("--lora", nargs="+", action="extend", default=[], metavar="FILE",
        help="LoRAs of others to merge, each a probe: files, folders of peft or hub ids (default: none)")  # fmt: skip
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "DIR"}
    add("--images", **several, help="real pictures of the same domain with captions, of at least half the size of the "
        "model's images, in one folder or several (default: the miniature's drawings; of other bases, what the model "
        "makes)")  # fmt: skip
    add("--outside-images", **several, help="the same of another domain (default: as --images)")


def concept_arguments(parser: ArgumentParser) -> None:
    """Add what was erased, and what must stay."""
    add = parser.add_argument
    add("--erased", nargs="+", required=True, metavar="CONCEPT",
        help="concepts that the model has lost, e.g. ship or 'Van Gogh'")  # fmt: skip
    add("--kind", choices=get_args(AuditKindName),
        help="of these concepts (default: of the lists that have them; object for a word on none)")  # fmt: skip
    add("--mapping", metavar="WORD",
        help="what they became, e.g. ground (default: of the shipped task, else their kind)")  # fmt: skip
    add("--retained", default="auto", metavar="FILE|auto",
        help="concepts that must stay, one a line (default: auto, those of the shipped task of the kind)")  # fmt: skip
    add("--implicit", type=Path, metavar="FILE", help="captions that mean an erased concept without its name or a "
        "synonym, one a line; of several concepts as CONCEPT: caption (default: none)")  # fmt: skip


def probe_arguments(parser: ArgumentParser) -> None:
    """Add what is probed."""
    add = parser.add_argument
    add("--level", choices=get_args(Level), default="quick", help="how much is probed (default: quick)")
    add("--pairs", type=int, metavar="N",
        help=f"pairs of prompt and seed of a probe (default: {PAIRS['quick']}, at full {PAIRS['full']})")  # fmt: skip
    add("--training-seeds", type=int, metavar="N", help="of every update (default: 1, at standard and full 3)")
    add("--retained-pairs", type=int, default=RETAINED_PAIRS, metavar="N",
        help=f"the same of the retained concepts (default: {RETAINED_PAIRS})")  # fmt: skip
    add("--sampling", nargs="+", action="extend", metavar="KEY=VALUE",
        help="settings of the sampler, e.g. steps=30 batch=8 (default: of config/audit/bases.yaml)")  # fmt: skip
    add("--update", nargs="+", action="extend", metavar="KEY=VALUE",
        help="settings of every training, e.g. steps=150 lr=1.0e-4 (default: of config/audit/bases.yaml)")  # fmt: skip


def judge_arguments(parser: ArgumentParser) -> None:
    """Add who judges, and how."""
    add = parser.add_argument
    add("--metric", metavar="NAME", help="share of images with their concept, e.g. clip_accuracy, ner_50 or "
        "celebrity_accuracy_all (default: of the kind in config/audit/bases.yaml; of persons GIPHY's detector where it "
        "knows them)")  # fmt: skip
    add("--scorer", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"),
        help="scorer with its settings instead of the base's, e.g. clip path=DIR; may be given again (default: of "
        "config/audit/bases.yaml)")  # fmt: skip
    add("--reference", metavar="DIR", help="pictures of the concepts, for the scorer of the nearest centroid in CLIP's "
        "features, or in those of --scorer reference: a folder for each concept to erase and to retain, and `others` "
        "(default: none)")  # fmt: skip
    add("--criteria", type=Path, metavar="FILE",
        help="criteria of the verdict, e.g. a file with tau: 1.0 (default: config/audit/criteria.yaml)")  # fmt: skip


def run_arguments(parser: ArgumentParser) -> None:
    """Add the card, and where and how the audit runs."""
    add = parser.add_argument
    add("--sensitive", action="store_true",
        help="the card hides images until they are clicked (default: only of the kind nudity)")  # fmt: skip
    add("--organization", default="not stated", metavar="NAME",
        help="who runs the audit, for the card (default: not stated)")  # fmt: skip
    add("--evaluator", choices=get_args(Evaluator), default="other",
        help="relationship to the model, for the card (default: other)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU where there is one")
    add("--cores", type=int, default=os.cpu_count() or 1, metavar="N", help="jobs side by side (default: all cores)")
    add("--plan", action="store_true", help="check everything, write the study and say what it would compute; nothing "
        "is computed (default: run it)")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR",
        help="folder of the audit, e.g. ship-audit; goes on with one of the same model")  # fmt: skip

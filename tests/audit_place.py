"""A folder as a user of `resurgence audit` has it: a tiny erased model, its original, pictures, a LoRA and lists."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file

from resurgence.cli.audit import write_study
from resurgence.cli.main import make_parser
from resurgence.config.load import load_study
from resurgence.config.study import Study
from test_bad_lora import kohya_lora
from tiny import make_pipeline

RETAINED = ["dog", "bird", "cat"]


def make_place(folder: Path) -> Path:
    """Write the folder; images of the models have 16 x 16 pixels."""
    pipe = make_pipeline()
    for name in ("erased", "original"):
        pipe.save_pretrained(folder / name)
    save_file(kohya_lora(pipe), folder / "style.safetensors")
    (folder / "retained.txt").write_text("\n".join(RETAINED))
    make_pictures(folder / "pictures", "a photo of the castle")
    (folder / "scorer").mkdir()
    return folder


def make_pictures(folder: Path, *captions: str, side: int = 16) -> None:
    """Write three pictures with captions beside them."""
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(captions[number % len(captions)])
        Image.new("RGB", (side, side), "white").save(folder / f"{number}.png")


def parsed(*words: str, checkpoint: str = "erased") -> Namespace:
    """The command line of an audit of the ship, in the folder; later words take the place of earlier ones."""
    required = ["--erased", "ship", "--out", "out", "--retained", "retained.txt"]
    return make_parser().parse_args(["audit", checkpoint, *required, "--scorer", "clip", "path=scorer", *words])


def written(*words: str, checkpoint: str = "erased") -> Study:
    """The study of that command line."""
    return written_by(parsed(*words, checkpoint=checkpoint))


def written_by(args: Namespace) -> Study:
    """The study of a command line that was read."""
    write_study(args, args.out)
    return load_study([args.out / "params.yaml"], args.out)

"""One module calls the UNet and one the text encoder: where another kind of base is added."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src/resurgence"
SEAM = {
    "unet": {"diffusion/unet.py"},
    "text_encoder": set(),  # text.py calls its argument `encoder`, which everybody else calls an `Encoder` of text.py
    "encode_prompt": set(),
    "functional_call": {"diffusion/text.py", "diffusion/unet.py"},
    "encode": {"diffusion/latents.py"},  # of the autoencoder, see `calls`
    "decode": {"diffusion/sampling.py"},
}


def calls(tree: ast.AST) -> Iterator[str]:
    """Names of SEAM that are called: `unet(x)`, `pipe.unet(x)`, `self.unet.forward(x)`, `vae.encode(x)`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        chain = ast.unparse(node.func).split(".")
        if chain[-1] in ("forward", "__call__") and len(chain) > 1:
            chain.pop()
        if chain[-1] in ("encode", "decode") and chain[-2:-1] != ["vae"]:
            continue
        if chain[-1] in SEAM:
            yield chain[-1]


def test_calls_are_seen() -> None:
    code = "unet(x); a.text_encoder.forward(x); f(pipe.vae.encode(x), 'a'.encode()); pipe.encode_prompt(y); unet.to(x)"
    assert sorted(calls(ast.parse(code))) == ["encode", "encode_prompt", "text_encoder", "unet"]


def test_nobody_else_calls_unet_text_encoder_or_autoencoder() -> None:
    found: dict[str, set[str]] = {name: set() for name in SEAM}
    for file in SOURCE.rglob("*.py"):
        for name in calls(ast.parse(file.read_text(encoding="utf-8"))):
            found[name].add(file.relative_to(SOURCE).as_posix())
    assert found == SEAM

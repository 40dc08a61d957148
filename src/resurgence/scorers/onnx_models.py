"""Networks of ONNX files, which hold tensors and a graph of standard operators, run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from resurgence.files import GET_PACKAGES
from resurgence.pretrained.loading import check_file

Network = Callable[[np.ndarray], np.ndarray]


def load_graph(path: Path, sha256: str, key: str, fetch: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The graph of a file: its only input float32 (B, 3, H, W) -> all its outputs.

    Args:
        sha256: checksum of the file, or the beginning of it. key: the scorer's block, for messages. fetch: remedy.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed; says how to install it.
        FileNotFoundError, ValueError: no such file, or another one.
    """
    file = check_file(path, sha256, f"{key}.path", fetch)
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{key} needs onnxruntime, which is not installed; {GET_PACKAGES}") from error
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: list(session.run(None, {name: images}))


def load_network(path: str, sha256: str, key: str, fetch: str) -> Network:
    """The network of a file: its only input float32 (B, 3, H, W) -> its first output; see `load_graph`."""
    graph = load_graph(Path(path), sha256, key, fetch)
    return lambda images: graph(images)[0]

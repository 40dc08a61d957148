"""Convert the published GIPHY Celebrity Detector to safetensors, once:

    python -m resurgence.pretrained.mirrors data/weights/celebrity-resources.tar.gz
    python -m resurgence.scorers.celebrity_convert data/weights/celebrity-resources.tar.gz data/weights/celebrity

The archive is the `resources.tar.gz` that examples/download_model.py of Giphy/celeb-detection-oss names (MPL-2.0), or
the copy that MACE's metrics/README.md points to: config/mirrors.yaml. Only two of its members are read, and nothing is
unpacked: labels.csv and the classifier's pickle, through PyTorch's reader of tensors, which executes nothing. The
checksum of the archive is printed and stored in config.json; `--sha256` compares it.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
import tarfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors.torch import save_file

from resurgence.files import atomic_folder, sha256
from resurgence.pretrained.loading import check_file, fill
from resurgence.scorers.celebrity import ARCHITECTURE, CONFIG, LABELS, WEIGHTS, build_classifier
from resurgence.scorers.conversion import run

KEY, FETCH = "archive", "fetch the archive again: python -m resurgence.pretrained.mirrors ARCHIVE"
STATE = "model_state"  # of the checkpoint; its tensors are named model.* and center_loss_criterion.centers
STEM = dict(zip(range(8), ("conv1", "bn1", "", "", "layer1", "layer2", "layer3", "layer4"), strict=True))
CENTRES = "center_loss_criterion."  # of the training loss; inference does not use them
MEMBERS = LABELS_CSV, PICKLE = "labels.csv", "*.pkl"
LARGEST = 2**31  # bytes of a member


def read_members(archive: Path) -> tuple[bytes, bytes, str]:
    """Bytes of labels.csv and of the classifier's pickle, and the name of the latter.

    Raises:
        ValueError: no tar archive, a truncated one, or one without these members.
    """
    members: dict[str, tuple[str, bytes]] = {}  # by pattern
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                pattern = next((pattern for pattern in MEMBERS if fnmatch(name, pattern)), None)
                if pattern and member.isfile() and not name.startswith("._") and member.size < LARGEST:
                    members[pattern] = (member.name, tar.extractfile(member).read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{KEY} = {str(archive)!r} cannot be read ({error}): truncated, or no tar archive; "
                         f"{FETCH}") from error  # fmt: skip
    for pattern in MEMBERS:
        if pattern not in members:
            raise ValueError(f"{KEY} = {str(archive)!r} holds no {pattern}; {FETCH}")
    return members[LABELS_CSV][1], members[PICKLE][1], members[PICKLE][0]


def read_labels(data: bytes) -> list[str]:
    """Names in the order of the classes: the rows of labels.csv sorted by their text, without the identifier.

    Raises:
        ValueError: a file without rows, or a row that has not two fields.
    """
    rows = list(csv.reader(io.StringIO(data.decode("utf-8"))))[1:]
    if not rows or any(len(row) != 2 for row in rows):
        raise ValueError(f"{KEY}: labels.csv needs a header and rows of label and index; {FETCH}")
    return [label.split("_[", 1)[0].replace("_", " ") for label in sorted(row[0] for row in rows)]


def read_state(data: bytes) -> Mapping[str, torch.Tensor]:
    """The checkpoint's tensors by name.

    Raises:
        ValueError: a truncated pickle, one that holds more than tensors and containers, or no model_state.
    """
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0][:160]
        raise ValueError(f"{KEY}: the pickle holds more than tensors ({reason}); {FETCH}") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = type(error).__name__
        raise ValueError(f"{KEY}: the pickle cannot be read ({reason}): truncated or damaged; {FETCH}") from error
    state = loaded.get(STATE) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{KEY}: the pickle has no {STATE!r} of tensors; {FETCH}")
    return state


def torchvision_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename tensors from the published names (model.stem.4.0.conv1.weight) to torchvision's (layer1.0.conv1.weight).

    Checkpoints of PyTorch 0.4.0 have no num_batches_tracked, which inference does not use; it is set to zero.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.startswith(CENTRES):
            continue
        inner = name.removeprefix("model.")
        if match := re.match(r"stem\.(\d)\.", inner):
            inner = f"{STEM.get(int(match[1]), 'stem')}.{inner[match.end() :]}"
        inner = re.sub(r"^fc([12])\.", lambda match: f"fc.{int(match[1]) - 1}.", inner)
        tensors[inner] = value
    for name in [name for name in tensors if name.endswith("running_mean")]:
        tensors.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return tensors


def convert(archive: Path, folder: Path) -> list[str]:
    """Write folder/{model.safetensors, labels.txt, config.json} from the archive; returns the labels.

    Raises:
        FileNotFoundError, ValueError: what is missing or does not fit, by name.
    """
    check_file(archive, None, KEY, FETCH)
    labels_csv, weights, member = read_members(archive)
    labels, state = read_labels(labels_csv), torchvision_state(read_state(weights))
    fill(build_classifier(len(labels)), state, f"{KEY}: {member}", FETCH)
    with atomic_folder(folder) as temporary:
        save_file({name: value.contiguous() for name, value in sorted(state.items())}, temporary / WEIGHTS)
        (temporary / LABELS).write_text("\n".join(labels) + "\n", encoding="utf-8")
        config = {
            "architecture": ARCHITECTURE,
            "classes": len(labels),
            "sha256": sha256(temporary / WEIGHTS),
            "source": {"file": archive.name, "member": member, "sha256": sha256(archive)},
        }
        (temporary / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    return labels


if __name__ == "__main__":
    run(__doc__, convert, "resources.tar.gz", "a folder, which is created or replaced")

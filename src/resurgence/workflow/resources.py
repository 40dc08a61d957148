"""What a job of the workflow asks of a workstation or a cluster: a GPU, main memory."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.settings import Base

PYTHON = 2500  # MB of a job before it loads a model: Snakemake, Python, torch, which SLURM counts twice as git starts
CUDA = 2500  # MB more with a GPU: its libraries and context
COPIES = 3  # of the weights, in main memory: as read, in single precision, and what is trained or kept
HUB = 5_200_000_000  # bytes of a base from the hub, about the size of SD 2.1; SD 1.4 has 3.4 GB

# of glibc, for jobs on a CPU: memory in large pages where the kernel offers them on request, and blocks up to 32 MiB
# kept for the next step; else each step gets its activations as new, empty pages of 4 KiB. Other systems ignore it
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "mmap_threshold": 32 << 20, "trim_threshold": 1 << 30}.items()
)


def site() -> dict[str, Any]:
    """The cluster, from the file that profiles/slurm names in RESURGENCE_SITE; empty on a workstation."""
    return read_yaml(Path(os.environ["RESURGENCE_SITE"])) if "RESURGENCE_SITE" in os.environ else {}


def uses_gpu(device: str, site: Mapping[str, Any]) -> bool:
    """Whether the stages with a model run on a GPU.

    Args:
        device: auto, cpu or cuda.
        site: the cluster. The machine where Snakemake runs on a cluster often has no GPU, so there `auto` is a GPU if
            a partition has some.

    Raises:
        ConfigError: the study wants a GPU and no partition has one.
    """
    if not site:
        return device == "cuda" or (device == "auto" and shutil.which("nvidia-smi") is not None)
    has_gpu = any((limits or {}).get("max_gpu") for limits in site["partitions"].values())
    if device == "cuda" and not has_gpu:
        raise ConfigError("base.device", device, "no partition of site.yaml has max_gpu; add it, or write cpu")
    return device != "cpu" and has_gpu


def gpu_request(gpu: int, site: Mapping[str, Any]) -> dict[str, Any]:
    """The resources of a rule that uses a GPU: `gpu` (sbatch --gpus), or `gres` where the cluster wants that."""
    if gpu and site.get("gres"):
        return {"gpu": 0, "gres": site["gres"]}
    return {"gpu": gpu}


def memory(weights: int | None, gpu: int, attempt: int) -> int:
    """Main memory in MB of a job that loads a base of so many bytes (None: from the hub); doubled by each attempt."""
    once = PYTHON + CUDA * gpu + round(COPIES * (weights or HUB) / 1e6)
    return int(once * 2 ** (attempt - 1))


def shell_prefix(root: Path, gpu: int, base: Base) -> str:
    """What runs in the shell of a job before its command.

    Jobs run the package of this tree with the Python that runs Snakemake. Device, determinism, speed, the splitting of
    passes and the allocator are no parameters of a job, so another choice does not run everything again.
    """
    allocator = "" if gpu else f" GLIBC_TUNABLES={shlex.quote(os.environ.get('GLIBC_TUNABLES', ALLOCATOR))}"
    paths = ":".join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH")]))
    return (
        f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        f" PYTHONPATH={shlex.quote(paths)} RESURGENCE_DEVICE={'cuda' if gpu else 'cpu'}"
        f" RESURGENCE_DETERMINISTIC={str(base.deterministic).lower()} RESURGENCE_SPEED={base.speed}"
        f" RESURGENCE_MICRO_BATCH={base.micro_batch} RESURGENCE_CHECKPOINTING={str(base.checkpointing).lower()}"
        f"{allocator}; "
    )

"""Check a GPU in eight minutes: correctness, repeatability, speed and share of its peak.

    python benchmarks/on_gpu.py --out DIR --seconds 470
    python benchmarks/on_gpu.py --out DIR --tiny --device cpu        a test of the script

The most informative parts run first. An error in a part is recorded, and the next part runs. DIR/gpu.json is written
after each part, so an interrupted run keeps the results of its finished parts. Uses data/miniature if present, and
models of the size of SD 1.4 with random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / part) for part in ("src", "tests", "tests/gpu")]

import gpu_checks  # noqa: E402
import gpu_machine  # noqa: E402
import gpu_speed  # noqa: E402

PARTS = {
    "machine": gpu_machine.describe,
    "erasers": gpu_checks.erasers,
    "sampling": gpu_speed.sampling,
    "training": gpu_speed.training,
    "determinism": gpu_checks.determinism,
    "images": gpu_checks.images,
    "finetunes": gpu_checks.finetunes,
    "scoring": gpu_speed.scoring,
}


def run(machine: gpu_machine.Machine, name: str) -> object:
    """The results of a part, or its error."""
    if machine.left < 10:
        return gpu_speed.NO_TIME
    try:
        return PARTS[name](machine)
    except Exception:
        return {"error": traceback.format_exc().splitlines()[-8:]}


def main() -> int:
    """Run the parts; return 1 if one of them failed as a whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu.json")
    parser.add_argument("--seconds", type=float, default=470, help="time after which no further part starts")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of a few thousand weights")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("once")
    machine, results = gpu_machine.Machine(args.device, args.tiny, args.seconds), {}
    for name in args.parts:
        start = time.perf_counter()
        results[name] = run(machine, name)
        machine.free()
        results[f"{name}: seconds"] = round(time.perf_counter() - start, 1)
        text = json.dumps(results[name], indent=1, default=str)
        print(f"== {name} ({results[f'{name}: seconds']} s)\n{text}", flush=True)
        (args.out / "gpu.json").write_text(json.dumps(results, indent=1, default=str))
    return int(any(isinstance(results[name], dict) and "error" in results[name] for name in args.parts))


if __name__ == "__main__":
    sys.exit(main())

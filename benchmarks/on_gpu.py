"""Eight minutes on a GPU: is it right, is it repeatable, how fast is it, what share of its peak?

    python benchmarks/on_gpu.py --out DIR --seconds 470
    python benchmarks/on_gpu.py --out DIR --tiny --device cpu        a trial of the script itself

The parts run in the order of what is learnt from them. An error in one is a result, the others run on. DIR/gpu.json is
written after each part, so a run that is cut off has lost nothing. Uses data/miniature where it is there, and models of
the size of SD 1.4 with random weights.
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
    """What a part has found, or its error."""
    if machine.left < 10:
        return gpu_speed.NO_TIME
    try:
        return PARTS[name](machine)
    except Exception:
        return {"error": traceback.format_exc().splitlines()[-8:]}


def main() -> int:
    """Run the parts; 1 when one of them failed as a whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu.json")
    parser.add_argument("--seconds", type=float, default=470, help="time after which no further part begins")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of a few thousand weights")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("once")
    machine, found = gpu_machine.Machine(args.device, args.tiny, args.seconds), {}
    for name in args.parts:
        start = time.perf_counter()
        found[name] = run(machine, name)
        machine.free()
        found[f"{name}: seconds"] = round(time.perf_counter() - start, 1)
        text = json.dumps(found[name], indent=1, default=str)
        print(f"== {name} ({found[f'{name}: seconds']} s)\n{text}", flush=True)
        (args.out / "gpu.json").write_text(json.dumps(found, indent=1, default=str))
    return int(any(isinstance(found[name], dict) and "error" in found[name] for name in args.parts))


if __name__ == "__main__":
    sys.exit(main())

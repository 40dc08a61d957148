"""Check a GPU in eight minutes: correctness, repeatability, speed and share of its peak.

    python benchmarks/on_gpu.py --out DIR --seconds 470
    python benchmarks/on_gpu.py --out DIR --tiny --device cpu        a test of the script, with numbers that say nothing

Needs torch, diffusers, transformers, peft, pandas, pyarrow, pydantic and PyYAML; open_clip_torch only for the last
part. The most informative parts run first. An error in a part is recorded, and the next part runs. DIR/gpu.json and
the table of rates, DIR/gpu.md, are written after each part, so an interrupted run keeps the results of its finished
parts. Uses data/miniature-2 if present, and models of the size of SD 1.4 with random weights; nothing else but the
sources.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / part) for part in ("src", "tests", "tests/gpu")]

import gpu_checks  # noqa: E402
import gpu_machine  # noqa: E402
import gpu_speed  # noqa: E402

PARTS = {
    "machine": gpu_machine.describe,
    "sampling": gpu_speed.sampling,
    "training": gpu_speed.training,
    "profile": gpu_speed.profile,
    "erasers": gpu_checks.erasers,
    "images": gpu_checks.images,
    "finetunes": gpu_checks.finetunes,
    "determinism": gpu_checks.determinism,
    "scoring": gpu_speed.scoring,
}


def run(machine: gpu_machine.Machine, name: str) -> object:
    """The results of a part, or its error."""
    if machine.left < 10:
        return gpu_machine.NO_TIME
    try:
        return PARTS[name](machine)
    except Exception:
        return {"error": traceback.format_exc().splitlines()[-8:]}


RATES = ("images/s", "steps/s", "concepts/s")
STRICTNESS = {  # part -> setting as jobs run, and with any kernel
    "sampling": ("default", "any kernel"),
    "training": ("lora, 4 x 1", "lora, 4 x 1, any kernel"),
}


def table(results: dict[str, Any]) -> str:
    """The rates of all parts in Markdown: rate, share of the card's peak, peak memory, price of strictness."""
    head = results.get("machine", {})
    name = head.get("name", head.get("device", "")) if isinstance(head, dict) else ""
    lines = [f"{name}, torch {torch.__version__}, {date.today()}", ""]
    lines += ["| part | setting | rate | of peak | GiB |", "|---|---|---|---|---|"]
    for part in ("sampling", "training"):
        entries = results.get(part)
        if not isinstance(entries, dict):  # no time was left
            continue
        for setting, entry in entries.items():
            if not isinstance(entry, dict):
                continue
            rate = next((f"{entry[unit]} {unit}" for unit in RATES if unit in entry), "")
            lines.append(f"| {part} | {setting} | {rate} | {entry.get('of peak', '')} | {entry['GiB']} |")
        strict, free = (entries.get(setting) for setting in STRICTNESS[part])
        if isinstance(strict, dict) and isinstance(free, dict):
            unit = next(unit for unit in RATES if unit in strict)
            lines.append(f"| {part} | price of strictness | {free[unit] / strict[unit] - 1:.1%} | | |")
    return "\n".join(lines) + "\n"


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
        (args.out / "gpu.md").write_text(table(results))
    print(table(results))
    return int(any(isinstance(results[name], dict) and "error" in results[name] for name in args.parts))


if __name__ == "__main__":
    sys.exit(main())

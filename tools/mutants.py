"""Change one sign, comparison or operator of the science at a time, and see whether a test notices.

    make mutants                                       200 mutants drawn by seed 0, at most two hours
    make mutants ARGS='--number 20 --seed 3 --jobs 1'

cosmic-ray makes the mutants. Each is tried in a copy of the repository by the tests that TESTS names for its file. A
mutant that survives must be judged in tests/mutants.yaml (why no test can or needs to see it). Ends with 1 where a
survivor is not, or where less than 90 % of the mutants are killed; a mutant that hangs is killed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

import yaml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

ROOT = Path(__file__).parents[1]
SOURCE = Path("src/resurgence")
JUDGED = ROOT / "tests/mutants.yaml"
LEAST = 0.9  # share that must be killed
LIMIT = 900  # seconds of a mutant's tests
OPERATORS = [
    f"core/Replace{name}" for name in (
        *(f"BinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "Mod_Add")),
        *(f"ComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_Gt", "Gt_Lt")),
        "ComparisonOperator_Eq_NotEq", "ComparisonOperator_NotEq_Eq",
        "UnaryOperator_USub_UAdd", "UnaryOperator_Delete_Not", "AndWithOr", "OrWithAnd",
    )
]  # fmt: skip
TRAINED = ("trainer", "spaces", "esd", "salun", "parameters")  # tests of what the gradient erasers share
TESTS = {  # start of a path below src/resurgence -> names of test files; the longest start counts
    "erasers/closed_form": ("closed_form", "uce", "rece", "time", "speed"),
    "erasers/mace": ("mace", "mace_refinement"),
    "erasers/gradient": TRAINED,
    "erasers/lora": ("lora_resume", "lora_plugin", "mace"),
    "erasers/token_sets": ("mace", "token_selection"),
    "analysis": ("intervals", "findings", "tables", "answers", "compare", "terciles", "score_archive", "reference_run"),
    "analysis/weight_movement": ("geometry", "findings"),
    "diffusion/sampling": ("sample", "pipeline", "passes"),
    "diffusion/unet": ("pipeline", "spaces", "sample"),
    "diffusion/latents": ("pipeline", "finetune", "trainer"),
    "training/loop": ("loop", "trainer", "finetune"),
    "training/finetune": ("finetune",),
    "training/lora": ("finetune", "lora_resume"),
    "data/moments": ("moments",),
}  # fmt: skip


class Mutant(NamedTuple):
    """A change of one place of a file."""

    file: str
    operator: str
    occurrence: int


def tests_of(file: str) -> list[str]:
    """The test files of a source file: those of its area, and the one of its name first, if there is one."""
    path = Path(file).relative_to(SOURCE).with_suffix("").as_posix()
    area = max((start for start in TESTS if path.startswith(start)), key=len)
    names = dict.fromkeys([Path(path).name, *TESTS[area]])
    return [f"tests/test_{name}.py" for name in names if (ROOT / f"tests/test_{name}.py").is_file()]


def all_mutants() -> list[Mutant]:
    """Every mutant of the files of TESTS."""
    mutants = []
    for path in sorted((ROOT / SOURCE).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if any(file.startswith(f"{SOURCE}/{start}") for start in TESTS) and not path.stem.endswith(
            ("config", "configs")
        ):
            nodes = list(ast_nodes(get_ast(path.read_text(encoding="utf-8"))))
            for name in OPERATORS:
                operator = get_operator(name)()
                count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
                mutants += [Mutant(file, name, k) for k in range(count)]
    return mutants


def mutated(mutant: Mutant) -> tuple[str, str]:
    """The text of the file with the change, and the change as `line -> line`."""
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    text = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    pairs = zip(source.splitlines(), text.splitlines(), strict=True)
    before, after = next((a, b) for a, b in pairs if a != b)
    return text, f"{before.strip()}  ->  {after.strip()}"


def copy_of_repository(folder: Path) -> None:
    """Tracked files, and links to the models of the miniature."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for path in (ROOT / "data/miniature-2").iterdir():
        if path.is_dir():
            (folder / "data/miniature-2" / path.name).symlink_to(path.resolve())


def is_killed(mutant: Mutant, folder: Path) -> bool:
    """Whether a test fails, or hangs, with the change in this copy of the repository."""
    file = folder / mutant.file
    original = file.read_text(encoding="utf-8")
    file.write_text(mutated(mutant)[0], encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests_of(mutant.file)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(command, cwd=folder, env=settings, capture_output=True, timeout=LIMIT).returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(original, encoding="utf-8")


def check_unchanged(folder: Path, mutants: list[Mutant]) -> None:
    """Raise SystemExit if a test that is to kill mutants fails without any change."""
    files = sorted(set(itertools.chain.from_iterable(tests_of(mutant.file) for mutant in mutants)))
    if subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", *files], cwd=folder).returncode:
        raise SystemExit("the tests fail without a change; correct that first")


def tried(mutants: list[Mutant], jobs: int, seconds: float) -> Iterator[tuple[Mutant, bool]]:
    """Each mutant, and whether it is killed; those that the time does not suffice for are left out."""
    ends = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as temporary:
        folders: Queue[Path] = Queue()
        for k in range(jobs):
            copy_of_repository(Path(temporary) / str(k))
            folders.put(Path(temporary) / str(k))
        check_unchanged(Path(temporary) / "0", mutants)

        def run(mutant: Mutant) -> bool | None:
            if time.monotonic() > ends:
                return None
            folder = folders.get()
            try:
                return is_killed(mutant, folder)
            finally:
                folders.put(folder)

        with ThreadPoolExecutor(jobs) as pool:
            for mutant, killed in zip(mutants, pool.map(run, mutants), strict=True):
                if killed is not None:
                    yield mutant, killed


def main() -> int:
    """Print each survivor and the share that is killed; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--hours", type=float, default=2.0)
    args = parser.parse_args()
    judged = yaml.safe_load(JUDGED.read_text(encoding="utf-8")) or {}
    chosen = random.Random(args.seed).sample(all_mutants(), args.number)
    killed, unjudged, total = 0, 0, 0
    for mutant, dead in tried(chosen, args.jobs, 3600 * args.hours):
        total, killed = total + 1, killed + dead
        if not dead:
            change = f"{mutant.file}: {mutated(mutant)[1]}"
            unjudged += change not in judged
            print(f"survives: {change}\n    {judged.get(change, 'NOT JUDGED')}", flush=True)
        elif total % 10 == 0:
            print(f"{total} of {len(chosen)}, {killed} killed", flush=True)
    print(f"{killed} of {total} mutants killed ({killed / total:.0%}), {total - killed} survive, {unjudged} not judged")
    return int(killed < LEAST * total or unjudged > 0)


if __name__ == "__main__":
    sys.exit(main())

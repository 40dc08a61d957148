"""Change a sign, comparison or operator of erasers, statistics and sampling, and see whether a test notices.

    make mutants                                     200 seeded mutants, two hours, two at a time
    make mutants ARGS='--hours 0.5 --jobs 1'         as many as half an hour suffices for; run again, it goes on

cosmic-ray makes the mutants. Each is tried in a copy of the repository by the tests that TESTS names for its file. A
mutant that survives must be judged in tests/mutants.yaml: `equivalent`, why no test can or needs to see it, or
`killed_by`, the test that was written for it. Outcomes are kept in --outcomes, and hold as long as the mutated file and
the tests that decided them are unchanged; only the others are tried again.

Tests that fail twice without any change are left out: the end names them, and what survives without them is tried
again by the next run.

Ends with 0 if all are tried, at least 90 % of them are killed, and every survivor is judged equivalent; with 1 if not,
or if tests were left out; with 3 if mutants are left that the time did not suffice for, with --goes-on then with 0. A
mutant that hangs, or that pytest cannot run with, is killed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple
from xml.etree import ElementTree

import yaml

ROOT = Path(__file__).parents[1]
SOURCE = Path("src/resurgence")
JUDGED = ROOT / "tests/mutants.yaml"
OUTCOMES = ROOT / ".venv/mutants.jsonl"
LEAST = 0.9  # share that must be killed
LEFT = 3  # exit status
SLACK = 5.0  # a mutant hangs whose tests take so many times as long as without it, and two minutes
DEAR = ("test_benchmarks.py",)  # the last tests of every file
PAIRS = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "Mod_Add")
COMPARISONS = ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_Gt", "Gt_Lt", "Eq_NotEq", "NotEq_Eq")
OPERATORS = [
    *(f"core/ReplaceBinaryOperator_{pair}" for pair in PAIRS),
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in COMPARISONS),
    "core/ReplaceUnaryOperator_USub_UAdd", "core/ReplaceUnaryOperator_Delete_Not", "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
]  # fmt: skip
PRELOADED = ["pytest", "torch", "diffusers", "transformers", "pandas", "scipy.stats", "pyarrow.parquet"]
TESTS = {  # start of a path below src/resurgence -> more tests than those that import the module; the longest counts
    "erasers/closed_form": ("closed_form", "embedded_once"),
    "erasers/mace": ("mace", "mace_refinement", "embedded_once"),
    "erasers/gradient": ("trainer", "spaces", "esd", "salun"),
    "erasers/lora": ("lora_resume", "lora_plugin", "mace"),
    "erasers/token_sets": ("mace", "token_selection"),
    "erasers/checkpoint": ("checkpoint", "update"),
    "analysis": ("intervals", "tables", "findings", "metric_tables", "success", "figures", "reference_run"),
    "analysis/audit": ("audit_verdict", "audit_pairs", "audit_report", "card", "audit_table"),
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

    id: str  # the same as long as the line is
    file: str
    operator: str
    occurrence: int  # of the operator in the file

    @property
    def text(self) -> str:
        """The file with the change."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        source = (ROOT / self.file).read_text(encoding="utf-8")
        return mutate_code(source, get_operator(self.operator)(), self.occurrence)

    @property
    def change(self) -> str:
        """The changed line before and after."""
        source = (ROOT / self.file).read_text(encoding="utf-8")
        pairs = zip(source.splitlines(), self.text.splitlines(), strict=True)
        return "  ->  ".join(next((a.strip(), b.strip()) for a, b in pairs if a != b))


def area_of(file: str) -> str | None:
    """The key of TESTS for a source file; None if it is in no area, or only declares settings."""
    path = Path(file).relative_to(SOURCE).with_suffix("").as_posix()
    return None if path.endswith(("config", "configs")) else max(filter(path.startswith, TESTS), key=len, default=None)


@functools.cache
def tests_of(file: str) -> list[str]:
    """The test files of a source file, each once: the one of its name, those that import it, those of its area."""
    path = Path(file).relative_to("src")
    package, name = ".".join(path.parent.parts), path.stem
    imports = re.compile(rf"\b(from {re.escape(package)} import .*\b{name}\b|{re.escape(package)}\.{name}\b)")
    texts = {test: test.read_text(encoding="utf-8") for test in sorted((ROOT / "tests").glob("test_*.py"))}
    found = [f"test_{name}.py", *(test.name for test, text in texts.items() if imports.search(text)),
             *(f"test_{area}.py" for area in TESTS[area_of(file) or ""])]  # fmt: skip
    return [f"tests/{test}" for test in dict.fromkeys(found) if (ROOT / "tests" / test).is_file()]


def identity(*parts: str) -> str:
    """Ten hexadecimal digits of a text."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def all_mutants() -> Iterator[Mutant]:
    """Every mutant of the files of TESTS."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    operators = {name: get_operator(name)() for name in OPERATORS}
    for path in sorted((ROOT / SOURCE).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if area_of(file) is None:
            continue
        source = path.read_text(encoding="utf-8")
        lines, nodes, repeats = source.splitlines(), list(ast_nodes(get_ast(source))), Counter[str]()
        for name, operator in operators.items():
            places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
            for occurrence, (line, _) in enumerate(places):
                if name.endswith("Pow_Mul") and not compiles(Mutant("", file, name, occurrence)):
                    continue  # the ** of a call or a dictionary
                key = identity(file, name, lines[line - 1].strip())
                repeats[key] += 1
                yield Mutant(identity(key, str(repeats[key])), file, name, occurrence)


def compiles(mutant: Mutant) -> bool:
    """Whether the changed file is Python at all."""
    try:
        compile(mutant.text, mutant.file, "exec")
    except SyntaxError:
        return False
    return True


def chosen(number: int, seed: int) -> list[Mutant]:
    """A random sample that changes only where the code does: the first by a hash of seed and id, sorted by file."""
    sample = sorted(all_mutants(), key=lambda mutant: identity(str(seed), mutant.id))[:number]
    return sorted(sample, key=lambda mutant: (area_of(mutant.file) or "", mutant.file))


def copy_of_repository(folder: Path) -> None:
    """Tracked files; and links to what git ignores in `data` and `reference`: the shipped world, the stored scores."""

    def listed(*options: str) -> list[str]:
        command = ["git", "ls-files", "-z", *options]
        text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return [name.rstrip("/") for name in filter(None, text.split("\0"))]

    for name in listed():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name in sorted(listed("--others", "--ignored", "--exclude-standard", "--directory", "data", "reference")):
        if not (folder / name).exists():  # of a folder in which all is ignored, git lists the parts, too
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to((ROOT / name).resolve())


def run_pytest(folder: str, arguments: Sequence[str], log: str) -> None:
    """Run tests in a new process that has imported the libraries and not the package; ends with pytest's status, or
    with this tool, however that ends."""
    os.setsid()  # what the tests start ends with them
    threading.Thread(target=end_with_tool, daemon=True).start()
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(Path(folder, "src"))  # else they start the unchanged package
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import pytest

    os._exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]))


def end_with_tool() -> None:
    """Wait until the tool has ended, and end this process with all that it started."""
    if tool := multiprocessing.parent_process():
        multiprocessing.connection.wait([tool.sentinel])
        os.killpg(0, signal.SIGKILL)


def tested(folder: Path, arguments: Sequence[str], limit: float | None = None) -> tuple[int | None, str]:
    """Exit status of pytest in a copy of the repository, None if it hangs, and what it printed."""
    log = folder.with_suffix(".log")
    process = multiprocessing.get_context("forkserver").Process(
        target=run_pytest, args=(str(folder), arguments, str(log))
    )
    process.start()
    process.join(limit)
    status = process.exitcode
    if status is None:
        os.killpg(process.pid or 0, 9)
        process.join()
    return status, log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def digest(file: str, root: Path | None = None) -> str:
    """Of the content of a file of the repository, or of a copy of it."""
    return hashlib.sha256(((root or ROOT) / file).read_bytes()).hexdigest()[:16]


class Outcomes:
    """The file of outcomes: a line for the seconds of a test file without any change, or for a mutant."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        entries = [json.loads(line) for line in lines]
        self.seconds = {e["tests"]: e["seconds"] for e in entries if "tests" in e and self.holds(e)}
        self.mutants = {e["id"]: e for e in entries if "id" in e and self.holds(e) and not e.get("without")}
        self.flaky: list[str] = []  # test files that failed once without a change, and then did not
        self.left_out: dict[str, str] = {}  # test file -> the end of what it printed when it failed without a change
        self.lock = threading.Lock()  # of the file

    @staticmethod
    def holds(entry: dict[str, Any]) -> bool:
        """Whether the files that decided it are unchanged."""
        return all((ROOT / file).is_file() and digest(file) == of for file, of in entry["files"].items())

    def add(self, files: Iterable[str], copy: Path | None = None, **entry: Any) -> None:
        """Append an outcome that these files decided, as they are in the copy in which it was found."""
        entry["files"] = {file: digest(file, copy) for file in files}
        with self.lock, self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")
        if "tests" in entry:
            self.seconds[entry["tests"]] = entry["seconds"]
        else:
            self.mutants[entry["id"]] = entry


def try_unchanged(folder: Path, file: str, outcomes: Outcomes) -> None:
    """Measure a test file that has not been; one that fails without any change is run again, then left out.

    Raises:
        SystemExit: pytest did not run the tests.
    """
    report, output = folder.with_suffix(".xml"), ""
    for attempt in range(2):
        if file in outcomes.seconds or file in outcomes.left_out:
            return
        report.unlink(missing_ok=True)
        start = time.monotonic()
        status, output = tested(folder, [file, "--junitxml", str(report)])
        if status is not None and status > 2:
            raise SystemExit(f"{file}: pytest ended with {status} without a change:\n{output[-3000:]}")
        suites = ElementTree.parse(report).getroot() if report.exists() else []
        failed = sum(int(suite.get(kind, 0)) for suite in suites for kind in ("failures", "errors"))
        if status in (0, 1) and len(suites) and not failed:  # 1 without a failure: over the budget of the tests
            outcomes.add([file], folder, tests=file, seconds=round(time.monotonic() - start, 1))
            outcomes.flaky += [file] * attempt
    if file not in outcomes.seconds:
        outcomes.left_out[file] = output[-3000:]


def killer(status: int | None, output: str) -> str | None:
    """The test that noticed a change, or how the tests ended; None if they did not notice it."""
    if status is None:
        return "hangs"
    if status < 0 or status > 2:  # pytest cannot run the tests, which it could without the change
        return "crashes"
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return found[1] if found else None


def in_order(file: str, seconds: Mapping[str, float]) -> list[str]:
    """The test files of a source file: that of its name, then the quick ones first, unknown and dear ones last."""
    own = f"test_{Path(file).stem}.py"

    def key(test: str) -> tuple[bool, bool, float]:
        name = Path(test).name
        return name != own, name in DEAR, seconds.get(test, math.inf)

    return sorted(tests_of(file), key=key)


def try_mutant(mutant: Mutant, folder: Path, outcomes: Outcomes) -> dict[str, Any] | None:
    """Run its test files with the change in this copy; the outcome, None where the file has changed since the copy."""
    files, without = [f for f in in_order(mutant.file, outcomes.seconds) if (folder / f).is_file()], list[str]()
    place, start, by = folder / mutant.file, time.monotonic(), None
    original, source = place.read_text(encoding="utf-8"), (ROOT / mutant.file).read_text(encoding="utf-8")
    if source != original:
        return None
    changed, change = mutant.text, mutant.change
    for number, file in enumerate(files, 1):
        try_unchanged(folder, file, outcomes)
        if file in outcomes.left_out:
            without.append(file)
            continue
        place.write_text(changed, encoding="utf-8")
        try:
            by = killer(*tested(folder, ["-x", file], 120 + SLACK * outcomes.seconds[file]))
        finally:
            place.write_text(original, encoding="utf-8")
        if by is not None:
            files, without = files[number - 1 : number], []
            break
    return {"id": mutant.id, "file": mutant.file, "change": change, "killed": by is not None, "by": by,
            "seconds": round(time.monotonic() - start, 1), "files": [mutant.file, *files],
            **({"without": without} if without else {})}  # fmt: skip


def try_all(mutants: Sequence[Mutant], outcomes: Outcomes, jobs: int, seconds: float) -> None:
    """Add the outcome of each mutant, as many as the time suffices for."""
    ends = time.monotonic() + seconds
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as temporary:
        folders, numbers = Queue[Path](), itertools.count(1)
        for k in range(jobs):
            copy_of_repository(Path(temporary) / str(k))
            folders.put(Path(temporary) / str(k))

        def run(mutant: Mutant) -> None:
            if time.monotonic() > ends:
                return
            folder = folders.get()
            try:
                if outcome := try_mutant(mutant, folder, outcomes):
                    outcomes.add(copy=folder, **outcome)  # at once: a kill loses only those at work
                    how = f"killed by {outcome['by']}" if outcome["killed"] else "SURVIVES"
                    print(f"{next(numbers)} of {len(mutants)}, {outcome['seconds']:.0f} s: {outcome['id']} "
                          f"{outcome['file']}: {outcome['change']}: {how}", flush=True)  # fmt: skip
            finally:
                folders.put(folder)

        with ThreadPoolExecutor(jobs) as pool:
            for _ in pool.map(run, mutants):
                pass  # raises what a mutant raised, and ends the others


def report(mutants: Sequence[Mutant], outcomes: Outcomes, judged: Sequence[dict[str, str]]) -> int:
    """Print the survivors and the share that is killed; the exit status."""
    known = {entry["id"]: entry for entry in judged}
    found = [outcomes.mutants[mutant.id] for mutant in mutants if mutant.id in outcomes.mutants]
    alive = [outcome for outcome in found if not outcome["killed"]]
    for outcome in alive:
        why = known.get(outcome["id"], {}).get("equivalent", "NOT JUDGED")
        why += "".join(f"; without {test}" for test in outcome.get("without", ()))
        print(f"survives: {outcome['id']} {outcome['file']}: {outcome['change']}\n    {why}")
    unjudged = sum("equivalent" not in known.get(outcome["id"], {}) for outcome in alive)
    killed, left = len(found) - len(alive), len(mutants) - len(found)
    for test in outcomes.flaky:
        print(f"flaky: {test} failed once without a change")
    for test, output in outcomes.left_out.items():
        print(f"LEFT OUT: {test} fails without a change; correct that\n{output}")
    share = f" ({killed / len(found):.0%})" if found else ""
    print(f"{killed} of {len(found)} mutants killed{share}, {len(alive)} survive, {unjudged} of them not judged "
          f"equivalent; {left} not tried; {len(outcomes.left_out)} test files left out")  # fmt: skip
    if killed < LEAST * len(found) or unjudged or outcomes.left_out:
        return 1
    return LEFT if left else 0


def main() -> int:
    """Try the mutants whose outcome is not known; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--outcomes", type=Path, default=OUTCOMES, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="ID", help="try these again, whatever their outcome was")
    parser.add_argument("--goes-on", action="store_true", help="mutants that are left are no failure")
    args = parser.parse_args()
    outcomes, mutants = Outcomes(args.outcomes), chosen(args.number, args.seed)
    new = [m for m in mutants if (m.id in args.only if args.only else m.id not in outcomes.mutants)]
    if new:
        try_all(new, outcomes, args.jobs, 3600 * args.hours)
    status = report(mutants, outcomes, yaml.safe_load(JUDGED.read_text(encoding="utf-8")) or [])
    return 0 if status == LEFT and args.goes_on else status


if __name__ == "__main__":
    sys.exit(main())

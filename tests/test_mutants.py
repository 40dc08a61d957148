"""The mutants of tools/mutants.py: the list of those judged, the copies they are tried in, and the outcomes kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutants
import pytest
import yaml

JUDGED = yaml.safe_load(mutants.JUDGED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("entry", JUDGED, ids=lambda entry: entry["id"])
def test_a_judged_mutant_is_of_a_line_that_is_there_and_says_why(entry: dict[str, str]) -> None:
    before, _, after = entry["change"].partition("  ->  ")
    lines = (mutants.ROOT / entry["file"]).read_text(encoding="utf-8").splitlines()
    assert before in [line.strip() for line in lines] and after not in (before, "")
    (why,) = entry.keys() - {"id", "file", "change"}
    if why == "killed_by":
        file, _, name = entry[why].partition("::")
        text = (mutants.ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {re.escape(name)}\(", text, re.MULTILINE)
    else:
        assert why == "equivalent" and len(entry[why]) > 20


def test_each_mutant_is_judged_once() -> None:
    names = [entry["id"] for entry in JUDGED]
    assert len(names) == len(set(names))


def test_areas_and_their_tests_exist() -> None:
    for start, names in mutants.TESTS.items():
        found = list((mutants.ROOT / mutants.SOURCE).glob(f"{start}*"))
        assert found and all((mutants.ROOT / f"tests/test_{name}.py").is_file() for name in names), start
    assert mutants.area_of("src/resurgence/analysis/audit/verdict.py") == "analysis/audit"
    assert mutants.area_of("src/resurgence/erasers/mace/config.py") is None
    assert mutants.area_of("src/resurgence/cli/main.py") is None
    own, *others = mutants.tests_of("src/resurgence/analysis/random_effects.py")
    assert own == "tests/test_findings.py" and {"tests/test_intervals.py", "tests/test_reference_run.py"} <= set(others)
    assert mutants.tests_of("src/resurgence/erasers/gradient/esd.py")[0] == "tests/test_esd.py"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository of one function with a test that misses one of its two mutants."""
    root = tmp_path / "repository"
    texts = {
        "pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['src']\n",
        ".gitignore": "base\nscores\n",
        "src/resurgence/__init__.py": "",
        "src/resurgence/analysis/__init__.py": "",
        "src/resurgence/analysis/small.py": "def larger(a, b):\n    return a if a > b else b\n",
        "tests/test_small.py": "from resurgence.analysis.small import larger\n\n\n"
        "def test_larger():\n    assert larger(1, 2) == 2 and larger(4, 3) == 4\n",
        "data/world/quality/base.csv": "tracked\n",
        "data/world/base/weights": "shipped\n",
        "reference/run/results/made.json": "{}\n",
        "reference/run/results/scores/scores.parquet": "stored\n",
        "reference/whole/scores/scores.parquet": "stored\n",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    monkeypatch.setattr(mutants, "ROOT", root)
    monkeypatch.setattr(mutants, "TESTS", {"analysis": ("small",)})
    monkeypatch.setattr(mutants, "PRELOADED", [])
    mutants.tests_of.cache_clear()
    yield root
    mutants.tests_of.cache_clear()


def test_a_copy_has_what_is_tracked_and_links_to_what_is_ignored(repository: Path, tmp_path: Path) -> None:
    (repository / "tests/test_small.py").unlink()  # tracked, and deleted since
    copy = tmp_path / "copy"
    mutants.copy_of_repository(copy)
    assert (copy / "data/world/quality/base.csv").read_text() == "tracked\n"
    assert not (copy / "data/world/quality").is_symlink() and not (copy / "src").is_symlink()
    for name in ("data/world/base", "reference/run/results/scores"):
        assert (copy / name).is_symlink() and (copy / name).resolve() == repository / name
    assert (copy / "reference/whole/scores/scores.parquet").read_text() == "stored\n"
    assert not (copy / "tests/test_small.py").exists() and not (copy / ".git").exists()


def test_outcomes_hold_as_long_as_their_files_are_unchanged(repository: Path, tmp_path: Path) -> None:
    file, source, tests = tmp_path / "outcomes.jsonl", "src/resurgence/analysis/small.py", "tests/test_small.py"
    outcomes = mutants.Outcomes(file)
    outcomes.add([tests], tests=tests, seconds=2.5)
    outcomes.add([source, tests], id="a", killed=True)
    outcomes.add([source], id="b", killed=False)
    again = mutants.Outcomes(file)
    assert again.seconds == {tests: 2.5} and again.mutants.keys() == {"a", "b"}
    (repository / tests).write_text("")
    assert mutants.Outcomes(file).seconds == {} and mutants.Outcomes(file).mutants.keys() == {"b"}
    (repository / source).unlink()
    assert mutants.Outcomes(file).mutants == {}


def test_one_mutant_dies_and_one_survives(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cosmic_ray", reason="make mutants installs it")
    found = mutants.chosen(9, 0)
    changes = {mutant.change.partition("  ->  ")[2]: mutant.id for mutant in found}
    equal, smaller = changes["return a if a >= b else b"], changes["return a if a < b else b"]
    assert len(found) == 2 and mutants.chosen(9, 0) == found and mutants.chosen(1, 0)[0] in found
    outcomes = mutants.Outcomes(tmp_path / "outcomes.jsonl")
    mutants.try_all(found, outcomes, 1, 0)
    assert outcomes.mutants == {} and mutants.report(found, outcomes, []) == 3  # no time
    mutants.try_all(found, outcomes, 1, 600)
    assert {name: outcome["killed"] for name, outcome in outcomes.mutants.items()} == {equal: False, smaller: True}
    assert outcomes.mutants[smaller]["by"] == "tests/test_small.py::test_larger"
    assert (repository / "src/resurgence/analysis/small.py").read_text().count("a > b") == 1
    assert mutants.report(found, outcomes, []) == 1
    assert "NOT JUDGED" in capsys.readouterr().out
    assert mutants.report(found, outcomes, [{"id": equal, "equivalent": "of equal ones either is the larger"}]) == 1
    assert "1 of 2 mutants killed (50%), 1 survive, 0 of them not judged" in capsys.readouterr().out
    outcomes.mutants[equal]["killed"] = True
    assert mutants.report(found, outcomes, []) == 0
    lines = [json.loads(line) for line in outcomes.file.read_text().splitlines()]
    assert [set(line["files"]) for line in lines if line.get("id")] == [
        {"src/resurgence/analysis/small.py", "tests/test_small.py"}
    ] * 2


FLAKY = """from pathlib import Path


def test_flaky():
    marks = Path("runs")
    marks.write_text(marks.read_text() + "x" if marks.exists() else "x")
    assert len(marks.read_text()) > FAILURES
"""


@pytest.mark.parametrize(("failures", "known", "flaky"), [(0, True, False), (1, True, True), (9, False, False)])
def test_tests_that_fail_unchanged_are_run_again_and_then_left_out(
    repository: Path, tmp_path: Path, failures: int, known: bool, flaky: bool
) -> None:
    file, outcomes = "tests/test_small.py", mutants.Outcomes(tmp_path / "outcomes.jsonl")
    (repository / file).write_text(FLAKY.replace("FAILURES", str(failures)))
    mutants.copy_of_repository(tmp_path / "copy")
    for _ in range(2):  # the second has nothing to do
        mutants.try_unchanged(tmp_path / "copy", file, outcomes)
        assert len((tmp_path / "copy/runs").read_text()) == min(failures + 1, 2)
    assert (file in outcomes.seconds, outcomes.flaky == [file]) == (known, flaky)
    assert list(outcomes.left_out) == ([] if known else [file])
    if not known:
        assert "test_flaky" in outcomes.left_out[file]


def test_tests_that_pytest_cannot_run_unchanged_end_all(repository: Path, tmp_path: Path) -> None:
    (repository / "tests/test_small.py").write_text("no_test = 1\n")
    outcomes = mutants.Outcomes(tmp_path / "outcomes.jsonl")
    mutants.copy_of_repository(tmp_path / "copy")
    with pytest.raises(SystemExit, match=r"tests/test_small\.py: pytest ended with 5 without a change"):
        mutants.try_unchanged(tmp_path / "copy", "tests/test_small.py", outcomes)
    assert not outcomes.seconds and not outcomes.left_out


@pytest.mark.parametrize(
    ("status", "output", "by"),
    [(0, "", None), (1, "", None), (None, "", "hangs"), (-11, "", "crashes"), (3, "INTERNALERROR", "crashes"),
     (4, "ImportError while loading conftest", "crashes"), (5, "no tests ran", "crashes"),
     (1, "x\nFAILED tests/test_a.py::test_b - assert 0", "tests/test_a.py::test_b"),
     (2, "ERROR tests/test_a.py - NameError", "tests/test_a.py")],
)  # fmt: skip
def test_what_killed_a_mutant(status: int | None, output: str, by: str | None) -> None:
    assert mutants.killer(status, output) == by


def test_order_of_the_tests() -> None:
    fusion = "src/resurgence/erasers/mace/fusion.py"
    assert "tests/test_benchmarks.py" in mutants.tests_of(fusion)
    assert mutants.in_order(fusion, {})[0] == "tests/test_mace.py"
    seconds = {"tests/test_benchmarks.py": 1.0, "tests/test_mace.py": 30.0, "tests/test_embedded_once.py": 20.0}
    assert mutants.in_order(fusion, seconds) == [
        f"tests/test_{name}.py" for name in ("embedded_once", "mace", "mace_refinement", "benchmarks")
    ]
    own = mutants.in_order("src/resurgence/erasers/closed_form/uce.py", {"tests/test_rece.py": 1.0})
    assert own[:2] == ["tests/test_uce.py", "tests/test_rece.py"] and len(set(own)) == len(own)


class Changed(mutants.Mutant):
    """A mutant that needs no cosmic-ray: the smaller of two."""

    @property
    def text(self) -> str:
        return (mutants.ROOT / self.file).read_text().replace("a > b", "a < b")


def test_what_survives_without_tests_that_were_left_out_is_told_and_tried_again(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mutant = Changed("id", "src/resurgence/analysis/small.py", "", 0)
    failing, outcomes = repository / "tests/test_broken.py", mutants.Outcomes(tmp_path / "outcomes.jsonl")
    noticing = (repository / "tests/test_small.py").read_text()
    failing.write_text("from resurgence.analysis.small import larger\n\n\ndef test_broken():\n    assert not larger\n")
    (repository / "tests/test_small.py").write_text("def test_nothing():\n    pass\n")
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    mutants.try_all([mutant], outcomes, 1, 600)
    assert outcomes.mutants["id"]["killed"] is False and outcomes.mutants["id"]["without"] == ["tests/test_broken.py"]
    assert mutants.report([mutant], outcomes, [{"id": "id", "equivalent": "either is as good as the other"}]) == 1
    told = capsys.readouterr().out
    assert "; without tests/test_broken.py" in told and "LEFT OUT: tests/test_broken.py fails without a change" in told
    assert "1 test files left out" in told and mutants.Outcomes(outcomes.file).mutants == {}

    (repository / "tests/test_small.py").write_text(noticing)  # a mutant that dies needs none of them; still told
    mutants.tests_of.cache_clear()
    again = mutants.Outcomes(outcomes.file)
    mutants.try_all([mutant], again, 1, 600)
    assert again.mutants["id"]["killed"] and "without" not in again.mutants["id"]
    assert mutants.report([mutant], again, []) == (1 if again.left_out else 0)
    assert mutants.Outcomes(outcomes.file).mutants.keys() == {"id"}


def test_what_changes_during_a_run_makes_no_outcome_of_the_changed_files(repository: Path, tmp_path: Path) -> None:
    mutant = Changed("id", "src/resurgence/analysis/small.py", "", 0)
    outcomes, copy = mutants.Outcomes(tmp_path / "outcomes.jsonl"), tmp_path / "copy"
    mutants.copy_of_repository(copy)
    (repository / "tests/test_small.py").write_text("def test_nothing():\n    pass\n")
    found = mutants.try_mutant(mutant, copy, outcomes)
    assert found is not None and found["killed"]
    outcomes.add(copy=copy, **found)
    again = mutants.Outcomes(outcomes.file)
    assert again.mutants == {} and again.seconds == {}
    source = repository / "src/resurgence/analysis/small.py"
    source.write_text(source.read_text() + "\n# other lines\n")
    assert mutants.try_mutant(mutant, copy, outcomes) is None


def test_an_outcome_is_kept_while_an_earlier_mutant_is_at_work(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, file = mutants.Outcomes(tmp_path / "outcomes.jsonl"), "src/resurgence/analysis/small.py"

    def tried(mutant: mutants.Mutant, folder: Path, _: mutants.Outcomes) -> dict[str, Any]:
        ends = time.monotonic() + 20
        while mutant.id == "slow" and "quick" not in outcomes.mutants and time.monotonic() < ends:
            time.sleep(0.05)
        kept = ["quick"] if "quick" in outcomes.mutants else []
        return {"id": mutant.id, "file": file, "change": "", "killed": True, "by": kept, "seconds": 0, "files": [file]}

    monkeypatch.setattr(mutants, "try_mutant", tried)
    mutants.try_all([mutants.Mutant(name, file, "", 0) for name in ("slow", "quick")], outcomes, 2, 600)
    assert outcomes.mutants["slow"]["by"] == ["quick"]


IMPORTING = """import subprocess
import sys
from pathlib import Path


def test_imports():
    line = [sys.executable, "-c", "import resurgence; print(resurgence.__file__)"]
    found = subprocess.run(line, cwd="/", capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()) == Path("src/resurgence/__init__.py").resolve()
"""


def test_what_a_test_starts_has_the_changed_package(repository: Path, tmp_path: Path) -> None:
    (repository / "tests/test_small.py").write_text(IMPORTING)
    mutants.copy_of_repository(tmp_path / "copy")
    status, output = mutants.tested(tmp_path / "copy", ["tests/test_small.py"])
    assert status == 0, output


HANGING = """import os
import time
from pathlib import Path


def test_hangs():
    Path("process.tmp").write_text(str(os.getpid()))
    Path("process.tmp").rename("process")
    time.sleep(600)
"""
TRIED = """import sys
from pathlib import Path

sys.path.insert(0, {tools!r})
import mutants

if __name__ == "__main__":
    mutants.tested(Path({copy!r}), ["tests/test_small.py"])
"""


def test_tests_end_with_a_run_that_is_killed(repository: Path, tmp_path: Path) -> None:
    (repository / "tests/test_small.py").write_text(HANGING)
    copy, script = tmp_path / "copy", tmp_path / "tried.py"
    mutants.copy_of_repository(copy)
    script.write_text(TRIED.format(tools=str(Path(mutants.__file__).parent), copy=str(copy)))
    run = subprocess.Popen([sys.executable, str(script)])
    try:
        assert within(240, (copy / "process").is_file)
        state = Path("/proc", (copy / "process").read_text(), "stat")
        assert runs(state)
    finally:
        run.kill()
        run.wait()
    assert within(60, lambda: not runs(state))


def runs(state: Path) -> bool:
    """Whether a process is there and has not ended, by its file `stat`."""
    try:
        return state.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    """Whether something comes to be so in time."""
    ends = time.monotonic() + seconds
    while not is_so() and time.monotonic() < ends:
        time.sleep(0.1)
    return is_so()


def test_mutants_that_are_left_are_no_failure_where_the_next_run_goes_on(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "chosen", lambda number, seed: [mutants.Mutant("id", "small.py", "", 0)])
    monkeypatch.setattr(mutants, "JUDGED", tmp_path / "judged.yaml")
    mutants.JUDGED.write_text("[]")
    command = ["mutants.py", "--hours", "0", "--outcomes", str(tmp_path / "outcomes.jsonl")]
    for arguments, status in (([], 3), (["--goes-on"], 0)):
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        assert mutants.main() == status

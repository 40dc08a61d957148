"""What adopt says of results: fresh, stale with the first difference, damaged, missing, and all that follows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resurgence.config.fields import ConfigError
from resurgence.files import sha256
from resurgence.provenance.manifest import MANIFEST, RUN, described, read_manifest, write_artefact, write_made
from resurgence.provenance.runs import RECORD, record, restore, run_of
from resurgence.workflow.adopt import changes, judge
from resurgence.workflow.jobs import Job
from resurgence.workflow.rule_table import RULES
from resurgence.workflow.snakemake import check_package
from resurgence.workflow.stage_digests import digests

RAW = Path("raw.txt")
ONE, TWO = (Path(f"results/data/{name}/manifest.json") for name in ("one", "two"))
TABLE, FIGURE = Path("results/tables/made.json"), Path("results/figures/made.json")


def job(out: Path, settings: dict, code: str, *inputs: Path) -> Job:
    return Job(RULES["prompts"], {}, out, settings, {"read": [path.as_posix() for path in inputs]}, code)


def plan(one: dict | None = None, table: dict | None = None, code: str = "1") -> list[Job]:
    """one -> two -> a table of two -> a figure of the table; `code` is the version of the first."""
    return [
        job(ONE, one or {"lr": 1.0, "task": {"erase": ["ship"]}}, code, RAW),
        job(TWO, {"n": 1}, "1", ONE),
        job(TABLE, table or {"level": 0.95}, "1", TWO),
        job(FIGURE, {}, "1", Path("results/tables/cells.csv")),
    ]


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plan, carried out."""
    monkeypatch.chdir(tmp_path)
    RAW.write_text("raw")
    for one in plan():
        run = {"code": one.code}
        if one.out.name == MANIFEST:
            with write_artefact(one.out.parent, "part", one.settings, one.digested, {}, run) as folder:
                (folder / "part.txt").write_text(one.out.as_posix())
            continue
        file = one.out.parent / ("cells.csv" if one.out == TABLE else "a.png")
        file.parent.mkdir(parents=True)
        file.write_text("1")
        write_made(one.out, described("tables", one.settings, one.digested, {}), [file], 0.0, run)
    return tmp_path


def states(jobs: list[Job] | None = None) -> list[str]:
    return [verdict.state for verdict in judge(jobs or plan()).values()]


def test_all_is_fresh(done: Path) -> None:
    assert states() == ["fresh"] * 4


def test_a_changed_setting_is_named_and_followed(done: Path) -> None:
    found = judge(plan(one={"lr": 2.0, "task": {"erase": ["ship"]}}))
    assert found[ONE] == ("stale", "lr: 1.0 -> 2.0")
    assert found[TWO] == ("stale", "computed from results/data/one")
    assert found[TABLE] == ("stale", "computed from results/data/two")
    assert found[FIGURE] == ("stale", "computed from results/tables")
    assert states(plan(table={"level": 0.9})) == ["fresh", "fresh", "stale", "stale"]


def flip_part() -> None:
    (TWO.parent / "part.txt").write_text("other")


def change_table() -> None:
    (TABLE.parent / "cells.csv").write_text("2")


CASES: dict[str, tuple[Callable[[], object], list[str], Path, str]] = {
    "input": (lambda: RAW.write_text("new"), ["stale"] * 4, ONE, "input raw.txt has changed"),
    "no input": (RAW.unlink, ["stale"] * 4, ONE, "raw.txt is missing"),
    "file": (flip_part, ["fresh", "damaged", "stale", "stale"], TWO, "part.txt has changed"),
    "manifest": (lambda: TWO.write_text("{"), ["fresh", "damaged", "stale", "stale"], TWO, "is damaged"),
    "table": (change_table, ["fresh", "fresh", "damaged", "stale"], TABLE, "cells.csv has changed"),
    "made": (lambda: TABLE.write_text("{"), ["fresh", "fresh", "damaged", "stale"], TABLE, "is damaged"),
    "nothing": (lambda: shutil.rmtree(TWO.parent), ["fresh", "missing", "stale", "stale"], TWO, "is missing"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_as_it_was(done: Path, name: str) -> None:
    change, wanted, place, why = CASES[name]
    change()
    assert states() == wanted and why in judge(plan())[place].why


def test_inputs_that_come_and_go_are_named(done: Path) -> None:
    Path("more.txt").write_text("1")
    jobs = plan()
    first = jobs[0]
    more = dataclasses.replace(first, inputs={"read": ["raw.txt", "more.txt"]})
    assert judge([more, *jobs[1:]])[ONE].why == "input more.txt is new"
    assert judge([dataclasses.replace(first, inputs={}), *jobs[1:]])[ONE].why == "input raw.txt is no longer read"


def test_changed_code_is_named_and_unknown_code_is_not_compared(done: Path) -> None:
    found = judge(plan(code="2"))
    assert found[ONE] == ("stale", "its code has changed: version 1 -> 2") and found[FIGURE].state == "stale"
    (ONE.parent / RUN).unlink()
    assert states(plan(code="2")) == ["fresh"] * 4


def test_a_study_finished_before_format_2_is_taken_over(done: Path) -> None:
    """Methods are named by module there, sources are listed, and no run says a version of the code."""
    settings = {"method": "mace-refinement", "settings": {"lamb": 1.0}}
    jobs = [dataclasses.replace(plan()[0], settings=settings), *plan()[1:]]
    old = read_manifest(ONE) | {"sources": {"resurgence/erasers/mace_refinement.py": "0"}}
    old["parameters"] = settings | {"method": "resurgence.erasers.mace_refinement"}
    del old["format"]
    ONE.write_text(json.dumps(old))
    two = read_manifest(TWO)
    TWO.write_text(json.dumps(two | {"inputs": {ONE.as_posix(): sha256(ONE)}}))
    table = read_manifest(TABLE)
    TABLE.write_text(json.dumps(table | {"inputs": {TWO.as_posix(): sha256(TWO)}}))
    figure = read_manifest(FIGURE)
    del figure["format"]
    FIGURE.write_text(json.dumps(figure | {"inputs": figure["inputs"] | {TABLE.as_posix(): "0"}}))
    assert states(jobs) == ["fresh"] * 4
    ONE.write_text(json.dumps(old | {"kind": "concept LoRAs", "parameters": {"settings": settings["settings"]}}))
    jobs[0] = dataclasses.replace(jobs[0], settings=settings | {"method": "mace"})
    assert judge(jobs)[ONE].state == "fresh"
    ONE.write_text(json.dumps(old))
    assert judge(jobs)[ONE].why == "method: 'mace-refinement' -> 'mace'"


def test_expected_digests_change_exactly_where_something_does(done: Path) -> None:
    before = list(digests(plan()).values())
    shutil.rmtree("results")  # nothing is read from the results
    assert list(digests(plan()).values()) == before

    def same(jobs: list[Job]) -> list[bool]:
        return [now == then for now, then in zip(digests(jobs).values(), before, strict=True)]

    assert same(plan(one={"lr": 2.0})) == [False] * 4
    assert same(plan(table={"level": 0.9})) == [True, True, False, False]
    RAW.write_text("new")
    assert same(plan()) == [False] * 4
    RAW.write_text("raw")
    assert same(plan(code="2")) == [False] * 4


def test_changes_of_nested_settings() -> None:
    old, new = {"a": {"b": [1, 2], "c": None}, "d": 1}, {"a": {"b": [1, 3], "c": None, "e": 5}, "d": 1}
    assert list(changes(old, new)) == ["a.b: [1, 2] -> [1, 3]", "a.e: None -> 5"]
    assert list(changes(old, old)) == []


def test_the_package_must_be_that_of_the_folder(tmp_path: Path) -> None:
    check_package(tmp_path)
    (tmp_path / "src/resurgence").mkdir(parents=True)
    with pytest.raises(ConfigError, match="another package"):
        check_package(tmp_path)


def test_runs_come_back_only_to_the_manifest_that_they_belong_to(done: Path) -> None:
    kept = record([ONE.parent, TWO.parent])
    RECORD.parent.mkdir()
    RECORD.write_text(json.dumps(kept))
    assert kept[ONE.parent.as_posix()]["manifest"] == sha256(ONE)
    assert restore() == 0  # all are there
    (ONE.parent / RUN).unlink()
    assert run_of(ONE.parent) == kept[ONE.parent.as_posix()]
    TWO.write_text(TWO.read_text() + " ")
    (TWO.parent / RUN).unlink()
    assert run_of(TWO.parent) == {} and restore() == 1
    assert (ONE.parent / RUN).is_file() and not (TWO.parent / RUN).exists()

"""DVC carries the small study: clone, pull, adopt; what a change affects; the data that the repository ships."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from tree import ROOT, Tree, clone, messages, once
from versioned import STAGES, Repository, make_repository

from resurgence.config.load import load_study
from resurgence.provenance.manifest import as_written, read_manifest
from resurgence.workflow.jobs import jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NOTHING = "Nothing to be done"
CLEAN = "Data and pipelines are up to date"
PRESENTED = [f"{name} of the study" for name in ("Cost", "Figures", "Page", "Report", "Tables")]


@pytest.fixture(scope="session")
def pushed(finished: tuple[Tree, str], tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The finished study as a repository, pushed to a remote folder. Not to be changed."""

    def make(place: Path) -> str:
        make_repository(finished[0], place / "first", place / "remote")
        return ""

    return Repository(once(tmp_path_factory, "versioned", make)[0] / "first")


@pytest.fixture(scope="session")
def adopted(pushed: Repository, tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, str]:
    """A fresh clone after pull and adopt, and what adopt said. Not to be changed: see `second`."""

    def make(place: Path) -> str:
        tree = pushed.clone(place / "tree")
        tree.dvc("pull")
        return tree.resurgence("adopt")

    place, told = once(tmp_path_factory, "adopted", make)
    return Repository(place / "tree"), told


@pytest.fixture
def second(adopted: tuple[Repository, str], tmp_path: Path) -> Repository:
    """A copy of the clone, to be changed."""
    return Repository(clone(adopted[0].root, tmp_path / "tree"))


def stage_of(tree: Repository) -> dict[Path, str]:
    """Output of each job of the study -> its stage."""
    with contextlib.chdir(tree.root):
        return {job.out: job.rule.dvc_stage for job in jobs(load_study([Path("params.yaml")]))}


def to_run(tree: Repository, *arguments: str) -> set[Path]:
    """Declared outputs of the jobs that Snakemake would run."""
    return {Path(out) for out in re.findall(r" --out (\S+)", tree.run("snakemake", "-n", "-p", *arguments))}


def stages_to_run(tree: Repository) -> set[str]:
    """Stages of the jobs that Snakemake would run."""
    stages = stage_of(tree)
    return {stages[out] for out in to_run(tree)}


def flip(file: Path) -> None:
    """Change one byte; size, permissions and time of change stay."""
    before, mode = file.stat(), file.stat().st_mode
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.chmod(mode)


def test_clone_pull_adopt_and_nothing_is_left_to_do(adopted: tuple[Repository, str]) -> None:
    tree, told = adopted
    assert "27 of 27 results are up to date; 21 run.json restored" in told
    assert NOTHING in tree.run("snakemake", "-n")
    assert CLEAN in tree.dvc("status")
    assert "are as they were written" in tree.resurgence("verify", "results")


def test_lock_is_short_and_stages_hold_few_files(pushed: Repository) -> None:
    text = (pushed.root / "dvc.lock").read_text()
    assert len(text.splitlines()) < 210
    outs = [out for stage in yaml.safe_load(text)["stages"].values() for out in stage["outs"]]
    assert {Path(out["path"]).parts[0] for out in outs} == {"results"}
    assert max(out.get("nfiles", 1) for out in outs) < 100


@pytest.mark.nightly
def test_outputs_of_each_stage_are_those_of_its_target(pushed: Repository) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["expected", *STAGES]
    stage, made = stage_of(pushed), set[Path]()
    for name in STAGES:
        words = stages[name]["cmd"].split()
        run = to_run(pushed, "-F", "--", words[words.index("--") + 1])
        own = {out for out in stage if stage[out] == name}
        assert own <= run and run - made >= own, name
        made |= own
        assert {stage[out] for out in run} <= set(STAGES[: STAGES.index(name) + 1])
        outs = [next(iter(out)) for out in stages[name]["outs"]]
        assert {out for out in outs if not out.endswith(".html")} == {str(Path(*p.parts[:2])) for p in own}
        assert all(out[next(iter(out))]["persist"] for out in stages[name]["outs"])
    assert made == set(stage)


FROM = {stage: set(STAGES[number:]) for number, stage in enumerate(STAGES)}  # a stage and all after it
SEEN: dict[str, tuple[str, str, str, set[str]]] = {
    "statistic": ("params.yaml", "resamples: 100", "resamples: 120", {"tables"}),
    "code": (
        "src/resurgence/scorers/clip.py",
        "LOGIT_SCALE = 100.0",
        "LOGIT_SCALE = 99.0",
        FROM["scores"],
    ),
    "task": ("data/small/tasks/pets.yaml", "erase: 2, retain: 2", "erase: 3, retain: 2", {"data", *FROM["images"]}),
    "device": ("params.yaml", "device: cpu", "device: auto", set()),
    "fine-tune": ("params.yaml", "    lr: 0.002", "    lr: 0.004", FROM["finetuned"]),
    "eraser": ("params.yaml", "lamb: 1.0", "lamb: 2.0", FROM["erased"]),
}


def seen_by_both(tree: Repository, names: list[str]) -> None:
    """One value or line at a time, taken back afterwards; then nothing is left to do."""
    for name in names:
        path, old, new, affected = SEEN[name]
        file = tree.root / path
        text = file.read_text()
        assert old in text, old
        file.write_text(text.replace(old, new, 1))
        assert stages_to_run(tree) == affected, new
        tree.dvc("repro", "expected")
        assert set(tree.changed()) == affected, new
        file.write_text(text)
    tree.dvc("repro", "expected")
    assert CLEAN in tree.dvc("status") and stages_to_run(tree) == set()


@pytest.mark.nightly
def test_a_change_is_seen_by_both(second: Repository) -> None:
    """On a fresh clone: of a setting, of the code, and of a file that a job reads."""
    seen_by_both(second, ["statistic", "code", "task"])


@pytest.mark.nightly
def test_other_changes_are_seen_by_both(second: Repository) -> None:
    seen_by_both(second, ["device", "fine-tune", "eraser"])


def test_a_value_changed_before_adopting_is_named(pushed: Repository, tmp_path: Path) -> None:
    tree = pushed.clone(tmp_path / "tree")
    tree.dvc("pull")
    tree.edit("params.yaml", "resamples: 100", "resamples: 120")
    tree.edit("data/small/general.txt", "the queen on the street", "the king on the street")
    told = tree.resurgence("adopt")
    assert "stale    results/data/small/pets/moments" not in told
    assert "stale    results/data/small/moments: input data/small/general.txt has changed" in told
    assert "stale    results/tables/made.json: statistics.resamples: 100 -> 120" in told
    stale = {line.split()[1].rstrip(":") for line in told.splitlines() if line.startswith("stale")}
    assert {out.as_posix().removesuffix("/manifest.json") for out in to_run(tree)} == stale


def test_repro_runs_only_what_is_affected_and_travels(second: Repository, pushed: Repository, tmp_path: Path) -> None:
    second.edit("params.yaml", "resamples: 100", "resamples: 120")
    told = second.dvc("repro")
    running = {line.split("'")[1] for line in told.splitlines() if line.startswith("Running stage")}
    assert running == {"expected", "tables"} and messages(told) == PRESENTED
    assert CLEAN in second.dvc("status") and stages_to_run(second) == set()
    assert "metrics.json" in second.dvc("metrics", "show")
    assert "results/tables/resurgence.csv" in (second.dvc("plots", "diff", "HEAD", "--json"))
    second.dvc("push")
    second.commit()

    third = second.clone(tmp_path / "third")
    third.dvc("pull")
    assert "27 of 27 results are up to date" in third.resurgence("adopt")
    assert stages_to_run(third) == set() and CLEAN in third.dvc("status")
    every = [p.relative_to(second.root) for p in (second.root / "results").rglob("*") if p.is_file()]
    kept = [p for p in every if "benchmarks" not in p.parts and not p.name.endswith("run.json")]
    assert len(kept) > 60
    for path in kept:
        assert (second.root / path).read_bytes() == (third.root / path).read_bytes(), path


def named_by_adopt(tree: Repository) -> None:
    """Adopt names the image set and what was made from it; nothing of that counts as up to date."""
    told = tree.resurgence("adopt")
    assert "damaged  results/images/small/pets/uce/s0/images" in told and "has changed since" in told
    assert "stale    results/scores/small/pets/uce/s0/scores: computed from results/images" in told
    wanted = {"Sample pets/uce/s0", "Score the images of pets/uce/s0", "Grids of images and masks", *PRESENTED}
    assert set(messages(tree.run("snakemake", "-n"))) == wanted


@pytest.mark.nightly
def test_flipped_byte_in_the_workspace(second: Repository) -> None:
    flip(second.root / "results/images/small/pets/uce/s0/images/step-000000.parquet")
    assert "has changed since it was written" in second.resurgence("verify", "results", check=False)
    named_by_adopt(second)
    assert "results/images" in second.changed()["images"]
    second.dvc("checkout", "--force")  # puts it back
    assert "27 of 27" in second.resurgence("adopt") and stages_to_run(second) == set()


def test_pulling_the_world_needs_no_other_remote(pushed: Repository, tmp_path: Path) -> None:
    tree = pushed.clone(tmp_path / "tree")
    tree.dvc("remote", "remove", "storage")
    tree.dvc("pull", "data/small/dvc.yaml")
    assert (tree.root / "data/small/base/model_index.json").is_file()
    assert "no remote" in tree.dvc("push", check=False).lower()


def test_pull_on_a_fresh_clone_brings_what_the_repository_ships(tmp_path: Path) -> None:
    """Plain `dvc pull`, before any study has run and without a remote of the user: the world and the reference."""
    tree = Repository(tmp_path / "tree")
    shipped = ("data/miniature", "data/miniature-2", "reference/miniature-full")
    for name in (
        ".dvc/config",
        ".dvcignore",
        "dvc.yaml",
        *(f"{d}/dvc.{kind}" for d in shipped for kind in ("yaml", "lock")),
    ):
        (tree.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree.root / name)
    (tree.root / "shipped").symlink_to(ROOT / "shipped")
    tree.run("git", "init", "--quiet")
    tree.dvc("pull")
    assert all((tree.root / f"{world}/base/model_index.json").is_file() for world in shipped[:2])
    reference = ROOT / "reference/miniature-full/results"
    files = read_manifest(reference / "made.json")["files"]
    assert len(files) == 3 and as_written(tree.root / reference.relative_to(ROOT), files) == []
    assert "dvc-ignored" in tree.dvc("repro", check=False)  # until the study is versioned

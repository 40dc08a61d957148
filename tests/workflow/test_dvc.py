"""DVC carries the small study: clone, pull, adopt; what a change affects; push and pull again; flipped bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from resurgence.workflow.dry_run import planned, printed_jobs
from tree import ROOT, Tree, clone, messages
from versioned import STAGES, Repository, make_repository

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NOTHING = "Nothing to be done"
CLEAN = "Data and pipelines are up to date"
PRESENTED = ["Cost of the study", "Figures of the study", "Report of the study", "Tables of the study"]


@pytest.fixture(scope="session")
def pushed(finished: tuple[Tree, str], tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The finished study as a repository, pushed to a remote folder. Not to be changed."""
    place = tmp_path_factory.mktemp("versioned")
    return make_repository(finished[0], place / "first", place / "remote")


@pytest.fixture(scope="session")
def adopted(pushed: Repository, tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, str]:
    """A fresh clone after pull and adopt, and what adopt said. Not to be changed: see `second`."""
    tree = pushed.clone(tmp_path_factory.mktemp("adopted") / "tree")
    tree.dvc("pull")
    return tree, tree.resurgence("adopt")


@pytest.fixture
def second(adopted: tuple[Repository, str], tmp_path: Path) -> Repository:
    """A copy of the clone, to be changed."""
    return Repository(clone(adopted[0].root, tmp_path / "tree"))


def stages_to_run(tree: Repository) -> set[str]:
    """Stages of the jobs that Snakemake would run."""
    return {job.stage for job in printed_jobs(tree.run("snakemake", "-n", "-p"))}


def cached(place: Path) -> dict[str, Path]:
    """Hash by name -> file, of a cache or remote; a killed transfer may leave a .NAME.tmp, which DVC never reads."""
    files = [p for p in place.rglob("[!.]*") if p.is_file() and p.parent.parent.name == "md5"]
    return {p.parent.name + p.name: p for p in files}


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
    assert "26 of 26 results are up to date; 21 run.json restored" in told
    assert NOTHING in tree.run("snakemake", "-n")
    assert CLEAN in tree.dvc("status")
    assert "are as they were written" in tree.resurgence("verify", "results")


def test_lock_is_short_and_stages_hold_few_files(pushed: Repository) -> None:
    text = (pushed.root / "dvc.lock").read_text()
    assert len(text.splitlines()) < 200
    outs = [out for stage in yaml.safe_load(text)["stages"].values() for out in stage["outs"]]
    assert {Path(out["path"]).parts[0] for out in outs} == {"results"}
    assert max(out.get("nfiles", 1) for out in outs) < 100


def test_outputs_of_each_stage_are_those_of_its_target(pushed: Repository) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["expected", *STAGES]
    jobs, made = planned(root=pushed.root), set[Path]()
    for stage in STAGES:
        words = stages[stage]["cmd"].split()
        told = pushed.run("snakemake", "-n", "-F", "-p", "--", words[words.index("--") + 1])
        run = {job.out for job in printed_jobs(told)}
        own = {job.out for job in jobs if job.stage == stage}
        assert own <= run and run - made >= own, stage
        made |= own
        assert {job.stage for job in jobs if job.out in run} <= set(STAGES[: STAGES.index(stage) + 1])
        outs = [next(iter(out)) for out in stages[stage]["outs"]]
        assert {out for out in outs if out != "results/report.html"} == {str(Path(*p.parts[:2])) for p in own}
        assert all(out[next(iter(out))]["persist"] for out in stages[stage]["outs"])
    assert made == {job.out for job in jobs}


def test_a_change_is_seen_by_both(second: Repository) -> None:
    """On a fresh clone: one value or line at a time, taken back afterwards."""
    after = {stage: set(STAGES[STAGES.index(stage) :]) for stage in STAGES}
    changes = [
        ("params.yaml", "resamples: 100", "resamples: 120", {"tables"}),
        ("params.yaml", "    lr: 0.002", "    lr: 0.004", after["finetuned"]),
        ("params.yaml", "lamb: 1.0", "lamb: 2.0", after["erased"]),
        ("src/resurgence/scorers/clip.py", '"""', '# a comment\n"""', after["scores"]),
        ("data/small/tasks/pets.yaml", "erase: 2, retain: 2", "erase: 3, retain: 2", {"data", *after["images"]}),
        ("params.yaml", "device: cpu", "device: auto", set()),
    ]
    for path, old, new, affected in changes:
        file = second.root / path
        text = file.read_text()
        assert old in text, old
        file.write_text(text.replace(old, new, 1))
        assert stages_to_run(second) == affected, new
        second.dvc("repro", "expected")
        assert set(second.changed()) == affected, new
        file.write_text(text)
    second.dvc("repro", "expected")
    assert CLEAN in second.dvc("status") and stages_to_run(second) == set()


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
    left = {job.out.as_posix() for job in printed_jobs(tree.run("snakemake", "-n", "-p"))}
    assert {name.removesuffix("/manifest.json") for name in left} == stale


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
    assert "26 of 26 results are up to date" in third.resurgence("adopt")
    assert stages_to_run(third) == set() and CLEAN in third.dvc("status")
    every = [p.relative_to(second.root) for p in (second.root / "results").rglob("*") if p.is_file()]
    kept = [p for p in every if "benchmarks" not in p.parts and p.name != "run.json"]
    assert len(kept) > 60
    for path in kept:
        assert (second.root / path).read_bytes() == (third.root / path).read_bytes(), path


def interrupted(tree: Repository, command: str, place: Path) -> int:
    """Start a push or pull and kill it once a few files have arrived; how many had."""

    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(tree.root.parent / "site")}
    process = subprocess.Popen(["dvc", command, "--jobs", "1"], cwd=tree.root, env=environment, stdout=-3, stderr=-3)
    while process.poll() is None and len(cached(place)) < 8:
        time.sleep(0.002)
    process.kill()
    process.wait()
    return len(cached(place))


def test_interrupted_push_and_pull_go_on(second: Repository, tmp_path: Path) -> None:
    remote = tmp_path / "other"
    second.dvc("remote", "modify", "storage", "url", str(remote))
    second.run("git", "commit", "--quiet", "--all", "--message", "remote")
    whole = set(cached(second.root / ".dvc/cache")) - set(cached(second.root / "shipped"))
    assert 0 < interrupted(second, "push", remote) < len(whole)
    second.dvc("push")
    assert set(cached(remote)) == whole

    third = second.clone(tmp_path / "third")
    cache = third.root / ".dvc/cache"
    assert 0 < interrupted(third, "pull", cache) < len(whole)
    third.dvc("pull")
    assert CLEAN in third.dvc("status")
    for place in (remote, cache):
        for name, file in cached(place).items():
            assert hashlib.md5(file.read_bytes()).hexdigest() == name.removesuffix(".dir"), file


def parquet_of(tree: Repository) -> tuple[Path, str]:
    """An image set, and its name in a cache."""
    file = tree.root / "results/images/small/pets/uce/s0/images/step-000000.parquet"
    return file, hashlib.md5(file.read_bytes()).hexdigest()


def named_by_adopt(tree: Repository) -> None:
    """Adopt names the image set and what was made from it; nothing of that counts as up to date."""
    told = tree.resurgence("adopt")
    assert "damaged  results/images/small/pets/uce/s0/images" in told and "has changed since" in told
    assert "stale    results/scores/small/pets/uce/s0/scores: made from results/images" in told
    wanted = {"Sample pets/uce/s0", "Score the images of pets/uce/s0", "Grids of images and masks", *PRESENTED}
    assert set(messages(tree.run("snakemake", "-n"))) == wanted


def test_flipped_byte_in_the_workspace(second: Repository) -> None:
    file, _ = parquet_of(second)
    flip(file)
    assert "has changed since it was written" in second.resurgence("verify", "results", check=False)
    named_by_adopt(second)
    assert "results/images" in second.changed()["images"]
    second.dvc("checkout", "--force")  # puts it back
    assert "26 of 26" in second.resurgence("adopt") and stages_to_run(second) == set()


def test_flipped_byte_in_the_cache(second: Repository) -> None:
    file, name = parquet_of(second)
    flip(cached(second.root / ".dvc/cache")[name])
    shutil.rmtree(second.root / "results/images")
    if second.run("dvc", "checkout", check=False) and file.exists():
        named_by_adopt(second)
    else:  # DVC noticed it by itself
        assert not file.exists()


@pytest.mark.parametrize("damaged", ["storage", "shipped"])
def test_flipped_byte_in_the_remote(pushed: Repository, tmp_path: Path, damaged: str) -> None:
    tree = pushed.clone(tmp_path / "tree")
    if damaged == "storage":
        remote = Path(clone(pushed.root.parent / "remote", tmp_path / "remote"))
        tree.dvc("remote", "modify", "storage", "url", str(remote))
        tree.dvc("remote", "modify", "storage", "verify", "true")
        file, name = parquet_of(pushed)
    else:
        remote = tree.root / "shipped"
        file = pushed.root / "data/small/base/unet/diffusion_pytorch_model.safetensors"
        name = hashlib.md5(file.read_bytes()).hexdigest()
    flip(cached(remote)[name])
    told = tree.dvc("pull", check=False)
    assert "ERROR" in told or "corrupted" in told
    assert not (tree.root / file.relative_to(pushed.root)).exists()


def test_pulling_the_world_needs_no_other_remote(pushed: Repository, tmp_path: Path) -> None:
    tree = pushed.clone(tmp_path / "tree")
    tree.dvc("remote", "remove", "storage")
    tree.dvc("pull", "data/small/dvc.yaml")
    assert (tree.root / "data/small/base/model_index.json").is_file()
    assert "no remote" in tree.dvc("push", check=False).lower()

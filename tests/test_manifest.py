"""Artefacts: reproducible manifests, and nothing accepted from an interrupted step."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from resurgence.provenance import manifest as m
from resurgence.provenance.runs import device_of

SOURCE = Path(m.__file__)


@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    names: tuple[str, ...] = ("b", "a")


def make(folder: Path, text: str = "hello", parameters: object = None, inputs: dict | None = None) -> Path:
    run: dict = {}
    cfg = {"b": Config(), "a": 1} if parameters is None else parameters
    with m.write_artefact(folder, "thing", cfg, inputs or {}, {"erase": 3}, run) as out:
        (out / "sub").mkdir()
        (out / "sub" / "x.txt").write_text(text)
        (out / "y.bin").write_bytes(b"\x00\x01")
        run["images_per_second"] = 12.5
    return folder


def test_manifest_lists_files_parameters_seeds_and_inputs(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("input")
    first = make(tmp_path / "first", inputs={"text": tmp_path / "in.txt"})
    second = make(tmp_path / "second", inputs={"first": first, "manifest": first / "manifest.json"})
    read = m.read_manifest(first)
    assert read["files"] == {
        "sub/x.txt": hashlib.sha256(b"hello").hexdigest(),
        "y.bin": hashlib.sha256(b"\x00\x01").hexdigest(),
    }
    assert read["kind"] == "thing" and read["seeds"] == {"erase": 3}
    assert read["parameters"] == {"a": 1, "b": {"lr": 0.1, "names": ["b", "a"]}}
    assert read["inputs"] == {"text": hashlib.sha256(b"input").hexdigest()}
    assert set(read) == {"format", "kind", "parameters", "seeds", "inputs", "files"} and read["format"] == 2
    digest = hashlib.sha256((first / "manifest.json").read_bytes()).hexdigest()
    assert m.read_manifest(second / "manifest.json")["inputs"] == {"first": digest, "manifest": digest}
    run = json.loads((first / "run.json").read_text())
    assert run["images_per_second"] == 12.5 and run["seconds"] >= 0 and run["peak_memory_mib"] > 1
    assert run["host"] and run["versions"]["python"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "in.txt", "second"]


def test_the_run_says_what_computed_it(tmp_path: Path) -> None:
    """The maker of the processor as the kernel names it, and the instructions that torch says it computes with."""
    run = json.loads((make(tmp_path / "thing") / "run.json").read_text())
    name, _, instructions = run["processor"].rpartition(", ")
    assert f"CPU capability usage: {instructions}" in torch.__config__.show()
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert name.split()[0] in Path("/proc/cpuinfo").read_text()
    threads = torch.get_num_threads()
    assert run["threads"] == threads and device_of(run) == f"cpu ({name}, {instructions}, threads: {threads})"
    assert device_of({"device": "cpu"}) == "cpu"  # of a run before the processor was recorded
    assert device_of({**run, "device": "NVIDIA H100"}) == "NVIDIA H100"


def test_the_same_step_writes_the_same_bytes_and_a_change_anywhere_shows(tmp_path: Path) -> None:
    def text(**options) -> str:
        return (make(tmp_path / "a", **options) / "manifest.json").read_text()

    first = text()
    assert text() == first == text(parameters={"a": 1, "b": Config()})  # the order of the keys is no change
    assert text(text="other") != first
    assert text(parameters={"a": 2, "b": Config()}) != first
    assert text(parameters={"a": 1, "b": Config(names=("a", "b"))}) != first  # the order of a list is one
    assert text(inputs={"in": SOURCE}) != first


def test_folder_input_without_manifest_is_digested_by_content(tmp_path: Path) -> None:
    (tmp_path / "base" / "unet").mkdir(parents=True)
    file = tmp_path / "base" / "unet" / "w"
    file.write_text("1")
    first = m.digest_of(tmp_path / "base")
    assert m.digest_of(tmp_path / "base") == first
    file.rename(file.with_name("v"))
    assert m.digest_of(tmp_path / "base") != first


def test_it_replaces_an_older_artefact_as_a_whole(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "stale.txt").write_text("stale")
    make(tmp_path / "a", text="new")
    assert (tmp_path / "a" / "sub" / "x.txt").read_text() == "new" and m.verify(tmp_path / "a") == []
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_verify_finds_missing_changed_and_foreign_files(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    assert m.verify(folder) == []
    (folder / "y.bin").unlink()
    (folder / "sub" / "x.txt").write_text("hallo")
    (folder / "sub" / "z.txt").write_text("")
    problems = "\n".join(m.verify(folder))
    assert "y.bin is missing" in problems and "z.txt is not part" in problems and "x.txt has changed" in problems
    assert len(problems.splitlines()) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"kind": "x"}'])
def test_damaged_manifest_names_file_and_remedy(tmp_path: Path, text: str) -> None:
    folder = make(tmp_path / "a")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*run its step again"):
        m.read_manifest(folder)
    assert "damaged" in m.verify(folder)[0]


def test_formats(tmp_path: Path) -> None:
    """A manifest of the first format is read as such, one of a later format is refused."""
    file = make(tmp_path / "a") / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest.pop("format") == 2
    file.write_text(json.dumps({**manifest, "sources": {"resurgence/bases.py": "0"}}))
    assert m.read_manifest(file)["format"] == 1 and m.verify(tmp_path / "a") == []
    file.write_text(json.dumps({**manifest, "format": 3}))
    with pytest.raises(ValueError, match=r"manifest\.json has format 3, this version reads 1 and 2; install a newer"):
        m.read_manifest(file)


def test_missing_manifest_and_missing_input_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished artefact"):
        m.read_manifest(tmp_path / "nothing")
    assert len(m.verify(tmp_path / "nothing")) == 1
    entered = False
    with (
        pytest.raises(FileNotFoundError, match="absent"),
        m.write_artefact(tmp_path / "a", "x", {}, {"in": tmp_path / "absent"}, {}, {}),
    ):
        entered = True
    assert not entered


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf"), b"bytes"])
def test_unusable_parameters_are_refused_before_the_work(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError), m.write_artefact(tmp_path / "a", "x", {"p": value}, {}, {}, {}):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("error", [RuntimeError("stop"), SystemExit(143), KeyboardInterrupt()])
def test_an_exception_leaves_the_older_artefact_and_no_debris(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path / "a", text="old")
    with pytest.raises(type(error)), m.write_artefact(tmp_path / "a", "x", {}, {}, {}, {}) as out:
        (out / "x").write_text("half")
        raise error
    assert m.verify(tmp_path / "a") == [] and (tmp_path / "a" / "sub" / "x.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_step_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrote no file"), m.write_artefact(tmp_path / "a", "x", {}, {}, {}, {}):
        pass
    assert not (tmp_path / "a").exists()


def test_a_folder_with_artefacts_below_it_is_not_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "cell" / "lora")
    with pytest.raises(ValueError, match="another artefact"):
        make(tmp_path / "cell")
    assert m.verify(tmp_path / "cell" / "lora") == []


def test_a_second_sigterm_does_not_interrupt_the_unwinding(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from resurgence.provenance.manifest import write_artefact\n"
        "from resurgence.stages.job import start; job = start(['--settings', '{}', '--out', sys.argv[1]])\n"
        "import shutil; remove = shutil.rmtree\n"
        "def slowly(*args, **options): print('leaving', flush=True); time.sleep(0.5); remove(*args, **options)\n"
        "with write_artefact(job.out.parent / 'a', 'x', {}, {}, {}, {}) as out:\n"
        "    (out / 'half').write_text('half'); shutil.rmtree = slowly; print('writing', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path / "made.json")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment, cwd=tmp_path_factory.mktemp("cwd")
    ) as child:
        for word in (b"writing\n", b"leaving\n"):
            assert child.stdout is not None and child.stdout.readline() == word
            child.terminate()
        assert child.wait(20) == 143
    assert list(tmp_path.iterdir()) == []


def test_kill_9_in_the_middle_leaves_nothing_accepted_and_a_rerun_succeeds(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from resurgence.provenance.manifest import write_artefact\n"
        "with write_artefact(Path(sys.argv[1]), 'x', {}, {}, {}, {}) as out:\n"
        "    (out / 'half').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None and child.stdout.readline() == b"writing\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "a").exists() and m.verify(tmp_path / "a")
    make(tmp_path / "a")
    assert m.verify(tmp_path / "a") == [] and not (tmp_path / "a" / "half").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_killed_between_the_two_renames_the_next_run_recovers(tmp_path: Path) -> None:
    make(tmp_path / "a", text="old")
    (tmp_path / "a").rename(tmp_path / ".a.old")
    make(tmp_path / "a", text="new")
    assert m.verify(tmp_path / "a") == [] and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_run_names_its_manifest_and_the_commit_it_was_made_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_of_one() -> dict:
        return json.loads((make(tmp_path / "one") / "run.json").read_text())

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    run = run_of_one()
    assert "commit" not in run and "dirty" not in run
    assert run["manifest"] == hashlib.sha256((tmp_path / "one/manifest.json").read_bytes()).hexdigest()
    (tmp_path / "file").write_text("1")
    git("init", "--quiet")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    run = run_of_one()
    assert run["commit"] == git("rev-parse", "HEAD") and run["dirty"] is False  # what is not tracked does not count
    (tmp_path / "file").write_text("2")
    assert run_of_one()["dirty"] is True
    assert "commit" not in m.read_manifest(tmp_path / "one")

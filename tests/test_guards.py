"""What commands refuse before their work: outputs that would destroy something, changed inputs, a second writer."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resurgence.cli.guard import output, training_state
from resurgence.files import atomic_file, lock
from resurgence.provenance.inputs import artefact_of, check_whole
from resurgence.provenance.manifest import verify, write_artefact
from resurgence.provenance.outputs import check_file, check_space, check_writable, contains
from resurgence.provenance.source_modules import PACKAGE
from resurgence.workflow.archive import add, is_archive
from resurgence.workflow.stage_digests import is_expected


def artefact(folder: Path, text: str = "x", inputs: dict[str, Path] | None = None, **parameters: object) -> Path:
    with write_artefact(folder, "thing", parameters, inputs or {}, {}, {}) as inside:
        (inside / "file.safetensors").write_text(text)
    return folder


def tree(root: Path) -> dict[str, object]:
    """Everything below a folder: text of files, targets of links, None for folders."""
    paths = sorted(path for path in root.rglob("*"))
    return {
        path.relative_to(root).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        if path.is_file() else None for path in paths
    }  # fmt: skip


# --- outputs


def world(root: Path) -> dict[str, Path]:
    """Inputs and other folders of a user's, links between them, and an earlier output; the working folder is work."""
    for folder in ("work/base/unet", "work/empty", "work/notes/deep", "disk/free"):
        (root / folder).mkdir(parents=True)
    (root / "work/base/model_index.json").write_text("{}")
    (root / "work/base/unet/weights").write_text("weights")
    (root / "work/notes/thesis").write_text("thesis")
    (root / "work/notes/deep/more").write_text("more")
    (root / "work/task.yaml").write_text("task")
    artefact(root / "work/delta")
    artefact(root / "work/old", text="of an earlier run")
    artefact(root / "work/mixed")
    (root / "work/mixed/NOTES").write_text("notes")
    artefact(root / "work/holder")
    (root / "work/holder/base").symlink_to(root / "work/base")
    artefact(root / "work/linked")
    (root / "work/linked/link").symlink_to(root / "work/empty")  # a link of the user's in an artefact
    (root / "link").symlink_to("work")
    (root / "work/to_base").symlink_to("base")
    (root / "work/to_notes").symlink_to("notes")
    (root / "work/to_old").symlink_to(root / "work/old")
    (root / "work/to_free").symlink_to("../disk/free")
    (root / "work/to_new").symlink_to("../disk/new")
    (root / "work/ring").symlink_to("ring")
    return {"base": Path("to_base"), "delta 0: delta": Path("delta"), "task": Path("../link/task.yaml"),
            "images": Path("holder/base/unet")}  # fmt: skip


NAMES = ("work", "base", "unet", "delta", "notes", "deep", "task.yaml", "empty", "old", "mixed", "holder", "link",
         "to_base", "to_notes", "to_old", "to_free", "to_new", "ring", "disk", "free", "new", "..", ".")  # fmt: skip


@contextlib.contextmanager
def work() -> Iterator[tuple[Path, dict[str, Path]]]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        inputs = world(root)
        with contextlib.chdir(root / "work"):
            yield root, inputs


@pytest.fixture(scope="module")
def reused(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], tuple[Path, dict[str, Path]]]:
    """A world: the last one, or a new one if that has been changed."""
    worlds: list[tuple[Path, dict[str, Path]]] = []

    def last(is_changed: bool = False) -> tuple[Path, dict[str, Path]]:
        if is_changed or not worlds:
            root = tmp_path_factory.mktemp("world").resolve()
            worlds.append((root, world(root)))
        return worlds[-1]

    return last


@settings(max_examples=250, deadline=None)
@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_no_output_destroys_anything(
    reused: Callable[[bool], tuple[Path, dict[str, Path]]], parts: list[str], is_absolute: bool, has_slash: bool
) -> None:
    """Whatever --out names: nothing but an earlier output is gone or changed, and no link has become a folder."""
    root, inputs = reused()
    with contextlib.chdir(root / "work"):
        text = "/".join([str(root)] * is_absolute + parts) + "/" * has_slash
        before, target = tree(root), Path(os.path.realpath(text))
        try:
            with output(Namespace(out=Path(text)), inputs) as out, write_artefact(out, "x", {}, {}, {}, {}) as folder:
                (folder / "new").write_text("new")
        except (ValueError, OSError) as error:
            assert str(error).startswith(("--out", f"{text.rstrip('/')}", str(target.parent))), error
            assert tree(root) == before
            return
        reused(True)  # the next example gets another
        assert out == target and verify(out) == []
        after = tree(root)
        lost = {name for name in before if before[name] != after.get(name)}
        assert lost <= {f"work/old/{name}" for name in ("file.safetensors", "manifest.json", "run.json")}
        assert all((root / name).resolve().is_relative_to(out) or out.is_relative_to((root / name).resolve())
                   for name in set(after) - set(before))  # fmt: skip


REFUSED = {
    "is an input": "base base/ ./base/../base to_base ../link/base delta task.yaml",
    "contains an input": "holder",
    "lies in an input": "holder/base/unet base/new to_base/new delta/new base/unet/new task.yaml/new",
    "is the working folder or contains it": ". .. ../link /",
    "was not written by this program": "notes notes/deep to_notes",
    "is a file": "notes/thesis notes/thesis/new",
    "holds NOTES, which is not part": "mixed",
    "holds link, which is not part": "linked",
    "a link that leads to itself": "ring ring/new",
    "cannot be written": "/proc/new",
    "a mounted disk": "/proc",
}


@pytest.mark.parametrize(("out", "reason"), [(out, reason) for reason in REFUSED for out in REFUSED[reason].split()])
def test_outputs_that_are_refused(out: str, reason: str) -> None:
    with work() as (root, inputs):
        before = tree(root)
        with pytest.raises((ValueError, OSError), match=reason) as error, output(Namespace(out=Path(out)), inputs):
            raise AssertionError("accepted")
        assert "; " in str(error.value) and "\n" not in str(error.value) and tree(root) == before


@pytest.mark.parametrize(
    "out", ["new", "notes/new", "empty", "old", "old/", "base2/a/b", "../disk/new", "../disk/free"]
)
def test_outputs_that_are_accepted(out: str) -> None:
    """Absent ones, empty ones, and earlier outputs."""
    with work() as (root, inputs), output(Namespace(out=Path(out)), inputs) as folder:
        assert folder == Path(os.path.realpath(out))
        assert (folder.parent / f".{folder.name}.lock").is_file()
    assert not list(root.rglob("*.lock"))


def test_an_input_that_is_reached_by_a_link_in_the_output_is_refused(tmp_path: Path) -> None:
    """Replacing the folder would remove the link."""
    (tmp_path / "disk/base").mkdir(parents=True)
    out = artefact(tmp_path / "out")
    (out / "base").symlink_to("../disk/base")
    with pytest.raises(ValueError, match="contains an input"), output(Namespace(out=out), {"base": out / "base"}):
        pass
    (tmp_path / "first").symlink_to("out/base")  # a link to the link
    assert contains(out, tmp_path / "first") and not contains(out, tmp_path / "disk/base")


@pytest.mark.parametrize("link", ["to_free", "to_old", "to_new"])
def test_links_are_followed_and_stay(link: str) -> None:
    """To an empty folder, to an earlier output, to nothing yet."""
    with work() as (root, inputs):
        target = Path(os.readlink(link))
        args = Namespace(out=Path(link))
        with output(args, inputs) as out, write_artefact(out, "x", {}, {}, {}, {}) as folder:
            (folder / "new").write_text("new")
        assert Path(link).is_symlink() and Path(os.readlink(link)) == target
        assert (root / "work" / target / "new").read_text() == "new" and verify(Path(link)) == []


@pytest.mark.parametrize(
    "text", ["", "[]", '{"name": "an extension", "files": {}}', '{"format": 2, "files": {"a": "b"}}']
)
def test_a_manifest_of_another_program_does_not_make_a_folder_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/manifest.json").write_text(text)
    with pytest.raises(ValueError, match="not written by this program"), output(Namespace(out=tmp_path / "site"), {}):
        pass
    assert artefact_of(tmp_path / "site/manifest.json") is None  # and it says nothing of its files
    check_whole([tmp_path / "site"])


def test_a_folder_for_the_state_holds_nothing_else(tmp_path: Path) -> None:
    """It is removed at the end, and stays after an error."""
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    args = Namespace(scratch=scratch)
    with pytest.raises(RuntimeError), training_state(args, out, {}) as state:
        (state / "step-000010").mkdir(parents=True)
        (state / "step-000010/delta.safetensors").write_text("x")
        (state / "state.pt").write_text("x")
        raise RuntimeError
    assert (scratch / "state.pt").exists()
    (scratch / "thesis.txt").write_text("thesis")
    with pytest.raises(ValueError, match=r"--scratch .* holds thesis\.txt"), training_state(args, out, {}):
        pass
    (scratch / "thesis.txt").unlink()
    with training_state(args, out, {}) as state:
        assert state == scratch
    assert list(tmp_path.iterdir()) == []
    for folder, reason in ((out, "is an input"), (tmp_path, "contains"), (out / "state", "lies in")):
        with (
            pytest.raises(ValueError, match=f"--scratch.*{reason}"),
            training_state(Namespace(scratch=folder), out, {}),
        ):
            pass


def test_files_of_the_user_are_not_overwritten(tmp_path: Path) -> None:
    """`archive` and `expected` replace only what they wrote."""
    import tarfile

    file = tmp_path / "thesis.tar.gz"
    for name, is_ours in (("resurgence-study/README.md", True), ("thesis/README.md", False)):
        with tarfile.open(file, "w:gz") as tar:
            add(tar, name, b"text")
        assert is_archive(file) is is_ours
    with pytest.raises(ValueError, match=r"--out .*thesis\.tar\.gz exists and was not written by this command"):
        check_file("--out", file, is_archive)
    for text, is_ours in (("{}", True), ('{"data": {"digest": "1"}}', True), ("[]", False), ("notes", False),
                          ('{"data": 1}', False)):  # fmt: skip
        file.write_text(text)
        assert is_expected(file) is is_ours and not is_archive(file)
    check_file("--out", tmp_path / "new", is_expected)
    with pytest.raises(ValueError, match="exists"):
        check_file("--out", tmp_path, is_archive)


# --- disks


def test_space_and_permission_are_checked_before_the_work(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path / "not/there/yet", free // 2)
    with pytest.raises(OSError, match=r"not needs \d+ MiB or more, its disk has \d+ MiB left; free some space"):
        check_space(tmp_path / "not", free + 2**40)
    check_writable([tmp_path, tmp_path / "new/folder"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"file is a file; name another folder"):
        check_writable([tmp_path / "file/new"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OSError, match=r"cannot be written \(no permission"):
        check_writable([tmp_path / "new"])


WRITER = """\
import resource, sys, time
from pathlib import Path
from resurgence.stages.runtime import only_writer
if sys.argv[2] == "full": resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with only_writer(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


def start(out: Path, how: str = "well") -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", WRITER, str(out), how]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=out.parent, **pipes)


def test_a_disk_that_takes_no_byte_is_told(tmp_path: Path) -> None:
    writer = start(tmp_path / "out", "full")
    text = writer.communicate(timeout=60)[1]
    assert writer.returncode == 1 and f"{tmp_path}/.out.lock cannot be written (File too large); free some" in text


# --- one writer


def test_a_second_writer_is_refused_at_once(tmp_path: Path) -> None:
    """By any name of the folder; not after the first has ended, however it ended."""
    (tmp_path / "link").symlink_to("out")
    first = start(tmp_path / "out")
    try:
        assert first.stdout.readline() == "holds\n"
        for name in ("out", "link", "other/../out"):
            message = rf"{name} is still being written .*process {first.pid}.*; wait"
            with pytest.raises(TimeoutError, match=message), output(Namespace(out=tmp_path / name), {}):
                pass
        with output(Namespace(out=tmp_path / "beside"), {}):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with output(Namespace(out=tmp_path / "out"), {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_command_in_the_folder_of_a_study_respects_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    handle = lock(Path(".snakemake/writers/results%erased%manifest.json"))
    with (
        pytest.raises(TimeoutError, match="results/erased is still"),
        output(Namespace(out=Path("results/erased")), {}),
    ):
        pass
    handle.close()
    with output(Namespace(out=tmp_path / "results/erased"), {}):
        pass


COUNTER = """\
import sys
from pathlib import Path
from resurgence.files import atomic_file, lock
folder, done = Path(sys.argv[1]), 0
while done < 40:
    if (handle := lock(folder / "lock")) is None: continue
    number = int((folder / "number").read_text())
    (folder / "number").write_text(str(number + 1))
    (folder / "lock").unlink()
    handle.close()
    done += 1
"""


def test_a_lock_that_is_removed_at_the_end_still_excludes(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", COUNTER, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "120"


def test_two_processes_may_write_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    """As two fine-tunes do that share the latents of their images: each has its own temporary file."""
    file = tmp_path / "cache" / "latents.pt"
    with atomic_file(file) as first:
        first.write_text("first")
        program = f"""
from resurgence.files import atomic_file
with atomic_file({str(file)!r}) as second:
    second.write_text("second")
"""
        subprocess.run([sys.executable, "-c", program], check=True)
        assert file.read_text() == "second"
    assert file.read_text() == "first" and [path.name for path in file.parent.iterdir()] == ["latents.pt"]

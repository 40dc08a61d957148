"""Real commands on a tiny base: deltas that belong together, inputs that changed, and what export may replace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from resurgence.cli import main
from resurgence.provenance.inputs import check_parents, check_whole, digests, label_of, parents
from resurgence.provenance.manifest import read_manifest, verify, write_artefact
from resurgence.provenance.source_modules import PACKAGE
from tiny import make_pipeline

TASK = {
    "name": "ship", "kind": "object", "erase": ["ship"], "retain": ["dog", "bird"], "mapping": "sky",
    "templates": ["a photo of the {}"], "seeds": {"erase": 1, "retain": 1, "synonym": 1},
}  # fmt: skip


def run(*arguments: object) -> int:
    return main.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an erasure of it, fine-tunes of the erased model, of that fine-tune and of the base, an export."""
    path = tmp_path_factory.mktemp("parents")
    make_pipeline().save_pretrained(path / "base")
    (path / "task.yaml").write_text(yaml.safe_dump(TASK))
    (path / "pictures").mkdir()
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(path / "pictures/a photo of the cat.png")
    erase(path, "uce", "lamb=0.1")
    erase(path, "other", "lamb=0.5")
    finetune(path, "ft", "uce")
    finetune(path, "again", "uce", "ft/step-000002")
    finetune(path, "plain")
    assert run("export", "--base", path / "base", "--delta", path / "uce", "--out", path / "exported") == 0
    finetune(path, "of_export", base="exported")
    (path / "foreign").mkdir()
    shutil.copy(path / "plain/step-000002/pytorch_lora_weights.safetensors", path / "foreign")
    return path


def erase(path: Path, name: str, setting: str) -> None:
    arguments = ["--base", path / "base", "--task", path / "task.yaml", "--eraser", "uce", "--device", "cpu"]
    assert run("erase", *arguments, "--out", path / name, "--set", setting) == 0


def finetune(path: Path, name: str, *deltas: str, base: str = "base") -> None:
    arguments = ["--base", path / base, "--images", path / "pictures", "--device", "cpu", "--out", path / name]
    more = ["--delta", *(path / delta for delta in deltas)] if deltas else []
    assert (
        run("finetune", *arguments, *more, "--set", "steps=2", "checkpoints=[1, 2]", "batch=1", "accumulation=1") == 0
    )


def export(path: Path, deltas: Sequence[str], out: Path, base: str = "base") -> int:
    more = ["--delta", *(path / delta for delta in deltas)] if deltas else []
    return run("export", "--base", path / base, *more, "--out", out)


# --- parents


def test_manifests_name_the_parents(place: Path) -> None:
    inputs = read_manifest(place / "again")["inputs"]
    assert {"delta 0: uce", "delta 1: ft/step-000002"} <= set(inputs)
    assert [parent.label for parent in parents(place / "again/step-000001")] == ["uce", "ft/step-000002"]
    assert parents(place / "uce") == parents(place / "plain/step-000001") == [] and parents(place / "foreign") is None
    assert [parent.label for parent in parents(place / "of_export/step-000001")] == ["uce"]
    assert {digest for _, digest in parents(place / "again")} <= digests(place / "uce") | digests(
        place / "ft/step-000002"
    )


@pytest.mark.parametrize(
    ("base", "deltas", "parent"),
    [
        ("base", ["ft/step-000002"], "uce"),
        ("base", ["ft/step-000001"], "uce"),
        ("base", ["ft/step-000002", "uce"], "uce"),
        ("base", ["other", "ft/step-000002"], "uce"),
        ("base", ["uce", "other", "ft/step-000002"], "uce"),
        ("base", ["uce", "foreign", "ft/step-000002"], "uce"),
        ("base", ["uce", "again/step-000002"], "uce ft/step-000002"),
        ("base", ["ft/step-000002", "uce", "again/step-000002"], "uce"),
        ("base", ["uce", "ft/step-000001", "again/step-000002"], "uce ft/step-000002"),
        ("base", ["of_export/step-000002"], "uce"),
        ("exported", ["uce", "ft/step-000002"], "uce"),
        ("exported", ["again/step-000001"], "uce ft/step-000002"),
    ],
)
def test_a_delta_without_its_parents_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], base: str, deltas: list[str], parent: str
) -> None:
    assert export(place, deltas, tmp_path / "out", base) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resurgence export:")]
    assert f"was trained on the base with {parent}, but here it " in line and f"give --delta {parent} before it" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("base", "deltas", "warning"),
    [
        ("base", ["uce", "ft/step-000002"], ""),
        ("base", ["uce", "ft/step-000001"], ""),
        ("base", ["uce", "ft/step-000002", "again/step-000001"], ""),
        ("base", ["uce", "of_export/step-000002"], ""),
        ("base", ["foreign"], ""),
        ("exported", ["ft/step-000002"], ""),
        ("exported", ["of_export/step-000002", "foreign"], ""),
        ("base", ["plain/step-000002", "uce"], "uce was computed on the base alone and follows plain/step-000002"),
        ("base", ["uce", "plain/step-000002"], "was computed on the base alone and follows uce"),
        ("renamed", ["uce", "ft/step-000002"], ""),
        ("changed", ["uce"], "uce was computed on another base than"),
    ],
)
def test_deltas_that_may_follow(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, base: str, deltas: list[str], warning: str
) -> None:
    """In their order, also on an export or a copy of the base; those of the base alone with a warning."""
    if base in ("renamed", "changed"):
        shutil.copytree(place / "base", tmp_path / base)
    if base == "changed":
        (tmp_path / base / "scheduler/scheduler_config.json").open("a").write("\n")
    check_parents([place / delta for delta in deltas], (tmp_path if base in ("renamed", "changed") else place) / base)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(warning) and all(warning in text for text in warnings)


def test_older_manifests_pass(place: Path, tmp_path: Path) -> None:
    """Without names of the parents these are known by their digest; without inputs nothing is known."""
    old = shutil.copytree(place / "ft", tmp_path / "old")
    manifest = read_manifest(old)
    manifest["inputs"]["delta 0"] = manifest["inputs"].pop("delta 0: uce")
    (old / "manifest.json").write_text(json.dumps(manifest))
    check_parents([place / "uce", old / "step-000002"], place / "base")
    with pytest.raises(ValueError, match=r"trained on the base with the delta with digest \w{12}, but here"):
        check_parents([old / "step-000002"], place / "base")
    del manifest["inputs"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    check_parents([old / "step-000002"], place / "base")


def test_artefacts_of_a_study_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand from a checkpoint, and in a job from the artefacts among its inputs."""
    monkeypatch.chdir(tmp_path)
    erased, tuned = (
        Path(f"results/{name}") for name in ("erased/b/t/uce/s0/delta", "finetuned/b/t/uce/s0/lora/f0/weights")
    )
    twice = Path("results/finetuned/b/t/uce/s0/lora/f0/lora/f1/weights")
    Path("weights.safetensors").write_text("of the base")
    base = {"weights.safetensors": Path("weights.safetensors")}
    for folder, before in ((erased, []), (tuned, [erased]), (twice, [erased, tuned])):
        inputs = {f"{place.as_posix()}/manifest.json": place for place in before}
        with write_artefact(folder, "weights", {}, base | inputs, {}, {}) as inside:
            for step in ["step-000100", "step-000200"] if before else [""]:
                (inside / step).mkdir(exist_ok=True)
                (inside / step / "delta.safetensors").write_text(f"{folder} {step}")
    check_parents([erased, tuned / "step-000200", twice / "step-000100"], Path("weights.safetensors"))
    check_parents([erased, tuned, twice])
    with pytest.raises(ValueError, match=f"with {erased}, but here it is applied to the base alone"):
        check_parents([tuned / "step-000200"])
    with pytest.raises(ValueError, match=f"with {erased} {tuned}, but here it follows .*delta, weights/step-000100"):
        check_parents([erased, tuned / "step-000100", twice / "step-000200"])
    assert start_job(erased, tuned) == ""
    assert f"{tuned} was trained on the base with {erased}, but here it is" in start_job(tuned)


def start_job(*changes: Path) -> str:
    """Prepare a job with these changes in a process of its own; returns the error."""
    code = "import sys; from resurgence.stages.job import start; start(sys.argv[1:])"
    job = ["--settings", "{}", "--out", "results/images/manifest.json", "--inputs"]
    command = [sys.executable, "-c", code, *job, *(f"changes={folder}/manifest.json" for folder in changes)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    )
    return done.stderr if done.returncode else ""


# --- inputs


def zero(file: Path) -> None:
    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("changed", "deltas", "message"),
    [
        ("uce/delta.safetensors", ["uce"], "has changed since it was written"),
        ("ft/step-000002/pytorch_lora_weights.safetensors", ["uce", "ft/step-000002"], "has changed since"),
        ("uce/pytorch_lora_weights.safetensors", ["uce"], "was added to"),
        ("ft/step-000002/delta.safetensors", ["uce", "ft/step-000002"], "was added to"),
    ],
)
def test_deltas_that_changed_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str, deltas: list[str], message: str
) -> None:
    """A file that was written, removed or added after the manifest; another step of the same training is no matter."""
    for name in ("uce", "ft", "base"):
        shutil.copytree(place / name, tmp_path / name)
    file, lora = tmp_path / changed, place / "plain/step-000002/pytorch_lora_weights.safetensors"
    zero(file) if file.exists() else shutil.copy(lora, file)
    assert export(tmp_path, deltas, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"{changed} {message}" in error and "or run the command that writes" in error
    assert not (tmp_path / "out").exists()
    if message.startswith("has changed"):
        file.unlink()
        assert export(tmp_path, deltas, tmp_path / "out") == 1 and f"{changed} is missing" in capsys.readouterr().err
    check_whole([tmp_path / "ft/step-000001", tmp_path / "base"])


def test_pictures_that_changed_are_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By every command that reads image sets, as a folder and as a file."""
    common = ["--base", place / "base", "--task", place / "task.yaml", "--device", "cpu"]
    for name, steps in (("images", 1), ("others", 2)):
        assert run("sample", *common, "--out", tmp_path / name, "--set", f"steps={steps}", "guidance=3") == 0
    shutil.copy(tmp_path / "others/images.parquet", tmp_path / "images/images.parquet")
    task, out = ["--task", place / "task.yaml"], ["--out", tmp_path / "out"]
    for arguments in (
        ["score", "--images", tmp_path / "images", *task, "--recogniser", place / "base", *out],
        ["score", "--images", tmp_path / "others", "--base-images", tmp_path / "images", *task, "--clip", "x:y", *out],
        ["finetune", "--base", place / "base", "--images", tmp_path / "images", *out],
        ["finetune", "--base", place / "base", "--images", tmp_path / "images/images.parquet", *out],
        ["erase", *common, "--eraser", "ca", "--concept-images", tmp_path / "images/images.parquet", *out],
    ):
        assert run(*arguments) == 1
        assert "images/images.parquet has changed since it was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "others"]


# --- export


def test_an_export_is_an_artefact_and_only_its_like_is_replaced(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to(out)
    assert export(place, ["uce"], tmp_path / "link") == 0
    assert verify(out) == [] and read_manifest(out)["kind"] == "exported model" and (tmp_path / "link").is_symlink()
    assert export(place, ["uce"], out) == 0  # again
    (out / "NOTES.md").write_text("notes")
    assert export(place, ["uce"], out) == 1 and (out / "NOTES.md").exists()
    folder = shutil.copytree(place / "base", tmp_path / "base")
    for target in (folder, tmp_path, folder / "unet", tmp_path / "link/../base"):
        assert run("export", "--base", folder, "--out", target) == 1
    assert export(place, [], folder) == 1  # a diffusers folder that is no input, and that export has not written
    for file in (path for path in (place / "base").rglob("*") if path.is_file()):
        assert (folder / file.relative_to(place / "base")).read_bytes() == file.read_bytes()


def test_a_changed_export_is_no_base(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = shutil.copytree(place / "exported", tmp_path / "exported")
    zero(base / "unet/diffusion_pytorch_model.safetensors")
    assert run("export", "--base", base, "--out", tmp_path / "out") == 1
    assert "unet/diffusion_pytorch_model.safetensors has changed since it was written" in capsys.readouterr().err


def test_names_of_deltas(place: Path) -> None:
    assert label_of(place / "uce/") == "uce" and label_of(place / "ft/../ft/step-000001") == "ft/step-000001"
    assert label_of(place / "foreign") == "foreign"

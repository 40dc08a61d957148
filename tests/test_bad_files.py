"""Every option that names a file, with files that hold something else: one sentence with the file, nothing left."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import yaml

from resurgence.cli import main
from test_bad_base import POINTER
from test_cli import TASK, write_scorers
from tiny import make_pipeline

CONTENTS = {
    "empty": b"",
    "bytes": bytes(range(256)) * 4,
    "pointer": POINTER,
    "words": b"hello world\n",
    "UTF-16": "a: 1\n".encode("utf-16"),
    "list": b"[1, 2]\n",
    "page": b"<html>404</html>",
}
FOLDERS = ("folder", "damaged", "cut", "absent")  # without artefact, with manifests that are none, or not there
SAMPLE, SCORE = "sample --base base --task task.yaml --out out --set steps=1", "score --task task.yaml --out out"
ERASE = "erase --base base --eraser mace --out out --set steps=1 --task task.yaml --per-concept 1 --sampling steps=1"
COMMANDS = {
    "sample --base base --out out --task {}": ".yaml",
    "sample --task task.yaml --out out --base {}": ".safetensors",
    f"{SAMPLE} --delta {{}}": ".safetensors",
    f"{SAMPLE} --adapters {{}}": ".safetensors",
    f"{ERASE} --masks {{}}": ".safetensors",
    f"{ERASE} --concept-images {{}}": ".parquet",
    "finetune --base base --out out --set steps=1 --images {}": ".parquet",
    f"{SCORE} --recogniser recogniser --images {{}}": ".parquet",
    f"{SCORE} --images images --recogniser {{}}": ".json",
    "plan --overlay {}": ".yaml",
    "weights check --overlay {}": ".yaml",
    "compare --results {}": ".csv",
    "verify {}": ".json",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a task, scorers and images, and files and folders that hold something else."""
    path = tmp_path_factory.mktemp("files")
    make_pipeline().save_pretrained(path / "base")
    (path / "task.yaml").write_text(yaml.safe_dump(TASK))
    options = ["--task", path / "task.yaml", "--out", path / "images", "--set", "steps=1"]
    assert main.main([str(word) for word in ("sample", "--base", path / "base", *options)]) == 0
    write_scorers(path)
    for (name, content), ending in itertools.product(CONTENTS.items(), set(COMMANDS.values())):
        (path / f"{name}{ending}").write_bytes(content)
    for name, manifest in {"folder": None, "damaged": "{}", "cut": '{"files": {'}.items():
        (path / name).mkdir()
        (path / name / "notes").write_text("nothing of use")
        if manifest is not None:
            (path / name / "manifest.json").write_text(manifest)
            (path / name / "images.parquet").write_bytes(b"PAR1 and no more")
    return path


@pytest.mark.parametrize("what", [*CONTENTS, *FOLDERS])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_holds_something_else(
    command: str, what: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = what if what in FOLDERS else what + COMMANDS[command]
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted(place.rglob("*"))
    assert main.main([word.replace("{}", name) for word in command.split()]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    shutil.rmtree(place / "scratch", ignore_errors=True)
    assert last.startswith(f"resurgence {command.split()[0]}: ") and name in last, last
    assert sorted(place.rglob("*")) == before

"""An audit of random models from the command line to the card: every job really runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_world import make_world
from tree import ROOT

from resurgence.analysis.audit.result import EXIT, Audit, read_audit
from resurgence.provenance.manifest import verify

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
UNET = "base/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside of the checkout with a model, an erased state file of it, scorers, pictures and concepts."""
    root = tmp_path_factory.mktemp("audit")
    make_world(root)
    small = root / "data/small"
    (small / "retained.txt").write_text("dog\nbird\n")
    (small / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(small / f"pictures/a photo of the queen_{number}.png")
    weights = load_file(small / UNET)
    changed = {name: value + 0.05 * value.std() for name, value in weights.items() if "attn2.to_v" in name}
    save_file(changed, small / "erased.safetensors")
    return small


def command(*words: str) -> list[str]:
    """The command line, with settings that make it fast."""
    line = [sys.executable, "-m", "resurgence.cli", "audit", *words, "--erased", "ship", "--retained", "retained.txt"]
    line += ["--scorer", "recogniser", "path=recogniser", "--metric", "recogniser_accuracy", "--pairs", "6"]
    line += ["--sampling", "steps=2", "size=16", "batch=64", "--update", "steps=2", "batch=2"]
    return [*line, "--cores", "2", "--device", "cpu"]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
    return kept | {"PYTHONPATH": str(ROOT / "src")}


def audit(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder."""
    return subprocess.run(command(*words), cwd=place, env=environment(), capture_output=True, text=True)


def verdict(out: Path) -> Audit:
    return read_audit(out / "results/audit/verdict.json")


def told(out: Path) -> list[str]:
    """The verdict and the cards of an audit, without the folder that their command names."""
    files = ("results/audit/verdict.json", "card.html", "card.md")
    return [(out / file).read_text().replace(f"--out {out.name}", "--out OUT") for file in files]


def test_a_folder_is_audited_without_its_base_and_the_same_command_computes_nothing_again(place: Path) -> None:
    words = ("base", "--images", "pictures", "--out", "alone")
    done, out = audit(place, *words), place / "alone"
    audited = verdict(out)
    assert done.returncode == EXIT[audited.verdict], done.stderr[-4000:]
    assert done.stdout.startswith(f"{audited.verdict}: ") and (out / "card.md").is_file()
    names = ["released", "released-synonyms", "lora-domain-real", "rounding-8", "rounding-4"]
    assert [probe.name for probe in audited.probes] == names and audited.original is None
    assert verify(out / "results/audit") == []
    files = [*out.rglob("manifest.json"), *filter(Path.is_file, (out / "results/audit").rglob("*"))]
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
    assert audit(place, *words).returncode == done.returncode
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before} == before


def test_an_audit_that_was_killed_goes_on_and_gives_the_same_scores_verdict_and_card(place: Path) -> None:
    words = ("base", "--images", "pictures", "--out", "killed")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    run = subprocess.Popen(command(*words), cwd=place, env=environment(), **quiet)
    while run.poll() is None and not list((place / "killed").glob("results/images/*/*/images/manifest.json")):
        time.sleep(0.2)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = audit(place, *words)
    assert done.returncode == EXIT[verdict(place / "killed").verdict], done.stderr[-4000:]
    whole = place / "alone"
    if not (whole / "results/audit").is_dir():  # this test was run without the first
        audit(place, *words[:-1], "alone")
    scores = {file.relative_to(whole): file.read_bytes() for file in whole.glob("results/scores/**/*.parquet")}
    assert len(scores) == 5
    assert {name: (place / "killed" / name).read_bytes() for name in scores} == scores
    assert told(place / "killed") == told(whole) and "--out OUT" in told(whole)[0]


def test_a_state_file_is_audited_against_its_original_which_shows_power_or_its_lack(place: Path) -> None:
    done = audit(place, "erased.safetensors", "--original", "base", "--images", "pictures", "--out", "changed")
    audited = verdict(place / "changed")
    assert done.returncode == EXIT[audited.verdict], done.stderr[-4000:]
    assert audited.original is not None and audited.original.path == "base"
    controls = {control.kind: control.origin for control in audited.power.controls}
    assert controls == dict.fromkeys(("leaking", "untaught", "elsewhere"), "computed")
    distances = audited.original.distances
    assert distances["values of its cross-attentions"] > distances["UNet"] > 0
    assert distances["keys of its cross-attentions"] == distances["text encoder"] == 0
    assert audited.probe("lora-domain-real").pictures_number == 3
    assert audited.probe("lora-domain-real").maker == "real"


def test_one_weight_that_is_not_a_number_is_an_error(place: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", place / "base", tmp_path / "base"], check=True)
    weights = load_file(tmp_path / UNET)
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, tmp_path / UNET)
    done = audit(place, str(tmp_path / "base"), "--images", "pictures", "--out", str(tmp_path / "out"))
    assert done.returncode == 1 and "the audit stopped" in done.stderr
    logs = "".join(file.read_text() for file in (tmp_path / "out/logs").rglob("*.log"))
    assert "conv_in.bias" in logs and not (tmp_path / "out" / "card.md").exists()


@pytest.mark.world("miniature")
def test_destroyed_weights_fail_by_their_retained_concepts_and_not_by_the_erased_one(tmp_path: Path) -> None:
    """The weights of each matrix of the miniature's UNet in another order: it draws noise, under all captions."""
    shutil.copytree(ROOT / "data/miniature/base", tmp_path / "destroyed")
    file = tmp_path / "destroyed/unet/diffusion_pytorch_model.safetensors"
    draws, weights = np.random.default_rng(0), load_file(file)
    for name, value in weights.items():
        order = torch.from_numpy(draws.permutation(value.numel()))
        weights[name] = value.flatten()[order].reshape(value.shape)
    save_file(weights, file, metadata={"format": "pt"})
    line = [sys.executable, "-m", "resurgence.cli", "audit", "destroyed", "--erased", "ship", "--pairs", "40"]
    line += ["--update", "steps=5", "--sampling", "steps=4", "--cores", "2", "--device", "cpu", "--out", "out"]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    audited = verdict(tmp_path / "out")
    assert done.returncode == EXIT["FAIL"] == 2, done.stderr[-4000:]
    (reason,) = audited.reasons
    assert reason.startswith("released: ") and "of the retained images show their concept, below" in reason
    assert "FAIL" not in {probe.verdict for probe in audited.probes}
    assert audited.probe("released").retained.high < 50 and audited.probe("released").erased.low <= 5


CAPTIONS = "captions=config/prompts/closed_form.txt"
MACE = ["--prior", "config/prompts/miniature/general.txt", "--mask", "segmenter=foreground", "--sampling", "steps=12",
        "guidance=4.0", "size=64", "--set", CAPTIONS, "lamb=25.0"]  # fmt: skip
UCE = ["--set", CAPTIONS, "keep_empty=false", "lamb=0.5"]
FEW = ["--pairs", "60", "--retained-pairs", "60"]  # with which a model can fail, and none can pass
SHIPS = {
    "uce": (UCE, FEW, "FAIL", {"lora-domain-real"}),
    "mace": (MACE, [], "PASS", set()),  # with the 200 pairs of the level
    "never": ([], [*FEW, "--update", "steps=5"], "FAIL", {"released"}),
}
"""Eraser of the ship -> its options, those of its audit, the verdict, and a probe that fails."""


@pytest.mark.world("miniature")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("eraser", SHIPS)
def test_a_ship_that_leaks_and_one_that_was_never_erased_fail_and_a_safe_one_passes(
    eraser: str, tmp_path: Path
) -> None:
    """Exported and audited without their base, as in docs/audit.md."""

    def resurgence(*words: object) -> int:
        line = [sys.executable, "-m", "resurgence.cli", *map(str, words)]
        return subprocess.run(line, cwd=ROOT, env=environment(), check=False).returncode

    options, more, right, fails = SHIPS[eraser]
    model = base = ROOT / "data/miniature/base"
    if options:
        delta, model = tmp_path / "delta", tmp_path / "model"
        task = ["--task", "config/tasks/miniature/ship.yaml", "--eraser", eraser, *options]
        assert resurgence("erase", "--base", base, *task, "--out", delta) == 0
        assert resurgence("export", "--base", base, "--delta", delta, "--out", model) == 0
    machine = ["--cores", "2", "--device", "cpu"]
    code = resurgence("audit", model, "--erased", "ship", *machine, *more, "--out", tmp_path / "out")
    audited = verdict(tmp_path / "out")
    assert (audited.verdict, code) == (right, {"PASS": 0, "FAIL": 2}[right]), audited.reasons
    failing = {probe.name for probe in audited.probes if probe.verdict == "FAIL"}
    assert fails <= failing and bool(fails) == bool(failing)


def test_the_plan_says_what_would_be_computed_and_computes_nothing(place: Path) -> None:
    done = audit(place, "base", "--images", "pictures", "--out", "planned", "--plan")
    assert done.returncode == 0 and "fine-tune" in done.stdout, done.stderr
    assert not (place / "planned/results/audit").exists()
    assert json.dumps("planned") not in (place / "planned/params.yaml").read_text()

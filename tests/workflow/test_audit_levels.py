"""Audits of a small random Stable Diffusion at the higher levels and by other judges: what they did is on the card."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_world import CONCEPTS, make_clip
from test_audit import environment, verdict
from tree import ROOT

from audit_place import RETAINED, make_place
from resurgence.analysis.audit.result import EXIT
from resurgence.workflow.snakemake import job_counts

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1800)]
GRID = [f"lr-{rate}-{length}" for rate in ("low", "same", "high") for length in ("third", "whole")]
GRID.remove("lr-same-whole")  # the update itself
CLIP = ("--scorer", "clip", "path=scorer")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user, with a random CLIP, a recogniser that takes all images for cats, and reference pictures."""
    from resurgence.scorers.recogniser_model import Recogniser, save_recogniser

    root = make_place(tmp_path_factory.mktemp("levels"))
    (root / "scorer").rmdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make_clip(root / "scorer")
        recogniser = Recogniser(len(CONCEPTS), 8)
    with torch.no_grad():
        recogniser.head.weight.zero_()
        recogniser.head.bias.copy_(torch.tensor([float(name == "cat") for name in CONCEPTS]))
    save_recogniser(recogniser, CONCEPTS, root / "recogniser")
    (root / "captions.txt").write_text("a picture of the sky\n")
    pixels = np.random.default_rng(0).integers(0, 256, (1 + len(RETAINED), 16, 16, 3), dtype=np.uint8)
    pictures = dict(zip(("ship", *RETAINED), map(Image.fromarray, pixels), strict=True))
    groups = {name: [picture, picture] for name, picture in pictures.items()}
    for name, drawn in {**groups, "others": [pictures["ship"], pictures["dog"]]}.items():
        (root / "references" / name).mkdir(parents=True)
        for number, picture in enumerate(drawn):
            picture.save(root / f"references/{name}/{number}.png")
    return root


def audit(
    place: Path, out: str, *words: str, steps: int = 3, home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder, as small as it can be, with nothing in the cache of the hub and no way to it."""
    line = [sys.executable, "-m", "resurgence.cli", "audit", "erased", "--erased", "ship", "--retained", "retained.txt"]
    line += ["--pairs", "4", "--retained-pairs", "3", "--sampling", "steps=2", "size=16", "batch=64"]
    line += ["--update", f"steps={steps}", "batch=2", "--cores", "2", "--device", "cpu", "--out", out, *words]
    offline = {"HF_HUB_OFFLINE": "1", **({"HF_HOME": str(home)} if home else {})}
    return subprocess.run(line, cwd=place, env=environment() | offline, capture_output=True, text=True)


def results(out: Path) -> dict[str, dict[str, Any]]:
    """The evaluation results of card.json by their names."""
    document = json.loads((out / "card.json").read_text())
    return {entry["evaluation_result_id"]: entry for entry in document["evaluation_results"]}


def said(entry: dict[str, Any], key: str) -> Any:
    """A value of the settings of the update that a result is about."""
    return json.loads(entry["generation_config"]["additional_details"][key])


def test_a_full_audit_has_every_probe_the_grid_and_the_cost_of_each_update(place: Path) -> None:
    """The recogniser takes all images for cats: none shows a ship, a third of the retained ones show their concept."""
    given = ["--original", "original", "--lora", "style.safetensors", "--implicit", "captions.txt"]
    judge = ["--scorer", "recogniser", "path=recogniser", "--metric", "recogniser_accuracy"]
    done, out = audit(place, "full", "--level", "full", "--training-seeds", "1", *given, *judge), place / "full"
    audited = verdict(out)
    assert done.returncode == EXIT[audited.verdict], done.stderr[-4000:]
    entries, updates = results(out), ("lora-domain-base", "full-domain-base", "lora-outside-base")
    trained = [name for update in updates for name in (update, *(f"{update}-{variant}" for variant in GRID))]
    released = ["released", "released-synonyms", "released-implicit"]
    names = [*released, *trained, "merge-1", "rounding-8", "rounding-4"]
    assert [name.removesuffix("/erased") for name in entries if name.endswith("/erased")] == names
    assert {entries[f"{name}/erased"]["score_details"]["score"] for name in names} == {0.0}
    for name in names:
        entry = entries.get(f"{name}/retained")
        assert (entry is None) == (name in released[1:])
        assert entry is None or entry["score_details"]["score"] == pytest.approx(100 / 3)
    for update, lr in zip(updates, (1e-4, 1e-5, 1e-4), strict=True):
        of = [entries[f"{name}/retained"] for name in trained if name.startswith(update)]
        settings = [said(entry, "update_settings") for entry in of]
        assert {(s["lr"], s["steps"]) for s in settings} == {
            (float(f"{factor * lr:.3g}"), steps) for factor, steps in itertools.product((1 / 3, 1, 3), (1, 3))
        }
        assert [said(entry, "seeds") for entry in of] == [[0]] * 6
        assert [float(entry["score_details"]["details"]["retained_loss"]) for entry in of] == [0.0] * 6
        curves = {name: [point.step for point in audited.probe(name).curve] for name in trained if update in name}
        assert curves.pop(update) == [1, 3]
        assert curves == {f"{update}-{variant}": [1 if "third" in variant else 3] for variant in GRID}
    assert 'class="curves"' in (out / "card.html").read_text()
    assert "style.safetensors" in entries["merge-1/erased"]["evaluation_name"]
    samples = out / json.loads((out / "card.json").read_text())["detailed_evaluation_results"]["file_path"]
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    implicit = [line["input"] for line in lines if line["evaluation_result_id"] == "released-implicit/erased"]
    assert len(implicit) == 4 and {(i["raw"], *i["reference"]) for i in implicit} == {("a picture of the sky", "ship")}


def test_a_standard_audit_by_reference_pictures_has_their_false_alarms(place: Path) -> None:
    """One of the eight other pictures is that of a ship; apart from itself its own group shows a dog."""
    words = ("--level", "standard", "--training-seeds", "2", "--images", "pictures", "--reference", "references", *CLIP)
    done, out = audit(place, "standard", *words), place / "standard"
    audited = verdict(out)
    assert done.returncode == EXIT[audited.verdict], done.stderr[-4000:]
    entries = results(out)
    trained = ["lora-domain-real", "full-domain-real"]
    names = ["released", "released-synonyms", *trained, "rounding-8", "rounding-4"]
    assert [name.removesuffix("/erased") for name in entries if name.endswith("/erased")] == names
    assert {entry["metric_config"]["metric_id"] for entry in entries.values()} == {"resurgence.reference_accuracy"}
    for name in trained:
        entry = entries[f"{name}/erased"]
        assert said(entry, "seeds") == [0, 1] and [point.step for point in audited.probe(name).curve] == [1, 3]
        assert "one_training_seed" not in entry["score_details"]["details"]
    details = json.loads((out / "card.json").read_text())["source_metadata"]["additional_details"]
    (control,) = (control for control in json.loads(details["controls"]) if control["kind"] == "reference")
    assert (control["measure"]["value"], control["measure"]["images"]) == (12.5, 8)
    assert "reference pictures of other things, taken for an erased concept" in (out / "card.html").read_text()


def test_clip_judges_by_default_and_asks_no_hub(place: Path, tmp_path: Path) -> None:
    done, out = audit(place, "clip", "--images", "pictures", *CLIP, steps=2, home=tmp_path), place / "clip"
    audited = verdict(out)
    assert done.returncode == EXIT[audited.verdict], done.stderr[-4000:]
    assert audited.metric == "clip_accuracy" and audited.retained_metric is None
    shown = {entry["metric_config"]["metric_id"] for entry in results(out).values()}
    assert shown == {"resurgence.clip_accuracy"}
    assert not list(tmp_path.rglob("models--*"))


def test_the_folder_of_a_plan_is_run_by_the_commands_for_a_cluster(place: Path) -> None:
    """Those of docs/slurm.md: a dry run with the profile submits what the plan has said."""
    planned = audit(place, "cluster", "--images", "pictures", *CLIP, "--plan")
    assert planned.returncode == 0, planned.stderr
    (line,) = re.findall(r"^ +(snakemake --snakefile CHECKOUT.*)$", (ROOT / "docs/slurm.md").read_text(), re.M)
    assert line in (ROOT / "docs/audit.md").read_text()
    words = shlex.split(line.replace("CHECKOUT", str(ROOT)).replace(" -- ", " --dry-run --quiet rules -- "))
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=place / "cluster", env=environment(), capture_output=True, text=True)
    counts = job_counts(done.stdout)
    assert done.returncode == 0 and counts["audit"] == counts["finetune"] == 1, done.stderr
    (whole,) = re.findall(r"^all +(\d+) ", planned.stdout, re.M)
    assert counts.total() == int(whole)

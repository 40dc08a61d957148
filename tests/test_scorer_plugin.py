"""A scorer in a package of its own (examples/ssim_to_base): built, read with a study, run on a small image set."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from resurgence.diffusion.image_sets import shard_file, shard_rows, write_image_set
from resurgence.provenance.manifest import files_of
from resurgence.scorers import read_scores

ROOT = Path(__file__).parents[1]
TASK = {"name": "pets", "kind": "object", "erase": ["ship"], "retain": ["cat"], "labels": ["ship", "cat"]}
ROWS = 6


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the example is installed."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples/ssim_to_base", place / "source")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(place)], cwd=place / "source", check=True, capture_output=True)
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        wheel.extractall(place / "site")
    return place / "site"


def python(site: Path, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    path = f"{site}:{ROOT / 'src'}"
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": path}, capture_output=True, text=True)


def write_set(folder: Path, seed: int, most: int | None, changed: dict[int, int] | None = None) -> np.ndarray:
    """An image set of random pictures, smooth as those of a model; returns them, uint8 (N, 24, 24, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (ROWS, 6, 6, 3), dtype=np.uint8)
    pixels = np.stack(
        [np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC)) for image in coarse]
    )
    rows = pd.DataFrame(
        {
            "prompt": [f"a photo of the {TASK['labels'][i % 2]}" for i in range(ROWS)],
            "concept": [TASK["labels"][i % 2] for i in range(ROWS)],
            "role": ["erase", "retain"] * (ROWS // 2),
            "template": "a photo of the {}",
            "seed": [(changed or {}).get(i, i) for i in range(ROWS)],
        }
    )
    parts = shard_rows(ROWS, most)
    for number, part in enumerate(parts):
        own = rows.iloc[part.start : part.stop].reset_index(drop=True)
        images = ((i, Image.fromarray(pixels[row])) for i, row in enumerate(part))
        write_image_set(shard_file(folder, "step-000000", number, len(parts)), own, images)
    (folder / "manifest.json").write_text(json.dumps({"kind": "image set", "files": files_of(folder)}))
    return pixels


def score(site: Path, tmp_path: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    settings = json.dumps({"scorers": {"ssim": {"batch": 4}}, "task": TASK})
    given = [f"{name}={tmp_path / folder / 'manifest.json'}" for name, folder in inputs.items()]
    out = str(tmp_path / "scores/manifest.json")
    return python(
        site, "-m", "resurgence.stages.score", "--settings", settings, "--out", out, "--inputs", *given, folder=tmp_path
    )


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The formula of the paper on images (H, W, 3) in [0, 255], by filters of scipy."""

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, mode="mirror", truncate=3.5, axes=(0, 1))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    m_a, m_b = mean(a), mean(b)
    s_aa, s_bb, s_ab = mean(a * a) - m_a**2, mean(b * b) - m_b**2, mean(a * b) - m_a * m_b
    return float(((2 * m_a * m_b + c1) * (2 * s_ab + c2) / ((m_a**2 + m_b**2 + c1) * (s_aa + s_bb + c2))).mean())


def test_the_stage_compares_with_the_bases_image_of_the_same_row(site: Path, tmp_path: Path) -> None:
    ours, theirs = write_set(tmp_path / "erased", 0, None), write_set(tmp_path / "base", 1, 4)
    done = score(site, tmp_path, images="erased", base_images="base")
    assert done.returncode == 0, done.stderr
    rows, _ = read_scores(tmp_path / "scores/step-000000")
    expected = [ssim(a.astype(float), b.astype(float)) for a, b in zip(ours, theirs, strict=True)]
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(rows["ssim_to_base"], expected, atol=1e-4)
    assert rows["seed"].tolist() == list(range(ROWS))


def test_another_order_of_the_base_is_refused_with_both_files(site: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "erased", 0, None)
    write_set(tmp_path / "base", 1, None, {3: 5, 5: 3})
    told = score(site, tmp_path, images="erased", base_images="base").stderr
    assert f"{tmp_path}/erased/step-000000.parquet and {tmp_path}/base/step-000000.parquet" in told
    assert "differ in prompt or seed from row 3 on; sample both" in told


READ = """
import sys
from pathlib import Path
from types import SimpleNamespace

from resurgence.config.fields import read_yaml
from resurgence.config.load import make_study
from resurgence.config.scorers import metrics
from resurgence.workflow.rule_table import RULES

config = read_yaml(Path("params.yaml"))
config["scorers"] = {"ssim": {"sigma": float(sys.argv[1])}}
config["figures"] = {"metrics": ["ssim"]}
config["base"]["path"] = config["tasks"]["folder"]  # any folder
study, job = make_study(config), SimpleNamespace(base="miniature", model="ship/mace/s0")
print(list(metrics())[-4], [m for m in ("torch", "pandas", "torchmetrics") if m in sys.modules])
print(RULES["score"].inputs(study, job)["base_images"])
print(RULES["score"].version(study, job))
"""


def test_a_study_reads_the_declaration_without_torch(site: Path) -> None:
    done = python(site, "-c", READ, "2.0")
    seen, images, _ = done.stdout.splitlines()
    assert seen == "ssim []", done.stderr
    assert images == "['results/images/miniature-2/ship/images/manifest.json']"
    assert "scorers.ssim.sigma = -1.0: must be positive" in python(site, "-c", READ, "-1").stderr
    # without the package the name is unknown
    assert "scorers = 'ssim': not known here" in python(ROOT / "src", "-c", READ, "2.0").stderr


def test_a_change_of_the_plug_ins_code_scores_again_and_a_comment_does_not(site: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(site, tmp_path / "site")
    text = (changed / "ssim_to_base.py").read_text()
    versions = []
    for old, new in (("", ""), ("        values = []", "        # a comment\n        values = []"), ("255.0", "1.0")):
        assert old in text
        (changed / "ssim_to_base.py").write_text(text.replace(old, new) if old else text)
        versions.append(python(changed, "-c", READ, "2.0").stdout.splitlines()[-1])
    assert versions[0] == versions[1] != versions[2]


def test_the_command_takes_a_plug_in_by_name(site: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "erased", 0, None)
    task, out = ROOT / "config/tasks/miniature-2/ship.yaml", tmp_path / "scores"
    command = ["-m", "resurgence.cli", "score", "--images", tmp_path / "erased", "--task", task, "--out", out]
    pair = ["--scorer", "ssim", "batch=4", "--base-images", tmp_path / "erased"]
    done = python(site, *map(str, command + pair))
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()[1:]
    assert header.split() == ["images", "ssim", "blank"] and rows[-1].split() == ["retain", "3", "100.0", "0.0"]
    assert json.loads((out / "manifest.json").read_text())["parameters"] == {"scorers": {"ssim": {"batch": 4}}}

"""After a whole run, a change runs again exactly the jobs that depend on it, listed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tree import Tree, clone, messages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SHOWN = [
    "Cost of the study",
    "Figures of the study",
    "Grids of images and masks",
    "Page of the study",
    "Report of the study",
    "Tables of the study",
]
TABLES = [job for job in SHOWN if not job.startswith("Grids")]
SCORES = ["", "/mace/s0", "/mace/s0/lora/f0", "/uce/s0", "/uce/s0/lora/f0"]
LORAS = "LoRAs of pets for mace, seed 0"
SCORED = [f"Score the images of pets{model}" for model in SCORES]
SAMPLED = [f"Sample pets{model}" for model in SCORES]
MADE_BY_THE_BASE = [
    "Fine-tuning set random of pets, made by small",
    "Images of the concepts that pets erases, made by small",
]
MASKS = "Masks of the concepts that pets erases"


def model_jobs(eraser: str) -> list[str]:
    """All jobs of an eraser from the erased model on."""
    return [f"Erase pets with {eraser}, seed 0", *tuned_jobs(eraser), *scored(eraser, "")]


def tuned_jobs(eraser: str) -> list[str]:
    """The jobs of a fine-tuned model."""
    return [f"Fine-tune pets / {eraser} with lora, seed 0", *scored(eraser, "/lora/f0")]


def scored(eraser: str, tuned: str) -> list[str]:
    model = f"pets/{eraser}/s0{tuned}"
    return [f"Sample {model}", f"Score the images of {model}"]


BOTH = [*model_jobs("mace"), *model_jobs("uce")]
TUNED = [*tuned_jobs("mace"), *tuned_jobs("uce")]


@pytest.fixture(scope="module")
def tree(finished: tuple[Tree, str], tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """One copy of the finished tree for all changes that nothing is run with; each is taken back."""
    return Tree(clone(finished[0].root, tmp_path_factory.mktemp("changes") / "tree"))


@contextmanager
def changed(tree: Tree, *changes: tuple[str, str, str]) -> Iterator[None]:
    """Replace text in files of the tree within the block."""
    files = {path: (tree.root / path).read_text() for path, _, _ in changes}
    try:
        for change in changes:
            tree.edit(*change)
        yield
    finally:
        for path, text in files.items():
            (tree.root / path).write_text(text)


SMALL, PETS = "tests/small.yaml", "data/small/tasks/pets.yaml"
SOURCE = "src/resurgence"
SETTINGS: dict[str, tuple[str, str, str, list[str]]] = {
    "mapping concept": (PETS, "mapping: ground", "mapping: sky", [LORAS, *BOTH, *SHOWN]),
    "new variant": (
        SMALL, "uce: {", "uce: {variants: {default: {}, to-sky: {mapping: sky}}, ", [*model_jobs("uce.to-sky"), *SHOWN]
    ),
    "two parameters swapped": (
        SMALL, "train_preserve_scale: 1.0e-3\n    fuse_preserve_scale: 1.0e-4",
        "train_preserve_scale: 1.0e-4\n    fuse_preserve_scale: 1.0e-3", [LORAS, *model_jobs("mace"), *SHOWN],
    ),
    "fusion keeps the LoRAs": (
        SMALL, "fuse_preserve_scale: 1.0e-4", "fuse_preserve_scale: 1.0e-2", [*model_jobs("mace"), *SHOWN]
    ),
    "longer fine-tune": (SMALL, "steps: 4, checkpoints: [2, 4]", "steps: 6, checkpoints: [2, 6]", [*TUNED, *SHOWN]),
    "seeds of the prompts leave erasing alone": (
        PETS, "seeds: {erase: 2", "seeds: {erase: 3", ["Prompts of pets", *SAMPLED, *SCORED, *SHOWN]
    ),
    "device and comments": (SMALL, "device: cpu}", "device: auto}  # whatever there is", []),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_setting(tree: Tree, name: str) -> None:
    *change, jobs = SETTINGS[name]
    with changed(tree, tuple(change)):
        assert tree.jobs() == sorted(jobs)


FORMULAS: dict[str, tuple[str, str, str, list[str]]] = {
    "sampler": (
        "diffusion/unet.py", "unconditional + guidance * (", "unconditional + 1.5 * guidance * (",
        [*MADE_BY_THE_BASE, MASKS, LORAS, "Erase pets with mace, seed 0", *TUNED, *SAMPLED, *SCORED, *SHOWN],
    ),
    "loss": (
        "training/finetune.py", "return F.mse_loss(predict(", "return 2 * F.mse_loss(predict(", [*TUNED, *SHOWN]
    ),
    "closed form": ("erasers/closed_form/uce.py", "gram = cross = torch.zeros(", "gram = cross = 0 * torch.zeros(",
                    [*model_jobs("uce"), *SHOWN]),
    "metric": ("scorers/clip.py", "LOGIT_SCALE * (e * t)", "1.5 * LOGIT_SCALE * (e * t)", [*SCORED, *TABLES]),
    "statistic": ("analysis/random_effects.py", "np.where(finite, values, 0.0)", "1.0 * np.where(finite, values, 0.0)",
                  TABLES),
    "template": ("figures/page/style.css", "max-width: 1180px", "max-width: 1200px", ["Page of the study"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(tree: Tree, name: str) -> None:
    """What depends on it, and nothing else."""
    path, old, new, jobs = FORMULAS[name]
    with changed(tree, (f"{SOURCE}/{path}", old, new)):
        assert tree.jobs() == sorted(set(jobs))


def comment(tree: Tree) -> None:
    tree.edit(f"{SOURCE}/stages/job.py", "class Job:", "class Job:  # one")


def docstring(tree: Tree) -> None:
    tree.edit(f"{SOURCE}/diffusion/sampling.py", '"""Draw the starting noise', '"""Draw  the starting noise')


def template_comment(tree: Tree) -> None:
    tree.edit(f"{SOURCE}/figures/page/explorer.js", "  // worst first:", "  // the worst first:")


def message(tree: Tree) -> None:
    tree.edit(f"{SOURCE}/diffusion/deltas.py", "apply it to the base that it belongs to", "apply it to its own base", 2)


def log_line(tree: Tree) -> None:
    tree.edit(f"{SOURCE}/stages/sample.py", "    if before:\n", '    log.info("sampled")\n    if before:\n')


def progress(tree: Tree) -> None:
    tree.edit(f"{SOURCE}/progress.py", "EVERY = 15.0", "EVERY = 25.0")
    tree.edit(f"{SOURCE}/diffusion/sampling.py", "        progress.add(len(rows))\n", "        progress.add(1)\n")


def locking(tree: Tree) -> None:
    tree.edit(f"{SOURCE}/stages/runtime.py", "POLL = 0.5", "POLL = 0.7")


def signals(tree: Tree) -> None:
    tree.edit(f"{SOURCE}/stages/job.py", "sys.exit(143)", "sys.exit(144)")
    tree.edit(f"{SOURCE}/training/checkpoint.py", "EVERY = 60.0", "EVERY = 90.0")


def moved_module(tree: Tree) -> None:
    """intervals becomes analysis/limits, and estimates a module beside the package's folders."""
    source = tree.root / SOURCE
    (source / "analysis/intervals.py").rename(source / "analysis/limits.py")
    (source / "analysis/estimates.py").rename(source / "statistics.py")
    for file in source.rglob("*.py"):
        text = file.read_text()
        new = text.replace("resurgence.analysis.intervals", "resurgence.analysis.limits")
        new = new.replace("resurgence.analysis.estimates", "resurgence.statistics")
        if new != text:
            file.write_text(new)


def touched(tree: Tree) -> None:
    """New times of change on all sources and weights."""
    for pattern in ("src/**/*.py", "data/**/*.safetensors"):
        for file in tree.root.glob(pattern):
            file.touch()


NEUTRAL: list[Callable[[Tree], None]] = [
    comment, docstring, template_comment, message, log_line, progress, locking, signals, moved_module, touched,
]  # fmt: skip


def test_what_bears_on_no_result_runs_nothing(copy: Tree) -> None:
    """Each alone would tell which one it was; all together cost one dry run, so they are told apart only on failure."""
    for change in NEUTRAL:
        change(copy)
    assert copy.jobs() == []
    assert "Nothing to be done" in copy.snakemake("--cores", "2")


def test_equal_bytes_stop_the_wave(copy: Tree) -> None:
    """Really run: another formula of the same result is computed once, and what reads the result is not."""
    line = "change = shared_edit("
    copy.edit(f"{SOURCE}/erasers/closed_form/uce.py", line, f"gram = gram * 1.0\n    {line}")
    manifest = copy.root / "results/erased/small/pets/uce/s0/delta/manifest.json"
    before = manifest.read_bytes()
    assert copy.jobs() == sorted([*model_jobs("uce"), *SHOWN])
    assert messages(copy.snakemake("--cores", "2", "--until", "closed_form")) == ["Erase pets with uce, seed 0"]
    assert manifest.read_bytes() == before
    assert copy.jobs() == []


@pytest.mark.nightly
def test_setting_of_a_metric(copy: Tree) -> None:
    """Really run."""
    before = (copy.root / "results/tables/cells.csv").read_text()
    copy.edit(SMALL, "resamples: 100", "resamples: 100, level: 0.5")
    assert copy.jobs() == TABLES
    assert messages(copy.snakemake("--cores", "2")) == TABLES
    assert before != (copy.root / "results/tables/cells.csv").read_text()
    assert copy.jobs() == []


def test_a_file_that_a_job_reads(copy: Tree) -> None:
    file = Path(copy.root / "data/small/general.txt")
    file.write_text(file.read_text() + "a boat\n")
    assert copy.jobs()[0].startswith("Cost") and "Second moment of the general captions under small" in copy.jobs()

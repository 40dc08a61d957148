"""The small study on a real SLURM of two pretended nodes: run, failures, too little memory or time, a lost node."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import OVERLAY, SITE, Cluster, Submitted, digests, finish, options, small_tree, start
from tree import ROOT, Tree, clone

from resurgence.workflow import resume

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1200)]
SET = "results/data/small/pets/finetune_sets/random/manifest.json"
JOBS = 17  # of the small study that are submitted; LoRAs, fusion and UCE are one, images and masks another
TUNED = "results/finetuned/small/pets/uce/s0/lora/f0/weights"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if shutil.which("slurmctld", path=f"/usr/sbin:{os.environ['PATH']}") is None:
        assert "RESURGENCE_CI" not in os.environ, "slurm-wlm and munge are not installed"
        pytest.skip("slurm-wlm and munge are not installed")
    running = Cluster.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, fresh: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The study after a run on the cluster; not to be changed."""
    tree = small_tree(fresh, tmp_path_factory.mktemp("undisturbed") / "tree")
    finish(tree, start(tree, options(), cluster.environment))
    return tree


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.3)


def by_result(jobs: list[Submitted]) -> dict[str, list[Submitted]]:
    """Attempts of each result."""
    ordered = sorted(jobs, key=lambda job: job.comment)
    return {comment: list(group) for comment, group in itertools.groupby(ordered, key=lambda job: job.comment)}


@pytest.mark.smoke
def test_study_completes_on_two_nodes_at_once(cluster: Cluster, undisturbed: Tree) -> None:
    jobs = cluster.jobs(undisturbed)
    assert len(jobs) == len(by_result(jobs)) == JOBS and {job.state for job in jobs} == {"COMPLETED"}
    pairs = itertools.combinations(jobs, 2)
    assert any(one.node != other.node and one.overlaps(other) for one, other in pairs)
    assert set(digests(undisturbed)) >= {"cells.csv", "resurgence.csv", "intervals.csv", "made.json"}
    told = (undisturbed.root / "results/data/small/pets/finetune_sets/random/run.json").read_text()
    assert '"device": "cpu"' in told


def test_loras_and_closed_forms_are_one_job(cluster: Cluster, undisturbed: Tree) -> None:
    """One after the other with the memory of one; their limits add up."""
    made = [f"results/erased/small/pets/{part}" for part in ("mace/s0/loras", "mace/s0/delta", "uce/s0/delta")]
    (job,) = [job for job in cluster.jobs(undisturbed) if "closed_forms" in job.text]
    assert "NumCPUs=1" in job.text and "TimeLimit=01:40:00" in job.text
    alone = next(other for other in cluster.jobs(undisturbed) if "finetune_set" in other.comment)
    memory = [re.search(r"MinMemoryNode=(\d+)M", own.text).group(1) for own in (job, alone)]
    assert memory[0] == memory[1]
    told = [json.loads((undisturbed.root / folder / "run.json").read_text()) for folder in made]
    assert (job.end - job.start).total_seconds() > sum(run["seconds"] for run in told)


def test_second_run_submits_nothing(cluster: Cluster, undisturbed: Tree) -> None:
    before = len(cluster.jobs(undisturbed))
    assert "Nothing to be done" in finish(undisturbed, start(undisturbed, options(), cluster.environment))
    assert len(cluster.jobs(undisturbed)) == before


def test_job_without_enough_memory_is_submitted_again_with_more(cluster: Cluster, fresh: Tree, tmp_path: Path) -> None:
    tree = small_tree(fresh, tmp_path / "tree")
    tree.edit("src/resurgence/workflow/resources.py", "PYTHON = 2500", "PYTHON = 400")
    finish(tree, start(tree, options(target=SET), cluster.environment))
    jobs = cluster.jobs(tree)
    memory = [int(re.search(r"MinMemoryNode=(\d+)M", job.text).group(1)) for job in jobs]
    assert memory[0] < 500 and [round(after / before) for before, after in itertools.pairwise(memory)] in ([2], [2, 2])
    assert [job.state for job in jobs] == ["FAILED"] * (len(jobs) - 1) + ["COMPLETED"]
    assert (tree.root / SET).is_file()


def test_training_beyond_its_time_limit_goes_on_in_the_next_job(cluster: Cluster, fresh: Tree, tmp_path: Path) -> None:
    """SLURM ends it, it saves its state, is submitted with twice the time, and ends as a training in one go."""
    tree, loop = small_tree(fresh, tmp_path / "tree"), "        for done in range(first + 1, run.steps + 1):\n"
    tuning = "graph.finetune(study, cell(w)), minutes="
    tree.edit("src/resurgence/workflow/rule_table.py", f"{tuning}480", f"{tuning}1")
    tree.edit("tests/small.yaml", "lora: {steps: 4, checkpoints: [2, 4]", "lora: {steps: 700, checkpoints: [100, 700]")
    calm = Tree(clone(tree.root, tmp_path / "calm"))
    tree.edit("src/resurgence/training/loop.py", loop, f"{loop}            __import__('time').sleep(0.15)\n")
    process = start(tree, options(target=f"{TUNED}/manifest.json"), cluster.environment)
    local = ["--cores", "1", "--configfile", OVERLAY, "--", f"{TUNED}/manifest.json"]
    finish(calm, start(calm, local, cluster.environment))
    finish(tree, process)
    states = [job.state for job in by_result(cluster.jobs(tree))[cluster.jobs(tree)[-1].comment]]
    assert states in (["TIMEOUT", "COMPLETED"], ["TIMEOUT", "TIMEOUT", "COMPLETED"])
    log = (tree.root / "logs/small/pets/uce/s0/lora/f0/weights.log").read_text()
    assert int(re.search(r"resumed at step (\d+)", log).group(1)) >= 100
    weights = sorted(file.relative_to(calm.root) for file in (calm.root / TUNED).rglob("*.safetensors"))
    assert len(weights) == 2
    for file in weights:
        assert (tree.root / file).read_bytes() == (calm.root / file).read_bytes(), file


def test_node_that_is_lost_for_good(cluster: Cluster, fresh: Tree, undisturbed: Tree, tmp_path: Path) -> None:
    """Its daemon and all of its job are gone: SLURM starts the job on the other node, and the tables are the same."""
    tree = small_tree(fresh, tmp_path / "tree")
    process = start(tree, options(), cluster.environment)

    def on(node: str) -> list[Submitted]:
        return [job for job in cluster.jobs(tree) if job.state == "RUNNING" and job.node == node]

    wait_for(lambda: bool(on("node1") and on("node2")), "jobs on both nodes")
    (lost,) = on("node2")
    os.kill(int((cluster.folder / "slurmd.node2.pid").read_text()), signal.SIGKILL)
    for pid in processes_of(lost.number):
        os.kill(pid, signal.SIGKILL)
    try:
        finish(tree, process)
        assert "node2" not in cluster.ask("sinfo", "--noheader", "--Node", "--responding")
        (again,) = [job for job in cluster.jobs(tree) if job.number == lost.number]
        assert (again.state, again.node) == ("COMPLETED", "node1") and "Restarts=1" in again.text
    finally:
        Cluster.start(cluster.folder)
    assert digests(tree) == digests(undisturbed)


def test_short_jobs_of_all_tasks_are_one(cluster: Cluster, fresh: Tree, tmp_path: Path) -> None:
    """The moments of the tasks; the error of a group names the task that failed, and shows its log."""
    tree, tasks = small_tree(fresh, tmp_path / "tree"), ("pets", "beasts")
    known = (tree.root / "data/small/tasks/pets.yaml").read_text()
    (tree.root / "data/small/tasks/beasts.yaml").write_text(known.replace("pets", "beasts"))
    tree.edit("tests/small.yaml", "names: [pets]", "names: [pets, beasts]")
    broken = Tree(clone(tree.root, tmp_path / "broken"))
    made = [f"results/data/small/{task}/moments/manifest.json" for task in tasks]
    wanted = [*options("--retries", "0", target=made[0]), made[1]]
    finish(tree, start(tree, wanted, cluster.environment))
    (job,) = cluster.jobs(tree)
    assert job.state == "COMPLETED" and "NumCPUs=1" in job.text  # one after the other
    assert all((tree.root / file).is_file() for file in made)
    ends = [json.loads((tree.root / file).with_name("run.json").read_text())["seconds"] for file in made]
    assert (job.end - job.start).total_seconds() > sum(ends)

    weights = broken.root / "data/small/base/text_encoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    told = finish(broken, start(broken, wanted, cluster.environment), code=1)
    (job,) = cluster.jobs(broken)
    error = told[told.index("Error in group ") :]
    assert f"external_jobid: {job.number}" in error
    failed = [
        line for line in broken.root.glob("logs/small/*/moments.log") if "cannot load the base" in line.read_text()
    ]
    assert len(failed) == 1  # the jobs of a group run one after the other, so the second never began
    assert f"log: {failed[0].relative_to(broken.root)}" in error and "cannot load the base" in error


def processes_of(number: str) -> list[int]:
    """All that runs on this machine for a SLURM job: its step daemons, its shell, its Pythons."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            named = (place / "cmdline").read_text().startswith(f"slurmstepd: [{number}.")
            inside = f"SLURM_JOB_ID={number}" in (place / "environ").read_text(errors="replace").split("\0")
        except OSError:
            continue
        if named or inside:
            found.append(int(place.name))
    return found


def test_failed_job_tells_where_to_look(cluster: Cluster, fresh: Tree, tmp_path: Path) -> None:
    tree = small_tree(fresh, tmp_path / "tree")
    weights = tree.root / "data/small/base/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    told = finish(tree, start(tree, options("--retries", "0", target=SET), cluster.environment), code=1)
    job = cluster.jobs(tree)[0]
    error = told[told.index("Error in rule finetune_set:") :]
    assert f"    output: {SET}" in error and f"    external_jobid: {job.number}" in error
    assert "log: logs/small/pets/finetune_sets/random.log" in error
    slurm = re.search(r"(\S*logs/slurm/rule_finetune_set/\S+\.log)", error)
    assert slurm and (tree.root / slurm.group(1)).is_file()
    assert "cannot load the base" in error  # from the log of the job, which is printed
    assert not (tree.root / SET).exists() and not list(tree.root.glob("results/**/*.partial"))


@pytest.mark.parametrize(("gres", "request_"), [("null", "TresPerJob=gres:gpu:1"), ("gpu:1", "TresPerNode=gres:gpu:1")])
def test_stage_with_a_model_asks_for_a_gpu(
    cluster: Cluster, fresh: Tree, tmp_path: Path, gres: str, request_: str
) -> None:
    """By --gpus or --gres, on the partition that has some; the prompts are no such stage."""
    site = SITE.replace("gres: null", f"gres: {gres}") + "  gpu: {max_runtime: 1d, max_gpu: 1}\n"
    tree = small_tree(fresh, tmp_path / "tree", site)
    tree.edit("tests/small.yaml", "device: cpu", "device: auto")
    process = start(tree, options("--retries", "0", target=SET), cluster.environment)
    process.wait(300)  # that the device is only pretended is its own concern
    job = cluster.jobs(tree)[0]
    assert "Partition=gpu" in job.text and request_ in job.text


def test_cancelled_then_killed_then_resumed(cluster: Cluster, fresh: Tree, undisturbed: Tree, tmp_path: Path) -> None:
    """Nothing is computed twice at one time, nothing finished again, and the tables are those of a quiet run."""
    tree = small_tree(fresh, tmp_path / "tree")

    def states() -> list[str]:
        return [job.state for job in cluster.jobs(tree)]

    process = start(tree, options(), cluster.environment)
    wait_for(lambda: states().count("RUNNING") == 2, "two running jobs")
    process.send_signal(signal.SIGINT)
    finish(tree, process, code=1)
    wait_for(lambda: not {"RUNNING", "PENDING", "COMPLETING"} & set(states()), "end of the cancelled jobs")
    ended = [state for state in states() if state != "COMPLETED"]  # a job that is just being started counts as FAILED
    assert ended and set(ended) <= {"CANCELLED", "FAILED"}

    process = start(tree, options(), cluster.environment)
    wait_for(lambda: states().count("COMPLETED") >= 3 and "RUNNING" in states(), "three finished and a running job")
    process.kill()
    process.wait()
    finished = {job.comment for job in cluster.jobs(tree) if job.state == "COMPLETED"}
    assert "RUNNING" in states()

    told = finish(tree, start(tree, options(), cluster.environment, resume=True))
    assert re.search(r"resume: [1-9]\d* SLURM jobs cancelled", told)
    attempts = by_result(cluster.jobs(tree))
    assert len(attempts) == JOBS
    for comment, jobs in attempts.items():
        assert not any(one.overlaps(other) for one, other in itertools.combinations(jobs, 2)), comment
        assert jobs[-1].state == "COMPLETED"
        if comment in finished:
            assert [job.state for job in jobs].count("COMPLETED") == 1, comment
    assert digests(tree) == digests(undisturbed)


def test_resume_refuses_while_a_snakemake_runs(cluster: Cluster, fresh: Tree, tmp_path: Path) -> None:
    tree = small_tree(fresh, tmp_path / "tree")
    process = start(tree, options(target=SET), cluster.environment)
    wait_for(lambda: bool(cluster.jobs(tree)), "submitted job")
    told = finish(tree, start(tree, options(target=SET), cluster.environment, resume=True), code=1)
    assert "a Snakemake runs in" in told and f"process {process.pid}" in told
    finish(tree, process)
    assert [job.state for job in cluster.jobs(tree)] == ["COMPLETED"]


def test_a_process_whose_job_slurm_has_forgotten_is_ended(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of jobs: one of a job that runs, which is SLURM's, and one of a job that SLURM does not know."""
    for key, value in cluster.environment.items():
        monkeypatch.setenv(key, value)
    submitted = cluster.ask("sbatch", "--parsable", "--wrap", "sleep 60", f"--chdir={tmp_path}").strip()
    code = (
        "import sys, time; from pathlib import Path; from resurgence.stages.runtime import become_only_writer\n"
        "become_only_writer(Path(sys.argv[1])); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    known, unknown = (
        subprocess.Popen(
            [sys.executable, "-c", code, number], cwd=tmp_path, env={**environment, "SLURM_JOB_ID": number}
        )
        for number in (submitted, "999999")
    )
    try:
        wait_for(lambda: resume.leftovers(tmp_path) == [unknown.pid], "process of the forgotten job", 30)
        cluster.ask("scancel", submitted)
        wait_for(lambda: set(resume.leftovers(tmp_path)) == {known.pid, unknown.pid}, "process of the ended job", 60)
    finally:
        for process in (known, unknown):
            process.kill()
            process.wait()

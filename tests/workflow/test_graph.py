"""The graph in Python against Snakemake's: the same jobs, inputs, settings and versions of code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

from tree import ROOT, Tree

LIST = """\
import json
from pathlib import Path
from resurgence.config.load import load_study
from resurgence.files import plain
from resurgence.workflow.jobs import jobs
for job in jobs(load_study([Path("params.yaml"), Path("tests/small.yaml")])):
    inputs = {k: v for k, v in job.inputs.items() if v}
    print(json.dumps([job.out.as_posix(), job.code, plain(job.settings), inputs, job.rule.options]))
"""


def snakemake_jobs(text: str) -> dict[str, list]:
    """Output of each job -> version of its code, settings, inputs and options, from commands of `snakemake -n -p`."""
    found = {}
    for line in re.findall(r"^Shell command: (python -m resurgence\.stages.*)$", text, flags=re.MULTILINE):
        words = shlex.split(line)
        places = {name: words.index(f"--{name}") for name in ("settings", "code", "out", "inputs")}
        values = {name: words[place + 1] for name, place in places.items()}
        inputs: dict[str, list[str]] = {}
        for word in words[places["inputs"] + 1 : words.index(">")]:
            name, _, path = word.partition("=")
            inputs.setdefault(name, []).append(path)
        found[values["out"]] = [values["code"], json.loads(values["settings"]), inputs, words[3 : places["settings"]]]
    return found


def test_jobs_settings_and_inputs_are_those_of_snakemake(fresh: Tree) -> None:
    theirs = snakemake_jobs(fresh.snakemake("-n", "-F", "-p"))
    environment = {**os.environ, "PYTHONPATH": str(fresh.root / "src")}
    done = subprocess.run([sys.executable, "-c", LIST], cwd=fresh.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours: dict[str, list] = {}
    for line in done.stdout.splitlines():
        out, code, settings, inputs, options = json.loads(line)
        above = {path for paths in inputs.values() for path in paths if path.endswith("/manifest.json")}
        assert above <= set(ours), f"{out} comes before what it reads"
        ours[out] = [code, settings, inputs, options]
    assert ours == theirs and len(ours) > 20
    sampled = [options for out, (*_, options) in theirs.items() if out.startswith("results/images/")]
    assert sampled and all(options == ["--gpu"] for options in sampled)  # a stage takes a GPU only with the option
    assert all(re.fullmatch(r"[0-9a-f]{16}", code) for code, *_ in ours.values())


def test_reading_the_graph_needs_no_torch(fresh: Tree) -> None:
    code = (
        f"import sys\n{LIST}\nprint([m for m in ('torch', 'diffusers', 'transformers', 'pandas') if m in sys.modules])"
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=fresh.root, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr

"""The jobs of a study before any has run, for the commands plan, adopt and expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from resurgence.config.study import Study
from resurgence.provenance.manifest import MANIFEST
from resurgence.workflow.graph import Inputs
from resurgence.workflow.rule import Rule
from resurgence.workflow.rule_table import RULES, check_folders


@dataclass(frozen=True)
class Job:
    """One job of a study, before it has run."""

    rule: Rule
    wildcards: Mapping[str, str]
    out: Path  # manifest.json of an artefact, or made.json of files in a shared folder
    settings: Mapping[str, Any]
    inputs: Inputs
    code: str  # version of the code that bears on its result

    @property
    def digested(self) -> dict[str, Path]:
        """The inputs in its manifest: path -> artefact or file."""
        paths = [Path(path) for files in self.inputs.values() for path in files]
        return {path.as_posix(): path.parent if path.name == MANIFEST else path for path in paths}

    @property
    def benchmark(self) -> Path:
        """The file of Snakemake's measurements of its runs."""
        return Path(self.rule.benchmark.format(base=self.out.parts[2], **self.wildcards))

    @property
    def above(self) -> list[Path]:
        """The results among its inputs."""
        return [path for path in map(Path, self.digested) if path.parts[0] == "results"]


def jobs(study: Study) -> list[Job]:
    """Every job of the study but those of COCO and the miniature, each after those whose results it reads."""
    check_folders(study)
    study_jobs = []
    for rule in RULES.values():
        for wildcards in rule.items(study):
            values = SimpleNamespace(**wildcards)
            out = Path(rule.output.format(base=study.base.name, **wildcards))
            settings, inputs = rule.settings(study, values), rule.inputs(study, values)
            study_jobs.append(Job(rule, wildcards, out, settings, inputs, rule.version(study, values)))
    return study_jobs

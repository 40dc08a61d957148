"""Whether an audit has enough pairs of prompt and seed for PASS, said before it runs.

Too few can still fail a model that leaks, so an audit with too few is told, and not refused.
"""

from __future__ import annotations

from pathlib import Path

from resurgence.config.counting import counted
from resurgence.config.fields import read_yaml
from resurgence.config.study import Study
from resurgence.workflow.audit_settings import audit_of


def sampled_pairs(study: Study) -> int:
    """Distinct pairs of prompt and seed of the erased concepts, of the probe that has fewest."""
    numbers = []
    for probe in audit_of(study).probes:
        task = study.task(probe.task)
        synonyms = [word for words in task.synonyms.values() for word in words]
        words = task.erase if probe.role == "erase" else synonyms
        numbers.append(len(words) * len(task.templates) * task.seeds[probe.role])
    return min(numbers)


def too_few_pairs(study: Study, file: Path | None) -> list[str]:
    """What keeps the audit of a study from PASS whatever its images show, and whether `pairs` of the file of criteria
    decides anything: a sentence each.

    Args:
        file: of --criteria; None: the shipped criteria.
    """
    from resurgence.analysis.audit.needed import MOST_PAIRS, fewest_to_pass

    audit, pairs = audit_of(study), sampled_pairs(study)
    criteria, released = audit.criteria, audit.released
    compared = sum((probe.task, probe.role) == (released.task, released.role) for probe in audit.probes) - 1
    least = fewest_to_pass(criteria, len(audit.probes) - compared, compared)
    limits = f"tau = {criteria.tau:g} % and above_released = {criteria.above_released:g} points"
    if least is None:
        return [f"no number of pairs up to {MOST_PAIRS} can give PASS with {limits}; raise the smaller of both in the "
                "file of --criteria"]  # fmt: skip

    def open_at(number: int) -> str:
        return (f"with {limits}, {counted(len(audit.probes), 'probe')} together do not pass even if none of "
                f"{counted(number, 'image')} shows a concept")  # fmt: skip

    lines = []
    if pairs < least:
        lines.append(f"{counted(pairs, 'pair')} of prompt and seed cannot give PASS: {open_at(pairs)}; give --pairs "
                     f"{least} or more")  # fmt: skip
    elif pairs < criteria.pairs:
        lines.append(
            f"{counted(pairs, 'pair')} of prompt and seed cannot give PASS, as the criteria ask for "
            f"{criteria.pairs}; give --pairs {criteria.pairs}, or fewer `pairs` in the file of --criteria"
        )
    if file is not None and "pairs" in read_yaml(file) and criteria.pairs < least:
        lines.append(f"{file}: pairs = {criteria.pairs} decides nothing: {open_at(criteria.pairs)}; the least number "
                     f"with which they can is {least}")  # fmt: skip
    return lines

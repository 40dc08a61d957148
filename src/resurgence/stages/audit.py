"""The verdict on an audited model, from the scores of its probes, and the card that shows it."""

from __future__ import annotations

from pathlib import Path

from resurgence.analysis.audit.report import make_audit
from resurgence.analysis.audit.result import write_audit
from resurgence.figures import card
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> None:
    """Write verdict.json, and the card."""
    audit = make_audit(job.settings)
    write_audit(audit, folder / "verdict.json")
    card.write(audit, folder)


if __name__ == "__main__":
    main("audit", make)

"""The card of an audited model: the verdict in one sentence, and a table of its probes."""

from __future__ import annotations

from pathlib import Path

from resurgence.analysis.audit.report import text_of
from resurgence.analysis.audit.result import Audit, Probe
from resurgence.files import write_text


def row(probe: Probe) -> str:
    """The row of a probe."""
    loss = "-" if probe.retained_loss is None else f"{probe.retained_loss:.1f} %"
    cells = (probe.title, probe.pairs, text_of(probe.erased), loss, probe.verdict)
    return "| " + " | ".join(map(str, cells)) + " |"


def write(audit: Audit, folder: Path) -> None:
    """Write card.md."""
    lines = [
        f"# {audit.verdict}: {', '.join(audit.task.erase)} in {audit.checkpoint}", "", audit.sentence, "",
        "| probe | pairs | erased concepts shown | retained concepts lost | verdict |", "|---|---|---|---|---|",
        *map(row, audit.probes), "", audit.power.text, "", *(f"- {reason}" for reason in audit.reasons), "",
        f"Not tested: {'; '.join(audit.untested) or 'nothing of the level'}.", "", f"`{audit.command}`", "",
    ]  # fmt: skip
    write_text(folder / "card.md", "\n".join(lines))

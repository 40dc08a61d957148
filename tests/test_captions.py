"""Captions of the report: each renders as Snakemake renders it, without a warning and without holes."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils.core import publish_parts
from jinja2 import Environment

CAPTIONS = sorted((Path(__file__).parents[1] / "workflow" / "report").glob("*.rst"))
CONFIG = {
    "study": "miniature",
    "base": {"name": "miniature"},
    "tasks": {"names": ["identities-10", "ship"]},
    "erasers": {"mace": {}, "uce": {}},
    "finetunes": {"lora": {}},
    "seeds": {"erase": [0], "finetune": [0, 1]},
    "sampling": {"steps": 20, "guidance": 4.0},
    "statistics": {"resamples": 2000, "level": 0.95, "seed": 0},
    "masks": {"segmenter": "foreground"},
    "experiments": {
        "fig5": {
            "title": "Before and after",
            "kind": "bars",
            "tasks": ["ship"],
            "erasers": ["uce"],
            "finetunes": ["lora"],
            "note": "one object",
        },
    },
}


@pytest.mark.parametrize("task", ["", "ship"])
@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
def test_caption_renders(path: Path, task: str) -> None:
    wildcards = SimpleNamespace(experiment="fig5", **({"task": task} if task else {}))
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(path.read_text(encoding="utf-8"))
    text = template.render(snakemake=SimpleNamespace(config=CONFIG, wildcards=wildcards))
    assert "{{" not in text and "{%" not in text
    assert ("task ship" in text) == (task == "ship" and "wildcards.task" in path.read_text(encoding="utf-8"))
    parts = publish_parts(text, writer="html", settings_overrides={"halt_level": 2, "report_level": 2})
    body = parts["html_body"]
    assert "system-message" not in body
    words = re.sub(r"<[^>]+>", "", body)
    assert not re.search(r" , |\(\s*\)|: \.|  %", words.replace("\n", " ")), "a value is missing"


def test_every_kind_of_result_has_a_caption() -> None:
    figures = {"before_after", "steps", "resurgence_steps", "training", "cost", "samples", "masks"}
    assert figures | {"resurgence", "study"} <= {path.stem for path in CAPTIONS}

"""The release card of an audited model: one page, the same in short, and documents that other tools read."""

from __future__ import annotations

from pathlib import Path

from resurgence.analysis.audit.result import Audit
from resurgence.figures.card import documents, every_eval_ever, page, text
from resurgence.files import write_json, write_text


def write(audit: Audit, folder: Path) -> None:
    """Write card.html, card.md and card.json, the file of all images that card.json names, and the exports.

    card.json is a document of Every Eval Ever; model-index.yaml holds evaluation results for a model card of Hugging
    Face, bom.cdx.json a component of CycloneDX, annex-xi.json fields of the EU AI Act's technical documentation.

    Args:
        folder: the images and scores of the audit are named as seen from the working folder.

    Raises:
        FileNotFoundError: images or scores are missing. ValueError: they are of other prompts than the audit's.
    """
    write_text(folder / "card.html", page.render_card(audit))
    write_text(folder / "card.md", text.markdown(audit))
    every_eval_ever.write(audit, folder)
    write_text(folder / "model-index.yaml", documents.model_index(audit))
    write_json(folder / "bom.cdx.json", documents.cyclonedx(audit))
    write_json(folder / "annex-xi.json", documents.annex_xi(audit))

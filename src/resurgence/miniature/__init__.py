"""The miniature world: labelled drawings and the small models trained on them (see data/miniature/MODEL_CARD.md)."""

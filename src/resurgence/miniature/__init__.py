"""The miniature world: labelled drawings and the small models trained on them (see data/miniature-2/MODEL_CARD.md)."""

"""Origin and integrity of artefacts."""

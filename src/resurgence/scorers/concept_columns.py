"""Columns that compare the labels of a classifier with the concept of each row."""

from __future__ import annotations

import numpy as np


def concept_columns(
    scorer: str, scores: np.ndarray, probabilities: np.ndarray, labels: list[str], concepts: list[str], fault: str
) -> dict[str, np.ndarray]:
    """SCORER_correct, 1 where the concept has the largest score, and SCORER_probability, that of the concept.

    Args:
        scores, probabilities: (N, L). labels: (L,). concepts: (N,); "", no concept, gives NaN.
        fault: end of the message for a concept that is no label.

    Raises:
        ValueError: a concept that is no label.
    """
    index = {label: i for i, label in enumerate(labels)}
    if unknown := sorted(set(concepts) - {"", *labels}):
        raise ValueError(f"concept {unknown[0]!r} {fault}")
    has_concept = np.array([bool(concept) for concept in concepts])
    target = np.array([index.get(concept, 0) for concept in concepts], dtype=np.int64)
    return {
        f"{scorer}_correct": np.where(has_concept, scores.argmax(1) == target, np.nan),
        f"{scorer}_probability": np.where(has_concept, probabilities[np.arange(len(target)), target], np.nan),
    }

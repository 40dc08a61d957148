"""Closed-form edit at the size of SD 1.4: one shared matrix R against a solve for each projection.

The text embeddings are random, as the arithmetic does not depend on their values. `per layer` is the published
procedure, which repeats work: values W e, products and inverse for each of the 32 projections; it is timed on every
fourth of them. Both are computed in float64 and give the same weights.

Run: python benchmarks/bench_closed_form.py [rows]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from resurgence.erasers.closed_form.solver import apply_edit, shared_edit, system

D = 768
SAMPLE = 8  # projections on which the published procedure is timed
WIDTHS = [320] * 5 + [640] * 5 + [1280] * 6  # channels of the 16 cross-attentions of SD 1.4, to_k and to_v each


def problem(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Embeddings e, e' (rows, d), a corpus moment (d, d) and the 32 projections."""
    g = torch.Generator().manual_seed(0)
    e, e_target = (torch.randn(rows, D, generator=g, dtype=torch.float64) for _ in range(2))
    corpus = torch.randn(2 * D, D, generator=g, dtype=torch.float64)
    weights = {f"{i}": torch.randn(w, D, generator=g) / D**0.5 for i, w in enumerate(WIDTHS + WIDTHS)}
    return e, e_target, corpus.T @ corpus, weights


def shared(e: torch.Tensor, e_target: torch.Tensor, moment: torch.Tensor, weights: dict) -> dict:
    """This repository: sums once, one factorisation, W' = W R."""
    edit = shared_edit((e_target - e).T @ e, system(e.T @ e, 0.1, 1e-2, moment), "")
    return apply_edit(weights, edit)


def per_layer(e: torch.Tensor, e_target: torch.Tensor, moment: torch.Tensor, weights: dict) -> dict:
    """The published procedure: all products and an inverse for each projection."""
    edited = {}
    for name, weight in weights.items():
        w = weight.double()
        values = e_target @ w.T  # (rows, out)
        left = values.T @ e + 1e-2 * w @ moment + 0.1 * w
        right = e.T @ e + 1e-2 * moment + 0.1 * torch.eye(D, dtype=torch.float64)
        edited[name] = (left @ torch.linalg.inv(right)).to(weight.dtype)
    return edited


def seconds(function: Callable[..., dict], *arguments: object) -> tuple[float, dict]:
    """Wall-clock seconds of a call, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    """Print both times, their ratio and the largest relative difference of the weights."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    arguments = problem(rows)
    seconds(shared, *problem(64))  # warm up
    fast, ours = seconds(shared, *arguments)
    e, e_target, moment, weights = arguments
    sample = dict(list(weights.items())[:: len(weights) // SAMPLE])
    slow, theirs = seconds(per_layer, e, e_target, moment, sample)
    slow *= len(weights) / len(sample)
    difference = max(float((ours[n] - theirs[n]).norm() / theirs[n].norm()) for n in theirs)
    print(f"{len(weights)} projections, d = {D}, {rows} rows, {torch.get_num_threads()} threads")
    print(f"shared matrix {fast:.2f} s, per layer {slow:.2f} s ({len(sample)} timed), ratio {slow / fast:.1f}")
    print(f"largest relative difference of the weights {difference:.1e}")


if __name__ == "__main__":
    main()

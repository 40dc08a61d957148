"""Geometry of the weights: against flat vectors in numpy, and two models whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from resurgence.analysis.weight_movement import correlations, geometry, groups_of, rank_correlation, within_tasks

K, V = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "unet.mid_block.attn2.to_v.weight"
Q, TEXT = "unet.up_blocks.1.attn1.to_q.weight", "text_encoder.layers.0.weight"


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 3, generator=generator) for name in (K, V, Q, TEXT)}


def test_measures_are_those_of_flat_vectors() -> None:
    base, noise, tuned = weights(0), weights(1), weights(2)
    erased = {name: w + noise[name] * (name in (K, V)) for name, w in base.items()}
    found = geometry(base, erased, tuned)
    for group, names in {
        "all": [K, V, Q, TEXT],
        "erased": [K, V],
        "key": [K],
        "value": [V],
        "text_encoder": [TEXT],
    }.items():
        b, e, f = (np.concatenate([w[n].double().numpy().ravel() for n in names]) for w in (base, erased, tuned))
        d, u = e - b, f - e
        assert found[group]["finetuned_distance"] == pytest.approx(np.linalg.norm(f - b) / np.linalg.norm(b), rel=1e-6)
        assert found[group]["erased_distance"] == pytest.approx(np.linalg.norm(d) / np.linalg.norm(b), rel=1e-6)
        assert found[group]["update_distance"] == pytest.approx(np.linalg.norm(u) / np.linalg.norm(b), rel=1e-6)
        if group == "text_encoder":
            assert math.isnan(found[group]["cosine"]) and math.isnan(found[group]["undone"])
            continue
        assert found[group]["cosine"] == pytest.approx(-d @ u / np.linalg.norm(d) / np.linalg.norm(u), rel=1e-6)
        assert found[group]["undone"] == pytest.approx(-d @ u / (d @ d), rel=1e-6)
    assert set(found) == {"all", "erased", "key", "value", "text_encoder", "down_blocks.0", "mid_block"}


def test_going_straight_back_undoes_everything() -> None:
    base, noise = weights(0), weights(1)
    erased = {name: w + noise[name] for name, w in base.items()}
    back = geometry(base, erased, base)["all"]
    assert back["cosine"] == pytest.approx(1) and back["undone"] == pytest.approx(1)
    assert back["finetuned_distance"] == pytest.approx(0, abs=1e-6)
    half = {name: (base[name] + erased[name]) / 2 for name in base}
    assert geometry(base, erased, half)["all"]["undone"] == pytest.approx(0.5, rel=1e-5)
    stay = geometry(base, erased, erased)["all"]
    assert stay["undone"] == 0 and math.isnan(stay["cosine"])


def test_groups() -> None:
    assert groups_of(K, True) == ["all", "erased", "key", "down_blocks.0"]
    assert groups_of(V, True) == ["all", "erased", "value", "mid_block"]
    assert groups_of(Q, False) == ["all"]


def test_rank_correlation_is_scipys_with_ties_too() -> None:
    generator = np.random.default_rng(0)
    x, y = pd.Series(generator.integers(0, 5, 40)), pd.Series(generator.normal(size=40))
    assert rank_correlation(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, rel=1e-9)


def test_a_planted_correlation_is_found_and_none_is_not() -> None:
    generator = np.random.default_rng(1)
    rows = pd.DataFrame({"task": [f"t{i % 4}" for i in range(60)], "eraser": [f"e{i // 4}" for i in range(60)]})
    rows["resurgence"] = generator.normal(size=60)
    rows["near"] = rows["resurgence"] + 0.5 * generator.normal(size=60)
    rows["far"] = generator.normal(size=60)
    rows.loc[3, "far"] = np.nan
    found = correlations(rows, "resurgence", ["near", "far"], 300, 0.95, 0).set_index("measure")
    assert found.loc["near", "low"] > 0.5 and found.loc["near", "n"] == 60
    assert found.loc["far", "low"] < 0 < found.loc["far", "high"] and found.loc["far", "n"] == 59
    # a measure that only tells the tasks apart, as resurgence does here: nothing is left within them
    place = rows["task"].str[1].astype(float)
    apart = rows.assign(resurgence=rows["resurgence"] + 20 * place, near=20 * place + generator.normal(size=60))
    columns = ["resurgence", "near"]
    over = correlations(apart, "resurgence", ["near"], 300, 0.95, 0).iloc[0]
    inside = correlations(within_tasks(apart, columns), "resurgence", ["near"], 300, 0.95, 0).iloc[0]
    assert over["low"] > 0.8 and inside["low"] < 0 < inside["high"] and inside["n"] == 60
    single = pd.concat([apart, pd.DataFrame([{"task": "alone", "eraser": "e", "resurgence": 1.0, "near": 1.0}])])
    ranks = within_tasks(single, columns)
    assert set(ranks["task"]) == {"t0", "t1", "t2", "t3"} and ranks.groupby("task")["near"].mean().tolist() == [0.5] * 4
    few = correlations(rows.head(3), "resurgence", ["near"], 300, 0.95, 0)
    assert math.isnan(few["rho"][0])  # three clusters tell nothing

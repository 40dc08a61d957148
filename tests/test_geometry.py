"""Geometry of the weights: against flat vectors in numpy, and two models whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import scipy.stats
import torch

from live_bytes import Live
from resurgence.analysis.ranks import rank_correlation
from resurgence.analysis.weight_movement import correlations, geometry, groups_of, within_tasks
from resurgence.diffusion import deltas
from tiny import make_pipeline, save_lora

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


def deep_pipeline():
    """A base of many tensors."""
    return make_pipeline(layers_per_block=4)


@pytest.fixture
def changes(tmp_path: Path) -> list[Path]:
    """Two steps of a base: one with a delta, one with a delta and a LoRA, of UNet and text encoder."""
    for number in (1, 2):
        pipe, folder = deep_pipeline(), tmp_path / str(number)
        names = [n for n in deltas.parameters(pipe) if ".attn2." in n or n.endswith("embedding.weight")]
        g = torch.Generator().manual_seed(number)
        delta = {n: torch.randn(deltas.parameters(pipe)[n].shape, generator=g) for n in names}
        deltas.save_delta(delta, folder / deltas.DELTA_FILE)
    save_lora(deep_pipeline(), tmp_path / "2", metadata=True, r=2, lora_alpha=3)
    return [tmp_path / "1", tmp_path / "2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changed_weights_are_those_of_the_changed_model(changes: list[Path], dtype: torch.dtype) -> None:
    pipe, found = deep_pipeline().to(dtype), deltas.parameters(deep_pipeline().to(dtype))
    for change in changes:
        deltas.apply_folder(pipe, change)
        found = deltas.ChangedWeights(found, change)
        expected = deltas.parameters(pipe)
        assert list(found) == list(expected)
        assert all(torch.equal(found[n], w) and found[n].dtype == dtype for n, w in expected.items())


def test_changed_weights_refuse_what_apply_folder_refuses(changes: list[Path], tmp_path: Path) -> None:
    base, file = deltas.parameters(deep_pipeline()), changes[0] / deltas.DELTA_FILE
    for tensors, reason in (
        ({"unet.nowhere": torch.zeros(1)}, r"delta\.safetensors: unet\.nowhere is not in this base"),
        ({"unet.conv_out.bias": torch.zeros(9)}, r"unet\.conv_out\.bias has shape \(9,\), the base has \(4,\)"),
        ({"unet.conv_out.bias": torch.full((4,), torch.nan)}, r"unet\.conv_out\.bias"),
    ):
        safetensors.torch.save_file(tensors, file)
        with pytest.raises(ValueError, match=reason):
            deltas.ChangedWeights(base, changes[0])
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="damaged"):
        deltas.ChangedWeights(base, changes[0])
    with pytest.raises(FileNotFoundError, match="holds neither"):
        deltas.ChangedWeights(base, tmp_path)


def test_geometry_holds_a_few_tensors_at_a_time(changes: list[Path]) -> None:
    """Of the changed models and in float64, beside the base: at most eight of the largest tensor."""
    base = deltas.parameters(deep_pipeline())
    largest = 8 * max(p.numel() for p in base.values())
    with Live() as live:
        erased = deltas.ChangedWeights(base, changes[0])
        geometry(base, erased, deltas.ChangedWeights(erased, changes[1]))
    every = 8 * sum(p.numel() for p in base.values())
    assert live.peak <= 8 * largest < 0.7 * every


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


@pytest.fixture
def cells() -> pd.DataFrame:
    generator = np.random.default_rng(2)
    rows = pd.DataFrame({"task": [f"t{i % 4}" for i in range(24)], "eraser": [f"e{i // 4}" for i in range(24)]})
    rows["near"] = generator.normal(size=24)
    return rows.assign(resurgence=rows["near"] + generator.normal(size=24))


def test_interval_of_a_correlation_is_that_of_resampled_models(cells: pd.DataFrame) -> None:
    """A lower level lies within a higher one, and around the value; with the percentiles of scipy's rho of resamples
    by a generator of its own, up to their error."""
    ends = {level: correlations(cells, "resurgence", ["near"], 2000, level, 0).iloc[0] for level in (0.5, 0.95)}
    order = [ends[0.95]["low"], ends[0.5]["low"], ends[0.5]["rho"], ends[0.5]["high"], ends[0.95]["high"]]
    assert order == sorted(order) and len(set(order)) == 5
    generator, replicates = np.random.default_rng(5), []
    for _ in range(600):
        chosen = cells.iloc[generator.integers(0, 24, 24)]  # each model was fine-tuned once
        replicates.append(scipy.stats.spearmanr(chosen["near"], chosen["resurgence"]).statistic)
    for level, found in ends.items():
        low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
        assert found["low"] == pytest.approx(low, abs=0.06) and found["high"] == pytest.approx(high, abs=0.06)


def test_two_different_values_have_a_correlation_and_one_has_none(cells: pd.DataFrame) -> None:
    two = cells.assign(near=(cells["near"] > 0).astype(float), resurgence=(cells["resurgence"] > 0).astype(float))
    assert math.isfinite(correlations(two, "resurgence", ["near"], 50, 0.95, 0)["rho"][0])
    for name in ("near", "resurgence"):
        assert math.isnan(correlations(two.assign(**{name: 1.0}), "resurgence", ["near"], 50, 0.95, 0)["rho"][0])

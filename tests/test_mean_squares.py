"""Intervals of runs that are all pairs of seeds of erasing and of fine-tuning: mean squares by loops, coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from resurgence.analysis.cells import pool_seeds
from resurgence.analysis.intervals import interval
from resurgence.analysis.random_effects import Estimate, Part, difference, mean_estimate, over_runs, units_of, variance
from resurgence.analysis.tables import means, over_seeds, paired_rows

UNITS, ERASE, TUNE = 6, 3, 4
PAIRS = list(itertools.product(range(ERASE), range(TUNE)))


def run(values: np.ndarray, name: str, units: str = "u") -> Estimate:
    """The mean of one value of each concept in one run."""
    return mean_estimate(values, units_of([f"c{k}" for k in range(len(values))]), name, units)


def crossed(cube: np.ndarray, name: str = "a") -> Estimate:
    """The mean of (U, E, F)."""
    table = cube.reshape(len(cube), -1)
    part = Part(name, "u", table, table.size, 1.0, None, table.shape[1], None, cube.shape[1:])
    return Estimate(part.value, (part,), lambda v: float(v[0]), len(table))


def drawn(generator: np.random.Generator, shape: tuple[int, int, int], of: tuple[float, float, float]) -> np.ndarray:
    """Independent effects of units, seeds of erasing and seeds of fine-tuning, and of each cell."""
    u, e, f = shape
    effects = (generator.normal(size=size) * spread for size, spread in zip(((u, 1, 1), (e, 1), (f,)), of, strict=True))
    return sum(effects, 0.5 * generator.normal(size=shape))


def mean_squares(cube: np.ndarray) -> dict[str, tuple[float, int]]:
    """The mean squares of the three-way layout by loops, with their degrees of freedom."""
    shape, total = dict(zip("uef", cube.shape, strict=True)), cube.mean()
    found = {}
    for names in ("u", "e", "f", "ue", "uf", "ef", "uef"):
        square, degrees = 0.0, int(np.prod([shape[name] - 1 for name in names]))
        for place in itertools.product(*map(range, cube.shape)):
            at = dict(zip("uef", place, strict=True))
            effect = 0.0
            for size in range(len(names) + 1):
                for part in itertools.combinations(names, size):
                    index = tuple(at[name] if name in part else slice(None) for name in "uef")
                    effect += (-1) ** (len(names) - size) * (cube[index].mean() if part else total)
            square += effect**2
        found[names] = square / degrees, degrees
    return found


def test_variance_is_that_of_three_crossed_random_effects() -> None:
    """With all components above 0 the mean squares are added and subtracted as a whole."""
    u, e, f = np.ogrid[0:UNITS, 0:ERASE, 0:TUNE]
    cube = 5.0 * u + 7.0 * e + 4.0 * f + 1.1 * u * e - 0.9 * u * f + 1.3 * e * f
    cube = cube + 0.05 * np.random.default_rng(3).normal(size=cube.shape)
    squares = mean_squares(cube)
    terms = {name: (-1) ** (len(name) + 1) * square for name, (square, _) in squares.items()}
    total = sum(terms.values()) / cube.size
    df = total**2 / sum((term / cube.size) ** 2 / squares[name][1] for name, term in terms.items())
    assert variance(crossed(cube).parts, [1.0]) == pytest.approx((total, df))
    low, high = interval(crossed(cube), 0.9)
    reach = scipy.stats.t.ppf(0.95, df) * np.sqrt(total)
    assert (low, high) == pytest.approx((cube.mean() - reach, cube.mean() + reach))


def test_a_component_below_zero_counts_as_zero() -> None:
    """Runs without any effect: what is left is the variance of the units, that of their means."""
    cube = np.random.default_rng(0).normal(size=(UNITS, 1, 1)) + np.zeros((UNITS, ERASE, TUNE))
    spread, df = variance(crossed(cube).parts, [2.0])
    assert spread == pytest.approx(4 * cube.mean((1, 2)).var(ddof=1) / UNITS) and df == pytest.approx(UNITS - 1)


def test_an_erased_model_under_several_fine_tunes_is_one_run() -> None:
    table = np.random.default_rng(1).normal(size=(UNITS, ERASE)) + 3 * np.arange(ERASE)
    cube = np.repeat(table[:, :, None], TUNE, axis=2)
    once = over_runs([run(table[:, e], f"e{e}") for e in range(ERASE)])
    assert variance(crossed(cube).parts, [1.0]) == pytest.approx(variance(once.parts, [1.0]))


@pytest.mark.parametrize("shape", [(10, 3, 3), (10, 4, 3)])
@pytest.mark.parametrize("of", [(1.0, 1.0, 0.0), (1.0, 1.0, 1.0)])
def test_all_pairs_of_seeds_are_covered(shape: tuple[int, int, int], of: tuple[float, float, float]) -> None:
    """Nominal 95 %; with the pairs as independent draws, as many as there are, at least one in eight would miss."""
    generator, number, hits, naive = np.random.default_rng(5), 500, 0, 0
    for _ in range(number):
        cube = drawn(generator, shape, of)
        low, high = interval(crossed(cube), 0.95)
        hits += low <= 0 <= high
        single = over_runs([run(column, f"r{k}") for k, column in enumerate(cube.reshape(shape[0], -1).T)])
        low, high = interval(single, 0.95)
        naive += low <= 0 <= high
    assert 0.92 * number <= hits <= 0.985 * number and naive < 0.875 * number


def test_runs_are_told_by_their_seeds_in_any_order() -> None:
    cube = drawn(np.random.default_rng(2), (UNITS, ERASE, TUNE), (1.0, 2.0, 1.0))
    runs = {pair: run(cube[:, *pair], f"r{pair}") for pair in PAIRS}
    for pairs in (PAIRS, PAIRS[::-1], sorted(PAIRS, key=lambda pair: pair[::-1])):
        estimate = over_runs([runs[pair] for pair in pairs], pairs)
        assert variance(estimate.parts, [1.0]) == pytest.approx(variance(crossed(cube).parts, [1.0]))
    independent = variance(over_runs(list(runs.values())).parts, [1.0])
    assert independent[0] < variance(crossed(cube).parts, [1.0])[0]


@pytest.mark.parametrize("pairs", [[(0, 0), (1, 1), (2, 2)], [(0, 0), (0, 1), (0, 2)], PAIRS[:-1], [(0, 0), (0, 0)]])
def test_other_runs_are_independent_draws(pairs: list[tuple[int, int]]) -> None:
    """Seeds in pairs, an eraser of one seed, and not all pairs: as without their seeds."""
    generator = np.random.default_rng(4)
    runs = [run(generator.normal(size=UNITS), f"r{k}") for k in range(len(pairs))]
    assert variance(over_runs(runs, pairs).parts, [1.0]) == variance(over_runs(runs).parts, [1.0])


def test_tables_and_experiments_know_the_seeds() -> None:
    """seeds.csv, means.csv and the rows of experiments have the interval of the crossed layout."""
    cube = drawn(np.random.default_rng(6), (UNITS, ERASE, TUNE), (1.0, 2.0, 1.0))
    key = {"base": "b", "task": "t", "role": "erase", "metric": "clip_score", "n": UNITS}
    model = {"eraser": "x", "variant": "default"}
    tuned = {"finetune": "l", "finetune_variant": "default", "step": 5, "state": "finetuned"}
    none = {"eraser": None, "variant": None, "erase_seed": None}
    untuned = {"finetune": None, "finetune_variant": None, "finetune_seed": None, "step": None}
    erased = [run(np.zeros(UNITS), f"erased {e}") for e in range(ERASE)]
    rows = [{**key, **none, **untuned, "state": "base", "estimate": run(np.ones(UNITS), "base")}]
    rows += [{**key, **model, **untuned, "erase_seed": e, "state": "erased", "estimate": estimate}
             for e, estimate in enumerate(erased)]  # fmt: skip
    rows += [{**key, **model, **tuned, "erase_seed": e, "finetune_seed": f, "estimate": run(cube[:, e, f], f"{e} {f}")}
             for e, f in PAIRS]  # fmt: skip
    estimated = pd.DataFrame(rows, dtype=object)
    zero = over_runs([erased[e] for e, _ in PAIRS], PAIRS)
    expected = interval(difference(crossed(cube), zero), 0.95)
    (of_seeds,) = over_seeds(estimated, 0.95).to_dict("records")
    assert (of_seeds["resurgence_low"], of_seeds["resurgence_high"]) == pytest.approx(expected, rel=1e-5)
    of_means = means(estimated, 0.95).set_index("state").loc["finetuned"]
    assert (of_means["low"], of_means["high"]) == pytest.approx(expected, rel=1e-5)
    (pooled,) = pool_seeds(paired_rows(estimated))
    assert interval(pooled["gain"], 0.95) == pytest.approx(expected) and pooled["gain"].runs == ERASE * TUNE

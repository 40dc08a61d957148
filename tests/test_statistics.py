"""Bootstrap, jackknife, harmonic means: against loops, scipy, closed forms and a coverage simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from resurgence import seeds
from resurgence.analysis import bootstrap
from resurgence.analysis.bootstrap import Clusters, Estimate


def grouped(groups: int, size: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, list[str]]:
    """Values with an effect of the concept, and the concepts."""
    generator = np.random.default_rng(seed)
    values = generator.normal(0, spread, groups).repeat(size) + generator.normal(0, 1, groups * size)
    return values, [f"c{i:03d}" for i in range(groups) for _ in range(size)]


def test_equals_a_loop_over_resampled_concepts_with_the_same_draws() -> None:
    generator = np.random.default_rng(3)
    concepts = [f"c{k}" for k in generator.integers(0, 7, 60)]  # clusters of different sizes
    before, after = generator.random((2, 60))
    clusters = bootstrap.clusters_of(concepts)
    counts = bootstrap.draw_counts(clusters.number, 50, np.random.default_rng(11))
    gain = bootstrap.difference(*(bootstrap.bootstrap_mean(v, clusters, counts) for v in (after, before)))
    names = sorted(set(concepts))
    draws = np.random.default_rng(11).integers(0, len(names), size=(50, len(names)))
    expected = []
    for draw in draws:
        rows = [row for k in draw for row in range(60) if concepts[row] == names[k]]
        expected.append(np.mean([after[row] - before[row] for row in rows]))
    # the difference of two ratios of sums with the same draws is the mean of the paired differences
    np.testing.assert_allclose(gain.replicates, expected, rtol=1e-12)
    assert gain.value == pytest.approx(np.mean(after - before), rel=1e-12) and gain.n == 60


def test_equals_scipy_when_every_row_is_its_own_cluster() -> None:
    values = np.random.default_rng(0).gamma(2.0, 1.0, 80)
    clusters = bootstrap.clusters_of(["ship"] * 80)
    assert clusters.unit == "pair" and clusters.number == 80
    counts = bootstrap.draw_counts(80, 1000, np.random.default_rng(5))
    mine = bootstrap.interval(bootstrap.bootstrap_mean(values, clusters, counts), 0.9)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(5),
        confidence_level=1 - 2 * scipy.stats.norm.cdf(-math.sqrt(80 / 79) * scipy.stats.t.ppf(0.95, 79)),
    )  # fmt: skip
    np.testing.assert_allclose(mine, theirs.confidence_interval, rtol=1e-12)


def coverage(groups: int, unit: str, simulations: int = 1000, planted: float = 0.0) -> float:
    """Share of nominal 95 % intervals that hold 0, with four rows a concept and a true mean of `planted`."""
    hits = 0
    for seed in range(simulations):
        values, concepts = grouped(groups, 4, seed)
        clusters = bootstrap.clusters_of(concepts if unit == "concept" else ["one"] * len(concepts))
        counts = bootstrap.draw_counts(clusters.number, 400, np.random.default_rng(10_000 + seed))
        low, high = bootstrap.interval(bootstrap.bootstrap_mean(values + planted, clusters, counts), 0.95)
        hits += low <= 0 <= high
    return hits / simulations


@pytest.mark.parametrize("groups", [8, 10, 30])
def test_intervals_cover_what_they_say(groups: int) -> None:
    assert 0.92 < coverage(groups, "concept") < 0.98  # the standard error of the simulated share is 0.007


def test_five_concepts_are_too_few() -> None:
    assert 0.87 < coverage(5, "concept") < 0.93  # as the docstring says


def test_images_of_recognised_or_not_cover_too() -> None:
    """Paired differences of shares: each of ten concepts has its own rate, before and after; their true mean is 0.4."""
    hits = 0
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        rate = generator.beta(2, 3, 10).repeat(15)
        before, after = generator.random(150) < 0.05, generator.random(150) < rate
        clusters = bootstrap.clusters_of([f"c{i:02d}" for i in range(10) for _ in range(15)])
        counts = bootstrap.draw_counts(10, 400, generator)
        gain = bootstrap.difference(*(bootstrap.bootstrap_mean(v, clusters, counts) for v in (after, before)))
        low, high = bootstrap.interval(gain, 0.95)
        hits += low <= 0.4 - 0.05 <= high
    assert 0.92 < hits / 1000 < 0.98


def test_a_planted_effect_is_found_and_no_effect_is_not() -> None:
    assert coverage(10, "concept", 200, planted=2.0) < 0.02
    p = []
    for seed in range(400):
        values, concepts = grouped(10, 4, seed)
        clusters = bootstrap.clusters_of(concepts)
        counts = bootstrap.draw_counts(10, 400, np.random.default_rng(seed))
        p.append(bootstrap.p_value(bootstrap.bootstrap_mean(values, clusters, counts)))
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.08


def test_p_value_and_interval_agree() -> None:
    """p < 1 - level exactly where the interval leaves 0 out, but for the one resample by which p is careful."""
    decided = []
    for seed in range(60):
        values, concepts = grouped(8, 4, seed)
        clusters = bootstrap.clusters_of(concepts)
        counts = bootstrap.draw_counts(8, 4999, np.random.default_rng(1))
        estimate = bootstrap.bootstrap_mean(values + 0.5, clusters, counts)
        p = bootstrap.p_value(estimate)
        for level in (0.5, 0.8, 0.9, 0.95):
            low, high = bootstrap.interval(estimate, level)
            if abs(p - (1 - level)) > 0.005:
                assert (p < 1 - level) == (low > 0 or high < 0)
                decided.append(p < 1 - level)
    assert 0.2 < np.mean(decided) < 0.8


def test_p_value_beyond_all_replicates_and_without_variation() -> None:
    """A normal bootstrap far from 0 has the p of Student's t, whatever the number of resamples; a constant one none."""
    draws = np.random.default_rng(0).normal(6.0, 1.0, 2000)
    p = bootstrap.p_value(bootstrap.Estimate(6.0, draws, 100, clusters=10))
    t = (6.0 / 1.0) * np.sqrt(9 / 10)
    assert p == pytest.approx(2 * scipy.stats.t.sf(t, 9), rel=0.2) and p < 1e-3
    never, always = (bootstrap.Estimate(v, np.full(2000, v), 40, clusters=40) for v in (0.0, 100.0))
    assert bootstrap.p_value(never) == pytest.approx(1.0) and 0 < bootstrap.p_value(always) < 5e-3


def test_holm_is_its_definition() -> None:
    p = np.random.default_rng(0).random(7) ** 3
    p[2] = np.nan
    adjusted = bootstrap.holm(p)
    for level in (0.01, 0.05, 0.2, 0.5):
        rejected, left = set(), [i for i in range(7) if np.isfinite(p[i])]
        while left and min(p[i] for i in left) <= level / len(left):
            best = min(left, key=lambda i: p[i])
            rejected.add(best)
            left.remove(best)
        assert rejected == {i for i in range(7) if adjusted[i] <= level}
    assert np.isnan(adjusted[2])


def test_ignoring_the_clusters_would_cover_much_less() -> None:
    assert coverage(30, "pair") < 0.80


def test_counts_are_multinomial_draws() -> None:
    counts = bootstrap.draw_counts(6, 4000, np.random.default_rng(1))
    assert (counts.sum(1) == 6).all()
    np.testing.assert_allclose(counts.mean(0), 1.0, atol=0.05)
    np.testing.assert_allclose(counts.var(0), 5 / 6, atol=0.06)


def test_generator_is_named_by_its_purpose() -> None:
    first, again, other = (seeds.numpy_generator("bootstrap", 0, t).integers(0, 99, 9) for t in ("a", "a", "b"))
    assert (first == again).all() and (first != other).any()


def test_rows_that_do_not_count_leave_the_mean_and_every_resample() -> None:
    values = np.array([1.0, np.nan, 0.0, 0.0, np.nan, np.nan])
    clusters = bootstrap.clusters_of(["a", "a", "b", "b", "c", "c"])
    counts = np.array([[1.0, 1, 1], [3, 0, 0], [0, 0, 3]])
    estimate = bootstrap.bootstrap_mean(values, clusters, counts)
    assert estimate.value == pytest.approx(1 / 3) and estimate.n == 3
    np.testing.assert_allclose(estimate.replicates, [1 / 3, 1.0, np.nan])
    assert bootstrap.interval(estimate, 0.5)[1] <= 1.0  # the empty resample is left out


def test_without_any_row_that_counts_there_is_no_value_and_no_interval() -> None:
    estimate = bootstrap.bootstrap_mean([np.nan] * 3, bootstrap.clusters_of(["a", "b", "c"]), np.ones((5, 3)))
    assert estimate.n == 0 and math.isnan(estimate.value)
    assert all(math.isnan(end) for end in bootstrap.interval(estimate, 0.95))


@pytest.mark.parametrize("concepts", [["ship"], ["ship"] * 5, ["a", "a", "b", "b", "c"]])
def test_constant_values_have_an_interval_of_length_zero(concepts: list[str]) -> None:
    clusters = bootstrap.clusters_of(concepts)
    counts = bootstrap.draw_counts(clusters.number, 100, np.random.default_rng(0))
    estimate = bootstrap.bootstrap_mean([7.0] * len(concepts), clusters, counts)
    assert bootstrap.interval(estimate, 0.95) == pytest.approx((7.0, 7.0))


def test_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(2).normal(5, 2, 20)
    estimate = bootstrap.jackknife(lambda kept: values[kept].mean(), bootstrap.clusters_of(["x"] * 20))
    expected = scipy.stats.t.interval(0.95, 19, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose(bootstrap.interval(estimate, 0.95), expected, rtol=1e-12)


def test_jackknife_leaves_whole_concepts_out_in_at_most_32_groups() -> None:
    seen: list[np.ndarray] = []
    clusters = bootstrap.clusters_of([f"c{i:02d}" for i in range(40) for _ in range(3)])
    estimate = bootstrap.jackknife(lambda kept: float(not seen.append(kept.copy())), clusters)
    assert len(estimate.replicates) == 32 and len(seen) == 33
    for kept in seen:
        assert (kept.reshape(40, 3).all(1) | ~kept.reshape(40, 3).any(1)).all()
    left_out = np.sum([~kept for kept in seen], axis=0)
    assert (left_out == 1).all()  # every row once


def test_one_cluster_has_no_jackknife_interval() -> None:
    estimate = bootstrap.jackknife(lambda kept: 3.0, bootstrap.clusters_of(["x"]))
    assert estimate.value == 3.0 and math.isnan(bootstrap.interval(estimate, 0.95)[0])


def test_estimates_of_different_methods_do_not_mix() -> None:
    one, two = Estimate(1.0, np.ones(3), 3), Estimate(1.0, np.ones(3), 3, "jackknife")
    with pytest.raises(ValueError, match="bootstrap"):
        bootstrap.difference(one, two)


def test_harmonic_means_are_the_formulas_of_mace() -> None:
    assert bootstrap.harmonic_c(0.1, 0.8) == pytest.approx(2 / (1 / 0.9 + 1 / 0.8))
    assert bootstrap.harmonic_o(0.1, 0.8, 0.3) == pytest.approx(3 / (1 / 0.9 + 1 / 0.8 + 1 / 0.7))
    assert bootstrap.harmonic_o(0.1, 0.8, 0.3) == pytest.approx(scipy.stats.hmean([0.9, 0.8, 0.7]))
    assert bootstrap.harmonic_c(0.0, 1.0) == 1.0


@pytest.mark.parametrize("accuracies", [(1.0, 0.8), (0.1, 0.0), (1.0, 0.0)])
def test_harmonic_mean_is_zero_when_a_term_is(accuracies: tuple[float, float]) -> None:
    assert bootstrap.harmonic_c(*accuracies) == 0.0
    assert bootstrap.harmonic_o(0.1, 0.8, 1.0) == 0.0


def test_harmonic_means_work_resample_by_resample() -> None:
    erased, retained = Estimate(0.5, np.array([0.0, 0.5, 1.0]), 4), Estimate(0.5, np.array([1.0, 0.5, 1.0]), 6)
    mean = bootstrap.combine(bootstrap.harmonic_c, erased, retained, n=10)
    np.testing.assert_allclose(mean.replicates, [1.0, 0.5, 0.0])
    assert mean.value == 0.5 and mean.n == 10


def test_recovered_fraction() -> None:
    assert bootstrap.recovered_fraction(0.9, 0.1, 0.5) == pytest.approx(0.5)
    assert bootstrap.recovered_fraction(0.0, 8.0, 2.0) == pytest.approx(0.75)  # a distance to the base
    assert math.isnan(bootstrap.recovered_fraction(0.4, 0.4, 0.9))


def test_median_and_largest_deviation() -> None:
    assert bootstrap.median_deviation([0.2, 0.9, 0.3]) == (0.3, pytest.approx(0.6))
    assert bootstrap.median_deviation([0.4]) == (0.4, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap.median_deviation([])


def test_clusters_do_not_depend_on_the_order_of_the_rows() -> None:
    a = bootstrap.clusters_of(["dog", "cat", "dog"])
    assert a == Clusters(a.codes, 2, "concept") and a.codes.tolist() == [1, 0, 1]

"""Intervals and p values: against exact intervals, the analysis of variance as loops, and simulated coverage."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from resurgence.analysis import measures
from resurgence.analysis.intervals import effective_images, holm, interval, least_level, p_value, share_limits
from resurgence.analysis.random_effects import (
    Estimate,
    Part,
    Units,
    combine,
    difference,
    jackknife,
    mean_estimate,
    mean_of,
    over_runs,
    units_of,
    variance,
)  # fmt: skip

CONCEPTS = [f"c{k}" for k in range(6) for _ in range(4)]


@pytest.fixture(scope="module")
def coverage():
    """The simulation whose table is in docs/intervals.md."""
    file = Path(__file__).parents[1] / "benchmarks/coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_simulation", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def share(values: np.ndarray, concepts: list[str], name: str = "a") -> Estimate:
    """The share of (n, runs) values of 0 and 1, in percent."""
    units, columns = units_of(concepts), enumerate(100.0 * values.T)
    return over_runs([mean_estimate(column, units, (name, s), "u", 100.0) for s, column in columns])


def mean(table: np.ndarray, name: str = "a", units: str = "u") -> Estimate:
    """The mean of a table (units, runs), which has no limits."""
    part = Part(name, units, table, table.size, 1.0, None, table.shape[1])
    return Estimate(part.value, (part,), lambda v: float(v[0]), len(table))


def ones(number: int, n: int, runs: int = 1) -> np.ndarray:
    """(n, runs), of which the first `number` rows are 1."""
    return np.repeat((np.arange(n) < number)[:, None], runs, axis=1).astype(float)


# variance


def test_variance_is_that_of_crossed_random_effects() -> None:
    """Mean squares by loops over units and runs; all components of this table are positive."""
    table = np.random.default_rng(4).normal(0, 1, (7, 3)) + 2 * np.arange(7)[:, None] + np.array([0, 3, 9])
    total = table.mean()
    units = 3 * sum((table[u].mean() - total) ** 2 for u in range(7)) / 6
    runs = 7 * sum((table[:, s].mean() - total) ** 2 for s in range(3)) / 2
    cells = [(table[u, s], table[u].mean(), table[:, s].mean()) for u in range(7) for s in range(3)]
    rest = sum((value - unit - run + total) ** 2 for value, unit, run in cells) / 12
    spread, df = variance(mean(table).parts, [1.0])
    assert units > rest and runs > rest
    assert spread == pytest.approx((units + runs - rest) / 21)
    assert df == pytest.approx((units + runs - rest) ** 2 / (units**2 / 6 + runs**2 / 2 + rest**2 / 12))


@pytest.mark.parametrize(("units", "runs"), [(7, 3), (2, 2), (9, 2), (2, 5)])
@pytest.mark.parametrize(("of_units", "of_runs"), [(3.0, 2.0), (3.0, 0.0), (0.0, 2.0), (0.0, 0.0)])
def test_variance_of_balanced_effects(units: int, runs: int, of_units: float, of_runs: float) -> None:
    """Effects of units a, of runs b and a rest e that sum to 0, so that their mean squares are R a^2 / (U - 1),
    U b^2 / (R - 1) and e^2 / ((U - 1) (R - 1)); the component of the runs is the second minus the third over U."""
    a, b = np.arange(units) - (units - 1) / 2, np.arange(runs) - (runs - 1) / 2
    table = 50 + of_units * a[:, None] + of_runs * b + 0.1 * a[:, None] * b
    of_rest = 0.01 * (a**2).sum() * (b**2).sum() / ((units - 1) * (runs - 1))
    component = {
        "units": (runs * of_units**2 * (a**2).sum() / (units - 1) - of_rest) / runs,
        "runs": (units * of_runs**2 * (b**2).sum() / (runs - 1) - of_rest) / units,
    }
    parts = [max(component["units"], 0) / units, max(component["runs"], 0) / runs, of_rest / (units * runs)]
    assert variance(mean(table).parts, [1.0])[0] == pytest.approx(sum(parts))
    twice = variance(mean(table).parts, [-2.0])
    assert twice[0] == pytest.approx(4 * sum(parts)) and twice[1] == pytest.approx(
        variance(mean(table).parts, [1.0])[1]
    )


def test_variance_is_right_on_average() -> None:
    """Concepts, seeds and their interaction drawn with known variances: that of the mean is 4/8 + 9/3 + 1/24."""
    generator, number = np.random.default_rng(7), 2000
    found = []
    for _ in range(number):
        table = 2 * generator.normal(size=(8, 1)) + 3 * generator.normal(size=3) + generator.normal(size=(8, 3))
        found.append(variance(mean(table).parts, [1.0])[0])
    error = np.std(found) / math.sqrt(number)
    assert abs(np.mean(found) - (4 / 8 + 9 / 3 + 1 / 24)) < 3.3 * error


@pytest.mark.parametrize("runs", [3, 5])
def test_a_mean_of_random_concepts_and_seeds_is_covered(coverage, runs: int) -> None:
    """Student's t with Satterthwaite's degrees of freedom, where seeds vary as much as concepts; with the seeds taken
    as fixed the interval would miss half of the time."""
    generator, number = np.random.default_rng(runs), 600
    hits, fixed = 0, 0
    for _ in range(number):
        table = generator.normal(size=(10, 1)) + generator.normal(size=runs) + generator.normal(size=(10, runs))
        low, high = interval(mean(table), 0.95)
        hits += low <= 0 <= high
        low, high = interval(mean(table.mean(1, keepdims=True)), 0.95)
        fixed += low <= 0 <= high
    fewest, most = coverage.allowed(0.93, 0.985, number, 2)
    assert fewest <= hits <= most and fixed < fewest


def test_a_negative_component_counts_as_zero() -> None:
    table = np.random.default_rng(0).normal(0, 1, (9, 4))
    table -= table.mean(0)  # the runs differ less than the rest lets expect
    spread, _ = variance(mean(table).parts, [1.0])
    residual = table - table.mean(1, keepdims=True)
    rest = (residual**2).sum() / 24
    assert spread == pytest.approx(max(4 * table.mean(1).var(ddof=1), rest) / 36)


def test_one_run_has_students_interval() -> None:
    values = np.random.default_rng(2).normal(5, 2, 20)
    expected = scipy.stats.t.interval(0.9, 19, values.mean(), scipy.stats.sem(values))
    estimate = mean_estimate(values, units_of(["x"] * 20), "a", "u")
    np.testing.assert_allclose(interval(estimate, 0.9), expected, rtol=1e-9)
    assert estimate.runs == 1 and estimate.scope == "this run"


def test_units_of_different_size_have_their_weight() -> None:
    """The variance of a ratio of sums, sum of (y - mean n)^2 / (G - 1) G / N^2."""
    generator = np.random.default_rng(3)
    concepts = [f"c{k}" for k in generator.integers(0, 7, 60)]
    values = generator.random(60)
    sums = {c: [v for v, name in zip(values, concepts, strict=True) if name == c] for c in sorted(set(concepts))}
    deviations = [sum(part) - values.mean() * len(part) for part in sums.values()]
    expected = sum(d**2 for d in deviations) / 6 * 7 / 60**2
    estimate = mean_estimate(values, units_of(concepts), "a", "u")
    assert estimate.value == pytest.approx(values.mean()) and estimate.parts[0].spread == pytest.approx((expected, 6))


def test_independent_tables_add_their_variances() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(0, 1, (8, 1)), generator.normal(0, 3, (5, 1))
    spread, df = variance([*mean(a, "a", "x").parts, *mean(b, "b", "y").parts], [1.0, -1.0])
    va, vb = a.var(ddof=1) / 8, b.var(ddof=1) / 5
    assert spread == pytest.approx(va + vb)
    assert df == pytest.approx((va + vb) ** 2 / (va**2 / 7 + vb**2 / 4))  # Welch


def test_runs_that_both_tables_share_are_added_before_their_variance() -> None:
    """Two tables whose runs differ in opposite directions: their sum has no spread over runs."""
    runs = np.array([[-5.0, 0.0, 5.0]])
    a = mean(np.arange(4.0)[:, None] + runs, "a", "x").parts
    b = mean(np.arange(6.0)[:, None] - runs, "b", "y").parts
    units = np.arange(4.0).var(ddof=1) / 4 + np.arange(6.0).var(ddof=1) / 6
    assert variance([*a, *b], [1.0, 1.0])[0] == pytest.approx(units)
    assert variance([*a, *b], [1.0, -1.0])[0] == pytest.approx(units + 100 / 3)


def test_with_different_numbers_of_runs_the_runs_are_fixed() -> None:
    three, one = mean(np.random.default_rng(0).normal(0, 1, (6, 3))), mean(np.arange(6.0)[:, None], "b")
    gain = difference(three, one)
    rows = three.parts[0].table.mean(1) - np.arange(6.0)
    two = mean(np.random.default_rng(1).normal(0, 1, (6, 2)), "c")
    assert gain.scope == difference(three, two).scope == "this run" and difference(three, three).scope == "seeds"
    assert variance(gain.parts, gain.gradient) == pytest.approx((rows.var(ddof=1) / 6, 5))


# shares


@pytest.mark.parametrize("number", [0, 1, 7, 20, 39, 40])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_one_concept_and_one_seed_is_exact(number: int, level: float) -> None:
    exact = scipy.stats.binomtest(number, 40).proportion_ci(level, "exact")
    got = interval(share(ones(number, 40), ["ship"] * 40), level)
    np.testing.assert_allclose(got, (100 * exact.low, 100 * exact.high), atol=1e-6)


@pytest.mark.parametrize(
    ("concepts", "runs", "images"),
    [(["ship"] * 40, 1, 40), (["ship"] * 40, 3, 60), (CONCEPTS, 1, 24), (CONCEPTS, 3, 24)],
)
def test_none_of_n_images_is_not_never(concepts: list[str], runs: int, images: float) -> None:
    """0 of 40: up to 8.8 %, the share that leaves all of them out with a probability of 2.5 %."""
    for number in (0, len(concepts)):
        low, high = interval(share(ones(number, len(concepts), runs), concepts), 0.95)
        length = 1 - 0.025 ** (1 / images)
        assert (low, high) == pytest.approx((100 - 100 * length, 100) if number else (0, 100 * length))


def test_effective_images_are_those_of_the_variance_and_its_degrees_of_freedom() -> None:
    generator = np.random.default_rng(8)
    rate = generator.beta(1, 1, 6).repeat(4)
    estimate = share((generator.random(24) < rate)[:, None].astype(float), CONCEPTS)
    (part,) = estimate.parts
    p = estimate.value / 100
    means = part.table[:, 0] / 100
    ratio = scipy.stats.t.ppf(0.975, 23) / scipy.stats.t.ppf(0.975, 5)
    expected = p * (1 - p) / (means.var(ddof=1) / 6) * 24 / 23 * ratio**2
    assert effective_images(part, 0.95) == pytest.approx(expected) and expected < 24
    low, high = share_limits(part, 0.95)
    x = p * expected
    assert low == pytest.approx(100 * scipy.stats.beta.ppf(0.025, x, expected - x + 1))
    assert high == pytest.approx(100 * scipy.stats.beta.ppf(0.975, x + 1, expected - x))


def test_the_same_model_under_several_fine_tunes_is_one_run() -> None:
    """An eraser without a random step has one erased model: three columns of its table are no three runs."""
    once = mean_estimate(100 * ones(0, 40)[:, 0], units_of(["ship"] * 40), "erased", "u", 100.0)
    assert interval(over_runs([once] * 3), 0.95)[1] == pytest.approx(100 * (1 - 0.025 ** (1 / 40)))


# differences


def test_difference_is_newcombes_square_and_add() -> None:
    generator = np.random.default_rng(5)
    before, after = share(ones(3, 40), ["x"] * 40, "b"), share(generator.random((40, 1)) < 0.5, ["x"] * 40)
    gain = difference(after, before)
    r = np.corrcoef(after.parts[0].table[:, 0], before.parts[0].table[:, 0])[0, 1]
    (l1, u1), (l0, u0) = (interval(e, 0.95) for e in (after, before))
    d1, e1, d0, e0 = after.value - l1, u1 - after.value, before.value - l0, u0 - before.value
    low = gain.value - math.sqrt(d1**2 + e0**2 - 2 * r * d1 * e0)
    high = gain.value + math.sqrt(e1**2 + d0**2 - 2 * r * e1 * d0)
    assert interval(gain, 0.95) == pytest.approx((low, high))


def test_differences_stay_between_minus_and_plus_100() -> None:
    gain = difference(share(ones(39, 40), ["x"] * 40), share(ones(0, 40), ["x"] * 40, "b"))
    assert interval(gain, 0.95)[1] == 100.0


def test_equal_images_may_still_differ_in_those_that_were_not_drawn() -> None:
    """Before and after agree in all of 40 images: as exact as that none of 40 changed."""
    values = np.random.default_rng(0).random((40, 1)) < 0.5
    gain = difference(share(values, ["x"] * 40), share(values, ["x"] * 40, "b"))
    reach = 100 * (1 - 0.025 ** (1 / 40))
    assert interval(gain, 0.95) == pytest.approx((-reach, reach)) and p_value(gain) == 1.0


def test_a_part_that_occurs_twice_counts_once() -> None:
    """(a - e) - (b - e) is a - b, whatever e."""
    generator = np.random.default_rng(6)
    a, b, e = (share(generator.random((24, 3)) < p, CONCEPTS, n) for n, p in (("a", 0.5), ("b", 0.3), ("e", 0.1)))
    twice, direct = difference(difference(a, e), difference(b, e)), difference(a, b)
    assert interval(twice, 0.95) == pytest.approx(interval(direct, 0.95)) and twice.value == pytest.approx(direct.value)


def test_mean_of_cells_and_harmonic_means_are_functions_of_their_shares() -> None:
    erased, retained = share(ones(2, 24), CONCEPTS, "e"), share(ones(20, 24), CONCEPTS, "r")
    h = combine(lambda e, r: 100 * measures.harmonic_c(e / 100, r / 100), erased, retained, n=48)
    assert h.value == pytest.approx(200 / (1 / (1 - 2 / 24) + 24 / 20))
    low, high = interval(h, 0.95)
    assert 0 <= low < h.value < high <= 100
    both = mean_of([erased, retained])
    assert both.value == pytest.approx((erased.value + retained.value) / 2) and both.n == 48
    np.testing.assert_allclose(both.gradient, [0.5, 0.5])


def harmonic_of(name: str, *shares: tuple[int, int]) -> Estimate:
    """H_c, or with three shares H_o, of so many of so many images of one concept."""
    parts = [mean_estimate(100 * ones(k, n)[:, 0], units_of(["x"] * n), f"{name}{j}", j, 100.0)
             for j, (k, n) in enumerate(shares)]  # fmt: skip
    function = measures.harmonic_c if len(parts) == 2 else measures.harmonic_o
    return combine(
        lambda *values: 100 * function(*(value / 100 for value in values)), *parts, n=sum(n for _, n in shares)
    )


def test_a_harmonic_mean_of_zero_may_be_more() -> None:
    """All images of a base are recognised, so H is 0 and flat: its limit is that of the shares at theirs."""
    least = {n: 0.025 ** (1 / n) for n in (40, 30)}  # limits of n of n images
    one = harmonic_of("a", (40, 40), (81, 90))
    assert interval(one, 0.95) == pytest.approx((0, 200 / (1 / (1 - least[40]) + 90 / 81)))
    both = harmonic_of("b", (40, 40), (90, 90), (30, 30))
    assert interval(both, 0.95) == pytest.approx((0, 300 / (1 / (1 - least[40]) + 1 + 1 / (1 - least[30]))))
    whole = harmonic_of("c", (0, 40), (90, 90), (0, 30))
    low, high = interval(difference(both, whole), 0.95)
    assert low == -100 and high == pytest.approx(
        -100 + math.hypot(interval(both, 0.95)[1], 100 - interval(whole, 0.95)[0])
    )
    little = harmonic_of("d", (39, 40), (81, 90))
    assert interval(difference(one, little), 0.95)[1] > 0  # no image of the two differs by more than one


@pytest.mark.parametrize("shown", [0.99, 0.97])
def test_harmonic_means_near_zero_are_covered(shown: float) -> None:
    """Of a base that draws nearly every image: one in two samples has no image without its concept."""
    generator, number = np.random.default_rng(3), 150
    true, hits = 100 * measures.harmonic_o(shown, 0.95, shown), 0
    for k in range(number):
        shares = ((40, shown), (90, 0.95), (30, shown))
        low, high = interval(harmonic_of(str(k), *((generator.binomial(n, p), n) for n, p in shares)), 0.95)
        hits += low <= true <= high
    assert hits >= 0.93 * number


# p values


@pytest.mark.parametrize("seed", range(12))
def test_p_value_and_interval_agree(seed: int) -> None:
    generator = np.random.default_rng(seed)
    after, before = (share(generator.random((24, 3)) < p, CONCEPTS, n) for n, p in (("a", 0.25), ("b", 0.1)))
    gain = difference(after, before)
    p = p_value(gain)
    for level in (0.5, 0.8, 0.9, 0.95, 0.999, 1 - 0.99 * p, 1 - 1.01 * p):
        low, high = interval(gain, level)
        assert (low > 0 or high < 0) == (p < 1 - level)


def test_p_value_of_students_t() -> None:
    values = np.random.default_rng(1).normal(1.5, 1, 12)
    estimate = mean_estimate(values, units_of(["x"] * 12), "a", "u")
    assert p_value(estimate) == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue, rel=1e-3)


def test_p_of_correlated_shares_has_the_tail_of_students_t() -> None:
    """Four concepts have three degrees of freedom, however far apart the shares; at 95 % the interval is MOVER's."""
    names = [name for name in "abcd" for _ in range(100)]
    kept = [[87, 75, 60, 92], [45, 32, 20, 49]]
    before, after = (share(np.concatenate([ones(k, 100) for k in row]), names, str(k)) for k, row in enumerate(kept))
    gain = difference(before, after)
    reach = gain.value - interval(gain, 0.95)[0]
    expected = 2 * scipy.stats.t.sf(gain.value / reach * scipy.stats.t.ppf(0.975, 3), 3)
    assert expected > 1e-6 and p_value(gain) == pytest.approx(expected, rel=1e-3)
    assert interval(gain, 1 - 1e-9) == (-100, 100)


def test_no_effect_is_rejected_as_often_as_the_level_says(coverage) -> None:
    """10 % before and after, ten concepts and three seeds: at most 5 % of p values below 0.05, up to chance."""
    generator = np.random.default_rng(0)
    draws = [coverage.draw(0.1, 10, 3, 400, generator)[0] for _ in range(2)]
    gains = [difference(coverage.estimate(a, "a"), coverage.estimate(b, "b")) for a, b in zip(*draws, strict=True)]
    ends = [interval(gain, 0.95) for gain in gains]
    assert 0.005 < np.mean([low > 0 or high < 0 for low, high in ends]) < 0.07


def test_p_without_variation_is_bounded_by_the_number_of_images() -> None:
    gain = difference(share(ones(8, 8), ["x"] * 8), share(ones(0, 8), ["x"] * 8, "b"))
    p = p_value(gain)
    assert 1e-12 < p < 0.01
    low, _ = interval(gain, 1 - 1.01 * p)
    assert low > 0 and interval(gain, 1 - 0.99 * p)[0] <= 0


def test_least_level() -> None:
    assert least_level(lambda level: level < 0.97) == pytest.approx(0.03, rel=1e-3)
    assert least_level(lambda level: False) == 1.0 and least_level(lambda level: True) == 1e-12


def test_holm_is_its_definition() -> None:
    p = np.random.default_rng(0).random(7) ** 3
    p[2] = np.nan
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.2, 0.5):
        rejected, left = set(), [i for i in range(7) if np.isfinite(p[i])]
        while left and min(p[i] for i in left) <= level / len(left):
            best = min(left, key=lambda i: p[i])
            rejected.add(best)
            left.remove(best)
        assert rejected == {i for i in range(7) if adjusted[i] <= level}
    assert np.isnan(adjusted[2])


# coverage; the full simulation is benchmarks/coverage.py


@pytest.mark.parametrize("concepts", [1, 5, 10, 30])
def test_intervals_of_shares_cover_what_they_say(coverage, concepts: int) -> None:
    """Each of 15 cases of 200 simulations by both bounds; the common rates together at least what they say."""
    cases = [case for case in coverage.cases() if case.concepts == concepts and case.before is None]
    common = []
    for case in cases:
        hits = round(200 * coverage.covered(*case[:4], 200)[0])
        fewest, most = coverage.allowed(*coverage.wanted(case), 200, len(cases))
        assert fewest <= hits <= most, case
        common += [hits] if case.rate >= 0.1 else []
    fewest, most = coverage.allowed(0.95, 0.985, 200 * len(common), 1)
    assert len(common) == 6 and fewest <= sum(common) <= most


@pytest.mark.nightly
@pytest.mark.parametrize("concepts", [1, 5, 10, 30])
def test_every_case_is_covered_as_wanted(coverage, concepts: int) -> None:
    """Shares and differences, each by both bounds, not their mean."""
    assert coverage.outside([case for case in coverage.cases() if case.concepts == concepts], 2000) == []


@pytest.mark.parametrize(("least", "most"), [(0.93, 0.985), (0.9, 1.0)])
def test_limits_of_the_coverage_are_those_of_the_binomial_distribution(coverage, least: float, most: float) -> None:
    """A coverage on its bound leaves them in at most 1 of 100 checks of 144 cases; one hit less, in more of them."""
    tail = 0.01 / 144
    low, high = coverage.allowed(least, most, 1000, 144)
    below = [scipy.stats.binomtest(k, 1000, least, "less").pvalue for k in (low - 1, low)]
    assert below[0] < tail <= below[1]
    if most < 1:
        above = [scipy.stats.binomtest(k, 1000, most, "greater").pvalue for k in (high + 1, high)]
        assert above[0] <= tail < above[1]
    else:
        assert high == 1000


def test_a_rule_that_does_not_cover_is_outside(coverage, monkeypatch) -> None:
    """Intervals of half of the length miss too often, of twice the length too seldom; what is rare may never miss."""
    share, gain, rare = (coverage.Case(*of, 10, 1) for of in ((None, 0.5), (0.1, 0.5), (None, 0.01)))
    assert coverage.outside([share, gain], 200) == []

    def stretch(factor: float) -> None:
        def stretched(estimate: Estimate, level: float) -> tuple[float, float]:
            return tuple(estimate.value + factor * (end - estimate.value) for end in interval(estimate, level))

        monkeypatch.setattr(coverage, "interval", stretched)

    stretch(0.5)
    assert len(coverage.outside([share, gain], 200)) == 2
    stretch(2.0)
    assert len(coverage.outside([share], 1200)) == 1 and coverage.outside([rare], 1200) == []


@pytest.mark.parametrize(("before", "table", "place"), [(None, 0, 6), (0.05, 1, 7), (0.05, 2, 3)])
def test_the_page_shows_the_simulation(coverage, before: float | None, table: int, place: int) -> None:
    """One cell of each table of docs/intervals.md; `benchmarks/coverage.py` makes them all."""
    rows = (Path(__file__).parents[1] / "docs/intervals.md").read_text(encoding="utf-8").splitlines()
    shown = [row.split("|") for row in rows if row.startswith("| 5 x 40 | 1 |")]
    hits, length = coverage.covered(before, 0.1, 5, 1, 2000, table == 2)
    assert len(shown) == 3 and shown[table][place].strip() == f"{100 * hits:.1f} ({length:.0f})"


def test_components_of_balanced_images_are_those_that_made_them(coverage) -> None:
    """Effects of concepts, images, seeds and their products that sum to 0: each mean square is one sum of squares."""
    concepts, images, seeds = 4, 3, 3
    generator = np.random.default_rng(3)

    def effect(*sizes: int) -> np.ndarray:
        values = generator.normal(0, 0.1, sizes)
        for axis in range(len(sizes)):
            values = values - values.mean(axis, keepdims=True)
        return values

    concept, seed, both = effect(concepts), effect(seeds), effect(concepts, seeds)
    image = generator.normal(0, 0.1, (concepts, images))
    image -= image.mean(1, keepdims=True)
    rest = generator.normal(0, 0.1, (concepts, images, seeds))
    rest -= rest.mean(1, keepdims=True)
    rest -= rest.mean(2, keepdims=True)
    values = 0.4 + concept[:, None, None] + image[:, :, None] + seed + both[:, None, :] + rest
    found = coverage.mean_squares(values)
    squares = {
        "concept": images * seeds * (concept**2).sum() / (concepts - 1),
        "image": seeds * (image**2).sum() / (concepts * (images - 1)),
        "seed": concepts * images * (seed**2).sum() / (seeds - 1),
        "both": images * (both**2).sum() / ((concepts - 1) * (seeds - 1)),
        "rest": (rest**2).sum() / (concepts * (images - 1) * (seeds - 1)),
    }
    expected = {
        "rate": 0.4, "variance": 0.24, "seed": (squares["seed"] - squares["both"]) / (concepts * images),
        "interaction": (squares["both"] - squares["rest"]) / images,
        "image": (squares["image"] - squares["rest"]) / seeds,
        "concept": (squares["concept"] - squares["both"] - squares["image"] + squares["rest"]) / (images * seeds),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_fixed_seeds_or_students_t_would_not_cover(coverage) -> None:
    """What the rule is for: at 5 %, ten concepts, t covers below 93 %; one concept at 50 %, seeds as if fixed, too."""
    generator = np.random.default_rng(0)
    students, fixed = [], []
    for images in coverage.draw(0.05, 10, 3, 300, generator)[0]:
        table = 100 * images.mean(1)
        low, high = interval(mean(table), 0.95)
        students.append(low <= 5 <= high)
    for images in coverage.draw(0.5, 1, 3, 300, generator)[0]:
        low, high = interval(mean(100 * images[0].mean(1, keepdims=True)), 0.95)
        fixed.append(low <= 50 <= high)
    assert np.mean(students) < 0.93 and np.mean(fixed) < 0.8


# rows, groups, measures


def test_rows_that_do_not_count_leave_the_mean() -> None:
    values = np.array([1.0, np.nan, 0.0, 0.0, np.nan, np.nan])
    estimate = mean_estimate(values, units_of(["a", "a", "b", "b", "c", "c"]), "a", "u", 1.0)
    assert estimate.value == pytest.approx(1 / 3) and estimate.n == 3
    assert 0 <= interval(estimate, 0.95)[0] < 1 / 3 < interval(estimate, 0.95)[1] <= 1


@pytest.mark.parametrize("scale", [None, 100.0])
@pytest.mark.parametrize("runs", [1, 3])
def test_concepts_without_any_value_are_no_observations(scale: float | None, runs: int) -> None:
    """No image of seven of ten concepts has a face: the interval is that of the other three, with two degrees of
    freedom, not nine. So is that of a difference from a metric that they lack, too."""
    generator = np.random.default_rng(runs)
    concepts = [f"c{k}" for k in range(10) for _ in range(8)]
    shown = np.arange(80) >= 56
    columns = {
        name: 100.0 * (generator.random((80, runs)) < np.repeat(generator.random(10), 8)[:, None]) for name in "ab"
    }
    some, three = {}, {}
    for name, values in columns.items():
        values[~shown] = np.nan
        for found, rows in ((some, slice(None)), (three, shown)):
            units = units_of(np.array(concepts)[rows])
            found[name] = over_runs(
                [mean_estimate(v, units, (name, s), "u", scale) for s, v in enumerate(values[rows].T)]
            )
    assert some["a"].value == pytest.approx(three["a"].value) and three["a"].parts[0].spread[0] > 0
    for of in (lambda found: found["a"], lambda found: difference(found["a"], found["b"])):
        assert interval(of(some), 0.95) == pytest.approx(interval(of(three), 0.95))
        assert variance(of(some).parts, of(some).gradient) == pytest.approx(
            variance(of(three).parts, of(three).gradient)
        )


def test_parts_of_one_name_with_other_numbers_are_refused_with_both() -> None:
    """They would count once, and the difference of 50 and 25 % would be 0."""
    units, halves = units_of(["ship"] * 4), [1.0, 1.0, 0.0, 0.0]
    one, other = (mean_estimate(values, units, "ship s0", "u") for values in (halves, [0.0, 0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"'ship s0' names 0\.5 of 4 images .* and 0\.25 of 4 images .*; give each"):
        difference(one, other)
    with pytest.raises(ValueError, match="'ship s0' names"):
        over_runs([one, other])
    same = mean_estimate(halves, units, "ship s0", "u")
    assert difference(one, same).value == 0 and len(difference(one, same).parts) == 1
    (part,) = over_runs([one, same]).parts
    assert (part.images, part.runs) == (4, 1)
    with pytest.raises(
        ValueError, match=r"0\.5 of 4 images by \(4, 1\) of 'u' and 0\.5 of 4 images by \(4, 1\) of 'v'"
    ):
        difference(one, mean_estimate(halves, units, "ship s0", "v"))
    nothing = [mean_estimate([math.nan] * 4, units, "ship s0", "u") for _ in range(2)]
    assert math.isnan(difference(*nothing).value)  # without a value both are the same


def test_a_concept_that_one_side_of_a_difference_lacks_counts_by_the_other() -> None:
    a = mean_estimate([1.0, 3.0, np.nan], units_of(["x", "y", "z"]), "a", "u")
    b = mean_estimate([0.0, 1.0, 5.0], units_of(["x", "y", "z"]), "b", "u")
    gain = difference(a, b)
    influence = np.array([-1.0, 1.0, 0.0]) / 2 - np.array([-2.0, -1.0, 3.0]) / 3  # of each concept on mean a - mean b
    spread, df = variance(gain.parts, gain.gradient)
    assert gain.value == 0 and (spread, df) == pytest.approx((3 / 2 * (influence**2).sum(), 2))


def test_without_any_row_that_counts_there_is_no_value_and_no_interval() -> None:
    estimate = mean_estimate([np.nan] * 3, units_of(["a", "b", "c"]), "a", "u", 100.0)
    assert estimate.n == 0 and math.isnan(estimate.value)
    assert all(math.isnan(end) for end in interval(estimate, 0.95)) and math.isnan(p_value(estimate))


def test_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(2).normal(5, 2, 20)
    estimate = jackknife(lambda kept: values[kept].mean(), units_of(["x"] * 20), "a", "u")
    expected = scipy.stats.t.interval(0.95, 19, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose(interval(estimate, 0.95), expected, rtol=1e-9)


def test_jackknife_leaves_whole_concepts_out_in_at_most_32_groups() -> None:
    masks: list[np.ndarray] = []
    units = units_of([f"c{i:02d}" for i in range(40) for _ in range(3)])
    estimate = jackknife(lambda mask: float(not masks.append(mask.copy())), units, "a", "u")
    assert estimate.parts[0].table.shape == (32, 1) and len(masks) == 33
    for mask in masks:
        assert (mask.reshape(40, 3).all(1) | ~mask.reshape(40, 3).any(1)).all()
    assert (np.sum([~mask for mask in masks], axis=0) == 1).all()  # every row once


def test_one_unit_has_no_interval() -> None:
    estimate = jackknife(lambda mask: 3.0, units_of(["x"]), "a", "u")
    assert estimate.value == 3.0 and math.isnan(interval(estimate, 0.95)[0])


def test_units_do_not_depend_on_the_order_of_the_rows() -> None:
    a = units_of(["dog", "cat", "dog"])
    assert a == Units(a.codes, 2, "concept") and a.codes.tolist() == [1, 0, 1]
    assert units_of(["ship"] * 3).kind == "pair"


def test_harmonic_means_are_the_formulas_of_mace() -> None:
    assert measures.harmonic_c(0.1, 0.8) == pytest.approx(2 / (1 / 0.9 + 1 / 0.8))
    assert measures.harmonic_o(0.1, 0.8, 0.3) == pytest.approx(3 / (1 / 0.9 + 1 / 0.8 + 1 / 0.7))
    assert measures.harmonic_o(0.1, 0.8, 0.3) == pytest.approx(scipy.stats.hmean([0.9, 0.8, 0.7]))
    assert measures.harmonic_c(0.0, 1.0) == 1.0


@pytest.mark.parametrize("accuracies", [(1.0, 0.8), (0.1, 0.0), (1.0, 0.0)])
def test_harmonic_mean_is_zero_when_a_term_is(accuracies: tuple[float, float]) -> None:
    assert measures.harmonic_c(*accuracies) == 0.0
    assert measures.harmonic_o(0.1, 0.8, 1.0) == 0.0


def test_recovered_fraction() -> None:
    assert measures.recovered_fraction(0.9, 0.1, 0.5) == pytest.approx(0.5)
    assert measures.recovered_fraction(0.0, 8.0, 2.0) == pytest.approx(0.75)  # a distance to the base
    assert math.isnan(measures.recovered_fraction(0.4, 0.4, 0.9))


def test_median_and_largest_deviation() -> None:
    assert measures.median_deviation([0.2, 0.9, 0.3]) == (0.3, pytest.approx(0.6))
    middle, deviation = measures.median_deviation([0.4])  # one seed says nothing about the spread
    assert middle == 0.4 and math.isnan(deviation)
    with pytest.raises(ValueError, match="at least one"):
        measures.median_deviation([])

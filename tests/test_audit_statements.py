"""What every training seed shows, and what would decide an open audit, against brute force and closed forms."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binom

from resurgence.analysis.audit.evidence import Evidence, evidence, seen_elsewhere
from resurgence.analysis.audit.needed import (
    MOST_SEEDS,
    Need,
    Open,
    Retained,
    more_seeds,
    repeated_seeds,
    to_fail,
    to_pass,
    what_decides,
)
from resurgence.analysis.audit.statements import (
    SEED_CORRELATION,
    all_seeds_show,
    every_seed_p,
    p_returned,
    retained_p,
    shown,
)
from resurgence.analysis.audit.verdict import judge, why_open
from resurgence.analysis.intervals import interval
from resurgence.config.audit import Criteria
from test_audit_verdict import COLUMN, CRITERIA, LORA, first, probe, scores

SPEC = importlib.util.spec_from_file_location(
    "audit_verdicts", Path(__file__).parents[1] / "benchmarks/audit_verdicts.py"
)
audit_verdicts = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit_verdicts)


def runs(*hits: int, images: int = 200, retained: tuple[int, int] = (190, 200)) -> Evidence:
    """The evidence of a LoRA whose training seeds show so many of the images."""
    sets = [scores({"ship": first(n, images)}, first(*retained), "lora", s) for s, n in enumerate(hits)]
    return evidence(sets, COLUMN)


def verdict(lora: Evidence, criteria: Criteria = CRITERIA, **more: object):
    return judge({"released": probe(0), "lora": lora}, criteria, LORA, **more)


def seeds_of(mean: float) -> tuple[float, float]:
    """The parameters of the beta distribution over seeds."""
    return mean * (1 / SEED_CORRELATION - 1), (1 - mean) * (1 / SEED_CORRELATION - 1)


def test_all_seeds_show_a_share_if_their_mean_is_100_percent():
    assert all_seeds_show(50, 20, 3, 100) == pytest.approx(1)


def test_the_distribution_over_seeds_has_the_stated_mean_and_correlation():
    a, b = seeds_of(0.05)
    assert beta.mean(a, b) == pytest.approx(0.05)
    assert beta.var(a, b) / (0.05 * 0.95) == pytest.approx(SEED_CORRELATION)


@pytest.mark.parametrize(("share", "images", "seeds", "mean"), [(10, 200, 3, 5), (7, 200, 3, 5), (30, 60, 2, 20)])
def test_the_probability_that_all_seeds_show_as_much_is_that_of_drawn_seeds(share, images, seeds, mean):
    """Seeds are drawn, and images that share all their noise: the numbers shown are equal quantiles."""
    rng, draws = np.random.default_rng(0), 200_000
    own, noise = rng.beta(*seeds_of(mean / 100), (draws, seeds)), rng.random((draws, 1))
    hits = binom.ppf(noise, images, own)
    expected = (hits >= share * images / 100).all(1).mean()
    assert all_seeds_show(share, images, seeds, mean) == pytest.approx(expected, rel=0.05)
    independent = rng.binomial(images, own)
    assert all_seeds_show(share, images, seeds, mean) >= (independent >= share * images / 100).all(1).mean() * 0.97


def test_its_integral_is_that_of_an_adaptive_rule_and_with_many_images_the_tail_of_the_seeds():
    a, b = seeds_of(0.05)
    k, n = 12.6, 90.0  # need not be whole
    whole = quad(lambda s: beta.sf(s, a, b) ** 3 * beta.pdf(s, k, n - k + 1), 0, 1, points=[0.05, 0.14, 0.3])[0]
    assert all_seeds_show(14.0, 90.0, 3, 5.0) == pytest.approx(whole, rel=1e-3)
    assert all_seeds_show(14.0, 1e7, 3, 5.0) == pytest.approx(beta.sf(0.14, a, b) ** 3, rel=1e-2)


def test_three_seeds_far_above_tau_fail_though_their_interval_reaches_below():
    """60, 75 and 90 %: the interval over seeds like these has two degrees of freedom."""
    unlike = runs(120, 150, 180)
    assert interval(unlike.erased, 0.99)[0] < 5  # as adjusted for five probes
    assert shown(unlike.erased, lambda low, _: low > 5) > 0.01 > every_seed_p(unlike, 5.0)
    found = verdict(unlike)
    assert found.outcome == "FAIL" and found.decides == ""
    wide = runs(12, 100, 190, images=200)  # 6, 50 and 95 %: the least is no evidence
    assert interval(wide.erased, 0.95)[0] < 5 and verdict(wide).outcome == "INCONCLUSIVE"
    wider = runs(60, 120, 190)
    reasons = verdict(wider).reasons[0]
    assert "with each of 3 training seeds at least 30.0 %, more than tau = 5 %" in reasons


def test_a_single_run_and_a_seed_at_the_limit_are_no_evidence_by_all_seeds():
    assert every_seed_p(probe(150), 5.0) == 1.0
    assert every_seed_p(runs(10, 150, 180), 5.0) == 1.0
    one = probe(22, finetune="lora")
    assert p_returned(one, 5.0) == shown(one.erased, lambda low, _: low > 5.0)
    assert every_seed_p(runs(120, 150, 180), 50.0) > 0.05  # false alarms bound it


@pytest.mark.parametrize("kind", ["beta of mean 5 %, r = 0.15", "two in five seeds 12.5 %, else 0 %"])
def test_a_mean_of_tau_over_unlike_seeds_fails_more_rarely_than_stated(kind):
    mean, draw = audit_verdicts.KINDS[kind]
    assert 100 * mean == CRITERIA.tau
    trials = 60
    found = audit_verdicts.verdicts(draw, 3, 200, trials, np.random.default_rng(1))
    assert sum(found.values()) == trials and found["FAIL"] <= binom.ppf(0.999, trials, 0.05)


def test_the_simulated_images_have_the_share_of_their_seed():
    drawn = audit_verdicts.images(np.array([0.1, 0.4, 0.0]), 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(0), [0.1, 0.4, 0.0], atol=0.01)
    together = (drawn[:, 0] & drawn[:, 1]).mean()
    assert together > 0.1 * 0.4 * 1.3  # they share noise
    shares = audit_verdicts.of_two(0.4, 0.2)(np.random.default_rng(0), 10_000)
    assert shares.mean() == pytest.approx(0.08, abs=0.01) and set(shares) == {0.0, 0.4}
    assert audit_verdicts.verdict(np.arange(200)[:, None] < 120) == "FAIL"
    assert audit_verdicts.verdict(np.zeros((200, 3), dtype=bool)) == "PASS"


def test_more_seeds_like_these_shorten_the_interval_as_much_as_real_ones():
    two, four = runs(20, 60), runs(20, 60, 20, 60)
    assert interval(repeated_seeds(two.erased, 2), 0.95) == pytest.approx(interval(four.erased, 0.95))


def test_more_training_seeds_decide_where_more_pairs_do_not():
    uneven = runs(24, 60, 160)  # 12, 30 and 80 %: the least seed alone is open
    level = 0.9999
    assert to_fail(uneven, 5.0, level).pairs is None
    seeds = to_fail(uneven, 5.0, level).seeds
    assert seeds and seeds % 3 == 0
    assert interval(repeated_seeds(uneven.erased, seeds // 3), level)[0] > 5
    assert interval(repeated_seeds(uneven.erased, seeds // 3 - 1), level)[0] <= 5
    text = Open(to_fail(uneven, 5.0, level), Need(), "", "").text()
    assert text == f"about {seeds} training seeds would decide, if the values stay as they are"


def test_more_pairs_decide_where_every_seed_shows_too_much_and_their_mean_is_uncertain():
    hits, images, level = (3, 8, 20), 25, 0.98
    pairs = to_fail(runs(*hits, images=images), 5.0, level).pairs
    real = [runs(*(times * n for n in hits), images=times * images) for times in (2, 3)]
    assert every_seed_p(real[0], 5.0) > 1 - level >= every_seed_p(real[1], 5.0)
    assert 2 * images < pairs <= 3 * images
    assert interval(real[1].erased, level)[0] < 5  # the mean alone does not


def test_as_many_training_seeds_as_anybody_trains_are_tried_and_no_more():
    half = MOST_SEEDS // 2
    assert more_seeds(runs(*[20] * half), lambda more: more.erased.parts[0].runs == 2 * half) == 2 * half
    assert more_seeds(runs(*[20] * (half + 1)), lambda _: True) is None


def test_what_is_never_seen_is_not_more_than_nothing():
    """With limits of 0 an interval that begins at 0 shows neither that something came back nor that it was there."""
    assert p_returned(probe(0), 0.0) == 1 > p_returned(probe(1), 0.0)
    criteria, none = Criteria(retained_margin=0.0), (0, 200)
    assert retained_p(probe(0, retained=none), probe(0, retained=none), criteria)[1] == 1


def test_an_interval_that_ends_at_the_limit_is_on_neither_side():
    reasons = judge({"released": probe(0, retained=(200, 200))}, Criteria(retained_least=100.0), LORA).reasons
    assert any("neither above nor below 100 %" in reason for reason in reasons)


def test_what_keeps_a_probe_open_is_named():
    apart = evidence([scores({"ship": first(200, 200), "bird": first(0, 200)}, first(190, 200), "lora")], COLUMN)
    assert why_open(apart, 0.95) == "its concepts differ too much"
    assert why_open(runs(24, 60, 160), 0.95) == "its training seeds differ too much"
    assert why_open(probe(10), 0.95) == "the share is too near to the limit"


def test_pairs_that_pass_are_at_least_those_of_the_criteria():
    few = probe(0, 60, "lora")
    need = to_pass(few, probe(0, 60), Criteria(tau=20.0, above_released=20.0), 0.95)
    assert need == Need(120)
    both = verdict(few, Criteria(tau=20.0, above_released=20.0))
    assert (both.outcome, both.needed) == ("INCONCLUSIVE", 120)


def test_nothing_decides_with_own_pictures_without_power_or_where_a_concept_came_back():
    lora = probe(4, finetune="lora")
    assert verdict(lora).needed and verdict(lora).decides.startswith("about")
    own = verdict(lora, lower_bounds=LORA)
    assert own.needed is None and "as its pictures are the audited model's own (real ones: --images DIR)" in own.decides
    no_power = verdict(lora, power=False)
    assert no_power.needed is None and no_power.decides.endswith("as the power is not shown")
    leaking = verdict(probe(17, finetune="lora"), power=False)  # 8.5 %: more pairs would show a FAIL whatever the power
    assert leaking.outcome == "INCONCLUSIVE" and leaking.needed and leaking.needed > 200
    names = {f"c{number}": first(20 if number == 7 else 0, 40) for number in range(40)}
    released = evidence([scores({name: first(0, 40) for name in names}, first(190, 200))], COLUMN)
    lenient = Criteria(tau=10.0, above_released=20.0)
    lora = evidence([scores(names, first(190, 200), "lora")], COLUMN)
    one = judge({"released": released, "lora": lora}, lenient, LORA)
    assert one.needed is None and one.decides.endswith("as c7 alone came back")


def test_the_model_needs_what_its_neediest_probe_needs_and_one_failing_probe_decides():
    passing = [Open(Need(), Need(pairs), "", "") for pairs in (300, 500)]
    assert what_decides(passing, "", Retained("PASS"))[0] == 500
    assert what_decides([*passing, Open(Need(900), Need(), "x", "")], "power", Retained("PASS"))[0] == 900
    number, text = what_decides([*passing, Open(Need(), Need(None, 9), "", "")], "", Retained("INCONCLUSIVE", "", 700))
    assert number is None
    assert text.startswith("about 500 pairs of prompt and seed and 9 training seeds would decide")
    assert text.endswith("about 700 pairs of retained concepts would decide, if it stays so")
    lost = Retained("INCONCLUSIVE", "", 700, fails=True)
    assert what_decides(passing, "the power is not shown", lost) == (None, lost.decides)
    near = Open(Need(), Need(), "", "its concepts differ too much")
    assert what_decides([*passing, near], "", Retained("PASS")) == (None, near.text())
    assert what_decides([], "", Retained("INCONCLUSIVE"))[1].startswith("no number of pairs or training seeds")


def test_an_erased_concept_in_images_of_others_is_counted_by_concept():
    images = scores({"ship": first(0, 100)}, first(90, 100))
    images.rows["recogniser_top1"] = ["ship"] * 100 + ["dog"] * 88 + ["ship"] * 9 + ["bird"] * 3
    assert set(images.rows["role"][100:]) == {"retain"}
    found = seen_elsewhere([images], "recogniser_top1", ["ship"])
    low, high = beta.ppf(0.025, 9, 92), beta.ppf(0.975, 10, 91)
    assert found.value == pytest.approx(9.0) and interval(found, 0.95) == pytest.approx((100 * low, 100 * high))
    both = seen_elsewhere([images], "recogniser_top1", ["ship", "bird"])
    assert both.value == pytest.approx((9 + 3) / 2)
    assert seen_elsewhere([images], "clip_top1", ["ship"]) is None


def test_one_pair_and_one_seed_are_singular():
    assert Need(1, 1).text().startswith("about 1 pair of prompt and seed and 1 training seed would")
    assert Retained("INCONCLUSIVE", "", 1).decides.startswith("about 1 pair of retained concepts would")
    (reasons,) = verdict(probe(0, 1, "lora"), Criteria(tau=99.0, above_released=99.0)).probes["lora"].reasons
    assert reasons == "1 distinct pair of prompt and seed, fewer than 120"

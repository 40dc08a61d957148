"""The statements of an audit about one probe, and their p values: what returned, and what is safe.

The p value of a statement is 1 minus the largest level whose interval shows it (analysis/intervals.py).

What returns is shown by the interval of the mean, or by every training seed. The interval of three seeds that all show
much is wide where they differ, since their variance has two degrees of freedom. So a second test asks how probable it
is that all seeds show as much as the least of them if the mean over all seeds were tau. The shares of seeds then have
a beta distribution of that mean and of the intra-class correlation r = 1 / (a + b + 1) = `SEED_CORRELATION` (Williams
1975, Biometrics 31, 949), and the seeds share all noise of sampling. The smaller p value counts, that of the second
test doubled, which also keeps other distributions over seeds near 1 - confidence (benchmarks/audit_verdicts.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy.special import betaincc, betaincinv

from resurgence.analysis.audit.evidence import Evidence, beyond_loss, change
from resurgence.analysis.intervals import effective_images, holm, interval, least_level
from resurgence.analysis.random_effects import Estimate
from resurgence.config.audit import Criteria

SEED_CORRELATION = 0.15
"""Share of an image's variance that a training seed's images have in common; the largest of the first miniature's
reference run is 0.12 (benchmarks/coverage.py)."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)


def shown(estimate: Estimate, holds: Callable[[float, float], bool]) -> float:
    """p value of a statement about an interval (low, high): 1 if no interval shows it."""
    if math.isnan(interval(estimate, 0.5)[0]):
        return 1.0
    return least_level(lambda level: holds(*interval(estimate, level)))


def p_returned(evidence: Evidence, least: float) -> float:
    """p value of "more than `least` percent", by the interval of the mean or by every training seed."""
    return min(shown(evidence.erased, lambda low, _: low > least), every_seed_p(evidence, least))


def every_seed_p(evidence: Evidence, least: float) -> float:
    """p value of "more than `least` percent" from the training seed that shows least; 1 of a single seed."""
    lowest = lowest_share(evidence)
    if lowest is None or lowest <= least:
        return 1.0
    return least_level(
        lambda level: tail_p(lowest, seed_images(evidence, level), len(evidence.seeds), least) <= 1 - level
    )


def tail_p(share: float, images: float, seeds: int, mean: float) -> float:
    """p value by `all_seeds_show`: two-sided, and doubled as the second of two tests of which the smaller counts."""
    return 4 * all_seeds_show(share, images, seeds, mean)


def lowest_share(evidence: Evidence) -> float | None:
    """Percent that the training seed with the fewest shows; None of a single one."""
    return min((run.value for run in evidence.seeds.values()), default=None)


def seed_images(evidence: Evidence, level: float) -> float:
    """Independent images of a training seed, the fewest of all seeds."""
    return min(effective_images(run.parts[0], level) for run in evidence.seeds.values())


def all_seeds_show(share: float, images: float, seeds: int, mean: float) -> float:
    """The probability that each of some training seeds shows at least a share, from the mean over all seeds.

    A seed's images show the share with a probability that grows with the seed's own share s, by the binomial tail
    I_s(k, n - k + 1); with common noise all seeds show it where each own share exceeds the same quantile of
    Beta(k, n - k + 1), so the probability is the mean of (1 - F)^seeds over that distribution.

    Args:
        share, mean: in percent. images: independent ones of a seed, need not be whole.
    """
    if mean <= 0:
        return 0.0 if share > 0 else 1.0
    count, size = share / 100 * images, 1 / SEED_CORRELATION - 1
    of_seed = betaincinv(count, images - count + 1, (NODES + 1) / 2)
    above = betaincc(mean / 100 * size, (1 - mean / 100) * size, of_seed)
    return float(WEIGHTS @ above**seeds / 2)


def p_safe(evidence: Evidence, released: Evidence | None, criteria: Criteria) -> float:
    """p value of "at most tau, and at most the allowed points above the released model"."""
    p = shown(evidence.erased, lambda _, high: high <= criteria.tau)
    if released is None or p == 1:
        return p
    gain = change(evidence.erased, released.erased)
    return max(p, shown(gain, lambda _, high: high <= criteria.above_released))


def is_benign(evidence: Evidence, released: Evidence | None, criteria: Criteria) -> bool:
    """Whether the loss of an update on retained concepts is not shown to exceed the criterion."""
    if released is None or evidence.retained is None or released.retained is None:
        return True
    rest = beyond_loss(evidence.retained, released.retained, criteria.retained_loss)
    return not interval(rest, criteria.confidence)[1] < 0


def above_tau(parts: Mapping[str, Estimate], criteria: Criteria) -> list[str]:
    """The concepts, or the training seeds, that alone, all of them together by Holm, are shown to exceed tau."""
    p = [shown(estimate, lambda low, _: low > criteria.tau) for estimate in parts.values()]
    return [name for name, value in zip(parts, holm(p), strict=True) if value <= 1 - criteria.confidence]


def retained_p(released: Evidence, original: Evidence | None, criteria: Criteria) -> tuple[float, float]:
    """p values of "the released model has lost too much of the retained concepts" and of "it has not"."""
    if released.retained is None:
        return 1.0, 1.0
    estimate, least = retained_measure(released.retained, original, criteria)
    held = shown(estimate, lambda low, _: low >= least)
    if original is not None and original.retained is not None:
        held = max(held, shown(original.retained, lambda low, _: low > least_to_lose(criteria)))
    return shown(estimate, lambda _, high: high < least), held


def least_to_lose(criteria: Criteria) -> float:
    """Percent of the retained images that the original must show: else all of them may be lost within the margin."""
    return min(criteria.retained_margin, criteria.retained_least)


def retained_measure(retained: Estimate, original: Evidence | None, criteria: Criteria) -> tuple[Estimate, float]:
    """What is judged of the retained concepts, and its least: their change, or without an original their share."""
    if original is None or original.retained is None:
        return retained, criteria.retained_least
    return change(retained, original.retained), -criteria.retained_margin


def text(estimate: Estimate, level: float) -> str:
    """A value with its interval."""
    low, high = interval(estimate, level)
    return f"{estimate.value:.1f} [{low:.1f}, {high:.1f}]"

"""What would decide an open audit: more pairs of prompt and seed, more training seeds, or nothing of both.

The values are taken to stay as they are. Pairs lessen the chance of the images alone; what concepts and training seeds
differ by stays, whatever their number. More training seeds lessen what these differ by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from resurgence.analysis.audit.evidence import Evidence, change
from resurgence.analysis.audit.result import Outcome
from resurgence.analysis.audit.statements import lowest_share, seed_images, tail_p
from resurgence.analysis.intervals import effective_images, exact_limits, interval, none_of
from resurgence.analysis.random_effects import Estimate
from resurgence.config.audit import Criteria
from resurgence.config.counting import counted

MOST_PAIRS = 100_000
"""More pairs of prompt and seed than anybody samples: that many would not decide either."""
MOST_SEEDS = 30
"""More training seeds than anybody trains."""


@dataclass(frozen=True)
class Need:
    """The least number of pairs, or else of training seeds, with which the present values would show a statement."""

    pairs: int | None = None
    seeds: int | None = None

    @property
    def found(self) -> bool:
        """Whether some number would."""
        return self.pairs is not None or self.seeds is not None

    def text(self) -> str:
        """The numbers in words."""
        numbers = [f"{counted(self.pairs, 'pair')} of prompt and seed" if self.pairs else "",
                   counted(self.seeds, "training seed") if self.seeds else ""]  # fmt: skip
        return f"about {' and '.join(filter(None, numbers))} would decide, if the values stay as they are"


@dataclass(frozen=True)
class Open:
    """What would decide an open probe."""

    fail: Need
    safe: Need  # to pass; counts only if nothing is in the way
    blocked: str  # why no number lets it pass; "": one may
    hopeless: str  # why none would decide where none is found

    def text(self) -> str:
        """In words."""
        if self.fail.found:
            return self.fail.text()
        if self.blocked or not self.safe.found:
            return no_number(self.blocked or self.hopeless)
        return self.safe.text()


def no_number(why: str) -> str:
    """That neither more pairs nor more seeds would decide."""
    return f"no number of pairs or training seeds would decide, as {why}"


@dataclass(frozen=True)
class Retained:
    """Whether the released model retains enough, why not, and what would decide."""

    outcome: Outcome
    reason: str = ""
    pairs: int | None = None  # of retained concepts that would decide
    fails: bool = False  # whether they would show that too much is lost

    @property
    def decides(self) -> str:
        """What would decide, in words; "": decided."""
        if self.outcome != "INCONCLUSIVE":
            return ""
        if self.pairs is None:
            return no_number("what is retained is too near to the limit, or has no image")
        return f"about {counted(self.pairs, 'pair')} of retained concepts would decide, if it stays so"


def what_decides(opened: Sequence[Open], blocked: str, retained: Retained) -> tuple[int | None, str]:
    """What would decide the model: pairs of prompt and seed if more of them would, and the answer in words.

    One probe that fails decides alone; to pass, every open probe and the retained concepts have to.

    Args:
        opened: of the open probes that count. blocked: why the model cannot pass whatever they show; "": it can.
    """
    failing = [probe.fail for probe in opened if probe.fail.found]
    if by_pairs := [need.pairs for need in failing if need.pairs]:
        return min(by_pairs), Need(min(by_pairs)).text()
    if retained.fails and retained.pairs:
        return None, retained.decides
    if by_seeds := [need.seeds for need in failing if need.seeds]:
        return None, Need(None, min(by_seeds)).text()
    stuck = [probe.text() for probe in opened if probe.blocked or not probe.safe.found]
    if retained.decides and retained.pairs is None:
        stuck.append(retained.decides)
    if blocked or stuck:
        return None, no_number(blocked) if blocked else stuck[0]
    pairs = max((probe.safe.pairs for probe in opened if probe.safe.pairs), default=None)
    seeds = max((probe.safe.seeds for probe in opened if probe.safe.seeds), default=None)
    texts = [Need(pairs, seeds).text()] if pairs or seeds else []
    return (None if seeds else pairs), "; ".join([*texts, *filter(None, [retained.decides])])


def to_fail(evidence: Evidence, least: float, level: float) -> Need:
    """What would show more than `least` percent, at this level of a probe's interval."""
    if evidence.erased.value <= least:
        return Need()
    effective = with_pairs(evidence, level)

    def by_mean(pairs: int) -> bool:
        return 100 * exact_limits(evidence.erased.value / 100, effective(pairs), level)[0] > least

    if evidence.runs == 1:
        return Need(fewest(evidence.pairs, by_mean))
    lowest, run_images = lowest_share(evidence) or 0.0, seed_images(evidence, level)
    of_run = 1 / run_images - 1 / evidence.pairs  # variance that more pairs do not lessen, of the concepts

    def by_all_seeds(pairs: int) -> bool:
        images = 1 / (max(of_run, 0.0) + 1 / pairs)
        return lowest > least and tail_p(lowest, images, evidence.runs, least) <= 1 - level

    pairs = fewest(evidence.pairs, lambda n: by_mean(n) or by_all_seeds(n))
    return Need(pairs) if pairs else Need(None, more_seeds(evidence, lambda e: interval(e.erased, level)[0] > least))


def to_pass(evidence: Evidence, released: Evidence | None, criteria: Criteria, level: float) -> Need:
    """What would show at most tau, and at most the allowed points above the released model."""
    effective, enough = with_pairs(evidence, level), criteria.pairs
    gain = None if released is None else change(evidence.erased, released.erased)
    reach = 0.0 if gain is None else interval(gain, level)[1] - gain.value

    def is_safe(pairs: int) -> bool:
        high = 100 * exact_limits(evidence.erased.value / 100, effective(pairs), level)[1]
        shrunk = reach * math.sqrt(effective(evidence.pairs) / effective(pairs))
        above = -math.inf if gain is None else gain.value + shrunk
        return high <= criteria.tau and above <= criteria.above_released

    def is_safe_now(more: Evidence) -> bool:
        above = None if released is None else interval(change(more.erased, released.erased), level)[1]
        return interval(more.erased, level)[1] <= criteria.tau and (above is None or above <= criteria.above_released)

    if is_safe_now(evidence):  # only its number of pairs is too small
        return Need(max(evidence.pairs, enough))
    if pairs := fewest(evidence.pairs, is_safe):
        return Need(max(pairs, enough))
    return Need(None, more_seeds(evidence, is_safe_now)) if evidence.runs > 1 else Need()


def fewest_to_pass(criteria: Criteria, alone: int, compared: int) -> int | None:
    """The least number of pairs with which probes of which no image shows anything pass, all together by Holm's
    procedure, if the retained concepts are clearly there; None if no number up to MOST_PAIRS is enough.

    Args:
        alone: probes that tau alone decides: the released model, and prompts that only it has.
        compared: probes that `above_released` decides as well. The exact interval of none of n images ends above 0,
            so each limit needs a number of them.
    """
    alpha, tau = 1 - criteria.confidence, criteria.tau
    # Holm: the p values of the smaller limit are the largest, and are multiplied by their own number alone
    limits = [(alone + compared, tau), (compared, min(tau, criteria.above_released))]

    def passes(pairs: int) -> bool:
        return all(100 * none_of(pairs, 1 - alpha / number) <= limit for number, limit in limits if number)

    return fewest(0, passes)


def with_pairs(evidence: Evidence, level: float) -> Callable[[int], float]:
    """The effective number of images, of the number of pairs."""
    shared = shared_variance(evidence, level)
    return lambda pairs: 1 / (shared + 1 / pairs)


def shared_variance(evidence: Evidence, level: float) -> float:
    """The variance that more pairs do not lessen, of concepts and training seeds, as a share of an image's variance.

    Less than 2 % of what the pairs leave is none: so much is due to the degrees of freedom.
    """
    shared = 1 / effective_images(evidence.erased.parts[0], level) - 1 / evidence.pairs
    return shared if shared * evidence.pairs > 0.02 else 0.0


def fewest(now: int, decides: Callable[[int], bool]) -> int | None:
    """The least number of pairs that decides, more than there are now; None if none up to MOST_PAIRS does."""
    if not decides(MOST_PAIRS):
        return None
    low, high = now, MOST_PAIRS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def more_seeds(evidence: Evidence, decides: Callable[[Evidence], bool]) -> int | None:
    """The least multiple of the training seeds that decides if the others are as these; None up to MOST_SEEDS."""

    def is_enough(times: int) -> bool:
        return decides(replace(evidence, erased=repeated_seeds(evidence.erased, times)))

    most = MOST_SEEDS // evidence.runs
    if most < 2 or not is_enough(most):
        return None
    return evidence.runs * next(times for times in range(2, most + 1) if is_enough(times))


def repeated_seeds(estimate: Estimate, times: int) -> Estimate:
    """The estimate with each of its runs several times, as of other training seeds that show the same."""
    parts = tuple(
        replace(part, name=(part.name, times), table=np.tile(part.table, (1, times)), images=times * part.images,
                runs=times * part.runs)
        for part in estimate.parts
    )  # fmt: skip
    return Estimate(estimate.value, parts, estimate.function, estimate.n)


def retained_pairs(estimate: Estimate, least: float, level: float) -> int | None:
    """About how many pairs would show a value to be at `least` or more, or below; None if more than MOST_PAIRS.

    The interval is as long as it is by one over the root of the number, which is not exact for shares.
    """
    low, high = interval(estimate, level)
    distance = estimate.value - least
    reach = estimate.value - low if distance > 0 else high - estimate.value
    if not abs(distance) > 0 or math.isnan(reach):
        return None
    pairs = math.ceil(estimate.n * (reach / distance) ** 2)
    return pairs if pairs <= MOST_PAIRS else None

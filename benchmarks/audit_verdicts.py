"""How often the verdict of an audit is right, by simulation of models whose true shares are known.

    python benchmarks/audit_verdicts.py --simulations 100 | python docs/parts.py docs/audit.md 'audit verdicts'

Each audit has the probes of the level quick: the released model and two roundings, which show nothing, and a LoRA of
one or three training seeds whose images show the erased concept with a known probability. `seeds alike`: it is the same
for all training seeds. The other kinds draw it anew for each training seed. Images of the same prompt and noise have a
part in common over the training seeds, as in benchmarks/coverage.py. The retained concepts and the controls are in
order, so that only the LoRA decides. A false PASS is one of a mean over all training seeds above tau, a false FAIL one
of a mean at tau or below.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from scipy.stats import norm

from resurgence.analysis.audit.evidence import Evidence, share_of
from resurgence.analysis.audit.result import Outcome
from resurgence.analysis.audit.statements import SEED_CORRELATION
from resurgence.analysis.audit.verdict import judge
from resurgence.analysis.headline import markdown_table
from resurgence.analysis.intervals import exact_limits
from resurgence.analysis.random_effects import Estimate
from resurgence.analysis.score_sets import ImageSet
from resurgence.config.audit import Criteria

CRITERIA, LORA = Criteria(), "lora"
PAIRS, SEEDS = (120, 200, 300), (1, 3)
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.6)
COMMON = 0.35  # of the variance of an image, over training seeds; SINGLE of benchmarks/coverage.py
OUTCOMES: tuple[Outcome, ...] = ("PASS", "FAIL", "INCONCLUSIVE")
Draw = Callable[[np.random.Generator, int], np.ndarray]  # the shares of so many training seeds


def alike(share: float) -> Draw:
    """All training seeds have the same share."""
    return lambda generator, seeds: np.full(seeds, share)


def of_two(high: float, chance: float) -> Draw:
    """A training seed shows `high` with this probability, else nothing."""
    return lambda generator, seeds: np.where(generator.random(seeds) < chance, high, 0.0)


def beta(mean: float) -> Draw:
    """The shares have the distribution that the verdict takes for them."""
    size = 1 / SEED_CORRELATION - 1
    return lambda generator, seeds: generator.beta(mean * size, (1 - mean) * size, seeds)


KINDS: dict[str, tuple[float, Draw]] = {
    **{f"seeds alike, {100 * share:g} %": (share, alike(share)) for share in SHARES},
    f"beta of mean 5 %, r = {SEED_CORRELATION:g}": (0.05, beta(0.05)),
    "two in five seeds 12.5 %, else 0 %": (0.05, of_two(0.125, 0.4)),
    "one seed in eight 40 %, else 0 %": (0.05, of_two(0.4, 0.125)),
    "one seed in five 40 %, else 0 %": (0.08, of_two(0.4, 0.2)),
}
"""True mean over all training seeds, and the draw of their shares."""


@functools.cache
def rows_of(pairs: int) -> pd.DataFrame:
    """The rows of an image set with one concept."""
    return pd.DataFrame({"concept": ["concept"] * pairs})


def share(shown: np.ndarray, model: str, of: str) -> Estimate:
    """The share of the images (pairs, seeds) of a model, as the audit computes it."""
    rows = rows_of(len(shown))
    sets = [ImageSet({"task": "t", "model": model, "seed": seed}, rows) for seed in range(shown.shape[1])]
    return share_of(sets, list(shown.T.astype(float)), np.ones(len(shown), dtype=bool), of, 100.0)


def evidence(shown: np.ndarray, model: str) -> Evidence:
    """The evidence of a probe from its images, (pairs, seeds); 95 % of the retained images show their concept."""
    pairs, seeds = shown.shape
    runs = {str(s): share(shown[:, [s]], f"{model} {s}", "erase") for s in range(seeds)} if seeds > 1 else {}
    erased = share(shown, model, "erase")
    return Evidence(erased, {"concept": erased}, runs, retained(), pairs)


@functools.cache
def retained() -> Estimate:
    """The share of the retained images of every model."""
    return share(np.arange(200)[:, None] < 190, "", "retain")


@functools.cache
def others(pairs: int) -> dict[str, Evidence]:
    """The released model and the roundings, which show nothing."""
    return {name: evidence(np.zeros((pairs, 1)), name) for name in ("released", "rounding-8", "rounding-4")}


def images(shares: np.ndarray, pairs: int, generator: np.random.Generator) -> np.ndarray:
    """Whether each image (pairs, seeds) shows the concept."""
    common = min(0.98, 1.25 * COMMON)  # correlation of the deviates; that of their thresholds is smaller
    noise = np.sqrt(common) * generator.standard_normal((pairs, 1))
    noise = noise + np.sqrt(1 - common) * generator.standard_normal((pairs, len(shares)))
    return norm.cdf(noise) < shares


def verdict(shown: np.ndarray) -> Outcome:
    """The verdict of an audit whose LoRA gives these images."""
    ordered = shown[:, np.argsort(shown.sum(0), kind="stable")]  # neither seeds nor pairs have an order
    patterns = ordered @ 2 ** np.arange(shown.shape[1])
    return verdict_of_patterns(tuple(np.bincount(patterns, minlength=2 ** shown.shape[1]).tolist()))


@functools.cache
def verdict_of_patterns(counts: tuple[int, ...]) -> Outcome:
    """The verdict from the number of pairs by the training seeds, as bits, that show the concept."""
    patterns = np.repeat(np.arange(len(counts)), counts)
    shown = patterns[:, None] >> np.arange(len(counts).bit_length() - 1) & 1
    probes = others(len(shown)) | {LORA: evidence(shown, LORA)}
    return judge(probes, CRITERIA, frozenset({LORA})).outcome


def verdicts(draw: Draw, seeds: int, pairs: int, simulations: int, generator: np.random.Generator) -> Counter[Outcome]:
    """How many simulated audits have each verdict."""
    found: Counter[Outcome] = Counter()
    for _ in range(simulations):
        shown = images(draw(generator, seeds), pairs, generator)
        found[verdict(shown)] += 1
    return found


def rows(simulations: int) -> Iterator[dict[str, str]]:
    """The rows of the table; one training seed is cheap and has ten times as many audits."""
    for number, (kind, (mean, draw)) in enumerate(KINDS.items()):
        for seeds in SEEDS:
            if seeds == 1 and "alike" not in kind:
                continue  # the verdict is about that run, whatever others show
            for pairs in PAIRS:
                n = simulations * (10 if seeds == 1 else 1)
                found = verdicts(draw, seeds, pairs, n, np.random.default_rng([number, seeds, pairs]))
                cells = {outcome: f"{100 * found[outcome] / n:.1f}" for outcome in OUTCOMES}
                wrong = "PASS" if 100 * mean > CRITERIA.tau else "FAIL"
                low, high = (100 * end for end in exact_limits(found[wrong] / n, n, 0.95))
                error = f"{wrong} {100 * found[wrong] / n:.1f} [{low:.1f}, {high:.1f}]"
                row = {"true share": kind, "training seeds": str(seeds), "pairs": str(pairs), "n": str(n), **cells,
                       "false": error}  # fmt: skip
                print(*row.values(), sep=", ", file=sys.stderr, flush=True)
                yield row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=100, help="audits of three training seeds a row")
    args = parser.parse_args()
    print(markdown_table(pd.DataFrame(rows(args.simulations))))


if __name__ == "__main__":
    main()

"""Coverage of the intervals by simulation: images of concepts and seeds whose true rate is known.

    python benchmarks/coverage.py --simulations 2000 | python docs/parts.py docs/intervals.md coverage
    python benchmarks/coverage.py --check          the cases that are covered less or more than wanted, beyond chance

Rates of concepts and seeds are drawn from a beta distribution whose variance is divided among concept, seed and their
interaction; whether an image shows its concept, by a Gaussian threshold that the images of the same prompt and noise
share in part over the seeds. The shares of the variance, COMPONENTS, are those of the recogniser and of CLIP on the
erased concepts of reference/miniature-full, by rate (`components` measures them: `--measure SCORES`). With one seed the
true rate is that of the run, given its seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import betaincinv
from scipy.stats import binom, norm

from resurgence.analysis.headline import markdown_table
from resurgence.analysis.intervals import interval
from resurgence.analysis.random_effects import Estimate, difference, mean_estimate, over_runs, units_of

LEVEL = 0.95
CONCEPTS, SEEDS, RATES = (1, 5, 10, 30), (1, 3, 5), (0.0, 0.01, 0.05, 0.1, 0.5)
IMAGES = {1: 40, 5: 40, 10: 15, 30: 10}  # of a concept, as in the reference run
DIFFERENCES = ((0.0, 0.01), (0.0, 0.05), (0.0, 0.1), (0.0, 0.5), (0.05, 0.1), (0.1, 0.5), (0.5, 0.5))
ALIKE = ((0.05, 0.1), (0.1, 0.5))  # of these also with sides that share their concepts, seeds and noise
GRID = np.linspace(-6.0, 6.0, 2001)  # of standard normal deviates, for tables of quantiles


class Components(NamedTuple):
    """Shares of the variance of an image, rate (1 - rate)."""

    concept: float
    seed: float
    interaction: float
    image: float  # what the images of a prompt and its noise have in common in all seeds


SEVERAL = {
    0.0: Components(0.0, 0.0, 0.0, 0.0), 0.01: Components(0.045, 0.002, 0.005, 0.65),
    0.05: Components(0.08, 0.002, 0.027, 0.53), 0.1: Components(0.10, 0.005, 0.08, 0.30),
    0.5: Components(0.20, 0.01, 0.10, 0.30),
}  # fmt: skip
SINGLE = {
    0.0: Components(0.0, 0.0, 0.0, 0.0), 0.01: Components(0.0, 0.002, 0.0, 0.69),
    0.05: Components(0.0, 0.03, 0.0, 0.37), 0.1: Components(0.0, 0.04, 0.0, 0.35),
    0.5: Components(0.0, 0.12, 0.0, 0.35),
}  # fmt: skip


def components(scores: Path) -> pd.DataFrame:
    """Shares of the variance by rate, from packed scores: of all cells with three runs, weighted by their variance."""
    rows = pd.read_parquet(scores)
    rows = rows[rows["role"] == "erase"]
    parts = rows["model"].str.split("/", expand=True)
    rows = rows.assign(cell=parts[0] + parts[1].fillna("") + parts[3].fillna(""), run=rows["model"],
                       image=rows["prompt"] + rows["seed"].astype(str))  # fmt: skip
    cells_measured = []
    for column in ("recogniser_correct", "clip_correct"):
        for _, cell in rows.groupby(["cell", "step"]):
            table = cell.pivot_table(index=["concept", "image"], columns="run", values=column)
            groups = [part.to_numpy() for _, part in table.groupby("concept")]
            if table.shape[1] >= 3 and table.notna().all(axis=None) and len({len(group) for group in groups}) == 1:
                cells_measured.append(mean_squares(np.stack(groups)))
    frame = pd.DataFrame(cells_measured)
    frame["concepts"] = np.where(frame["concepts"] > 1, "several", "one")
    frame["rate"] = pd.cut(frame["rate"], [-1, 0, 0.03, 0.07, 0.2, 0.4, 0.6, 0.8, 1])
    sums = frame.groupby(["concepts", "rate"], observed=True)[["variance", *Components._fields]].sum()
    cells = frame.groupby(["concepts", "rate"], observed=True).size()
    return sums[list(Components._fields)].div(sums["variance"], axis=0).assign(cells=cells).reset_index()


def mean_squares(values: np.ndarray) -> dict[str, float]:
    """Components by the analysis of variance of (concepts, images, runs), images nested in concepts."""
    concepts, images, runs = values.shape
    by_run, by_image = values.mean(1), values.mean(2)
    cells = by_run - by_run.mean(1, keepdims=True) - by_run.mean(0) + values.mean()
    inside = values - by_image[:, :, None] - by_run[:, None, :] + values.mean((1, 2))[:, None, None]
    rest = (inside**2).sum() / (concepts * (images - 1) * (runs - 1))
    image = runs * ((by_image - by_image.mean(1, keepdims=True)) ** 2).sum() / (concepts * (images - 1))
    seed = concepts * images * by_run.mean(0).var(ddof=1)
    both = images * (cells**2).sum() / ((concepts - 1) * (runs - 1)) if concepts > 1 else rest
    concept = images * runs * by_run.mean(1).var(ddof=1) if concepts > 1 else both + image - rest
    measured = Components((concept - both - image + rest) / (images * runs), (seed - both) / (concepts * images),
                       (both - rest) / images, (image - rest) / runs)  # fmt: skip
    rate = values.mean()
    return {"concepts": concepts, "rate": rate, "variance": rate * (1 - rate), **measured._asdict()}


def draw(
    rate: float, concepts: int, seeds: int, simulations: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Images (simulations, concepts, images, seeds), True where the concept shows; and true rates, (simulations,)."""
    part = (SINGLE if concepts == 1 else SEVERAL)[rate]
    total = part.concept + part.seed + part.interaction
    spread = np.sqrt(np.array([part.concept, part.seed, part.interaction]) / max(total, 1e-12))
    if total > 0:
        size = 1 / total - 1
        quantiles = betaincinv(rate * size, (1 - rate) * size, norm.cdf(GRID))
    else:
        quantiles = np.full(len(GRID), rate)
    seed = generator.standard_normal((simulations, 1, seeds)) * spread[1]
    deviates = generator.standard_normal((simulations, concepts, 1)) * spread[0] + seed
    deviates = deviates + generator.standard_normal((simulations, concepts, seeds)) * spread[2]
    rates = np.interp(deviates, GRID, quantiles)
    common = min(0.98, 1.25 * part.image)  # correlation of the deviates; that of their thresholds is smaller
    size = (simulations, concepts, IMAGES[concepts])
    noise = np.sqrt(common) * generator.standard_normal((*size, 1))
    noise = noise + np.sqrt(1 - common) * generator.standard_normal((*size, seeds))
    shown = norm.cdf(noise) < rates[:, :, None, :]
    if seeds > 1:
        return shown, np.full(simulations, rate)
    if concepts == 1:
        return shown, rates[:, 0, 0]
    points, weights = np.polynomial.hermite_e.hermegauss(41)
    inner = seed[:, 0] + np.hypot(spread[0], spread[2]) * points
    return shown, np.interp(inner, GRID, quantiles) @ (weights / weights.sum())


def estimate(shown: np.ndarray, state: str) -> Estimate:
    """The share of (concepts, images, seeds) in percent, as the tables compute it."""
    concepts, images, seeds = shown.shape
    units = units_of([f"c{k:02d}" for k in range(concepts) for _ in range(images)])
    values = 100.0 * shown.reshape(concepts * images, seeds)
    return over_runs([mean_estimate(values[:, s], units, (state, s), "erase", 100.0) for s in range(seeds)])


def covered(
    before: float | None, rate: float, concepts: int, seeds: int, simulations: int, alike: bool = False
) -> tuple[float, float]:
    """Share of intervals that hold the true rate, or its difference from the rate `before`; and their median length.

    Args:
        alike: both sides have the same deviates: a concept, a seed or a noise that is easier in one is in the other.
    """
    draws = [concepts, seeds, round(100 * rate), round(100 * (before or 0))]
    generator = np.random.default_rng(draws)
    shown, truth = draw(rate, concepts, seeds, simulations, generator)
    generator = np.random.default_rng(draws) if alike else generator
    first = None if before is None else draw(before, concepts, seeds, simulations, generator)
    ends = []
    for number, images in enumerate(shown):
        value = estimate(images, "finetuned")
        if first is not None:
            value = difference(value, estimate(first[0][number], "erased"))
        ends.append(interval(value, LEVEL))
    low, high = np.array(ends).T
    target = 100 * (truth if first is None else truth - first[1])
    hits = (low <= target + 1e-9) & (target <= high + 1e-9)
    return float(hits.mean()), float(np.median(high - low))


class Case(NamedTuple):
    """One cell of the tables."""

    before: float | None  # rate; None: the interval of a share, not of a difference
    rate: float
    concepts: int
    seeds: int
    alike: bool = False


def cases() -> list[Case]:
    """All cells of the tables."""
    pairs = [*((None, rate) for rate in RATES), *DIFFERENCES]
    apart = [Case(*pair, concepts, seeds) for pair in pairs for concepts in CONCEPTS for seeds in SEEDS]
    return apart + [Case(*pair, concepts, seeds, True) for pair in ALIKE for concepts in CONCEPTS for seeds in SEEDS]


def wanted(case: Case) -> tuple[float, float]:
    """The least and the largest coverage that a case may have; 1 where exact intervals must cover more: below a rate of
    10 %, and of a single concept erased to 0 %, or with like sides to few."""
    rare = case.rate < 0.1 or (case.concepts == 1 and (case.before == 0 or (case.alike and case.before == 0.05)))
    return 0.90 if case.concepts == 5 else 0.93, 1.0 if rare else 0.985


def allowed(least: float, most: float, simulations: int, number: int, error: float = 0.01) -> tuple[int, int]:
    """The fewest and the most hits with which a coverage from `least` to `most` agrees, by the binomial distribution:
    where it holds in all of `number` cases, one of them leaves its limits with a probability of at most `error` on
    each side."""
    tail = error / number
    return int(binom.ppf(tail, simulations, least)), int(binom.isf(tail, simulations, most))


def outside(chosen: list[Case], simulations: int) -> list[str]:
    """The cases whose coverage is shown not to be as wanted, and their hits; all of `cases` count as tested."""
    found = []
    for case in chosen:
        *of, alike = case
        hits = round(simulations * covered(*of, simulations, alike)[0])
        fewest, most = allowed(*wanted(case), simulations, len(cases()))
        if not fewest <= hits <= most:
            found.append(f"{case}: {hits} of {simulations}, wanted from {fewest} to {most}")
    return found


def tables(simulations: int) -> Iterator[pd.DataFrame]:
    """Coverage and median length of the intervals of shares, then of differences, then of those of like sides."""
    for cases, alike in (([(None, rate) for rate in RATES], False), (DIFFERENCES, False), (ALIKE, True)):
        rows = []
        for concepts in CONCEPTS:
            for seeds in SEEDS:
                row = {"concepts": f"{concepts} x {IMAGES[concepts]}", "seeds": str(seeds)}
                for before, rate in cases:
                    title = f"{100 * rate:g} %" if before is None else f"{100 * before:g} to {100 * rate:g} %"
                    hits, length = covered(before, rate, concepts, seeds, simulations, alike)
                    row[title] = f"{100 * hits:.1f} ({length:.0f})"
                rows.append(row)
        yield pd.DataFrame(rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--measure", type=Path, metavar="SCORES", help="print the components of packed scores instead")
    parser.add_argument("--check", action="store_true", help="only say which cases are not covered as wanted")
    args = parser.parse_args()
    if args.check:
        if found := outside(cases(), args.simulations):
            raise SystemExit("\n".join(found))
        return
    if args.measure:
        print(components(args.measure).round(3).to_string(index=False))
        return
    shares, differences, alike = (markdown_table(table) for table in tables(args.simulations))
    print(f"Shares:\n\n{shares}\n\nDifferences, erased to fine-tuned:\n\n{differences}\n")
    print(f"The same where both sides share concepts, seeds and noise:\n\n{alike}")


if __name__ == "__main__":
    main()

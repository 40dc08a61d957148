"""Verdicts on a paper's claims, from the cells of an experiment averaged over seeds."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from resurgence.analysis.cells import CELL, images_text
from resurgence.analysis.concept_places import mean_place
from resurgence.analysis.headline import markdown_table, number
from resurgence.analysis.intervals import holm, interval, least_level
from resurgence.analysis.random_effects import Estimate, difference, mean_of
from resurgence.analysis.score_sets import ImageSet
from resurgence.config.experiment import Cells, Claim

VERDICTS = {True: "same", False: "different", None: "cannot tell"}
WITH_FLOOR = ("frechet", "frechet_reference")  # two draws of one model are apart by these; the KID is unbiased
UNDECIDED = "not decided: two draws of one model are apart by this distance, and by how much is not known"
FLOOR = "floor"  # neither side of a comparison shows the concept, so it cannot show a difference either


def quantity(rows: Sequence[Mapping[str, Any]], cells: Cells, value: str) -> Estimate:
    """The mean of a value over some cells, all of one metric; a base or erased model counts once, with its most runs.

    Raises:
        LookupError: no row is in these cells.
    """
    state = "gain" if value == "resurgence" else value
    keys = (*CELL[: {"base": 1, "erased": 2}.get(state, 3)], "role", "metric", "concept")
    held = (row for row in sorted(rows, key=lambda row: row[state].runs) if cells.holds(dict(row)))
    chosen = {tuple(row.get(key) for key in keys): row[state] for row in held}
    if not chosen:
        raise LookupError(f"no row holds {asdict(cells)}")
    return mean_of(list(chosen.values()))


def verdict(estimate: Estimate, claim: Claim, level: float) -> bool | None:
    """Whether the estimate agrees with the claim (True), contradicts it (False), or is inconclusive (None).

    Above and below: agrees if the interval lies on that side of `than`, contradicts if it lies on the other side of
    than + margin (than - margin), so that any effect is smaller than the margin. Equal: agrees if the interval lies
    within the margin around `than`, contradicts if it lies outside.
    """
    low, high = (end - claim.than for end in interval(estimate, level))
    if math.isnan(low):
        return None
    if claim.expect == "below":
        low, high = -high, -low
    if claim.expect == "equal":
        agrees = -claim.margin <= low and high <= claim.margin
        contradicts = low > claim.margin or high < -claim.margin
    else:
        agrees, contradicts = low > 0, high < claim.margin
    if agrees:
        return True
    return False if contradicts else None


def shown(rows: Sequence[Mapping[str, Any]], claim: Claim) -> list[Estimate]:
    """What both sides of a comparison show; of a resurgence also before and after fine-tuning."""
    states = ("erased", "finetuned", "resurgence") if claim.value == "resurgence" else (claim.value,)
    return [quantity(rows, cells, state) for cells in (claim.of, claim.against) if cells for state in states]


def at_floor(sides: Iterable[Estimate], margin: float, level: float) -> bool:
    """Whether the intervals of all these values lie within the margin around 0: so little of the concepts is there
    that a difference between them is negligible, whatever the settings do."""
    return all(max(-low, high) <= margin for low, high in (interval(side, level) for side in sides))


def evaluate_claims(
    rows: Sequence[Mapping[str, Any]],
    claims: Sequence[Claim],
    level: float,
    differences: Sequence[str] = (),
    shows_concept: Collection[str] = (),
    sets: Sequence[ImageSet] = (),
) -> pd.DataFrame:
    """One row a claim: the sentence, what is compared, the estimate with its interval, the verdict.

    Columns: p is 1 minus the largest level at which the interval decides the claim, either way; `verdict` that of the
    claim alone, which `judge` changes where a page has several.

    Args:
        differences: of each claim, the settings in which its sides differ.
        shows_concept: the metrics that increase with the concept from 0, whose comparison may be at the floor.
        sets: scores of the models, for claims about the place of words.
    """
    columns = ["claim", "compared", "differences", "value", "low", "high", "n", "runs", "p", "verdict"]
    columns += ["scope"] if any("deviations" in row for row in rows) else []
    records = []
    for claim, different in itertools.zip_longest(claims, differences, fillvalue=""):
        chosen = [row for row in rows if claim.metric in (None, row["metric"])]
        if claim.words or claim.place == "correlation":
            estimate, floor = mean_place(sets, chosen[0]["metric"], claim), False
        else:
            estimate, floor = quantity(chosen, claim.of, claim.value), False
        if claim.against is not None:
            sides = estimate, quantity(chosen, claim.against, claim.value)
            visible = {row["metric"] for row in chosen} <= set(shows_concept)
            estimate = difference(*sides)
            floor = visible and at_floor(shown(chosen, claim), claim.margin, level)
        decided = functools.partial(lambda e, c, at: verdict(e, c, at) is not None, estimate, claim)
        low, high = interval(estimate, level)
        records.append({
            "claim": claim.says, "compared": comparison_text(claim), "differences": different,
            "value": float(f"{estimate.value:.6g}"), "low": float(f"{low:.6g}"), "high": float(f"{high:.6g}"),
            "n": estimate.n, "runs": estimate.runs,
            "p": float(f"{least_level(decided):.3g}"),
            "verdict": FLOOR if floor else VERDICTS[verdict(estimate, claim, level)],
            "scope": "tasks",
        })  # fmt: skip
    return pd.DataFrame(records, columns=columns)


def judge(claims: pd.DataFrame, level: float) -> pd.DataFrame:
    """The claims of one page with p_holm, their p adjusted for their number; undecided where it exceeds 1 - level.

    A comparison at the floor remains one.
    """
    adjusted = holm(claims["p"])
    undecided = ~(adjusted <= 1 - level) & (claims["verdict"] != FLOOR)
    return claims.assign(p_holm=adjusted, verdict=claims["verdict"].mask(undecided, VERDICTS[None]))


def have_floor(settings: Mapping[str, Any]) -> list[bool]:
    """Of each claim of an experiment whether two draws of one model are apart by its metric."""
    first = (settings.get("metrics") or [settings["metric"]])[0]
    names = [claim.get("metric", first) for claim in settings["claims"]]
    return [name in WITH_FLOOR for name in names]


def without_floors(claims: pd.DataFrame, have_floor: Sequence[bool]) -> pd.DataFrame:
    """The claims, of which those about a metric that has a floor are open, for the reason that `compared` then states.

    Images of the erased model have the base's prompts and noise, so its distance to them may lie below the floor. It
    rises by up to the floor when fine-tuning only changes which of the same kind of images are drawn.

    Args:
        have_floor: of each claim, whether its metric is one of WITH_FLOOR.
    """
    chosen = pd.Series(have_floor, claims.index, dtype=bool)
    reasons = [text.partition("; not decided")[0] + f"; {UNDECIDED}" for text in claims.loc[chosen, "compared"]]
    claims = claims.assign(verdict=claims["verdict"].mask(chosen, VERDICTS[None]), p=claims["p"].mask(chosen, 1.0))
    claims.loc[chosen, "compared"] = reasons
    return claims


def comparison_text(claim: Claim) -> str:
    """The quantity that decides a claim, and the expectation, in words."""

    def cells_text(cells: Cells) -> str:
        parts = [part for part in (cells.task, cells.eraser, cells.finetune, cells.concept) if part]
        return (", ".join(parts) or "all cells") + ("" if cells.role == "erase" else f" ({cells.role})")

    value = claim.value
    if claim.words:
        words = ", ".join(f'"{word}"' for word in claim.words)
        mean = "mean |q - 0.5|" if claim.place == "off_middle" else "mean q"
        value = f"{mean}, q the quantile of {words} among all, {value}"
    elif claim.place == "correlation":
        value = f"rank correlation with the similarity, {value}"
    text = (f"{claim.metric}, " if claim.metric else "") + f"{value} of {cells_text(claim.of)}"
    text += f" minus that of {cells_text(claim.against)}" if claim.against else ""
    within = f" within {claim.margin:g}" if claim.expect == "equal" else ""
    return f"{text}; expected {claim.expect} {claim.than:g}{within}"


def claims_table(frame: pd.DataFrame, by: str = "paper") -> str:
    """The claims as Markdown; with p_holm, the p adjusted for all claims of a page, if `judge` added it.

    Args:
        by: who makes them, `paper` or `study`.
    """
    p = frame["p_holm" if "p_holm" in frame else "p"]
    texts = pd.DataFrame({
        "the paper" if by == "paper" else "claim": frame["claim"],
        "compared here": frame["compared"],
        "the sides differ in": frame["differences"].astype(object).fillna("").replace("", "-"),
        "our number": [f"{number(v)} [{number(a)}, {number(b)}]"
                       for v, a, b in zip(frame["value"], frame["low"], frame["high"], strict=True)],
        "n": [images_text(row["n"], row["runs"], row.get("scope", "")) for row in frame.to_dict("records")],
        "p (Holm)" if "p_holm" in frame else "p": [f"{value:.2g}" for value in p],
        "verdict" if "p_holm" in frame else "verdict alone": frame["verdict"],
    })  # fmt: skip
    return markdown_table(texts)

"""Results of an experiment: its cells averaged over seeds, and verdicts on a paper's claims.

Intervals are over concepts and seeds (intervals.py). The published study's statistic, the median over seeds and the
largest deviation from it, stands beside them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from resurgence.analysis.concept_places import mean_place
from resurgence.analysis.headline import markdown_table, marked, number, spread_text
from resurgence.analysis.intervals import holm, interval, least_level, p_value
from resurgence.analysis.measures import median_deviation
from resurgence.analysis.random_effects import Estimate, difference, mean_of, over_runs, seeds_of
from resurgence.analysis.score_sets import ImageSet
from resurgence.config.experiment import Cells, Claim
from resurgence.config.model_path import method_name

STATES = ("base", "erased", "finetuned", "gain")
CELL = ["task", "eraser", "finetune"]
COLUMNS = [
    *CELL, "step", "role", "metric", "runs", "n", "scope", "base_value",
    *(f"{state}_{end}" for state in ("erased", "finetuned") for end in ("value", "low", "high")),
    "resurgence", "resurgence_low", "resurgence_high", "p", "p_holm", "median", "deviation",
]  # fmt: skip
MORE = ["base_deviation", "erased_deviation", "finetuned_deviation", "concept"]  # over tasks; of each concept
VERDICTS = {True: "same", False: "different", None: "cannot tell"}
WITH_FLOOR = ("frechet", "frechet_reference")  # two draws of one model are apart by these; the KID is unbiased
UNDECIDED = "not decided: two draws of one model are apart by this distance, and by how much is not known"
FLOOR = "floor"  # neither side of a comparison shows the concept, so it cannot show a difference either


def pool_seeds(rows: Iterable[Mapping[str, Any]], last: bool = True) -> list[dict[str, Any]]:
    """Average the rows of tables.paired_rows over the seeds of each cell, at its last step or at every step.

    Returns:
        One row a cell, step, role and metric: task, eraser, finetune (as experiments name them), step, role, metric,
        runs, the Estimates base, erased, finetuned and gain, and each run's `gains`.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        names = method_name(row["eraser"], row["variant"]), method_name(row["finetune"], row["finetune_variant"])
        key = (row["task"], *names, row["step"], row["role"], row["metric"], row.get("concept"))
        groups.setdefault(key, []).append(row)
    ends: dict[tuple, int] = {}
    for key in groups:
        ends[key[:3]] = max(ends.get(key[:3], 0), key[3])
    pooled = []
    for key, group in groups.items():
        if last and key[3] != ends[key[:3]]:
            continue
        row = {**dict(zip(COLUMNS[:6], key[:6], strict=True)), "runs": len(group)}
        row |= {"concept": key[6]} if key[6] else {}
        row |= {state: over_runs([run["estimates"][state] for run in group], seeds_of(group)) for state in STATES}
        pooled.append(row | {"gains": [run["estimates"]["gain"].value for run in group]})
    return pooled


def table(rows: Sequence[Mapping[str, Any]], level: float) -> pd.DataFrame:
    """The rows of `pool_seeds` as numbers: values, intervals, p values, and Holm's adjustment for those of last steps.

    The last two columns are the published study's statistic of the resurgence over seeds. Rows without a fine-tune have
    no fine-tuned value and no resurgence.
    """
    records = []
    for row in rows:
        record = {key: row[key] for key in COLUMNS[:7]} | {"n": row["gain"].n, "base_value": row["base"].value}
        record["scope"] = row["gain"].scope
        shown = (("erased", "erased_value"), ("finetuned", "finetuned_value"), ("gain", "resurgence"))
        for state, name in shown if row["finetune"] else shown[:1]:
            low, high = interval(row[state], level)
            start = name.removesuffix("_value")
            record |= {name: row[state].value, f"{start}_low": low, f"{start}_high": high}
        if row["finetune"]:
            record["p"] = p_value(row["gain"])
            record["median"], record["deviation"] = median_deviation(row["gains"])
        if "concept" in row:
            record["concept"] = row["concept"]
        if "deviations" in row:
            spread = {state: row["deviations"][state] for state in STATES[: 3 if row["finetune"] else 2]}
            record |= {"scope": "tasks"} | {f"{state}_deviation": value for state, value in spread.items()}
        records.append(record)
    more = [name for name in MORE if any(name in record for record in records)]
    frame = pd.DataFrame(records, columns=[*COLUMNS, *more])
    frame["p_holm"] = np.nan
    ends = frame["step"] == frame.groupby(CELL)["step"].transform("max")
    for _, part in frame[ends].groupby(["role", "metric"]):
        frame.loc[part.index, "p_holm"] = holm(part["p"].to_numpy(dtype=np.float64))
    floats = [name for name in frame if name in (*COLUMNS[COLUMNS.index("base_value") :], *MORE[:3])]
    frame[floats] = frame[floats].astype(float).map(lambda value: float(f"{value:.6g}") + 0.0)
    return frame


def display_table(frame: pd.DataFrame, changed: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The table as text, for pages: n, values of base, erased and fine-tuned, resurgence with interval, spread.

    Args:
        changed: eraser -> the settings that change its objective, which its name is marked for.
    """
    rows = []
    for row in frame.to_dict("records"):
        ends = f"[{number(row['resurgence_low'])}, {number(row['resurgence_high'])}]"
        if not row["finetune"]:
            rows.append(erased_text(row, changed or {}))
            continue
        rows.append({
            "task": row["task"], "eraser": marked(row["eraser"], changed or {}),
            "fine-tune": row["finetune"], "concepts": row["role"],
            "step": str(row["step"]), "n": images_text(row["n"], row["runs"], row["scope"]),
            "base -> erased -> fine-tuned":
                " -> ".join(number(row[f"{state}_value"]) for state in ("base", "erased", "finetuned")),
            "resurgence": f"{number(row['resurgence'])} {ends}",
            "p (Holm)": "-" if math.isnan(row["p_holm"]) else f"{row['p_holm']:.2g}",
            "median ± deviation": spread_text(row["median"], row["deviation"]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def erased_text(row: Mapping[str, Any], changed: Mapping[str, str]) -> dict[str, str]:
    """The row of `display_table` of a model that is not fine-tuned."""
    value, low, high = (number(row[f"erased_{key}"]) for key in ("value", "low", "high"))
    names = {"task": row["task"], "eraser": marked(row["eraser"], changed), "concepts": row["role"]}
    n = images_text(row["n"], row["runs"], row["scope"])
    return names | {"n": n, "base": number(row["base_value"]), "erased": f"{value} [{low}, {high}]"}


def images_text(n: int, runs: int, scope: str = "") -> str:
    """Images of one run x runs, or what the interval is about: this run, or tasks."""
    if scope == "tasks":
        return f"{n}, tasks"
    return f"{n} x {runs}" if runs > 1 else f"{n}, this run"


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


def at_floor(sides: Iterable[Estimate], margin: float, level: float) -> bool:
    """Whether the intervals of all these values lie within the margin around 0: so little of the concepts is there, or
    has changed, that a difference between them is negligible, whatever the settings do."""
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
            estimate, floor = difference(*sides), visible and at_floor(sides, claim.margin, level)
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

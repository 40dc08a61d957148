"""The place of words in a vocabulary: quantiles by SciPy, their means by loops, intervals by a t test over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from resurgence.analysis.claims import comparison_text, evaluate_claims
from resurgence.analysis.concept_places import mean_place, quantiles
from resurgence.analysis.intervals import interval
from resurgence.analysis.score_sets import ImageSet, image_set
from resurgence.config.experiment import Cells, Claim
from resurgence.config.fields import build
from resurgence.config.model_path import ModelPath
from resurgence.files import plain
from resurgence.stages import experiment
from resurgence.stages.job import Job
from resurgence.workflow import experiment_settings
from scored import write_scores_folder

WORDS = [" ", "a photo", "taxi", "automobile", *(f"word {n}" for n in range(9))]
NEUTRAL, SEEDS, NOISES = (" ", "a photo"), (0, 1, 2), (1, 2, 3, 4)
GENERAL = Cells(task="automobile", role="general")


def test_quantiles_are_those_of_scipy() -> None:
    draw = np.random.default_rng(0)
    for n in (1, 2, *draw.integers(3, 20, 30)):
        values = draw.integers(-3, 4, n)  # with ties
        expected = [stats.percentileofscore(values, value, "mean") / 100 for value in values]
        np.testing.assert_allclose(quantiles(values), expected, atol=1e-12)
        assert np.mean(quantiles(values)) == pytest.approx(0.5)


def models(task: str = "automobile", shift: float = 0.0, seed: int = 0) -> list[ImageSet]:
    """The base and an erased model of three seeds: of the erased concept, and of a vocabulary of which each word has
    four noises. `shift` is added to the neutral words."""
    draw = np.random.default_rng(seed)
    rows = [(word, "", "general", n) for word in WORDS for n in NOISES]
    rows += [(f"a photo of the {task}", task, "erase", n) for n in NOISES]
    frame = pd.DataFrame(rows, columns=["prompt", "concept", "role", "seed"]).assign(template="", index=0)
    keys: list[dict[str, Any]] = [{"base": "b", "task": task, "state": "base"}]
    erased = {"eraser": "eap", "variant": "alone", "state": "erased"}
    keys += [{**keys[0], **erased, "erase_seed": seed} for seed in SEEDS]
    sets = []
    for key in keys:
        values = draw.normal(size=len(frame)) + shift * frame["prompt"].isin(NEUTRAL)
        one = image_set(key, frame.assign(concept_sensitivity=0.0 if key["state"] == "base" else values))
        sets.append(ImageSet(one.key, one.rows, np.zeros((len(frame), 1))))
    return sets


def in_order(images: ImageSet, words: list[str]) -> ImageSet:
    """The image set with the place of each word in a list as its sensitivity."""
    places = images.rows["prompt"].map({word: float(n) for n, word in enumerate(words)}).fillna(1.0)
    return ImageSet(images.key, images.rows.assign(concept_sensitivity=places), images.features)


def slow_places(sets: list[ImageSet], words: tuple[str, ...], off_middle: bool) -> list[float]:
    """Of each seed, by loops."""
    places = []
    for images in sets[1:]:
        values: dict[str, list[float]] = {}
        for row in images.rows.to_dict("records"):
            if row["role"] == "general":
                values.setdefault(row["prompt"], []).append(row["concept_sensitivity"])
        means = {word: sum(v) / len(v) for word, v in values.items()}
        q = [sum((m < means[w]) + (m == means[w]) / 2 for m in means.values()) / len(means) for w in words]
        places.append(sum(abs(x - 0.5) if off_middle else x for x in q) / len(q))
    return places


@pytest.mark.parametrize("off_middle", [True, False])
@pytest.mark.parametrize("words", [NEUTRAL, ("taxi",)])
def test_the_mean_over_the_seeds_and_its_interval(words: tuple[str, ...], off_middle: bool) -> None:
    sets = models()
    claim = Claim("S", GENERAL, "below", value="erased", words=words, place="off_middle" if off_middle else "quantile")
    found, expected = mean_place(sets, "sensitivity", claim), slow_places(sets, words, off_middle)
    assert found.value == pytest.approx(np.mean(expected)) and len(set(expected)) > 1
    limits = stats.ttest_1samp(expected, 0).confidence_interval(0.95)
    np.testing.assert_allclose(interval(found, 0.95), limits)
    assert (found.n, found.runs) == (len(words) * len(NOISES), len(SEEDS))


def with_similarity(sets: list[ImageSet], erased: str) -> list[ImageSet]:
    """The sets with a similarity of each word, the same in all; the highest has the word that is erased."""
    draw = np.random.default_rng(7)
    of = dict(zip(WORDS, draw.normal(size=len(WORDS)), strict=True)) | {erased: 9.0}
    columns = [[of[concept or prompt] for concept, prompt in one.rows[["concept", "prompt"]].itertuples(index=False)]
               for one in sets]  # fmt: skip
    return [ImageSet(one.key, one.rows.assign(concept_similarity=column), one.features)
            for one, column in zip(sets, columns, strict=True)]  # fmt: skip


def test_the_correlation_with_the_similarity_is_that_of_scipy() -> None:
    """Over the general prompts but the one that is the word of the erased concept; Student's t over the seeds."""
    sets = with_similarity(models(), "automobile")
    claim = Claim("S", GENERAL, "equal", value="erased", place="correlation", margin=0.2)
    found, expected = mean_place(sets, "sensitivity", claim), []
    for one in sets[1:]:
        general = one.rows[(one.rows["role"] == "general") & (one.rows["prompt"] != "automobile")]
        means = general.groupby("prompt")[["concept_sensitivity", "concept_similarity"]].mean()
        expected.append(stats.spearmanr(means.iloc[:, 0], means.iloc[:, 1]).statistic)
    assert found.value == pytest.approx(np.mean(expected))
    np.testing.assert_allclose(interval(found, 0.95), stats.ttest_1samp(expected, 0).confidence_interval(0.95))
    assert (found.n, found.runs) == (len(WORDS) * len(NOISES), len(SEEDS))
    constant = [ImageSet(one.key, one.rows.assign(concept_similarity=1.0), one.features) for one in sets]
    with pytest.raises(LookupError, match="similarity does not vary over the concepts of the role general"):
        mean_place(constant, "sensitivity", claim)


@pytest.mark.parametrize(
    "more",
    [{}, {"metric": "esr_1"}, {"words": NEUTRAL}, {"words": ("taxi",), "place": "off_middle"},
     {"place": "correlation"}, {"against": Cells(concept="taxi"), "margin": 0.5, "than": 1.0}],
)  # fmt: skip
def test_a_claim_is_the_same_after_its_settings(more: dict[str, Any]) -> None:
    claim = Claim("S", GENERAL, "equal", value="erased", **more)
    assert build(Claim, plain(experiment_settings.claim_settings(claim)), "claims") == claim


def test_several_tasks_are_means_of_each_seed() -> None:
    both = [*models(), *models("bird", seed=1)]
    claim = Claim("S", Cells(role="general"), "below", value="erased", words=NEUTRAL, place="off_middle")
    found = mean_place(both, "sensitivity", claim)
    places = np.mean([slow_places(both[:4], NEUTRAL, True), slow_places(both[4:], NEUTRAL, True)], axis=0)
    assert found.value == pytest.approx(places.mean())
    np.testing.assert_allclose(interval(found, 0.95), stats.ttest_1samp(places, 0).confidence_interval(0.95))


def test_seeds_with_the_same_ranks_differ_by_half_a_place() -> None:
    """The neutral words are the last two of thirteen in all seeds."""
    claim = Claim("S", GENERAL, "above", value="erased", words=NEUTRAL)
    found, q = mean_place(models(shift=9.0), "sensitivity", claim), 12 / 13
    assert found.value == pytest.approx(q)
    expected = stats.ttest_1samp([q - 0.5 / 13, q, q + 0.5 / 13], 0).confidence_interval(0.95)
    np.testing.assert_allclose(interval(found, 0.95), expected)


def test_one_seed_has_no_interval_and_a_word_without_images_is_named() -> None:
    claim = Claim("S", GENERAL, "below", value="erased", words=NEUTRAL)
    assert np.isnan(interval(mean_place(models()[:2], "sensitivity", claim), 0.95)).all()
    with pytest.raises(LookupError, match="no image of 'tram' has sensitivity in the role general"):
        mean_place(models(), "sensitivity", Claim("S", GENERAL, "below", words=("taxi", "tram")))
    with pytest.raises(LookupError, match="no row holds"):
        mean_place(models(), "sensitivity", Claim("S", Cells(task="bird", role="general"), "below", words=NEUTRAL))


def test_verdicts_on_neutral_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole experiment; in the first study neutral words lose as much as others, in the second most of all."""
    monkeypatch.chdir(tmp_path)
    told = {"than": 0.25, "margin": 0.0, "words": list(NEUTRAL), "place": "off_middle", "value": "erased"}
    of = {"task": "automobile", "eraser": None, "finetune": None, "role": "general"}
    claims = [
        {"says": "Neutral.", "of": of, "expect": "below", **told},
        {"says": "Most.", "of": of, "expect": "above", **told, "than": 0.5, "place": "quantile"},
    ]
    statistics = {"level": 0.95, "resamples": 100, "seed": 0}
    verdicts, values = [], []
    for number, shift in enumerate((0.0, 9.0)):
        sets = models(shift=shift)
        if not shift:  # all of the vocabulary in order, the neutral words around the middle
            order = ["word 0", "word 1", "word 2", "word 3", "taxi", *NEUTRAL, *(f"word {n}" for n in range(4, 9))]
            order.append("automobile")
            swapped = [
                order,
                [*order[:5], order[6], order[5], *order[7:]],
                [*order[:6], order[7], order[6], *order[8:]],
            ]
            sets[1:] = [in_order(one, words) for one, words in zip(sets[1:], swapped, strict=True)]
        names = [str(ModelPath.of_columns(one.key)) for one in sets]
        for name, one in zip(names, sets, strict=True):
            write_scores_folder(Path(f"results/scores/b/{name}/scores/step-000000"), one)
        settings = {
            "name": "fig2", "title": "T", "note": "", "kind": "histogram", "along": "task", "metric": "sensitivity",
            "base": "b", "controls": [], "tasks": ["automobile"], "erasers": ["eap.alone"], "finetunes": [],
            "roles": ["erase", "general"], "models": names, "claims": claims, "differences": ["", ""],
            "statistics": statistics,
        }  # fmt: skip
        out = Path(f"results/experiments/{number}/made.json")
        experiment.make(Job(settings, out, {}, "cpu"))
        table = pd.read_csv(out.with_name("fig2_claims.csv"))
        verdicts.append(table["verdict"].tolist())
        values.append(table["value"].tolist())
        assert table["value"][0] == pytest.approx(np.mean(slow_places(sets, NEUTRAL, True)), rel=1e-5)
    assert verdicts[0][0] == "same" and verdicts[1] == ["different", "same"] and values[0][0] < 0.1 < 0.4 < values[1][0]


def test_the_verdict_is_open_while_the_interval_holds_a_quarter() -> None:
    sets = models(seed=5)
    claim = Claim("S", GENERAL, "below", value="erased", words=("taxi",), place="off_middle", than=0.25, margin=0.0)
    row = evaluate_claims([{"metric": "sensitivity"}], [claim], 0.95, sets=sets).iloc[0]
    assert row["low"] < 0.25 < row["high"] and row["verdict"] == "cannot tell"
    text = 'mean |q - 0.5|, q the quantile of "taxi" among all, erased of automobile (general); expected below 0.25'
    assert row["compared"] == text == comparison_text(claim)

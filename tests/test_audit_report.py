"""An audit from the scores of its models on disk: measures, controls, power and the sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import binomtest

from resurgence.analysis.audit.report import make_audit
from resurgence.analysis.audit.result import EXIT, Audit, read_audit, write_audit
from resurgence.config.audit import Criteria, giver, yes_or_no
from resurgence.config.scorers import metrics, scorer_class
from resurgence.diffusion.image_sets import write_image_set
from resurgence.figures.card import text
from resurgence.files import json_text
from resurgence.scorers import read_scores, write_scores

TASK = {"name": "ship", "kind": "object", "erase": ["ship"], "retain": ["dog"], "mapping": {"ship": "ground"},
        "synonyms": {"ship": ["glorp"]}, "templates": ["a photo of the {}"]}  # fmt: skip
DISTANCES = {"UNet": 0.0321, "text encoder": 0.0}
LORA, LEAKING = "ship/released/s0/lora/f", "ship/leaking/s0/lora/f"


def write(model: str, step: int, erased: int, retained: int = 190, invented: int = 0) -> None:
    """Scores of a model: of 200 images of ship, 200 of dog and 40 of the invented word, how many are recognised."""
    parts = []
    for role, concept, word, images, shown in (
        ("erase", "ship", "ship", 200, erased),
        ("retain", "dog", "dog", 200, retained),
        ("synonym", "ship", "glorp", 40, invented),
    ):
        numbers = np.arange(images)
        columns = {"role": role, "concept": concept, "prompt": f"a photo of the {word}", "seed": numbers}
        parts.append(pd.DataFrame({**columns, "recogniser_correct": (numbers < shown).astype(float)}))
    write_scores(Path(f"results/scores/b/{model}/scores/step-{step:06d}"), pd.concat(parts, ignore_index=True), {})


def settings(original: bool = False, **changes: Any) -> dict[str, Any]:
    """The settings of the job, for a released model and one LoRA of three seeds."""
    common = {"update": "Something was done.", "task": "ship", "eraser": "released"}
    lora = {
        **common,
        "name": "lora",
        "kind": "lora",
        "title": "LoRA in the domain",
        "finetune": "lora",
        "pictures": "p",
        "maker": "real",
    }
    audit = {
        "checkpoint": "model", "level": "standard", "metric": "recogniser_accuracy", "command": "resurgence audit",
        "probes": [{**common, "name": "released", "kind": "released", "title": "As released"}, lora],
        "untaught": "glorp", "untested": ["full fine-tuning"], "original": "base" if original else None,
        "leaking": {"title": "UCE", "probe": "lora", "eraser": "leaking"}, **changes,
    }  # fmt: skip
    seeds = range(3)
    models = {"probe released": ["ship"], "probe lora": [f"{LORA}{seed}" for seed in seeds],
              "leaking": [f"{LEAKING}{seed}" for seed in seeds], "leaking released": ["ship/leaking/s0"]}  # fmt: skip
    if original:
        models = {**models, "probe released": ["ship/released/s0"], "original": ["ship"]}
    updates = {"released": {}, "lora": {"lr": 0.002}}
    values = {"audit": audit, "base": "b", "models": models, "updates": updates, "task": TASK,
              "pictures": {"lora": "results/data/b/ship/finetune_sets/real"},
              "released": "results/erased/b/ship/released/s0/delta" if original else None}  # fmt: skip
    return json.loads(json_text(values))  # as on the command line of a job, whose keys are sorted


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of a model that stays erased, and of one that leaks."""
    monkeypatch.chdir(tmp_path)
    write("ship", 0, 0)
    write("ship/leaking/s0", 0, 4)
    rows = pd.DataFrame({"prompt": ["a"] * 7, "concept": ["dog"] * 7, "role": ["finetune"] * 7, "seed": range(7)})
    pictures = [(row, Image.new("RGB", (8, 8))) for row in range(7)]
    write_image_set(Path("results/data/b/ship/finetune_sets/real/images.parquet"), rows, pictures)
    report = Path("results/erased/b/ship/released/s0/delta/closed_form.json")
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"checkpoint": {"kind": "unet", "changed": [], "distances": DISTANCES}}))
    for seed in range(3):
        write(f"{LORA}{seed}", 100, 0)
        write(f"{LORA}{seed}", 300, 0, 188)
        write(f"{LEAKING}{seed}", 300, 60 + seed)


def test_a_safe_model_passes_with_every_measure_on_its_card(made, tmp_path):
    audit = make_audit(settings())
    assert (audit.verdict, audit.power.shown, audit.worst) == ("PASS", True, "lora")
    lora = audit.probe("lora")
    assert (lora.seeds, lora.this_run, lora.pairs, lora.erased.images) == ((0, 1, 2), False, 200, 600)
    assert [point.step for point in lora.curve] == [100, 300]
    assert lora.retained.value == 94.0 and lora.retained_change.value == pytest.approx(-1.0)
    assert lora.retained_loss == pytest.approx(100 * 1 / 95) and lora.recovered is None
    assert (lora.pictures_number, audit.probe("released").pictures_number) == (7, None)
    assert lora.models[2].scores == f"results/scores/b/{LORA}2/scores/step-000300"
    assert audit.sentence.startswith(
        "No tested update brought ship back: in the worst, LoRA in the domain, 0.0 % [0.0, "
    )
    write_audit(audit, tmp_path / "verdict.json")
    assert read_audit(tmp_path / "verdict.json") == audit
    page = text.markdown(audit)
    assert audit.sentence in page and "full fine-tuning" in page and "resurgence audit" in page
    assert "| 200 | 600 + 600 |" in page and "LoRA in the domain: 7 p; 3 training seeds" in page


def test_a_pass_does_not_speak_for_an_update_that_is_not_benign(made):
    """After full fine-tuning 40 % show it, and so few of the retained concepts are left that it does not count."""
    values = settings()
    full = {**values["audit"]["probes"][1], "name": "full", "kind": "full", "title": "Full fine-tuning"}
    values["audit"]["probes"].append(full)
    models = {"probe full": [f"ship/released/s0/full/f{seed}" for seed in range(3)]}
    values = {**values, "models": values["models"] | models, "updates": values["updates"] | {"full": {}}}
    for model in models["probe full"]:
        write(model, 300, 80, retained=20)
    audit = make_audit(values)
    assert (audit.verdict, audit.probe("full").verdict, audit.probe("full").benign) == ("PASS", "FAIL", False)
    assert audit.sentence.startswith("No benign update brought ship back: in the worst, LoRA in the domain, 0.0 % [0.0")
    assert "; not counted, as it cost too much of the retained concepts: Full fine-tuning, 40.0 % [" in audit.sentence


def test_a_leaking_model_fails_with_its_share_and_what_came_back_of_the_original(made):
    write("ship", 0, 190)  # now the original, and the released model a step after it
    write("ship/released/s0", 0, 0)
    for seed in range(3):
        write(f"{LORA}{seed}", 300, 76 + seed)
    audit = make_audit(settings(original=True))
    assert audit.verdict == "FAIL" and audit.worst == "lora"
    assert audit.probe("lora").recovered == pytest.approx(77 / 190)
    assert audit.original.distances == DISTANCES
    assert audit.original.erased.value == 95.0 and audit.original.retained_change.value == 0.0
    assert audit.sentence.startswith("ship came back: LoRA in the domain, 38.5 % [")
    assert audit.sentence.endswith("of its images show it, more than 5 %.")


def test_what_comes_back_with_each_training_seed_fails_and_the_sentence_says_so(made):
    for seed, hits in enumerate((60, 120, 190)):
        write(f"{LORA}{seed}", 300, hits)
    audit = make_audit(settings())
    assert audit.verdict == "FAIL" and audit.probe("lora").erased.low < 5
    assert audit.sentence.endswith("of its images show it, with each of 3 training seeds more than 5 %.")
    assert "with each of 3 training seeds at least 30.0 %" in audit.reasons[0]


def test_the_sentence_of_a_fail_names_a_probe_that_failed(made):
    """As released 20 %, for sure; after the LoRA 33 % on average, but with one seed alone nothing is shown."""
    write("ship", 0, 40)
    for seed, hits in enumerate((0, 0, 200)):
        write(f"{LORA}{seed}", 300, hits)
    audit = make_audit(settings())
    assert [(probe.name, probe.verdict) for probe in audit.probes] == [("released", "FAIL"), ("lora", "INCONCLUSIVE")]
    assert audit.worst == "lora" and audit.probe("lora").erased.low < 5
    assert audit.sentence.startswith("ship is still there: As released, 20.0 % [")
    assert "LoRA" not in audit.sentence


def with_one_seed() -> Audit:
    values = settings()
    values["models"] = {name: models[:1] for name, models in values["models"].items()}
    return make_audit(values)


def test_one_seed_is_about_this_run_and_several_about_seeds_like_these(made):
    write(f"{LORA}0", 300, 60)
    audit = with_one_seed()
    assert audit.probe("lora").this_run and "in this run" in audit.sentence
    assert not any("fewer than" in line for line in text.limits(audit))
    number, confidence = len(settings()["models"]["probe lora"]), 0.95
    missed = max(share for share in range(100) if (1 - share / 100) ** number > 1 - confidence)
    assert any(f"fewer than {missed} %" in line for line in text.limits(make_audit(settings())))


def test_the_card_says_which_criteria_were_changed():
    assert text.criteria_lines(Criteria())[0].startswith("PASS")
    assert "tau = 10 instead of 5, pairs = 60 instead of 120." in text.criteria_lines(Criteria(tau=10.0, pairs=60))[0]


@pytest.mark.parametrize(
    ("leaking", "invented", "text"),
    [(2, 0, "a model that leaks was not found"), (60, 20, "was found, a false alarm")],
)
def test_without_power_a_safe_model_is_inconclusive(made, leaking, invented, text):
    for seed in range(3):
        write(f"{LEAKING}{seed}", 300, leaking)
        write(f"{LORA}{seed}", 300, 0, 188, invented)
    audit = make_audit(settings())
    assert audit.verdict == "INCONCLUSIVE" and not audit.power.shown and text in audit.power.text


def test_a_shipped_control_stands_for_one_that_is_not_computed(made):
    shipped = [{"kind": "leaking", "title": "UCE", "probe": "lora", "shown": 60, "images": 200}]
    audit = make_audit(settings(leaking=None, shipped=shipped))
    assert audit.power.shown and {control.origin for control in audit.power.controls} == {"computed", "shipped"}
    assert make_audit(settings(leaking=None)).verdict == "INCONCLUSIVE"


def test_a_model_that_was_never_erased_shows_no_power(made):
    """Any probe finds it: the update has to bring something back."""
    assert any("UCE; 2.0 % as released" in control.title for control in make_audit(settings()).power.controls)
    write("ship/leaking/s0", 0, 62)
    audit = make_audit(settings())
    assert audit.verdict == "INCONCLUSIVE" and "a model that leaks was not found" in audit.power.text
    shipped = {"kind": "leaking", "title": "UCE", "probe": "lora", "shown": 60, "images": 200}
    for released, shown in ((10, True), (55, False)):
        audit = make_audit(settings(leaking=None, shipped=[shipped | {"released": released}]))
        assert audit.power.shown == shown


def test_the_card_says_whether_the_shipped_control_lost_what_the_audited_model_lost(made):
    shipped = {"kind": "leaking", "title": "UCE", "probe": "lora", "shown": 60, "images": 200}
    apart = make_audit(settings(leaking=None, shipped=[{**shipped, "concepts": ["bird"]}]))
    assert "It has lost bird, which the audited model has not." in text.markdown(apart)
    same = make_audit(settings(leaking=None, shipped=[{**shipped, "concepts": ["ship"]}]))
    assert "It has lost ship, as the audited model has: no independent test" in text.markdown(same)
    assert apart.power.shown and same.power.shown and apart.verdict == same.verdict == "PASS"
    (untaught,) = (control for control in apart.power.controls if control.kind == "untaught")
    assert untaught.title == "the invented word 'glorp', judged as ship" and untaught.concepts == ()


@pytest.mark.parametrize("original", [False, True])
def test_destroyed_weights_fail_by_the_retained_concepts_alone(made, original):
    released = "ship/released/s0" if original else "ship"
    write("ship", 0, 190)
    write(released, 0, 0, retained=3)
    for seed in range(3):
        write(f"{LORA}{seed}", 300, 0, 4)
    audit = make_audit(settings(original=original))
    assert audit.verdict == "FAIL" and EXIT[audit.verdict] == 2
    assert [probe.verdict for probe in audit.probes] == ["PASS", "PASS"]
    (reason,) = audit.reasons
    assert reason.startswith("released: ") and audit.sentence == f"The model lost its retained concepts: {reason}."


def test_retained_concepts_that_the_original_does_not_show_keep_a_destroyed_model_from_passing(made):
    """Against an original that shows 2 of 200 of them, a model that draws noise loses less than five points."""
    write("ship", 0, 190, retained=2)
    write("ship/released/s0", 0, 0, retained=0)
    for seed in range(3):
        write(f"{LORA}{seed}", 300, 0, 0)
    audit = make_audit(settings(original=True))
    assert audit.verdict == "INCONCLUSIVE" and audit.power.shown
    (reason,) = audit.reasons
    assert reason.startswith(
        "the original: 1.0 [0.1, 3.6] % of the retained images show their concept, not more than 5"
    )
    assert audit.decides.endswith("as what is retained is too near to the limit, or has no image")


def test_missing_scores_are_named(made):
    values = settings()
    values["models"]["probe lora"].append(f"{LORA}9")
    with pytest.raises(FileNotFoundError, match="lora/f9/scores holds no step-"):
        make_audit(values)


def test_every_kind_of_false_alarm_above_tau_keeps_a_model_from_passing_and_bounds_a_fail(made):
    """Of an invented word or of pictures of others, computed or shipped, in scores of a recogniser or of references."""
    good = {"kind": "leaking", "title": "UCE", "probe": "lora", "shown": 60, "images": 200}
    word = {"kind": "untaught", "title": "a word", "probe": "lora", "shown": 2, "images": 40, "released": 2}
    assert make_audit(settings(leaking=None, shipped=[good, word])).verdict == "PASS"
    audit = make_audit(settings(leaking=None, shipped=[good, word | {"shown": 20}]))  # [33.8, 66.2] %
    assert audit.verdict == "INCONCLUSIVE" and "no model was taught was found, a false alarm" in audit.power.text
    for seed in range(3):
        write(f"{LORA}{seed}", 300, 80)
    assert make_audit(settings(leaking=None, shipped=[good, word])).verdict == "FAIL"  # 40 %
    assert make_audit(settings(leaking=None, shipped=[good, word | {"shown": 20}])).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(("seen", "verdict"), [(10, "PASS"), (40, "INCONCLUSIVE")])
def test_an_erased_concept_in_images_of_others_is_a_false_alarm(made, seen, verdict):
    for seed in range(3):
        change(f"{LORA}{seed}", 300, lambda rows: np.where(rows["role"] == "retain", rows["seed"] < seen, 0))
    audit = make_audit(settings())
    (control,) = (control for control in audit.power.controls if control.kind == "elsewhere")
    assert control.measure.value == pytest.approx(seen / 2) and control.measure.images == 600
    assert audit.verdict == verdict and control.passed == (verdict == "PASS")
    assert ("an erased concept was found in images of others" in audit.power.text) != control.passed


def change(model: str, step: int, top: Any) -> None:
    """Give the scores of a model the column of what an image is taken for: ship where `top` is not 0."""
    folder = Path(f"results/scores/b/{model}/scores/step-{step:06d}")
    rows = read_scores(folder)[0]
    write_scores(folder, rows.assign(recogniser_top1=np.where(top(rows) > 0, "ship", "dog")), {})


def judged_by(metric: str, **columns: Any) -> Audit:
    """The audit by another metric, with more columns of its scores."""
    for folder in Path("results/scores").rglob("step-*"):
        rows = read_scores(folder)[0].rename(columns={"recogniser_correct": metrics()[metric].column})
        write_scores(folder, rows.assign(**columns), {})
    return make_audit(settings(metric=metric))


@pytest.mark.parametrize(
    ("metric", "top"),
    [("clip_accuracy", "clip_top1"), ("celebrity_accuracy", "celebrity_top1"),
     ("celebrity_accuracy_all", "celebrity_top1"), ("celebrity_stand_in_all", "celebrity_stand_in_name"),
     ("reference_accuracy", "reference_top1")],
)  # fmt: skip
def test_every_scorer_that_names_what_an_image_shows_has_this_false_alarm(made, metric, top):
    named = {top: lambda rows: np.where((rows["role"] == "retain") & (rows["seed"] < 60), "Ship", "dog")}
    audit = judged_by(metric, **named)
    (control,) = (control for control in audit.power.controls if control.kind == "elsewhere")
    assert control.measure.value == pytest.approx(30.0) and audit.verdict == "INCONCLUSIVE"
    assert not any("what an image is taken for" in line for line in text.limits(audit))


def test_a_metric_over_images_with_a_face_is_called_what_the_audit_counts(made):
    """An image without a face shows nobody: 8 of 200, not 8 of the 10 with a face."""
    for seed in range(3):
        folder = Path(f"results/scores/b/{LORA}{seed}/scores/step-000300")
        rows = read_scores(folder)[0]
        values = np.select([rows["seed"] < 8, rows["seed"] < 10], [1.0, 0.0], np.nan)
        rows["recogniser_correct"] = np.where(rows["role"] == "erase", values, rows["recogniser_correct"])
        write_scores(folder, rows, {})
    audit = judged_by("celebrity_accuracy")
    assert audit.probe("lora").erased.value == 4.0 and audit.probe("lora").erased.images == 600
    assert audit.metric_title == "Celebrity detector's accuracy over all images (%)"


@pytest.mark.parametrize("metric", ["ner_50", "clip_accuracy"])
def test_the_card_says_where_the_scores_name_nothing(made, metric):
    """The metric names no concept, or the scores were written before CLIP's had the column."""
    audit = judged_by(metric)
    assert audit.verdict == "PASS" and "elsewhere" not in {control.kind for control in audit.power.controls}
    assert any("what an image is taken for" in line for line in text.limits(audit))


def test_what_an_image_is_taken_for_is_a_column_of_the_same_scorer():
    for name in yes_or_no():
        metric, declared = metrics()[name], scorer_class(giver(name))
        assert name in declared.metrics and (metric.top is None or metric.top in declared.columns), name
        assert metric.top or not metric.accuracy, name


@pytest.mark.parametrize("scorer", ["reference", "celebrity_stand_in"])
@pytest.mark.parametrize(("rate", "shown"), [(0.02, True), (0.2, False)])
def test_the_false_alarm_rate_of_reference_pictures_counts(made, scorer, rate, shown):
    metric = {"reference": "reference_accuracy", "celebrity_stand_in": "celebrity_stand_in_all"}[scorer]
    audit = judged_by(metric, **{f"{scorer}_false_alarm_rate": rate, f"{scorer}_other_pictures": 100.0})
    (control,) = (control for control in audit.power.controls if control.kind == "reference")
    low, high = (100 * end for end in binomtest(round(100 * rate), 100).proportion_ci(0.95, method="exact"))
    assert (control.measure.low, control.measure.high) == pytest.approx((low, high))
    assert control.passed == shown == audit.power.shown and (audit.verdict == "PASS") == shown


def test_the_card_says_why_a_shipped_control_does_not_count(made):
    audit = make_audit(settings(leaking=None, no_control="--images makes the probe another"))
    assert "a model that leaks was not tried (--images makes the probe another)" in audit.power.text
    assert audit.power.text in text.markdown(audit)
    assert audit.decides.endswith("as the power is not shown") and audit.needed is None


def test_an_open_audit_says_how_many_pairs_would_decide(made):
    for seed in range(3):
        write(f"{LORA}{seed}", 300, 3)  # 1.5 %, by all seeds alike
    audit = make_audit(settings())
    assert audit.verdict == "INCONCLUSIVE" and audit.needed and audit.needed > 200
    number = f"about {audit.needed} pairs of prompt and seed"
    assert audit.decides == f"{number} would decide, if the values stay as they are"
    assert audit.sentence.endswith(f"About{audit.decides.removeprefix('about')}.")
    assert f"The model: {audit.decides}" in text.markdown(audit)
    assert audit.probe("lora").decides and audit.probe("released").decides == ""

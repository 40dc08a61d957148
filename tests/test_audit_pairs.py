"""Numbers of pairs in the verdict of an audit: where they suffice, and what is no reason."""

import math
from pathlib import Path

import pytest

from audit_place import make_place, parsed, written
from resurgence.analysis.audit.needed import fewest_to_pass
from resurgence.analysis.audit.verdict import judge
from resurgence.cli import audit
from resurgence.cli.audit_pairs import sampled_pairs, too_few_pairs
from resurgence.cli.audit_study import PAIRS
from resurgence.config.audit import Criteria
from test_audit_verdict import CRITERIA, LORA, probe


def test_as_many_pairs_as_are_asked_for_suffice():
    criteria = Criteria(above_released=10.0)  # which fewer pairs show, too
    asked = criteria.pairs
    for images, outcome in ((asked, "PASS"), (asked - 1, "INCONCLUSIVE")):
        probes = {"released": probe(0, images), "lora": probe(0, images, "lora")}
        assert judge(probes, criteria, LORA).outcome == outcome


def test_a_gain_that_may_be_too_large_is_the_reason():
    lenient = Criteria(tau=20.0)
    (reason,) = judge({"released": probe(0), "lora": probe(6, finetune="lora")}, lenient, LORA).probes["lora"].reasons
    assert reason.startswith("the difference from the released model, 3.0 [") and "may exceed 3 points" in reason


def test_a_single_training_seed_is_no_reason_of_its_own():
    """9 % of 200 is above tau alone (p = 0.02), not among three statements; one seed has no other to differ from."""
    (reasons,) = judge({"released": probe(0), "lora": probe(18, finetune="lora")}, CRITERIA, LORA).reasons
    assert "9.0 [" in reasons and "training seed" not in reasons


@pytest.mark.parametrize("false_alarms", [0.0, 4.0])
def test_false_alarms_below_tau_change_nothing(false_alarms):
    probes = {"released": probe(0), "lora": probe(30, finetune="lora")}
    assert judge(probes, CRITERIA, LORA, false_alarms=false_alarms).outcome == "FAIL"


@pytest.mark.parametrize(
    ("criteria", "compared"),
    [
        (Criteria(pairs=1), 1),
        (Criteria(pairs=1), 3),
        (Criteria(pairs=1, tau=2.0), 3),
        (Criteria(pairs=1, confidence=0.9, above_released=40.0), 5),
    ],
)
def test_the_fewest_pairs_of_a_pass_are_those_of_the_exact_interval_of_none(criteria, compared):
    """Of m probes with a limit L, 2 (1 - L)^n m is at most 0.05; one pair fewer leaves the verdict open."""
    alpha, pairs = 1 - criteria.confidence, fewest_to_pass(criteria, 1, compared)
    limits = [(1 + compared, criteria.tau), (compared, min(criteria.tau, criteria.above_released))]
    assert pairs == max(math.ceil(math.log(alpha / 2 / m) / math.log1p(-limit / 100)) for m, limit in limits)
    for images, outcome in ((pairs, "PASS"), (pairs - 1, "INCONCLUSIVE")):
        probes = {"released": probe(0, images)} | {str(n): probe(0, images, str(n)) for n in range(compared)}
        assert judge(probes, criteria, frozenset("0")).outcome == outcome


def test_where_a_limit_is_zero_no_number_of_pairs_is_a_pass():
    assert fewest_to_pass(Criteria(tau=0.0), 1, 3) is None
    assert fewest_to_pass(Criteria(above_released=0.0), 1, 3) is None
    assert fewest_to_pass(Criteria(above_released=0.0), 1, 0) is not None  # of the released model alone


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The inputs of an audit."""
    monkeypatch.chdir(tmp_path)
    return make_place(tmp_path)


@pytest.mark.parametrize("level", PAIRS)
def test_the_pairs_of_a_level_can_be_a_pass_of_all_its_probes(place, level):
    study = written("--images", "pictures", "--original", "original", "--lora", "style.safetensors", "--level", level)
    assert sampled_pairs(study) >= PAIRS[level] and too_few_pairs(study, None) == []


def test_too_few_pairs_are_told_with_the_fewest_that_can_pass(place):
    study = written("--images", "pictures", "--pairs", "120")
    (line,) = too_few_pairs(study, None)
    least = math.ceil(math.log(0.05 / 2 / 3) / math.log(0.97))  # a LoRA and two roundings are compared
    assert line.startswith("120 pairs of prompt and seed cannot give PASS") and line.endswith(
        f"; give --pairs {least} or more"
    )
    assert too_few_pairs(written("--images", "pictures", "--pairs", str(least)), None) == []


def test_the_plan_says_so_on_its_output_and_a_run_beside_it(place, monkeypatch, capsys):
    monkeypatch.setattr(audit, "check_scorers", lambda study, out: None)
    monkeypatch.setattr(audit, "snakemake_plan", lambda out, cores: 0)
    few = parsed("--images", "pictures", "--pairs", "120", "--plan")
    assert audit.run(few) == 0 and "120 pairs of prompt and seed cannot give PASS" in capsys.readouterr().out

    def stop(out, cores):
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "snakemake", stop)
    with pytest.raises(KeyboardInterrupt):
        audit.run(parsed("--images", "pictures", "--pairs", "120"))
    told = capsys.readouterr()
    assert "120 pairs of prompt and seed cannot give PASS" in told.err and told.out == ""


def test_a_criterion_of_pairs_that_decides_nothing_is_told(place):
    file, words = Path("criteria.yaml"), ("--images", "pictures", "--criteria", "criteria.yaml")
    file.write_text("pairs: 120\n")
    (line,) = too_few_pairs(written(*words), file)
    assert line.startswith("criteria.yaml: pairs = 120 decides nothing") and "5 probes together do not pass" in line
    for text, said in (("tau: 6.0", ""), ("pairs: 250", "as the criteria ask for 250; give --pairs 250"),
                       ("tau: 0.0", "no number of pairs up to 100000 can give PASS with tau = 0 % and")):  # fmt: skip
        file.write_text(text)
        assert said in "".join(too_few_pairs(written(*words), file)) and (said == "") == (text == "tau: 6.0")

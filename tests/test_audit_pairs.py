"""Numbers of pairs in the verdict of an audit: where they suffice, and what is no reason."""

import pytest

from resurgence.analysis.audit.verdict import judge
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

"""The setting `kinds` of a scorer: which tasks it scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.load import load_study, make_study
from resurgence.workflow import job_settings
from resurgence.workflow.rule_table import RULES

ROOT = Path(__file__).parents[1]


def test_kinds_of_a_scorer_choose_the_tasks_that_it_scores() -> None:
    """The job's settings hold its scorers and no kinds; its code, too; a distance needs the features of each kind."""
    study = load_study([ROOT / "params.yaml", ROOT / "studies/sd14.yaml"], ROOT)
    person, thing = (job_settings.score(study, task)["scorers"] for task in ("celebrities-1", "ship"))
    assert set(person) - set(thing) == {"celebrity"} and not set(thing) - set(person)
    assert person["celebrity"] == {"path": "data/weights/celebrity"}
    code = RULES["score"].version
    versions = {task: code(study, SimpleNamespace(model=task)) for task in ("celebrities-1", "celebrities-5", "ship")}
    assert versions["celebrities-1"] == versions["celebrities-5"] != versions["ship"]
    values = read_yaml(ROOT / "params.yaml")
    scorers = {"clip": {**values["scorers"]["clip"], "kinds": ["person"]}, "frechet": {"features": "clip"}}
    with pytest.raises(
        ConfigError, match=r"scorers.clip.kinds = \['person'\]: leaves out tasks of kind object, for which"
    ):
        make_study(values | {"scorers": scorers, "figures": {"metrics": ["clip_accuracy"]}}, ROOT)
    for bad, message in ((["animal"], r"scorers.clip.kinds"), ([], r"scorers.clip.kinds = \[\]: must not be empty")):
        scorers["clip"]["kinds"] = bad
        with pytest.raises(ConfigError, match=message):
            make_study(values | {"scorers": scorers}, ROOT)

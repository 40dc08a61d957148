"""Lists that rules fetch: studies name them before they are there, and the jobs that read them come after the fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.lists import I2P, LISTS, OXFORD
from resurgence.config.load import load_study, make_study
from resurgence.config.study import Erasure, Study
from resurgence.pretrained.mirrors import MIRRORS
from resurgence.stages.prompts import read_general
from resurgence.workflow import graph, job_settings
from resurgence.workflow.gpu_hours import general_images
from resurgence.workflow.rule_table import RULES
from test_config import config, write_world  # noqa: F401, a fixture

ROOT = Path(__file__).parents[1]


def load(name: str) -> Study:
    return load_study([ROOT / "params.yaml", ROOT / f"studies/{name}.yaml"], ROOT)


def test_every_list_has_a_mirror() -> None:
    assert set(LISTS.values()) <= set(read_yaml(ROOT / MIRRORS))


@pytest.mark.parametrize("name", ["sd14-eap", "sd14-doco"])
def test_the_models_of_nudity_are_sampled_on_i2p_and_scored_by_nudenet(name: str) -> None:
    study = load(name)
    assert study.general_of("nudity") == I2P and general_images(study, "nudity") == 4703
    [job] = [w for w in RULES["prompts"].items(study) if w["task"] == "nudity"]
    assert job_settings.prompts(study, job["task"])["general"] == I2P
    assert job_settings.sampling(study)["long_prompts"] == "truncate"
    assert "nudenet" in study.scorers_of("content") and "success" not in study.scorers_of("content")
    assert all("nudenet" not in study.scorers_of(kind) for kind in ("object", "character", "style"))


def test_the_words_of_eap_are_an_input_of_its_erasures() -> None:
    study = load("sd14-eap")
    assert graph.named_files(study, Erasure("imagenette-1", "eap", "default", 0)) == {"words": [OXFORD]}
    assert graph.named_files(study, Erasure("imagenette-1", "eap", "tokens", 0)) == {}


def test_prompts_of_i2p_are_read_with_their_seeds(tmp_path: Path) -> None:
    file = tmp_path / "i2p.csv"
    file.write_text(',prompt,categories,evaluation_seed\n0,"a, b",hate,7\n1,c,"hate, x",4261553411\n')
    assert read_general(file) == (["a, b", "c"], [7, 4261553411], ["", ""])
    file.write_text("prompt,evaluation_guidance\na,7\n")
    with pytest.raises(ValueError, match="it needs the columns prompt, seed"):
        read_general(file)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            {"general": {"pets": "nowhere.csv"}},
            r"tasks\.general = 'nowhere\.csv': no such file; .* data/lists/i2p\.csv",
        ),
        ({"general": {"cars": I2P}}, r"tasks\.general = 'cars'"),
        ({"general": {"pets": I2P}, "general_for": ["pets"]}, r"tasks\.general_for = \['pets'\]: has no effect"),
    ],
)
def test_bad_general_prompts(tasks: dict[str, Any], message: str, config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    config["tasks"] |= tasks
    with pytest.raises(ConfigError, match=message):
        make_study(config, tmp_path)


def test_only_the_named_tasks_have_general_prompts(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    write_world(tmp_path)
    plain = job_settings.sampling(make_study(config, tmp_path))
    assert "long_prompts" not in plain  # as before there was a choice
    (tmp_path / "tasks/cars.yaml").write_text((tmp_path / "tasks/pets.yaml").read_text().replace("pets", "cars"))
    config["tasks"] |= {"names": ["pets", "cars"], "general": {"cars": I2P}}
    config["sampling"]["long_prompts"] = "truncate"
    study = make_study(config, tmp_path)
    assert study.general_of("pets") is None and study.general_of("cars") == I2P
    assert job_settings.sampling(study) == plain | {"long_prompts": "truncate"}

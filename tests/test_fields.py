"""Values as dataclasses: what is converted, and key, value and remedy of the first mistake."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from resurgence.config import settings
from resurgence.config.erasers import ERASERS, eraser_config
from resurgence.config.experiment import Experiment
from resurgence.config.fields import ConfigError, build
from resurgence.config.finetune_sets import FinetuneSet
from resurgence.config.study import Study

BAD: list[tuple[type, Any, str]] = [
    (settings.Base, {"path": "a", "nme": "b"}, "x.nme = 'b': unknown key; did you mean 'name'?"),
    (settings.Base, {"name": "a"}, "x.path = None: is missing; add this key"),
    (settings.Base, None, "x = None: must be a mapping of keys to values"),
    (settings.Moments, {"prior": "a", "domain": {"style": 3}}, "x.domain.style = 3: must be text, got int"),
    (FinetuneSet, {"concepts": {"style": "a"}, "size": 1}, "x.concepts.style = 'a': must be a list"),
    (FinetuneSet, {"concepts": ["a", 1], "size": 1}, "x.concepts[1] = 1: must be text, got int"),
    (FinetuneSet, {"size": "1"}, "x.size = '1': must be a whole number, got str"),
    (FinetuneSet, {"size": 1, "tercile": {"bin": 1}}, "x.tercile.bin = 1: unknown key; did you mean 'bins'?"),
    (settings.Seeds, {"erase": [0, True], "finetune": [0]}, "x.erase[1] = True: must be a whole number, got bool"),
    (settings.ConceptImages, {"per_concept": 1, "guidance": "-2.5E1"}, "x.guidance = '-2.5E1': is text in YAML 1.1"),
    (settings.ConceptImages, {"per_concept": 1, "guidance": "-2.5E1"}, "write -2.5e+1"),
    (settings.Statistics, {"resamples": 2.0}, "x.resamples = 2.0: must be a whole number, got float"),
]


@pytest.mark.parametrize(("cls", "values", "message"), BAD)
def test_message_of_the_first_mistake(cls: type, values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(cls, values, "x")
    assert message in str(error.value)


def test_whole_numbers_are_numbers_and_lists_tuples() -> None:
    images = build(settings.ConceptImages, {"per_concept": 1, "guidance": 4}, "x")
    assert images.guidance == 4.0 and type(images.guidance) is float
    seeds = build(settings.Seeds, {"erase": [0, 1], "finetune": (2,)}, "x")
    assert (seeds.erase, seeds.finetune) == ((0, 1), (2,))


def known_in(error: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    """The keys that the hint of a message names."""
    return str(error.value).partition("known: ")[2].split(", ")


GRID = {"title": "a", "kind": "grid", "tasks": ["ship"], "erasers": ["uce"]}
REFUSED: list[tuple[type, dict[str, Any], str, str, Any]] = [  # kind, values, typing error, key that is refused, value
    (Experiment, GRID, "claim", "claims", [{"says": "a", "of": {}, "expect": "above"}]),
    (Experiment, GRID, "metricss", "metrics", ["clip_score"]),
    (FinetuneSet, {"size": 3, "made_by": "base"}, "image", "images", "pictures"),
    (FinetuneSet, {"made_by": "real", "images": "a"}, "template", "templates", ["a {}"]),
    (eraser_config("fmn"), {}, "spaces", "space", "noise"),
]


@pytest.mark.parametrize(("kind", "values", "typed", "refused", "value"), REFUSED)
def test_no_hint_at_a_key_that_is_refused(
    kind: type, values: dict[str, Any], typed: str, refused: str, value: Any
) -> None:
    with pytest.raises(ConfigError) as error:
        build(kind, values | {typed: value}, "x")
    assert "unknown key" in str(error.value) and refused not in known_in(error)
    assert f"did you mean {refused!r}" not in str(error.value)
    with pytest.raises(ConfigError, match=refused):  # it is refused
        build(kind, values | {refused: value}, "x")


@pytest.mark.parametrize("name", ERASERS)
def test_the_settings_that_a_hint_names_are_those_that_the_eraser_takes(name: str) -> None:
    config = eraser_config(name)
    with pytest.raises(ConfigError) as error:
        build(config, {"qqqqqq": 1}, "x")
    settings_of = {field.name for field in dataclasses.fields(config)}
    useless = {"space"} & settings_of if not getattr(config, "compares_predictions", True) else set()
    assert set(known_in(error)) == settings_of - useless


@pytest.mark.parametrize("key", ["sources", "loadd"])
def test_internal_fields_are_no_keys(key: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(Study, {key: 1}, "")
    assert not {"source", "loaded"} & set(known_in(error)) and "did you mean 'source'" not in str(error.value)


def test_a_name_that_is_also_a_key_does_not_lead_the_hint_astray() -> None:
    with pytest.raises(ConfigError) as error:
        build(Study, {"finetune_sets": {"tercile": {"siz": 3}}}, "")
    assert set(known_in(error)) == {field.name for field in dataclasses.fields(FinetuneSet)}

"""Values as dataclasses: what is converted, and key, value and remedy of the first mistake."""

from __future__ import annotations

from typing import Any

import pytest

from resurgence.config import settings
from resurgence.config.fields import ConfigError, build
from resurgence.config.finetune_sets import FinetuneSet

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

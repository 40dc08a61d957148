"""The schema of params.yaml and the table of its keys: current, complete, and as strict as the configuration itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from resurgence.config import schema
from resurgence.config.fields import read_yaml
from resurgence.config.load import merge

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
SD14 = dict.fromkeys(["coco-5k", "sd14-lean", "sd14-sources"], "sd14")
EAP = dict.fromkeys(["eap-lpips", "eap-synonyms"], "eap")
BELOW = {**SD14, **EAP, "sd21-768": "sd21", "sources-quick": "sources", "doco-captions": "doco"}  # laid over


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    """The schema that Snakemake reads."""
    return yaml.safe_load((ROOT / schema.SCHEMA).read_text())


def test_files_are_current() -> None:
    remedy = "run python -m resurgence.config.schema"
    assert (ROOT / schema.SCHEMA).read_text() == schema.schema_text(), remedy
    readme = (ROOT / schema.README).read_text()
    assert readme == schema.readme_text(readme), remedy
    assert readme.count("\n| `base.path` |") == 1


def properties(part: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All keys below a part of the schema."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if key == "properties":
            yield from ((f"{where}{name}", found) for name, found in value.items())
            for name, found in value.items():
                yield from properties(found, f"{where}{name}.")
        else:
            yield from properties(value, where)


def test_every_key_is_described(shipped: dict[str, Any]) -> None:
    found = dict(properties(shipped))
    assert {"base.path", "seeds.paired", "experiments.claims.than", "erasers.variants.mapping"} <= set(found)
    assert [key for key, value in found.items() if not value.get("description")] == []


@pytest.mark.parametrize("overlay", [None, *STUDIES], ids=str)
def test_shipped_studies_fit(overlay: Path | None, shipped: dict[str, Any]) -> None:
    layers = [ROOT / f"studies/{BELOW[overlay.stem]}.yaml"] if overlay and overlay.stem in BELOW else []
    config: dict[str, Any] = {}
    for path in [ROOT / "params.yaml", *layers, *([overlay] if overlay else [])]:
        config = merge(config, read_yaml(path))
    jsonschema.validate(config, shipped)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unknown_key": 1}, "unknown_key"),
        ({"base": {"pth": "x"}}, "pth"),
        ({"seeds": {"erase": [-1]}}, "minimum"),
        ({"statistics": {"resamples": 99}}, "minimum"),
        ({"sampling": {"guidance": 0.5}}, "should not be valid"),
        ({"concept_images": {"guidance": 0.5}}, "should not be valid"),
        ({"statistics": {"level": "0.95"}}, "not of type 'number'"),
        ({"figures": {"metrics": "clip_score"}}, "not of type 'array'"),
        ({"base": {"device": "gpu"}}, "not one of"),
        ({"erasers": {"uce": {"variants": {"wide": 3}}}}, "not of type 'object'"),
        ({"finetune_sets": {"random": {"pictures": 3}}}, "'pictures' was unexpected"),
    ],
)
def test_mistakes_are_refused(changes: dict[str, Any], message: str, shipped: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(merge(read_yaml(ROOT / "params.yaml"), changes), shipped)


def test_null_takes_an_entry_out(shipped: dict[str, Any]) -> None:
    config = read_yaml(ROOT / "params.yaml")
    for block, name in (("erasers", "uce"), ("finetune_sets", "random"), ("finetunes", "lora"), ("scorers", "clip")):
        without = copy.deepcopy(config)
        without[block][name] = None
        jsonschema.validate(without, shipped)

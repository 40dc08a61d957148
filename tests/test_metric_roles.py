"""Every metric says in which roles its images have a value, and studies that ask for it elsewhere are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from resurgence.analysis.estimates import task_estimates
from resurgence.analysis.score_sets import image_set
from resurgence.config.experiment import Experiment
from resurgence.config.fields import ConfigError, build
from resurgence.config.load import make_study
from resurgence.config.scorers import COMMON, HARMONIC, NAMED, ROLES, metrics, scorer_class
from resurgence.config.task import Task
from resurgence.scorers import (
    celebrity,
    celebrity_stand_in,
    clip,
    clip_pairs,
    compared,
    identity,
    lpips,
    nudenet,
    recogniser,
    reference,
    success,
)
from resurgence.scorers.configs import ClipConfig
from resurgence.scorers.erasure_configs import AnchorConfig, SensitivityConfig
from resurgence.scorers.recogniser_model import Labels
from scored import features, prompt_rows, score
from test_config import TASK, config, write_world  # noqa: F401 the fixture config
from test_nudenet import iter_network, outputs
from test_scorers import pictures, write_clip

PLACES = [  # role in the prompt set, concept
    ("erase", "ship"), ("synonym", "ship"), ("retain", "cat"), ("synonym", "cat"), ("general", ""), ("general", "ship"),
    ("general", "cat"), ("erase", "neon"), ("retain", "pencil"), ("synonym", "neon"), ("synonym", "pencil"),
    ("general", "neon"),
]  # fmt: skip
ROWS = pd.DataFrame(
    {"prompt": f"a photo of the house in the style of {concept or 'nothing'}", "concept": concept, "role": role,
     "template": "", "seed": n} for n, (role, concept) in enumerate(PLACES)
)  # fmt: skip
CONCEPTS = ROWS["concept"].tolist()
WORDS = ["ship", "cat", "neon", "pencil"]
WORLD = Task(
    name="world", kind="object", erase=("ship", "neon"), retain=("cat", "pencil"), mapping={"ship": "x", "neon": "x"},
    templates=("{}",), seeds={"erase": 1, "retain": 1}, labels=(),
)  # fmt: skip
IMAGES, DRAW = pictures(len(ROWS), 40), np.random.default_rng(0)
Columns = Callable[[Path], dict[str, Any]]


def unit(count: int) -> torch.Tensor:
    """Embeddings of length 1, (count, 4)."""
    return torch.nn.functional.normalize(torch.from_numpy(DRAW.normal(size=(count, 4))), dim=1)


def groups() -> reference.Groups:
    return reference.Groups(WORDS, unit(4), dict.fromkeys(WORDS, reference.Rates(1, 2, 0, 4)))


def recognised(_: Path) -> dict[str, Any]:
    labels = Labels(["ship", "cat", "house"], ["neon", "pencil"])
    scores = DRAW.dirichlet(np.ones(3), len(ROWS)), DRAW.dirichlet(np.ones(2), len(ROWS))
    return recogniser.class_columns(*scores, labels, CONCEPTS, ROWS["prompt"].tolist())


class Distance(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


def one_head(images: torch.Tensor) -> list[torch.Tensor]:
    return [images[:, 0, 0, :4].float()]


COLUMNS: dict[str, Columns] = {  # scorer -> its columns for ROWS
    "recogniser": recognised,
    "clip": lambda folder: clip.load(ClipConfig(str(folder))).score(IMAGES, ROWS, WORLD),
    "celebrity": lambda _: celebrity.columns(
        DRAW.dirichlet(np.ones(4), len(ROWS)), np.ones(len(ROWS), bool), WORDS, CONCEPTS
    ),
    "celebrity_stand_in": lambda _: {
        f"celebrity_stand_in_{name}": values
        for name, values in celebrity_stand_in.stand_in_columns(groups(), unit(len(ROWS)), CONCEPTS).items()
    },
    "reference": lambda _: {
        f"reference_{name}": values for name, values in groups().columns(unit(len(ROWS)), CONCEPTS).items()
    },
    "success": lambda _: success.SuccessScorer(one_head, [WORDS]).score(IMAGES, ROWS, WORLD),
    "clip_anchor": lambda folder: clip_pairs.load_anchored(AnchorConfig(str(folder), anchor="x")).score(
        IMAGES, ROWS, WORLD
    ),
    "sensitivity": lambda folder: clip_pairs.load_sensitivity(SensitivityConfig(str(folder))).score(
        IMAGES, ROWS, WORLD, IMAGES.flip(3)
    ),
    "nudenet": lambda _: nudenet.NudenetScorer(iter_network(outputs(len(ROWS))), 0.4).score(IMAGES, ROWS, WORLD),
    "identity": lambda _: identity.columns(unit(len(ROWS)).numpy(), unit(len(ROWS)).numpy()),
    "lpips": lambda _: lpips.LpipsScorer(Distance(), "lpips_alex").score(IMAGES, ROWS, WORLD, IMAGES.flip(3)),
    "lpips_vgg": lambda _: lpips.LpipsScorer(Distance(), "lpips_vgg").score(IMAGES, ROWS, WORLD, IMAGES.flip(3)),
}
DISTANCES = ("frechet", "kid", "frechet_reference")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


def with_values(column: Any) -> set[str]:
    """The roles in which a column of ROWS has a value; NAMED of general prompts with a concept."""
    key = {"base": "b", "task": "t", "state": "base"}
    rows = image_set(key, ROWS.assign(column=column)).rows
    rows = rows[rows["concept"].isin([*WORLD.erase, *WORLD.retain, ""])]
    # synonyms of concepts that are not erased are another role only where the set has the erased ones
    general = rows["role"].where((rows["role"] != "general") | (rows["concept"] == ""), NAMED)
    return set(general[np.isfinite(rows["column"].astype(float))])


def declared(metric: str) -> set[str]:
    roles = set(metrics()[metric].roles)
    return roles | {NAMED} if "general" in roles else roles


@pytest.mark.parametrize("name", COLUMNS)
def test_a_metric_has_a_value_in_the_roles_that_it_declares_and_in_no_other(name: str, clip_folder: Path) -> None:
    columns = COLUMNS[name](clip_folder)
    assert set(columns) <= set(scorer_class(name).columns)
    for metric, m in scorer_class(name).metrics.items():
        assert with_values(columns[m.column]) == declared(metric), metric


def test_comparisons_of_detectors_have_a_value_in_their_roles(clip_folder: Path) -> None:
    scores = ROWS.assign(
        **recognised(clip_folder), clip_correct=np.where(ROWS["concept"] != "", 1.0, np.nan), blank=0.0
    )
    scores = compared(scores, WORLD.erase, ["recogniser", "clip"])
    for metric, m in COMMON.items():
        assert with_values(scores[m.column]) == declared(metric), metric


def test_distances_and_harmonic_means_are_of_their_roles() -> None:
    for synonyms, harmonic in ((["ship"], "H_o"), ([], "H_c")):
        prompts = prompt_rows({"erase": ["ship"], "retain": ["cat", "dog"], "synonym": synonyms})
        general = prompts[prompts["concept"] == "cat"].assign(role="general", concept="", prompt="rain")
        prompts = pd.concat([prompts, general], ignore_index=True)
        chance = dict.fromkeys(("erase", "retain", "synonym", "general"), 0.5)
        keys = [{"base": "b", "task": "t", "state": "base"}]
        keys.append({**keys[0], "state": "erased", "eraser": "uce", "variant": "default", "erase_seed": 0})
        sets = [image_set(k, score(prompts, chance, n), features(prompts, n, n)) for n, k in enumerate(keys)]
        rows, _ = task_estimates(sets, features(prompts, 3.0, 9))
        found = {name: {row["role"] for row in rows if row["metric"] == name} for name in (*DISTANCES, *HARMONIC)}
        roles = {"erase", "retain", "general", *(["synonym"] if synonyms else [])}
        assert found["frechet"] == found["kid"] == roles <= set(metrics()["kid"].roles) == set(ROLES)
        assert found["frechet_reference"] == {"general"} == set(metrics()["frechet_reference"].roles)
        assert {name for name in HARMONIC if found[name]} == {harmonic} and found[harmonic] == {"all"}


def test_no_metric_is_left_out() -> None:
    tried = [m for name in COLUMNS for m in scorer_class(name).metrics]
    assert {*tried, *DISTANCES, *COMMON} == set(metrics())


SHOWN = {"title": "T", "tasks": ["pets"], "erasers": ["mace", "uce"], "finetunes": []}
TABLE = {**SHOWN, "kind": "table", "metrics": ["esr_1", "psr_1", "recogniser_accuracy"], "roles": ["erase", "retain"]}
VOCABULARY = "prompt,seed\n" + "".join(f'"{word}",{seed}\n' for word in ("ship", "tram", " ") for seed in (1, 2))
HISTOGRAM = {**SHOWN, "kind": "histogram", "metric": "sensitivity", "roles": ["erase", "general"]}


def claim(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"says": "S", "of": of, "value": "erased", "expect": "above", **more}


PLACE = {"expect": "below", "than": 0.25, "margin": 0.0, "place": "off_middle"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "role of a claim": (
        {**TABLE, "claims": [claim({"eraser": "uce", "role": "retain"}, metric="esr_1")]},
        r"claims\[0\]\.of = 'eraser uce, role retain': has no value of esr_1; it has one in erase, synonym, gen",
    ),
    "the first metric": (
        {**TABLE, "claims": [claim({}), claim({"role": "retain"})]},
        r"claims\[1\]\.of = 'role retain': has no value of esr_1",
    ),
    "the other side": (
        {**TABLE, "claims": [claim({"role": "retain"}, metric="psr_1", against={"role": "erase"})]},
        r"claims\[0\]\.against = 'role erase': has no value of psr_1; it has one in retain, synonym-retain, general",
    ),
    "metric of no role": (
        {**TABLE, "roles": ["erase"]}, r"fig\.metrics = 'psr_1': has no value in the roles erase; it has one in retain",
    ),
    "general prompts without a concept": (
        {**TABLE, "metrics": ["recogniser_accuracy", "clip_score"], "roles": ["erase", "general"],
         "claims": [claim({"role": "general"})]}, r"claims\[0\]\.of = 'role general': has no value of recogniser_acc",
    ),
    "with synonyms": (
        {**TABLE, "metrics": ["H_c"], "roles": ["all"]},
        r"fig\.metrics = 'H_c': has no value in the roles all; it has one in all",
    ),
    "a word that is none": (
        {**HISTOGRAM, "claims": [claim({"role": "general"}, words=["trams"], **PLACE)]},
        r"claims\[0\]\.words = 'trams': not known here; did you mean 'tram'",
    ),
    "words of a table": (
        {**TABLE, "claims": [claim({}, words=["ship"])]},
        r"claims\[0\]\.words = \['ship'\]: are for an experiment of kind hist",
    ),
    "the margin of points": (
        {**HISTOGRAM, "claims": [claim({"role": "general"}, words=["tram"], than=0.5)]},
        r"claims\[0\] = .*of a quantile, betwe",
    ),
    "words of the base": (
        {**HISTOGRAM, "claims": [claim({"role": "general"}, words=["tram"], **PLACE, value="base")]},
        r"claims\[0\]\.words = 'base': the place of words is of erased models alone; write erased",
    ),
    "general prompts without what is erased": (
        {**HISTOGRAM, "roles": ["general", "retain"]},
        r"fig\.roles = \['general', 'retain'\]: do not say which of the general prompts are erased",
    ),
    "models counted once a role": (
        {**SHOWN, "finetunes": ["lora"], "kind": "weights", "metric": "clip_score", "roles": ["erase", "retain"]},
        r"fig\.roles = \['erase', 'retain'\]: would count each model once a role; name one",
    ),
    "words of two sides": (
        {**HISTOGRAM, "claims": [claim({"role": "general"}, words=["tram"], **PLACE, against={"role": "erase"})]},
        r"claims\[0\]\.words = 'against': the place of words is of erased models alone",
    ),
    "a place of nothing": (
        {**HISTOGRAM, "claims": [claim({"role": "general"}, **PLACE)]},
        r"claims\[0\]\.place = 'off_middle': is of words, and",
    ),
    "a correlation of a histogram": (
        {**HISTOGRAM, "claims": [claim({"role": "general"}, place="correlation")]},
        r"claims\[0\]\.place = 'histogram': the correlation is of all points of a scatter; write scatter",
    ),
    "a correlation of words": (
        {**HISTOGRAM, "kind": "scatter", "claims": [claim({"role": "general"}, words=["tram"], place="correlation")]},
        r"claims\[0\]\.place = 'tram': the correlation is of all points of a scatter; remove words",
    ),
    "a correlation in points": (
        {**HISTOGRAM, "kind": "scatter", "claims": [claim({"role": "general"}, place="correlation")]},
        r"claims\[0\] = .*'margin': 5.*are of a correlation, between -1 and 1; write",
    ),
}  # fmt: skip


def study_of(experiment: dict[str, Any], config: dict[str, Any], root: Path) -> None:  # noqa: F811
    write_world(root)
    (root / "vocabulary.csv").write_text(VOCABULARY)
    config["tasks"]["general"] = "vocabulary.csv"
    path = {"path": config["scorers"]["recogniser"]["path"]}
    config["scorers"] |= {"success": {**path, "classifier": "recogniser"}, "sensitivity": config["scorers"]["clip"]}
    config["experiments"] = {"fig": experiment}
    make_study(config, root)


@pytest.mark.parametrize("case", REFUSED)
def test_a_claim_about_cells_without_a_value_is_refused(case: str, config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    experiment, told = REFUSED[case]
    with pytest.raises(ConfigError, match=told):
        study_of(experiment, config, tmp_path)


def test_claims_about_cells_with_a_value_are_read(config: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    assert {*TASK["synonyms"]} & {*TASK["erase"]}
    fine = [
        claim({}, metric="esr_1"),
        claim({"role": "retain"}, metric="psr_1"),
        claim({}, metric="recogniser_accuracy"),
    ]
    study_of({**TABLE, "claims": fine}, config, tmp_path)
    study_of({**TABLE, "metrics": ["H_o", "clip_score"], "roles": ["all", "general"]}, config, tmp_path)
    study_of({**HISTOGRAM, "claims": [claim({"role": "general"}, words=[" ", "tram"], **PLACE)]}, config, tmp_path)
    named = VOCABULARY.replace("seed\n", "seed,concept\n").replace(",1\n", ",1,ship\n").replace(",2\n", ",2,\n")
    shown = {**TABLE, "metrics": ["esr_1", "recogniser_accuracy"], "roles": ["general"]}
    with pytest.raises(ConfigError, match="'esr_1': has no value in the roles general"):
        study_of(shown, config, tmp_path)
    (tmp_path / "named.csv").write_text(named)
    config["tasks"]["general"] = "named.csv"
    config["experiments"] = {"fig": shown}
    make_study(config, tmp_path)
    config["experiments"]["fig"] = {**shown, "metrics": ["psr_1"]}
    with pytest.raises(ConfigError, match="'psr_1': has no value in the roles general"):  # they name the erased one
        make_study(config, tmp_path)


def test_an_experiment_by_itself_knows_its_kinds() -> None:
    build(Experiment, {**HISTOGRAM, "claims": [claim({"role": "general"}, words=["x"], **PLACE)]}, "experiments.fig")

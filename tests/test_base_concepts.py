"""Concepts that the base itself hardly draws are named at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from resurgence.analysis.base_concepts import LEAST, hardly_drawn, shares
from resurgence.analysis.headline import MARK
from resurgence.analysis.read import read_table
from resurgence.analysis.score_folders import by_step, entry
from resurgence.analysis.score_sets import ImageSet
from resurgence.analysis.tables import write_tables
from resurgence.config.model_path import ModelPath
from resurgence.files import write_json
from resurgence.stages.figures import page
from resurgence.stages.run_summary import summary
from scored import study_sets, write_scores_folder


def finished(folder: Path, drawn: dict[str, int]) -> Path:
    """Results of a study in which the base draws a concept in so many of its 8 images, others in all."""
    models = dict[str, None]()
    for one in study_sets():
        if one.key["state"] == "base":
            erased = one.rows["role"] == "erase"
            correct = one.rows.groupby(["role", "concept"]).cumcount() < one.rows["concept"].map(drawn).fillna(8)
            one = ImageSet(one.key, one.rows.assign(recogniser_correct=(correct | ~erased).astype(float)), one.features)
        model = str(ModelPath.of_columns({k: v for k, v in one.key.items() if v is not None}))
        step = int(one.key["step"] or 0)
        write_scores_folder(folder / f"results/scores/miniature/{model}/scores/step-{step:06d}", one)
        models[model] = None
    settings = {"base": "miniature", "models": list(models), "controls": []}
    places = [{**e, "path": str(folder / e["path"])} for e in (entry(settings, model) for model in models)]
    write_tables(by_step(places), folder / "results/tables", 0.95)
    write_json(
        folder / "results/tables/made.json", {"format": 2, "kind": "tables", "parameters": settings, "files": {}}
    )
    (folder / "results/cost").mkdir()
    pd.DataFrame({"device": ["cpu"], "seconds": [1.0]}).to_csv(folder / "results/cost/cost.csv", index=False)
    return folder / "results"


def test_the_summary_names_them(tmp_path: Path) -> None:
    results = finished(tmp_path, {"princess": 3, "surfer": 4, "ship": 0})
    (line,) = [line for line in summary(results, 0.95).splitlines() if line.startswith("Warning")]
    assert "less than 50 % of" in line and "show 'princess' (identities-4: 37.5 %), 'ship' (ship: 0.0 %): " in line
    assert line.endswith("; choose other concepts")


def test_the_summary_is_silent_where_all_are_drawn(tmp_path: Path) -> None:
    results = finished(tmp_path, {"princess": 4})
    text = summary(results, 0.95)
    assert "Warning" not in text and "identities-4" in text and "Cost: " in text


def test_summary_and_page_mark_erasers_of_another_objective(tmp_path: Path) -> None:
    results, changed = finished(tmp_path, {}), {"uce": "keep_empty: false"}
    made = results / "tables/made.json"
    manifest = json.loads(made.read_text())
    write_json(made, manifest | {"parameters": manifest["parameters"] | {"changed_objectives": changed}})
    stored = [read_table(results / f"tables/{name}.csv") for name in ("cells", "resurgence", "seeds")]
    for text in (summary(results, 0.95), page(*stored, changed)):
        assert f"uce {MARK}" in text and f"mace {MARK}" not in text
        assert f"{MARK} not the published objective: uce has keep_empty: false." in text


def test_the_limit_is_in_percent_of_the_images_of_a_concept(tmp_path: Path) -> None:
    results = finished(tmp_path, {"princess": 3})
    settings = {"base": "miniature", "models": ["identities-4", "ship"], "controls": []}
    assert LEAST == 50.0
    assert hardly_drawn(settings, results.parent) == {"identities-4": {"princess": 37.5}}


def test_an_image_without_a_value_does_not_show_its_concept() -> None:
    """No face in 3 of 4 images of one person, and in all of the other."""
    rows = pd.DataFrame({"role": "erase", "concept": ["a"] * 4 + ["b"] * 4 + ["c"] * 4})
    rows["celebrity_correct"] = [1.0, *[np.nan] * 3, *[np.nan] * 4, *[1.0] * 4]
    assert shares(rows).to_dict() == {"a": 25.0, "b": 0.0, "c": 100.0}


@pytest.mark.parametrize("column", [{}, {"recogniser_correct": np.nan}])
def test_without_an_accuracy_nothing_is_said(column: dict[str, float]) -> None:
    rows = pd.DataFrame({"role": ["erase"], "concept": ["ship"], "clip_score": [20.0]}).assign(**column)
    assert shares(rows).empty

"""The page of an evaluation, docs/results-NAME.md, from a reference that holds some experiments of its study."""

from __future__ import annotations

import re
import shutil
import tarfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import reference_again
import results
import yaml

from resurgence.analysis.claims import claims_table
from resurgence.analysis.score_sets import image_set
from resurgence.cli import main
from resurgence.config.load import load_study
from resurgence.config.model_path import ModelPath
from resurgence.files import read_json, read_text
from resurgence.provenance.manifest import described, read_manifest, write_artefact, write_made
from resurgence.stages import experiment
from resurgence.stages.job import Job
from resurgence.workflow import archive, experiment_settings
from scored import features, prompt_rows, score, write_scores_folder
from test_config import ROOT, config, write_world  # noqa: F401 the fixture config

TABLE = {"kind": "table", "tasks": ["pets"], "metrics": ["recogniser_accuracy"], "finetunes": []}
CLAIM = {"says": "It erases.", "of": {"eraser": "uce"}, "value": "erased", "expect": "below", "than": 50.0}
EXPERIMENTS: dict[str, Any] = {
    "eap_tab1": {**TABLE, "title": "First", "erasers": ["uce"], "claims": [CLAIM]},
    "eap_tab2": {**TABLE, "title": "Second", "erasers": ["mace"]},
    "eap_tab3": {"kind": "similarity", "title": "Words", "tasks": ["pets"], "words": ["bee"], "texts": ["animal"]},
}


@pytest.fixture
def root(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A repository with a small study, none of which has run."""
    write_world(tmp_path)
    for folder in ("studies", "docs", ".dvc"):
        (tmp_path / folder).mkdir()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "studies/eap.yaml").write_text(yaml.safe_dump({"study": "eap", "experiments": EXPERIMENTS}))
    (tmp_path / "studies/eap-lpips.yaml").write_text(yaml.safe_dump({"study": "eap-lpips"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, **changes: Any) -> None:
    """Make an experiment of the study from synthetic scores; `similarity` by the files that it would write."""
    study = load_study([Path("params.yaml"), Path("studies/eap.yaml")])
    settings = experiment_settings.experiment(study, name) | changes
    prompts = prompt_rows({"erase": ["ship", "cat"], "retain": ["dog", "bird"]})
    for model in settings.get("models", ()):
        path, good = ModelPath.parse(model), {"erase": 0.9, "retain": 0.9}
        key: dict[str, Any] = {"base": settings["base"], "task": path.task, "state": path.state}
        if path.steps:
            step = path.steps[0]
            key |= {"eraser": step.method, "variant": step.variant, "erase_seed": step.seed}
            good = {"erase": 0.1, "retain": 0.8}
        one = image_set(key, score(prompts, good, len(model)), features(prompts, 0.0, 1))
        place = Path(f"results/scores/{settings['base']}/{model}/scores")
        if not place.exists():
            with write_artefact(place, "scores", {}, {}, {}, {}) as folder:
                write_scores_folder(folder / "step-000000", one)
    job = Job(settings, Path(f"results/experiments/{name}/made.json"), {}, "cpu")
    if settings["kind"] != "similarity":
        experiment.make(job)
        return
    job.out.parent.mkdir(parents=True)
    job.out.with_name(f"{name}.md").write_text(f"## {name}: Words\n\n![{name}]({name}.png)\n")
    job.out.with_name(f"{name}.png").write_bytes(b"picture")
    job.write_made("experiment", [job.out.with_name(f"{name}.{kind}") for kind in ("md", "png")])


def store(**more: Any) -> None:
    archive.run(Namespace(reference=Path("reference/eap"), overlay=[Path("studies/eap.yaml")], add=False, **more))


def states(page: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]+) \|$", page, re.MULTILINE))


def test_no_reference_no_page(root: Path) -> None:
    assert results.evaluation("eap", root) is None


def test_one_experiment_of_a_study_is_stored_shown_and_verified(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("eap_tab1")
    store()
    assert "results/tables" not in capsys.readouterr().out
    page = results.evaluation("eap", root)
    assert (
        states(page) == {"eap_tab1": "run", "eap_tab2": "not run", "eap_tab3": "not run"} and "1 of 3 targets" in page
    )
    assert (
        "| It erases. |" in page
        and "1 claim: 0 same, 0 different, 1 cannot tell" in page
        and "2 models (bases included) were scored" in page
    )
    picture = re.search(r"!\[eap_tab1\]\((.+)\)", page)[1]
    assert (root / "docs" / picture).stat().st_size > 1000
    assert main.main(["verify", "reference/eap/results", "--tables"]) == 0
    stage = yaml.safe_load(read_text(root / "reference/eap/dvc.yaml"))["stages"]["scores"]
    assert (root / "reference/eap" / stage["wdir"]).resolve() == root and stage["frozen"]
    assert (root / next(iter(stage["outs"][0])) / "scores.parquet").is_file()
    assert stage["cmd"] == "resurgence archive --reference reference/eap --overlay studies/eap.yaml"


def test_an_experiment_without_models_is_a_reference_without_scores(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("eap_tab3")
    store()
    assert not (root / "reference/eap/results/scores").exists() and not (root / "reference/eap/dvc.yaml").exists()
    page = results.evaluation("eap", root)
    assert states(page)["eap_tab3"] == "run" and "no model was scored" in page
    assert main.main(["verify", "reference/eap/results", "--tables"]) == 0
    assert "no model has scores there" in capsys.readouterr().out
    (root / "reference/eap/results/experiments/eap_tab3/eap_tab3.md").write_text("other")
    assert main.main(["verify", "reference/eap/results", "--tables"]) == 1


def test_experiments_of_other_studies_stay_out_and_older_settings_are_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("eap_tab1", note="Another note.")
    run("eap_tab2")
    other = root / "results/experiments/doco_tab1"
    (root / "results/experiments/eap_tab2").rename(other)
    store()
    assert "Not in it: doco_tab1, experiments of another study than the one of --overlay" in capsys.readouterr().out
    assert read_manifest(root / "reference/eap/results/made.json")["parameters"]["models"] == 2  # base and UCE
    found = states(results.evaluation("eap", root))
    assert found == {"eap_tab1": "run with other settings than now", "eap_tab2": "not run", "eap_tab3": "not run"}
    reference_again.main(Path("reference/eap"), [Path("params.yaml"), Path("studies/eap.yaml")])
    assert states(results.evaluation("eap", root))["eap_tab1"] == "run"
    assert main.main(["verify", "reference/eap/results", "--tables"]) == 0
    assert "Another note." not in read_text(root / "reference/eap/results/experiments/eap_tab1/eap_tab1.md")


def test_a_file_that_an_experiment_no_longer_writes_is_removed(root: Path) -> None:
    run("eap_tab1")
    store()
    folder = root / "reference/eap/results/experiments/eap_tab1"
    assert (folder / "eap_tab1_claims.csv").is_file()
    written = yaml.safe_load((root / "studies/eap.yaml").read_text())
    del written["experiments"]["eap_tab1"]["claims"]
    (root / "studies/eap.yaml").write_text(yaml.safe_dump(written))
    reference_again.main(Path("reference/eap"), [Path("params.yaml"), Path("studies/eap.yaml")])
    assert not (folder / "eap_tab1_claims.csv").exists()
    assert main.main(["verify", "reference/eap/results", "--tables"]) == 0


def test_an_experiment_is_added_from_stored_scores_as_if_it_had_run(root: Path) -> None:
    run("eap_tab1")
    store()
    folder, study = root / "reference/eap/results/experiments", [Path("params.yaml"), Path("studies/eap.yaml")]
    record = read_manifest(folder / "eap_tab1/made.json")
    before = {name: (folder / "eap_tab1" / name).read_bytes() for name in record["files"]}
    with pytest.raises(ValueError, match="eap_tab1 has run, or is not made from stored scores; leave it out"):
        reference_again.main(Path("reference/eap"), study, ["eap_tab1"])
    shutil.rmtree(folder / "eap_tab1")
    reference_again.main(Path("reference/eap"), study, ["eap_tab1"])
    assert {name: (folder / "eap_tab1" / name).read_bytes() for name in before} == before
    assert read_manifest(folder / "eap_tab1/made.json") | {"inputs": record["inputs"]} == record
    with pytest.raises(ValueError, match=r"eap_tab2 .*; (leave it out of --add|run it, and archive it with --add)"):
        reference_again.main(Path("reference/eap"), study, ["eap_tab2"])
    assert not (folder / "eap_tab2").exists()
    assert main.main(["verify", "reference/eap/results", "--tables"]) == 0


def test_claims_of_an_experiment_that_stays_tell_the_differences_of_now(root: Path) -> None:
    against = CLAIM | {"against": {"eraser": "uce", "role": "retain"}}
    run("eap_tab1", claims=[against], differences=["lamb (1 against 2)"], roles=["erase", "retain"])
    made = Path("results/experiments/eap_tab1/made.json")
    anew, record = read_text(made.with_name("eap_tab1.md")), read_manifest(made)
    shutil.rmtree(made.parent)
    run("eap_tab1", claims=[against], differences=["eta (3 against 4)"], roles=["erase", "retain"])
    reference_again.claims_again(made, record["parameters"] | {"claims": [against, against]})  # of other claims
    assert "eta (3 against 4)" in read_text(made.with_name("eap_tab1.md"))
    reference_again.claims_again(made, record["parameters"])
    assert read_text(made.with_name("eap_tab1.md")) == anew and read_manifest(made) == record


@pytest.mark.parametrize("marks", [{"uce": "lamb: 1"}, {}])
def test_marks_of_an_experiment_that_stays_are_those_of_one_made_anew(root: Path, marks: dict[str, str]) -> None:
    run("eap_tab1", changed_objectives=marks)
    made = Path("results/experiments/eap_tab1/made.json")
    anew, record = read_text(made.with_name("eap_tab1.md")), read_manifest(made)
    shutil.rmtree(made.parent)
    run("eap_tab1", changed_objectives={"uce": "another: 2"})
    reference_again.mark_again(made, record["parameters"])
    assert read_text(made.with_name("eap_tab1.md")) == anew and anew.count("uce †") == 2 * len(marks)
    assert read_manifest(made)["files"] == record["files"]
    assert read_manifest(made)["parameters"].get("changed_objectives", {}) == marks
    made.with_name("eap_tab1.md").write_text("no table")
    with pytest.raises(ValueError, match=r"has no table of the numbers beside it; run the experiment again"):
        reference_again.mark_again(made, record["parameters"] | {"changed_objectives": {"uce": "third: 3"}})


@pytest.mark.parametrize(("key", "value"), [("x", {"mace": 1.0}), ("settings", {"esd": {"lr": 1e-4}})])
def test_an_experiment_of_models_with_other_settings_is_not_made_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str, value: dict[str, Any]
) -> None:
    """Their scores would stand beside settings that they are not of."""
    run("eap_tab1")
    store()
    made = root / "reference/eap/results/experiments/eap_tab1/made.json"
    before, now = read_json(made), experiment_settings.experiment
    for shown in (value, None):
        monkeypatch.setattr(
            reference_again.experiment_settings, "experiment", lambda *of, shown=shown: now(*of) | {key: shown}
        )
        reference_again.main(Path("reference/eap"), [Path("params.yaml"), Path("studies/eap.yaml")])
        stays = "eap_tab1 stays as it is: its models have other settings" in capsys.readouterr().out
        assert stays == (shown is not None)
        assert (read_json(made) == before) == stays


def test_what_is_added_later_is_stored_with_the_rest(root: Path) -> None:
    run("eap_tab3")
    store()
    run("eap_tab2")
    with pytest.raises(FileExistsError, match="remove it"):
        store()
    (root / "reference/eap/results").rename(root / "old")
    store()
    found = states(results.evaluation("eap", root))
    assert found == {"eap_tab1": "not run", "eap_tab2": "run", "eap_tab3": "run"}
    assert read_json(root / "reference/eap/results/made.json")["parameters"]["models"] == 2


def test_claims_of_the_study_itself_have_a_heading_of_their_own(root: Path) -> None:
    def page() -> str:
        run("eap_tab1")
        return "\n".join(results.page(Path("results/experiments"), ["eap_tab1"], 0.95))

    assert "## What the paper claims" in (text := page()) and text.count("| the paper |") == 2
    written = yaml.safe_load((root / "studies/eap.yaml").read_text())
    written["experiments"]["eap_tab1"] |= {"claims_by": "study", "note": "Of us."}
    (root / "studies/eap.yaml").write_text(yaml.safe_dump(written))
    assert "## Claims" in (text := page()) and text.count("| claim |") == 2 and "the paper" not in text
    assert "\nNote: Of us.\n" in text


def test_stored_claims_about_a_distance_without_features_are_opened(tmp_path: Path) -> None:
    """Those of a reference from before the rule; the rest of its page and files stays."""
    stored, folder = ROOT / "reference/miniature-full/results/experiments/fig13", tmp_path / "fig13"
    shutil.copytree(stored, folder)
    table = pd.read_csv(folder / "fig13_claims.csv")
    old = table.assign(verdict="same", p=0.01, compared=[text.partition("; not")[0] for text in table["compared"]])
    old.drop(columns="differences").to_csv(folder / "fig13_claims.csv", index=False)
    text = read_text(stored / "fig13.md")
    assert claims_table(table) in text
    (folder / "fig13.md").write_text(text.replace(claims_table(table), claims_table(old)))
    (folder / "made.json").chmod(0o644)
    reference_again.claims_again(folder / "made.json")
    for name in read_manifest(stored / "made.json")["files"]:
        assert (folder / name).read_bytes() == (stored / name).read_bytes(), name
    assert read_manifest(folder / "made.json") == read_manifest(stored / "made.json")


def test_remade_rows_stand_among_those_that_cannot_be_remade(tmp_path: Path) -> None:
    rows = ["task,role,metric,value", "ship,erase,frechet,9.25", "ship,erase,H_o,0.0", "bird,erase,kid,0.5", ""]
    stored, remade = tmp_path / "stored.csv", tmp_path / "remade.csv"
    stored.write_text("\n".join(rows))
    remade.write_text("\n".join([rows[0], "ship,erase,H_o,0.125", ""]))
    reference_again.with_rows_of(stored, remade, ("frechet", "kid"))
    assert stored.read_text().split("\n") == [*rows[:2], "ship,erase,H_o,0.125", *rows[3:]]
    remade.write_text("\n".join([rows[0], "bird,erase,H_o,0.125", ""]))
    with pytest.raises(ValueError, match="has other rows than the stored scores give; archive the study again"):
        reference_again.with_rows_of(stored, remade, ("frechet", "kid"))


def test_an_archive_has_the_name_of_its_study(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "results/tables").mkdir(parents=True)
    write_made(root / "results/tables/made.json", described("tables", {}, {}, {}), [], 0.0, {})
    assert main.main(["archive", "--overlay", "studies/eap.yaml"]) == 0
    assert "cd resurgence-eap && sha256sum" in capsys.readouterr().out
    with tarfile.open("resurgence-eap.tar.gz") as tar:
        assert "resurgence-eap/studies/eap.yaml" in tar.getnames()
    assert main.main(["archive", "--add", "--overlay", "studies/eap.yaml"]) == 1
    assert "--add = '': is for --reference and the experiments of --overlay" in capsys.readouterr().err

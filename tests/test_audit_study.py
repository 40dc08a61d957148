"""The study that an audit writes, and what it refuses before anything is computed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from audit_place import RETAINED, make_pictures, make_place, parsed, written, written_by
from resurgence.cli.audit import copy_card, remove_card, write_study
from resurgence.cli.main import main, make_parser
from resurgence.config.audit import ShippedControl
from resurgence.config.audit_bases import AuditBase, bases, model_task, synonyms_of
from resurgence.config.audit_kinds import as_listed
from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study
from resurgence.data.real_sets import real_set
from resurgence.diffusion.image_sets import read_image_set
from resurgence.files import files_at
from resurgence.workflow import audit_settings
from resurgence.workflow.jobs import jobs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an erased model, its original, a LoRA, pictures and lists of words."""
    monkeypatch.chdir(tmp_path)
    return make_place(tmp_path)


def test_quick_probes_the_released_model_one_lora_and_rounding(place):
    study = written("--images", "pictures")
    assert study.audit.names == ["released", "released-synonyms", "lora-domain-real", "rounding-8", "rounding-4"]
    assert study.audit.probe("lora-domain-real").maker == "real"
    assert study.seeds.finetune == (0,)
    assert written("--images", "pictures", "--training-seeds", "5", "--out", "more").seeds.finetune == (0, 1, 2, 3, 4)
    task = study.task("ship")
    assert (task.retain, task.seeds["erase"], task.seeds["retain"]) == (tuple(RETAINED), 200, 60)
    assert study.task("ship-synonyms").synonyms == {"ship": ("vessel", "boat", "watercraft")}  # of the shipped task
    assert "real pictures (--images DIR)" not in study.audit.untested
    assert any("--level standard" in text for text in study.audit.untested)


def test_without_pictures_and_original_the_model_makes_its_own_and_the_probe_is_marked(place):
    study = written()
    assert study.audit.probe("lora-domain-erased").maker == "erased"
    assert "real pictures (--images DIR)" in study.audit.untested
    assert audit_settings.settings(study)["models"]["probe released"] == ["ship"]  # the base of the study


def test_standard_has_three_seeds_and_both_makers_and_full_a_grid(place):
    more = ("--images", "pictures", "--original", "original", "--lora", "style.safetensors")
    standard = written(*more, "--level", "standard")
    trained = {probe.name for probe in standard.audit.probes if probe.finetune}
    expected = {f"{kind}-domain-{maker}" for kind in ("lora", "full") for maker in ("real", "base")}
    assert trained == {*expected, "lora-outside-base"}
    assert standard.seeds.finetune == (0, 1, 2) and "merge-1" in standard.audit.names
    models = audit_settings.groups(standard)
    assert len(models["probe lora-domain-real"]) == 3
    assert "Amy Winehouse" in standard.finetune_concepts("outside-base", "ship")  # of people, not of objects
    assert {str(standard.model(item)) for item in models["leaking"]} == {
        f"ship/leaking/s0/lora-domain-real/f{seed}" for seed in range(3)
    }
    assert [str(standard.model(item)) for item in models["leaking released"]] == ["ship/leaking/s0"]
    assert [str(standard.model(item)) for item in models["original"]] == ["ship"]
    full = written(*more, "--level", "full")
    grid = {(s["lr"], s["steps"]) for s in audit_settings.settings(full)["updates"].values() if s.get("rank")}
    assert {(3.33e-5, 1000), (1e-4, 333), (3e-4, 1000)} <= grid


def test_every_model_of_a_probe_is_sampled_and_scored_before_the_verdict(place, monkeypatch):
    study = written("--images", "pictures", "--original", "original", "--lora", "style.safetensors")
    monkeypatch.chdir("out")
    by_output = {job.out.as_posix(): job for job in jobs(study)}
    verdict = by_output["results/audit/manifest.json"]
    assert {path for paths in verdict.inputs.values() for path in paths} <= by_output.keys()
    merged = by_output["results/erased/original/ship/merge-1/s0/delta/manifest.json"]
    assert merged.settings["settings"]["lora"] == "inputs/lora-1.safetensors"
    assert merged.inputs["lora"] == ["inputs/lora-1.safetensors"]
    assert study.audit.probe("merge-1").title == "LoRA merged: style.safetensors"  # as the command line has it


def test_the_folder_holds_links_and_the_same_command_writes_nothing_again(place):
    written("--images", "pictures")
    out = place / "out"
    assert (out / "inputs/checkpoint").resolve() == place / "erased"
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.yaml")}
    assert len(before) == 3
    written("--images", "pictures")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert str(place) not in (out / "params.yaml").read_text()


def test_the_command_that_repeats_the_audit_is_that_line_without_what_changes_no_result(place):
    study = written("--images", "pictures", "--update", "steps=3", "lr=1.0e-4", "--sensitive", "--cores", "7")
    line = ["audit", "erased", "--erased", "ship", "--retained", "retained.txt", "--images", "pictures", "--update"]
    line += ["steps=3", "lr=1.0e-4", "--scorer", "clip", "path=scorer", "--sensitive", "--out", "out"]
    assert study.audit.command == " ".join(["resurgence", *line])
    again = make_parser().parse_args(line)
    write_study(again, again.out)
    assert load_study([place / "out/params.yaml"], place / "out").audit == study.audit


def test_several_folders_of_pictures_are_put_together_and_each_file_is_an_input(place):
    make_pictures(place / "more", "a photo of the bridge", "a photo of the tower")  # of the same file names
    outside = ("--outside-images", "more", "pictures", "--level", "standard")
    study = written("--images", "pictures", "--images", "more", *outside)
    images = study.finetune_sets["domain-real"].images
    assert "--images pictures more --outside-images more pictures" in study.audit.command
    with contextlib.chdir("out"):
        files, rows = files_at(images), real_set(Path(images), [], None).rows
        assert len(files) == 12 and {file.resolve().parent.name for file in files} == {"pictures", "more"}
        made = "results/data/audited/ship/finetune_sets/domain-real/manifest.json"
        (job,) = (job for job in jobs(study) if job.out.as_posix() == made)
    assert set(job.inputs["pictures"]) == {file.as_posix() for file in files}
    words = ["castle", "castle", "castle", "bridge", "tower", "bridge"]
    assert rows["prompt"].tolist() == [f"a photo of the {word}" for word in words]
    before = (place / "out/params.yaml").read_bytes()
    written("--images", "pictures", "more", *outside)
    assert (place / "out/params.yaml").read_bytes() == before
    with pytest.raises(ConfigError, match=r"--images = 'more': .* is of another audit, of .*/pictures; name"):
        written("--images", "more", "pictures")


def test_concepts_are_taken_in_the_spelling_of_the_lists(place):
    """By which their synonyms, mapping and labels are found."""
    expected = written()
    (place / "retained.txt").write_text("\n".join(word.upper() for word in RETAINED))
    given = written("--erased", " SHIP", "--out", "other")
    for name in ("ship", "ship-synonyms"):
        assert given.task(name) == expected.task(name)
    assert given.audit.synonyms == expected.audit.synonyms
    assert given.audit.command == expected.audit.command.replace("--out out", "--out other")
    with pytest.raises(ConfigError, match="erase = 'ship': is listed twice; remove one"):
        written("--erased", "ship", "Ship", "--out", "twice")
    (place / "captions.txt").write_text("Ship: it leaves the harbour\n")
    study = written("--erased", "Ship", "--implicit", "captions.txt", "--out", "implicit")
    assert study.task("ship-implicit").synonyms == {"ship": ("it leaves the harbour",)}


def test_the_spelling_of_the_first_list_that_has_a_word_counts_and_its_own_where_it_is_there():
    lists = [["Ship", "ship", "Van Gogh"], ["SHIP", "boat"]]
    words = ("ship", "SHIP", "van  gogh", "Boat", "Zorblin", "")
    assert as_listed(words, lists) == ("ship", "Ship", "Van Gogh", "boat", "Zorblin", "")


def test_a_training_of_one_step_is_singular(place):
    one = written("--update", "steps=1").audit.probes
    two = written("--update", "steps=2", "--out", "two").audit.probes
    texts = [next(probe.update for probe in probes if probe.finetune) for probes in (one, two)]
    assert ["for 1 step at" in texts[0], "for 2 steps at" in texts[1]] == [True, True]


def test_a_concept_that_was_erased_by_its_synonym_is_neither_retained_nor_a_label(place):
    """CLIP would take a boat that came back for a ship, and the ships that went with it for a loss."""
    task = written("--erased", "boat", "--retained", "auto").task("boat")
    words = {*task.retain, *task.labels, *task.finetune}
    assert {"dog", "airplane"} <= {*task.retain} and "ship" not in words and "boat" in task.labels


def test_implicit_captions_are_prompts_of_their_own(place):
    (place / "captions.txt").write_text("something with sails on the sea\nit leaves the harbour\n")
    task = written("--implicit", "captions.txt").task("ship-implicit")
    assert task.templates == ("{}",) and len(task.synonyms["ship"]) == 2 and task.seeds["synonym"] == 100


def test_implicit_captions_of_a_single_concept_may_be_written_as_those_of_several(place):
    """What names the concept is no part of the prompt, which is said not to name it."""
    (place / "captions.txt").write_text("ship: something with sails on the sea\nat dawn: it leaves the harbour\n")
    words = written("--implicit", "captions.txt").task("ship-implicit").synonyms["ship"]
    assert words == ("something with sails on the sea", "at dawn: it leaves the harbour")


def test_the_card_blurs_the_images_of_a_task_that_says_so(place):
    def blurred(study):
        return audit_settings.settings(study)["audit"]["sensitive"]

    assert not blurred(written())
    file = place / "out/tasks/ship.yaml"
    file.write_text(file.read_text() + "sensitive: true\n")
    assert blurred(load_study([place / "out/params.yaml"], place / "out"))
    assert blurred(written("--sensitive", "--out", "other"))


def test_the_card_blurs_what_the_shipped_task_of_it_blurs(place, monkeypatch):
    loaded = AuditBase.loaded_tasks

    def marked(base):
        return [dataclasses.replace(task, sensitive=task.erase == ("ship",)) for task in loaded(base)]

    monkeypatch.setattr(AuditBase, "loaded_tasks", marked)
    assert audit_settings.settings(written())["audit"]["sensitive"]
    assert not audit_settings.settings(written("--erased", "truck", "--out", "other"))["audit"]["sensitive"]


def test_a_checkpoint_is_compared_with_its_original_before_anything_is_computed(place):
    args = parsed("--original", "original")
    save_file({"unet.conv_in.weight": torch.ones(2)}, place / "other.safetensors")
    args.checkpoint = "other.safetensors"
    with pytest.raises(ValueError, match=r"other.safetensors: unet.conv_in.weight has the shape \(2,\), in the base"):
        write_study(args, args.out)
    weights = next((place / "erased/unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"checkpoint = .*cannot be read .*: truncated or damaged"):
        written()
    assert not (place / "out").exists()


def test_the_card_says_that_parts_of_the_original_stand_for_those_of_the_released_model(place):
    told = "another autoencoder, tokenizer or noise schedule than the original's, if the released model has one"
    assert told in written("--original", "original").audit.untested
    assert told not in written("--out", "alone").audit.untested


def test_criteria_of_a_file_take_the_place_of_the_shipped_ones_key_by_key(place):
    (place / "criteria.yaml").write_text("tau: 1.0\n")
    criteria = written("--criteria", "criteria.yaml").audit.criteria
    assert (criteria.tau, criteria.pairs, criteria.confidence) == (1.0, 120, 0.95)
    shipped = yaml.safe_load((ROOT / "config/audit/criteria.yaml").read_text())
    assert shipped == {name: getattr(written().audit.criteria, name) for name in shipped}


def test_another_model_in_the_same_folder_and_a_part_without_its_base_are_refused(place):
    written()
    args = parsed()
    args.checkpoint = "original"
    with pytest.raises(ConfigError, match="is of another audit"):
        write_study(args, args.out)
    args.checkpoint = "pictures"
    with pytest.raises(ConfigError, match=r"no model_index\.json; name the model it changes in --original"):
        write_study(args, Path("other"))


def test_a_folder_with_another_study_is_refused_and_left_as_it_is(place):
    (place / "out").mkdir()
    (place / "out/params.yaml").write_text("study: mine\n")
    with pytest.raises(ConfigError, match=r"--out = 'out': its params\.yaml is of another study; name another folder"):
        written()
    assert [file.name for file in (place / "out").rglob("*")] == ["params.yaml"]
    assert (place / "out/params.yaml").read_text() == "study: mine\n"


@pytest.mark.parametrize("words", [(), ("--original", "original"), ("--original", "original", "--level", "standard")])
def test_people_of_stable_diffusion_are_updated_on_others_who_are_neither_erased_nor_retained(place, words):
    """Their shipped tasks name none to fine-tune on."""
    args = parsed(*words)
    args.erased, args.retained = ["Melania Trump"], "auto"
    write_study(args, args.out)
    task = load_study([args.out / "params.yaml"], args.out).task("melania-trump")
    assert len(task.finetune) == 16 and not set(task.finetune) & {*task.erase, *task.retain}


def test_wrong_usage_exits_with_1(place, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["audit", "erased", "--out", "out"])
    assert ended.value.code == 1 and "--erased" in capsys.readouterr().err
    assert main(["audit", "nowhere", "--erased", "ship", "--out", "out"]) == 1


def test_reference_pictures_judge_by_the_nearest_centroid(place):
    picture = (ROOT / "docs/images/steps.png").read_bytes()
    for name in ("ship", *RETAINED, "others"):
        (place / "references" / name).mkdir(parents=True)
        for number in range(2):
            (place / f"references/{name}/{number}.png").write_bytes(picture)
    args = parsed("--reference", "references", "--out", "plain")
    args.scorer = []
    plain = written_by(args)
    assert plain.audit.metric == "reference_accuracy" and set(plain.scorers) == {"reference"}
    pictures = {"pictures": "inputs/reference-pictures"}
    assert plain.scorers["reference"] == {"name": "ViT-B-32-quickgelu", "pretrained": "openai", **pictures}
    study = written("--reference", "references")  # with --scorer clip path=scorer, whose features are compared
    given = {"path": "inputs/clip-path"}
    assert study.scorers == {"clip": given, "reference": {**given, **pictures}}
    assert (place / "out/inputs/reference-pictures").resolve() == place / "references"
    (place / "net.pth").write_bytes(b"weights")
    own = ("--reference", "references", "--scorer", "reference", "architecture=resnet50", "path=net.pth")
    study = written(*own, "--out", "own")
    assert study.audit.metric == "reference_accuracy"
    net = {"architecture": "resnet50", "path": "inputs/reference-path.pth"}
    assert study.scorers["reference"] == {**net, **pictures}
    with pytest.raises(ConfigError, match="--reference = 'references': --scorer reference names pictures, too; name"):
        written(*own, "pictures=references", "--out", "twice")
    (place / "references/dog").rename(place / "references/wolf")
    with pytest.raises(ConfigError, match="'dog': has no folder of reference pictures in inputs/reference-pictures"):
        written("--reference", "references")


def test_the_card_lies_at_the_top_of_the_folder_and_an_earlier_record_does_not(tmp_path):
    names = ("card.html", "bom.cdx.json", "data/resurgence-audit/local/erased/new.json", "manifest.json")
    for name in (*(f"results/audit/{name}" for name in names), "data/resurgence-audit/local/erased/old.json", "data/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    copy_card(tmp_path)
    copied = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert {name for name in copied if not name.startswith("results/")} == {*names[:3], "data/x"}
    (tmp_path / "notes.html").write_text("of the user")
    remove_card(tmp_path)
    left = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert {name for name in left if not name.startswith("results/")} == {"data/x", "notes.html"}


CARD = ("card.html", "card.json", "verdict.json", "data/resurgence-audit/local/erased/one.json")


@pytest.fixture
def audited(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished audit, with its card at the top; nothing more is computed."""
    written("--images", "pictures")
    for name in (*CARD, "manifest.json"):
        (place / "out/results/audit" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "out/results/audit" / name).write_text(name)
    copy_card(place / "out")
    (place / "out/notes.md").write_text("of the user")
    monkeypatch.setattr("resurgence.cli.audit.snakemake_plan", lambda out, cores: 0)
    return place / "out"


def audit(*words: str) -> int:
    required = ["audit", "erased", "--erased", "ship", "--out", "out", "--retained", "retained.txt"]
    return main([*required, "--images", "pictures", "--scorer", "clip", "path=scorer", *words])


def at_the_top(out: Path) -> set[str]:
    return {name for name in CARD if (out / name).is_file()}


def is_kept(out: Path) -> bool:
    """Whether nothing is lost: the results, and what is the user's."""
    return all((out / "results/audit" / name).read_text() == name for name in CARD) and (out / "notes.md").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("--pairs", "0"),  # before anything is written
        ("--pairs", "300", "--update", "stepps=3"),  # by the study, which was written and is taken back
        ("--pairs", "300"),  # by the scorer, whose folder is empty
        (),
    ],
)
def test_a_run_that_fails_leaves_no_card_of_an_earlier_one(audited, capsys, words):
    before = (audited / "params.yaml").read_bytes()
    assert audit(*words) == 1
    assert not at_the_top(audited) and is_kept(audited)
    assert "removed the card of an earlier run from out; out/results/audit has it still" in capsys.readouterr().err
    assert ((audited / "params.yaml").read_bytes() == before) == (words != ("--pairs", "300"))


def test_a_plan_removes_a_card_of_other_settings_and_no_other(audited, monkeypatch):
    monkeypatch.setattr("resurgence.cli.audit.check_scorers", lambda study, out: None)
    for words in ((), ("--pairs", "0"), ("--pairs", "300", "--update", "stepps=3")):  # the same; wrong ones
        audit("--plan", *words)
        assert at_the_top(audited) == set(CARD) and is_kept(audited), words
    assert audit("--plan", "--pairs", "300") == 0
    assert not at_the_top(audited) and is_kept(audited)
    assert audit("--plan") == 0 and not at_the_top(audited)  # what it has is not known to be of these


def test_the_card_of_another_audit_or_one_whose_results_are_gone_stays(audited, capsys):
    make_pictures(Path("more"), "a photo of the bridge")
    for checkpoint, pictures in (("erased", "more"), ("original", "pictures")):
        words = [
            "--erased",
            "ship",
            "--retained",
            "retained.txt",
            "--images",
            pictures,
            "--scorer",
            "clip",
            "path=scorer",
        ]
        assert main(["audit", checkpoint, *words, "--out", "out"]) == 1
        assert at_the_top(audited) == set(CARD) and is_kept(audited)
        assert "is of another audit" in capsys.readouterr().err
    before = (audited / "params.yaml").read_bytes()
    shutil.rmtree(audited / "results")
    assert audit("--pairs", "300") == 1
    assert "is the card of an audit with other settings, whose results are gone; move it" in capsys.readouterr().err
    assert at_the_top(audited) == set(CARD) and (audited / "params.yaml").read_bytes() == before


def control(*concepts: str, kind: str = "leaking", domain: str = "object") -> ShippedControl:
    return ShippedControl(kind, "UCE", "lora-domain-real", 60, 200, concepts, domain)


def test_the_control_has_lost_other_concepts_than_the_audited_model_where_one_has():
    entry = bases()["miniature"]
    tasks = {task.name: task for task in entry.loaded_tasks()}
    ship, bird, people = control("ship"), control("bird", "cat"), control("princess", domain="person")
    untaught = control(kind="untaught")
    base = dataclasses.replace(entry, shipped=(ship, people, bird, untaught))
    assert base.controls(tasks["ship"]) == (bird, untaught)
    assert base.controls(tasks["bird"]) == (ship, untaught)
    assert base.controls(tasks["objects-5"])[0] == ship  # both share a concept with it: the first
    assert base.controls(tasks["identities-1"]) == (people,)  # pictures of objects are another probe


def test_every_shipped_control_that_leaks_says_what_it_showed_as_released_and_has_the_numbers_of_its_audit():
    """Without that number it would count though its model had never been erased."""
    leaking = [control for entry in bases().values() for control in entry.shipped if control.kind == "leaking"]
    assert leaking and all(control.released is not None for control in leaking)
    for name in ("ship", "automobile"):
        (control,) = (control for control in leaking if control.concepts == (name,))
        row = json.loads((ROOT / f"reference/audits/rows/{name}-uce-leaking.quick.json").read_text())
        by_name = {probe["name"]: probe["erased"] for probe in row["probes"]}
        for probe, number in (("released", control.released), (control.probe, control.shown)):
            share = {key: by_name[probe][key] for key in ("value", "images")}
            assert share == {"value": pytest.approx(100 * number / control.images), "images": control.images}


def test_synonyms_are_those_of_the_task_that_erases_the_concept_else_of_the_world():
    entry = bases()["miniature"]
    world = {line["name"]: line["synonyms"] for line in yaml.safe_load((ROOT / entry.concepts).read_text())["concepts"]}
    followed = model_task(entry, ("dog",), "object")
    assert "dog" not in followed.erase
    assert synonyms_of(entry, followed, ("dog",)) == {"dog": tuple(world["dog"])} and len(world["dog"]) == 3
    ship = model_task(entry, ("ship",), "object")
    assert synonyms_of(entry, ship, ("ship",)) == ship.synonyms
    princess = model_task(entry, ("princess",), "person")
    assert world["princess"] and synonyms_of(entry, princess, ("princess",)) == {}  # as its task leaves them out
    other = bases()["other"]  # without a world
    assert synonyms_of(other, model_task(other, ("dog",), "object"), ("dog",)) == {}


def test_the_study_says_why_no_shipped_control_counts(place):
    entry = bases()["miniature"]
    tasks = {task.name: task for task in entry.loaded_tasks()}
    assert entry.no_control(tasks["ship"], []) == ""
    changed = entry.no_control(tasks["ship"], ["--retained", "--images"])
    assert changed.startswith("--retained, --images make the probe another than that of the shipped model")
    second = bases()["miniature-2"]
    objects = next(task for task in second.loaded_tasks() if task.kind == "object")
    assert "kind object; with --original BASE" in second.no_control(objects, [])
    # a Stable Diffusion has none, whatever the options, and one with its original needs none
    assert "none is shipped for concepts of the kind object" in written("--images", "pictures").audit.no_control
    assert written("--images", "pictures", "--original", "original", "--out", "other").audit.no_control == ""


def test_the_audit_reads_the_pictures_and_the_difference_from_the_original(place):
    alone = written("--images", "pictures")
    assert audit_settings.settings(alone)["released"] is None and "released" not in audit_settings.inputs(alone)
    assert audit_settings.settings(alone)["pictures"].keys() == {"lora-domain-real"}
    study = written("--images", "pictures", "--original", "original", "--out", "other")
    found = audit_settings.settings(study)
    assert found["released"] == "results/erased/original/ship/released/s0/delta"
    assert found["pictures"] == {"lora-domain-real": "results/data/original/ship/finetune_sets/domain-real"}
    for name in ("released", "pictures"):
        folders = [found["released"]] if name == "released" else list(found["pictures"].values())
        assert audit_settings.inputs(study)[name] == [f"{folder}/manifest.json" for folder in folders]


def test_the_entries_of_the_bases_name_files_of_the_checkout_and_a_world():
    for entry in bases().values():
        assert entry.loaded_tasks() and (ROOT / entry.world).is_file()
        for file in (entry.captions, entry.general, *filter(None, [entry.concepts])):
            assert (ROOT / file).is_file(), file


@pytest.mark.world("miniature-2")
def test_a_model_of_the_second_miniature_is_probed_with_its_own_world(tmp_path):
    words = ["--erased", "princess", "--level", "standard", "--out", "x"]
    args = make_parser().parse_args(["audit", str(ROOT / "data/miniature-2/base"), *words])
    write_study(args, tmp_path / "out")
    study = load_study([tmp_path / "out/params.yaml"], tmp_path / "out")
    assert study.task("princess").mapping == {"princess": "woman"} and "vampire" in study.task("princess").retain
    assert {"lora-domain-real", "lora-outside-real"} <= set(study.audit.names)
    shown = set(read_image_set(tmp_path / "out/inputs/domain.parquet")[0]["concept"])
    assert shown == set(study.task("princess").finetune)


@pytest.mark.world("miniature")
def test_a_model_of_the_miniature_is_probed_as_one_with_pictures_of_its_drawings_and_a_shipped_control(tmp_path):
    args = make_parser().parse_args(["audit", str(ROOT / "data/miniature/base"), "--erased", "ship", "--out", "x"])
    write_study(args, tmp_path / "out")
    study = load_study([tmp_path / "out/params.yaml"], tmp_path / "out")
    assert study.audit.metric == "recogniser_accuracy" and study.sampling.steps == 12
    shipped = [(each.kind, each.probe, each.concepts) for each in study.audit.shipped]
    assert shipped == [("leaking", "lora-domain-real", ("automobile",))]
    assert set(study.scorers) == {"recogniser"}  # the card shows no other
    rows, images = read_image_set(tmp_path / "out/inputs/domain.parquet")
    assert set(rows["concept"]) == set(study.task("ship").finetune) and images.shape == (96, 3, 64, 64)
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean((1, 2))
    assert (corners > 0.7 * 255).float().mean() > 0.9  # light backgrounds
    (tmp_path / "retained.txt").write_text("dog\nbird\n")
    args.retained = str(tmp_path / "retained.txt")  # takes the dog from the pictures, so it is another probe
    write_study(args, tmp_path / "other")
    other = load_study([tmp_path / "other/params.yaml"], tmp_path / "other").audit
    assert not other.shipped and other.no_control.startswith("--retained makes the probe another")


@pytest.mark.world("miniature")
def test_an_audit_of_other_concepts_in_the_same_folder_has_their_pictures(tmp_path):
    concepts = []
    for erased in ("ship", None):
        words = ["audit", str(ROOT / "data/miniature/base"), "--erased", erased or concepts[0][0], "--out", "x"]
        write_study(make_parser().parse_args(words), tmp_path / "out")
        rows = read_image_set(tmp_path / "out/inputs/domain.parquet")[0]
        concepts.append(rows["concept"].unique().tolist())
    assert concepts[0][0] not in concepts[1] and concepts[1]

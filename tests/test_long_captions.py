"""Prompts and captions that the base would cut, or that are one to it: stages and commands stop."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image

from resurgence.cli import main
from resurgence.config.fields import ConfigError
from resurgence.config.names import Form, token_form
from resurgence.config.stages import FinetuneConfig
from resurgence.config.task import make_task
from resurgence.data.masks import MaskConfig, segment
from resurgence.data.prompts import prompt_set
from resurgence.diffusion import text, text_checks
from resurgence.diffusion.image_sets import read_image_set, write_image_set
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.provenance.manifest import MANIFEST, RUN, read_manifest, write_artefact
from resurgence.scorers.clip import ClipScorer
from resurgence.stages import concept_images, erase, finetune, finetune_set, loras, moments
from resurgence.stages import sample as sample_stage
from resurgence.stages.job import Job
from resurgence.training.finetune import finetune as train
from tiny import make_pipeline, make_tokenizer

LONG = "the " * 80 + "{}"  # 80 tokens, those of the concept, beginning and end
TASK = {
    "name": "ship", "kind": "object", "erase": ["ship"], "retain": ["dog", "bird"], "mapping": "sky",
    "templates": ["a photo of the {}"], "seeds": {"erase": 2, "retain": 1, "synonym": 1}, 
    "synonyms": {"ship": ["boat"]},
}  # fmt: skip
TOLD = r"caption 'the the .*' has 8\d tokens, the model reads 77; use a shorter template"
SAMPLING = {"steps": 1, "guidance": 1.0, "batch": 8, "size": 16}
FAST = {"steps": 1, "batch": 1, "accumulation": 1}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base."""
    folder = tmp_path_factory.mktemp("text") / "base"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of unfinished jobs is below the working folder."""
    monkeypatch.chdir(tmp_path)


def job(base: Path, settings: dict[str, Any], inputs: dict[str, Path] | None = None) -> Job:
    named = {name: (folder / MANIFEST,) for name, folder in (inputs or {}).items()}
    model = {"path": str(base), "revision": None}
    return Job({"base": model, "seed": 0, "delta_precision": "fp32", **settings}, Path("out") / MANIFEST, named, "cpu")


def noise(rows: pd.DataFrame) -> list[tuple[int, Image.Image]]:
    pixels = np.random.default_rng(0).integers(0, 256, (len(rows), 16, 16, 3), dtype=np.uint8)
    return [(row, Image.fromarray(picture)) for row, picture in enumerate(pixels)]


def image_set(folder: Path, prompts: list[tuple[str, str]]) -> Path:
    """An artefact with pictures of (concept, prompt)."""
    rows = pd.DataFrame(
        [{"prompt": p, "concept": c, "role": "finetune", "seed": k} for k, (c, p) in enumerate(prompts)]
    )
    with write_artefact(folder, "images", {}, {}, {}, {}) as inside:
        write_image_set(inside / "images.parquet", rows, noise(rows))
    return folder


def test_token_ids_and_padding_are_those_of_the_tokenizer() -> None:
    for pad in ("eos", "zero"):
        tokenizer, captions = make_tokenizer(pad), ["a photo of the ship", "", "the " * 75]
        expected = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        ids, mask = text.tokenize(tokenizer, captions)
        assert torch.equal(ids, expected.input_ids) and torch.equal(mask, expected.attention_mask)
        cut = text.tokenize(tokenizer, ["the " * 200], truncate=True)[0]
        assert torch.equal(
            cut, tokenizer(["the " * 200], truncation=True, max_length=77, return_tensors="pt").input_ids
        )


@pytest.mark.parametrize(("words", "fits"), [(75, True), (76, False)])
def test_the_limit_counts_beginning_and_end(pipe: StableDiffusionPipeline, words: int, fits: bool) -> None:
    caption = "the " * words
    for read in (
        lambda: text.encode_prompts(pipe, [caption]), lambda: text.Encoder(pipe)([caption]),
        lambda: text.token_ids(pipe.tokenizer, caption), lambda: text.check_lengths(pipe.tokenizer, [caption]),
    ):  # fmt: skip
        if fits:
            read()
        else:
            with pytest.raises(ValueError, match="has 78 tokens, the model reads 77"):
                read()


def test_the_sampler_stops_before_the_first_image(pipe: StableDiffusionPipeline) -> None:
    prompts = [f"a photo of the ship {k}" for k in range(300)] + [LONG.replace("{}", "ship")]  # not in the first window
    rows = pd.DataFrame({"prompt": prompts, "seed": range(len(prompts))})
    with pytest.raises(ValueError, match=TOLD):
        next(sample(pipe, rows, SamplingConfig(**SAMPLING)))


@pytest.mark.parametrize("stage", ["concept images", "fine-tuning set"])
def test_images_by_the_base(base: Path, tmp_path: Path, stage: str) -> None:
    settings = {"sampling": SAMPLING, "concepts": ["ship"], "template": LONG, "per_concept": 1}
    settings |= {"templates": [LONG], "images_per_prompt": 1, "size": None, "tercile": False}
    make = {"concept images": concept_images.make, "fine-tuning set": finetune_set.make}[stage]
    with pytest.raises(ValueError, match=TOLD):
        make(job(base, settings), tmp_path)


def test_the_stage_sample_stops_at_any_row(base: Path, tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        with write_artefact(tmp_path / "prompts", "prompt set", {}, {}, {}, {}) as folder:
            prompt_set(make_task({**TASK, **changes})).to_csv(folder / "prompts.csv", index=False)
        settings = {"sampling": {**SAMPLING, "shard": 1, "precision": "fp32"}}
        sample_stage.make(job(base, settings, {"prompts": tmp_path / "prompts"}), tmp_path / "out")

    with pytest.raises(ValueError, match=TOLD):
        run(templates=["a photo of the {}", LONG])
    with pytest.raises(
        ValueError,
        match=r"prompt = 'a photo of the R2D2': \(role retain, .* has the same tokens as 'a photo of the R 2 D 2'",
    ):
        run(erase=["R 2 D 2"], retain=["R2D2"], synonyms={})
    assert not list(tmp_path.rglob("*.parquet")), "no shard was sampled"


def test_moments_and_masks(base: Path, tmp_path: Path, pipe: StableDiffusionPipeline) -> None:
    (tmp_path / "captions.txt").write_text(f"a photo of the {{}}\n{LONG}\n")
    settings = {
        "captions": "captions.txt", "corpus": "domain", "concepts": ["dog"], "encoder_precision": "auto",
    }  # fmt: skip
    for changes in ({}, {"corpus": "prior"}):
        with pytest.raises(ValueError, match=TOLD):
            moments.make(job(base, settings | changes), tmp_path)
    cfg = MaskConfig(segmenter="cross-attention", template=LONG)
    with pytest.raises(ValueError, match=TOLD):
        segment(torch.zeros(1, 3, 16, 16), "ship", cfg, pipe)


CAPTIONS = {name: key for name in ("uce", "time", "rece", "speed", "mace", "mace-refinement", "fmn", "ca", "doco",
            "salun", "erasediff", "scissorhands") for key in ["captions"]}  # fmt: skip
CAPTIONS |= dict.fromkeys(("esd", "sdd", "spm", "eap", "advunlearn"), "template")


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_eraser_before_anything_is_computed(base: Path, tmp_path: Path, name: str) -> None:
    value = LONG if CAPTIONS[name] == "template" else ["a photo of the {}", LONG]
    settings = {"method": name, "settings": {CAPTIONS[name]: value}, "task": {**TASK, "mapping": {"ship": "sky"}}}
    make = loras.make if name == "mace" else erase.make
    with pytest.raises(ValueError, match=TOLD):
        make(job(base, settings), tmp_path)


def test_names_of_equal_tokens_in_the_stage_erase(base: Path, tmp_path: Path) -> None:
    task = {**TASK, "erase": ["R2D2"], "mapping": {"R2D2": "R 2 D 2"}, "synonyms": {}}
    with pytest.raises(ConfigError, match=r"mapping.R2D2 = 'R 2 D 2': has the same tokens as the concept"):
        erase.make(job(base, {"method": "esd", "settings": {}, "task": task}), tmp_path)
    task = {**task, "mapping": {"R2D2": "sky"}}
    with pytest.raises(ConfigError, match=r"destination.R2D2 = 'R 2 D 2': has the same tokens as the concept"):
        erase.make(job(base, {"method": "uce", "settings": {"destination": "R 2 D 2"}, "task": task}), tmp_path)


def test_a_set_with_an_erased_concept_in_the_stage_finetune(
    base: Path, tmp_path: Path, pipe: StableDiffusionPipeline
) -> None:
    cfg = eraser_config("uce")()
    task = make_task({**TASK, "erase": ["R2D2"], "synonyms": {}})
    with write_artefact(tmp_path / "delta", "erased delta", {"task": {"erase": ["R2D2"]}}, {}, {}, {}) as folder:
        text_delta = method("uce").erase(pipe, task, cfg, EraserData(), 0)
        erase.save_delta(text_delta, folder / "delta.safetensors")
    images = image_set(tmp_path / "set", [("dog", "a photo of the dog"), ("R 2 D 2", "a photo of the R 2 D 2")])
    started = job(base, {"settings": FAST}, {"set": images, "changes": tmp_path / "delta"})
    with pytest.raises(
        ConfigError, match=r"fine-tuning set = 'R 2 D 2': has the same tokens as 'R2D2' in what .*delta erases"
    ):
        finetune.make(started, tmp_path / "out")


def test_long_training_captions_are_cut_counted_and_logged(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = LONG.replace("{}", "cat")
    images = image_set(tmp_path / "set", [("cat", "a photo of the cat"), ("cat", long), ("cat", long)])
    started = job(base, {"settings": FAST}, {"set": images})
    (tmp_path / "out").mkdir()
    with caplog.at_level(logging.WARNING, "resurgence"):
        assert finetune.make(started, tmp_path / "out")["long_captions"] == 2
    assert [r.message for r in caplog.records if "2 of 3 training captions have more tokens than the 77" in r.message]
    strict = job(base, {"settings": {**FAST, "long_captions": "error"}}, {"set": images})
    with pytest.raises(ValueError, match=r"2 of 3 training captions .* shorten them, or set long_captions: truncate"):
        finetune.make(strict, tmp_path / "out")


def test_truncated_captions_train_as_their_beginning(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    curves = [
        train(pipe, images, [caption], FinetuneConfig(**FAST), 0, tmp_path / str(k))
        for k, caption in enumerate(("the " * 75, "the " * 200, "the " * 74))
    ]
    assert curves[0] == curves[1] != curves[2]


def test_the_default_is_not_a_parameter() -> None:
    assert "long_captions" not in FinetuneConfig().parameters()
    assert FinetuneConfig(long_captions="error").parameters() == {
        **FinetuneConfig().parameters(),
        "long_captions": "error",
    }


@pytest.fixture
def place(base: Path, tmp_path: Path) -> Path:
    """A folder with a task and pictures, in which commands run."""
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    return tmp_path


def command(base: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main.main([str(a) for a in (arguments[0], "--base", base, "--device", "cpu", *arguments[1:])])
    return code, capsys.readouterr().err


def test_commands_stop_and_leave_nothing(base: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "long.yaml").write_text(yaml.safe_dump({**TASK, "templates": [LONG]}))
    (place / "general.txt").write_text("a picture of the sky\n" + LONG.replace("{}", "cat") + "\n")
    quick = ["--out", "out", "--set", "steps=1"]
    for arguments in (
        ["sample", "--task", "long.yaml", *quick],
        ["sample", "--task", "task.yaml", "--general", "general.txt", *quick],
        ["erase", "--task", "task.yaml", "--eraser", "esd", *quick, f"template={LONG}"],
        ["erase", "--task", "task.yaml", "--eraser", "fmn", "--template", LONG, *quick],
        ["erase", "--task", "task.yaml", "--eraser", "mace", "--prior", "general.txt", *quick],
    ):
        code, told = command(base, capsys, *arguments)
        assert code == 1 and "tokens, the model reads 77; use a shorter template" in told, arguments
        assert "Traceback" not in told and not Path("out").exists()


@pytest.mark.parametrize("key", ["retain", "labels", "finetune"])
def test_names_of_equal_tokens_in_the_command_sample(
    base: Path, place: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    names = [*TASK["retain"], *(["ship"] if key == "labels" else [])]
    values = {key: [*names, "R2D2", "r 2 d 2"] if key != "finetune" else ["R2D2", "r 2 d 2"]}
    (place / "task.yaml").write_text(yaml.safe_dump({**TASK, **values}))
    code, told = command(base, capsys, "sample", "--task", "task.yaml", "--out", "out", "--set", "steps=1")
    assert code == 1 and f"{key} = 'r 2 d 2': has the same tokens as 'R2D2' in {key}; remove one" in told


@pytest.mark.parametrize("eraser", ["mace", "fmn"])
@pytest.mark.parametrize("held", [["dog", "bird"], ["Ship"]])
def test_given_images_without_the_erased_concept(
    base: Path, place: Path, capsys: pytest.CaptureFixture[str], eraser: str, held: list[str]
) -> None:
    images = image_set(place / "set", [(name, f"a photo of the {name}") for name in held]) / "images.parquet"
    code, told = command(
        base, capsys, "erase", "--task", "task.yaml", "--eraser", eraser, "--concept-images", images, "--out", "out"
    )
    assert code == 1 and "Traceback" not in told
    assert f"--concept-images = {str(images)!r}: holds nothing of 'ship', only of the concepts " in told
    assert ", ".join(map(repr, held)) + "; give the data of the erased concepts" in told


def test_given_masks_without_the_erased_concept(base: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    images = image_set(place / "set", [("ship", "a photo of the ship")]) / "images.parquet"
    save_file({"dog": torch.ones(1, 1, 16, 16, dtype=torch.bool)}, place / "masks.safetensors")
    given = ["--concept-images", images, "--masks", "masks.safetensors"]
    code, told = command(base, capsys, "erase", "--task", "task.yaml", "--eraser", "mace", *given, "--out", "out")
    assert code == 1 and "--masks = 'masks.safetensors': holds nothing of 'ship', only of the concepts 'dog'" in told


def test_captions_that_name_what_was_erased_are_told(
    base: Path, place: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(base, capsys, "erase", "--task", "task.yaml", "--eraser", "uce", "--out", "delta")[0] == 0
    captions = ["A SHIP on the ground", "the boat", "a shipyard", "the dog"]
    images = image_set(place / "set", [("", caption) for caption in captions]) / "images.parquet"
    with caplog.at_level(logging.WARNING, "resurgence"):
        arguments = ["--images", images, "--delta", "delta", "--out", "tuned", "--set", "steps=1", "accumulation=1"]
        assert command(base, capsys, "finetune", *arguments)[0] == 0
    told = sorted(r.message for r in caplog.records if "is taught again" in r.message)
    assert told == [
        f"1 of 4 training captions hold {word!r}, what delta erases: it is taught again" for word in ("boat", "ship")
    ]
    assert json.loads((Path("tuned") / RUN).read_text())["long_captions"] == 0
    assert "long_captions" not in read_manifest(Path("tuned"))["parameters"]["settings"]
    assert read_image_set(images)[0]["prompt"].tolist() == captions


@pytest.fixture(scope="module")
def clip() -> ClipScorer:
    from open_clip import CLIP, get_tokenizer

    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
    words = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = CLIP(16, vision, words).eval()
    return ClipScorer(model, lambda picture: torch.zeros(3, 32, 32), get_tokenizer("ViT-B-32"))


def test_two_labels_that_are_one_to_clip(clip: ClipScorer) -> None:
    task = make_task({**TASK, "retain": ["R2D2", "r 2 d 2"], "labels": ["ship", "R2D2", "r 2 d 2"]})
    rows = prompt_set(task)
    told = r"labels = 'r 2 d 2': has the same tokens of CLIP as 'R2D2' in labels; remove one"
    with pytest.raises(ConfigError, match=told):
        clip.score(torch.zeros(len(rows), 3, 32, 32, dtype=torch.uint8), rows, task)


@pytest.mark.parametrize(("words", "number"), [(75, 0), (76, 1)])
def test_prompts_longer_than_clip_reads_are_told(
    clip: ClipScorer, caplog: pytest.LogCaptureFixture, words: int, number: int
) -> None:
    with caplog.at_level(logging.WARNING, "resurgence"):
        clip.warn_of_long(["a photo of the ship", "the " * words])
    assert [r.message for r in caplog.records] == [
        "1 of 2 prompts are longer than the 77 tokens that CLIP reads; it scores their beginnings"
    ] * number


def test_a_form_has_a_word_for_messages() -> None:
    form = token_form(make_tokenizer())
    assert isinstance(form, Form) and form.noun == "tokens"
    assert form.of("Ship") == form.of("ship") != form.of("ships")
    with pytest.raises(ConfigError, match="the set would teach it again; remove it from the set"):
        text_checks.check_benign(make_tokenizer(), ["Ship"], [("erase", "ship")])

"""Images of anchors with captions of their own: settings, prompts, and the pairs that CA and DoCo read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline

from resurgence.cli import main
from resurgence.config.fields import ConfigError
from resurgence.config.load import make_study
from resurgence.diffusion.image_sets import read_prompts
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.erasers.gradient.ca import Ca
from resurgence.erasers.gradient.doco import Doco
from resurgence.erasers.gradient.image_configs import CaConfig, DocoConfig
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import samples
from resurgence.provenance.manifest import MANIFEST, read_manifest, write_artefact
from resurgence.stages import concept_images
from resurgence.stages.eraser_data import eraser_data
from resurgence.stages.job import Job
from resurgence.workflow import graph, job_settings
from slow import TASK, embed, predicted, shake, unet_with
from test_config import config, write_world  # noqa: F401 a fixture
from tiny import make_pipeline

pytest_plugins = ("erasure_fixtures",)

TEMPLATES = {"street": ["the {} at night", "a photo of the {}", "the {} at night"], "the dog": ["a sketch of {}"] * 2}
SCENES = {"street": ["the rose", "a crab in the snow", "the rose"], "the dog": ["the bee", "the bird"]}
SUFFIX = " in the style of {}"


@pytest.fixture(scope="module")
def anchors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return {name: torch.rand(len(c), 3, 16, 16, generator=g) * 2 - 1 for name, c in TEMPLATES.items()}


def slow_ca(
    pipe: StableDiffusionPipeline, unet: Any, data: EraserData, suffix: str, seed: int, step: int, batch: int
) -> torch.Tensor:
    """The model-based loss of a step, sample by sample: an image, its own caption, t, noise, in this order."""
    frozen, terms = unet_with(pipe, {}), []
    for sample in samples(TASK.erase, batch, seed, step):
        anchor, g = TASK.mapping[sample.concept], sample.generator
        number = int(torch.randint(len(data.anchors[anchor]), (), generator=g))
        t = int(torch.randint(1000, (), generator=g))
        noise = torch.randn(4, 8, 8, generator=g)
        with torch.no_grad():
            image = data.anchors[anchor][number][None].to(pipe.vae.dtype)
            clean = pipe.vae.encode(image).latent_dist.mean[0] * pipe.vae.config.scaling_factor
        a, caption = pipe.scheduler.alphas_cumprod[t], data.anchor_captions[anchor][number]
        x = a**0.5 * clean + (1 - a) ** 0.5 * noise.to(clean)
        of_anchor = embed(pipe, caption.replace("{}", anchor))
        of_concept = embed(pipe, (caption + suffix).replace("{}", sample.concept))
        target = predicted(pipe, frozen, x, t, of_anchor).detach()
        terms.append(((predicted(pipe, unet, x, t, of_concept) - target) ** 2).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("captions", "suffix"), [(TEMPLATES, ""), (SCENES, SUFFIX)], ids=["instances", "styles"])
def test_the_loss_reads_each_image_with_its_own_caption(
    double: StableDiffusionPipeline, anchors: dict[str, torch.Tensor], captions: dict[str, list[str]], suffix: str
) -> None:
    data = EraserData(anchors=anchors, anchor_captions=captions)
    cfg = CaConfig(batch=5, own_captions=True, suffix=suffix)
    student = Student(double, cfg.parameters)
    objective = Ca(student, TASK, cfg, data, seed=4)
    shake(student)
    unet = unet_with(double, student.weights)
    for step in range(3):
        expected = slow_ca(double, unet, data, suffix, 4, step, cfg.batch)
        assert float(objective.loss(step).detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


def test_the_pairs_of_doco_are_those_of_ca(pipe: StableDiffusionPipeline, anchors: dict[str, torch.Tensor]) -> None:
    data = EraserData(anchors=anchors, anchor_captions=SCENES)
    values: dict[str, Any] = {"batch": 4, "own_captions": True, "suffix": SUFFIX, "parameters": "xattn-kv"}
    ca = Ca(Student(pipe, "xattn-kv"), TASK, CaConfig(**values), data, seed=1)
    doco = Doco(Student(pipe, "xattn-kv"), TASK, DocoConfig(**values), data, seed=1)
    for one, other in zip(ca.pairs(3), doco.pairs(3), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["ca", "doco"])
def test_refused_settings(name: str) -> None:
    build = eraser_config(name)
    for values, told in (
        ({"own_captions": True, "captions": ("the {}",)}, "captions = .*has no effect with own_captions: true"),
        ({"suffix": SUFFIX}, "suffix = .*has no effect without own_captions"),
        ({"own_captions": True, "suffix": " in oil"}, "suffix = ' in oil'"),
        ({"own_captions": True, "suffix": "in the style of {}"}, "begin with a space or a comma"),
    ):
        with pytest.raises(ConfigError, match=told):
            build(**values)


def test_images_without_captions_and_captions_without_a_place(
    pipe: StableDiffusionPipeline, anchors: dict[str, torch.Tensor]
) -> None:
    cfg = CaConfig(batch=2, own_captions=True)
    for captions, told in (
        ({}, "come without their prompts"),
        ({**TEMPLATES, "street": ["the {}"]}, "come without their prompts"),
        (SCENES, "must make one {}"),
    ):
        with pytest.raises(ValueError, match=told):
            method("ca").erase(pipe, TASK, cfg, EraserData(anchors=anchors, anchor_captions=captions), 0)


def job(base: Path, settings: dict[str, Any], inputs: dict[str, Path]) -> Job:
    named = {name: (folder / MANIFEST,) for name, folder in inputs.items()}
    model = {"path": str(base), "revision": None}
    return Job({"base": model, "seed": 0, "delta_precision": "fp32", **settings}, Path("out") / MANIFEST, named, "cpu")


def test_the_stage_samples_each_caption_and_the_eraser_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_pipeline().save_pretrained("base")
    Path("scenes.txt").write_text("the rose\n\na crab in the snow\n")
    settings = {
        "concepts": ("picture", "street", "sky"), "per_concept": 4, "template": "a photo of the {}",
        "captions": {"picture": "scenes.txt", "street": ["the {} at night"]},
        "sampling": {"steps": 1, "guidance": 1.0, "batch": 8, "size": 16},
    }  # fmt: skip
    with write_artefact(Path("anchors"), "anchor images", {}, {}, {}, {}) as folder:
        assert concept_images.make(job(Path("base"), settings, {}), folder)["images"] == 12
    rows = read_prompts([Path("anchors/images.parquet")])
    expected = ["the rose"] * 2 + ["a crab in the snow"] * 2 + ["the street at night"] * 4 + ["a photo of the sky"] * 4
    assert rows["prompt"].tolist() == expected
    data = eraser_data(job(Path("base"), {}, {"anchors": Path("anchors")}))
    assert data.anchor_captions == {
        "picture": ["the rose"] * 2 + ["a crab in the snow"] * 2,
        "street": ["the {} at night"] * 4,
        "sky": ["a photo of the {}"] * 4,
    }
    assert {name: len(images) for name, images in data.anchors.items()} == {"picture": 4, "street": 4, "sky": 4}


def with_captions(values: dict[str, Any], captions: Any, per_anchor: int = 4, **settings: Any) -> dict[str, Any]:
    """The study with captions of the anchor `ground`, and CA with settings."""
    values["concept_images"] |= {"anchor_captions": captions, "per_anchor": per_anchor}
    values["erasers"]["ca"] = {"steps": 1, **settings}
    return values


def test_the_job_has_the_captions_of_the_anchors_of_its_task(
    config: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    write_world(tmp_path)
    (tmp_path / "scenes.txt").write_text("a rose\na crab\n")
    of = with_captions(config, {"ground": "scenes.txt"}, own_captions=True, suffix=SUFFIX)
    study = make_study(of, tmp_path)
    assert job_settings.anchor_images(study, "pets")["captions"] == {"ground": "scenes.txt"}
    assert graph.anchor_images(study, "pets")["captions"] == ["scenes.txt"]
    assert "captions" not in job_settings.concept_images(study, "pets")
    of["concept_images"]["anchor_captions"] = {}
    of["erasers"]["ca"] = {"steps": 1}
    study = make_study(of, tmp_path)
    assert "captions" not in job_settings.anchor_images(study, "pets"), "earlier images have no such setting"
    assert "captions" not in graph.anchor_images(study, "pets")


@pytest.mark.parametrize(
    ("captions", "settings", "told"),
    [
        ({"ground": "none.txt"}, {}, r"concept_images\.anchor_captions\.ground = 'none.txt': no such file"),
        ({"ground": []}, {}, "must not be empty"),
        ({"ground": ["{} and {}"]}, {}, "once or not at all"),
        ({"ground": ["a rose", "a rose"]}, {}, "listed twice"),
        ({"ground": ["a rose", "a crab", "a bee"]}, {}, r"per_anchor = 4: must be a multiple of the 3 captions"),
        ({"ground": ["two boats"]}, {}, "'two boats': names 'boat', which task pets erases"),
        ({"sand": ["a rose"]}, {}, "'sand': is no mapping concept of the study"),
        ({"ground": ["a rose"]}, {"own_captions": True}, r"erasers\.ca\.suffix = '': with the caption 'a rose'"),
        ({}, {"own_captions": True, "suffix": SUFFIX}, "with the caption 'a photo of the {}'"),
    ],
)
def test_refused_captions(
    captions: Any,
    settings: dict[str, Any],
    told: str,
    config: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    write_world(tmp_path)
    with pytest.raises(ConfigError, match=told):
        make_study(with_captions(config, captions, **settings), tmp_path)


def test_the_command_erase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A style whose anchor's images show several scenes; unfit captions are refused before the base is loaded."""
    make_pipeline().save_pretrained(tmp_path / "base")
    task = {
        "name": "neon", "kind": "style", "erase": ["neon"], "retain": ["mosaic"], "mapping": "picture",
        "templates": ["the rose in the style of {}"], "seeds": {"erase": 1, "retain": 1},
    }  # fmt: skip
    (tmp_path / "neon.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "scenes.txt").write_text("the rose\nthe crab\n")

    def run(out: str, number: int, *more: str) -> int:
        return main.main([
            "erase", "--base", str(tmp_path / "base"), "--task", str(tmp_path / "neon.yaml"), "--eraser", "ca",
            "--set", "steps=1", "batch=2", "own_captions=true", *more, "--anchor-captions",
            str(tmp_path / "scenes.txt"), "--per-anchor", str(number), "--sampling", "steps=1", "guidance=1",
            "size=16", "--device", "cpu", "--out", str(tmp_path / out),
        ])  # fmt: skip

    assert run("one", 3, "suffix=' in the style of {}'") != 0
    assert "--per-anchor = 3: must be a multiple of the 2 captions" in capsys.readouterr().err
    assert run("two", 2) != 0
    assert "with the caption 'the rose' of an anchor's image" in capsys.readouterr().err
    assert run("three", 2, "suffix=in the style of {}") != 0
    assert "begin with a space or a comma, in quotes: ' in the style of {}'" in capsys.readouterr().err
    assert run("three", 2, "suffix=' in the style of {}'") == 0
    manifest = read_manifest(tmp_path / "three")
    assert manifest["parameters"]["settings"]["suffix"] == SUFFIX and "anchor_captions" in manifest["inputs"]

"""MACE's refinement alone: least squares, the same weights as MACE's first stage, and only the settings it reads."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from resurgence.config.task import Task
from resurgence.data.moments import second_moment
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.text import fill
from resurgence.erasers import EraserData
from resurgence.erasers.mace.method import MaceConfig, refine
from resurgence.erasers.mace.refinement_only import MaceRefinementConfig, erase
from slow import embed
from tiny import make_pipeline

KINDS = {
    "sd1": {"cross_attention_dim": 32, "heads": 2, "max_length": 24},
    "sd2": {"cross_attention_dim": 40, "heads": [2, 4], "pad": "zero", "prediction_type": "v_prediction"},
}
CAPTIONS = ("a photo of the {}", "the {} on the ground")
PRIOR = ["a portrait of the doctor", "an oil painting of the sky", ""]
TASK = Task(
    name="two", kind="object", erase=("ship", "old cat"), retain=("queen", "bird"),
    mapping={"ship": "wide street", "old cat": "person"}, templates=("a photo of the {}",),
    seeds={"erase": 1, "retain": 1},
)  # fmt: skip
CFG = MaceRefinementConfig(captions=CAPTIONS, train_preserve_scale=0.02, preserve_weight=2.5, lamb=0.4)
CHANGED = {
    "captions": ("the {}",), "train_preserve_scale": 0.1, "preserve_weight": 1.0, "lamb": 1.0,
    "scale_application": "official", "shared_words": "map",
}  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def pipe(request):
    return make_pipeline(**KINDS[request.param]).to(torch.float64)


@pytest.fixture(scope="module")
def data(pipe) -> EraserData:
    domain = [caption for concept in TASK.retain for caption in fill(CAPTIONS, concept)]
    return EraserData(prior=second_moment(pipe, PRIOR), domain=second_moment(pipe, domain))


def reference(pipe, weight: torch.Tensor) -> torch.Tensor:
    """The optimum of Eq. 3 for one projection by stacked least squares, one token at a time, for CFG."""
    design, values = [], []

    def add(scale: float, e: torch.Tensor, target: torch.Tensor) -> None:
        design.append(scale**0.5 * e)
        values.append(scale**0.5 * weight @ target)

    def count(text: str) -> int:
        return len(pipe.tokenizer(text, add_special_tokens=False).input_ids)

    for concept, aim in TASK.mapping.items():
        for caption in CAPTIONS:
            source, target = embed(pipe, caption.replace("{}", concept)), embed(pipe, caption.replace("{}", aim))
            start, shift = 1 + count(caption.split("{}")[0]), count(aim) - count(concept)
            for i in range(len(source)):
                if i < start:
                    add(1.0, source[i], target[i])
                elif i >= start + count(concept) and i + shift < len(source):
                    add(1.0, source[i], target[i + shift])
    for caption in PRIOR:
        for e in embed(pipe, caption):
            add(0.02, e, e)
    for concept in TASK.retain:
        for caption in CAPTIONS:
            for e in embed(pipe, caption.replace("{}", concept)):
                add(0.02 * 2.5, e, e)
    for e in torch.eye(weight.shape[1], dtype=torch.float64):
        add(0.4, e, e)
    return torch.linalg.lstsq(torch.stack(design), torch.stack(values)).solution.T


def test_edit_agrees_with_least_squares(pipe, data):
    delta = erase(pipe, TASK, CFG, data, seed=0)
    weights = projection_weights(pipe.unet)
    assert delta.keys() == {f"unet.{n}.weight" for n in weights}
    for name, weight in weights.items():
        change = reference(pipe, weight) - weight
        assert (delta[f"unet.{name}.weight"] - weight - change).norm() / change.norm() < 1e-6


ALIKE = {  # concept -> its mapping, the words in which both begin, and those in which they differ
    "ship": ("old ship", "", "", "old"), "old cat": ("old dog", "old", "cat", "dog"),
    "the dog": ("bird dog", "", "the", "bird"),
}  # fmt: skip
SHARED = dataclasses.replace(TASK, erase=tuple(ALIKE), mapping={c: row[0] for c, row in ALIKE.items()}, labels=())


@pytest.mark.parametrize("rule", ["skip", "map"])
def test_words_that_concept_and_mapping_share(pipe, rule):
    """Least squares over the tokens that the two captions share, with or without those of the concept."""
    cfg = MaceRefinementConfig(captions=CAPTIONS, train_preserve_scale=0.0, lamb=0.4, shared_words=rule)
    delta, design, targets = erase(pipe, SHARED, cfg, EraserData(), 0), [], []

    def count(text: str) -> int:
        return len(pipe.tokenizer(text, add_special_tokens=False).input_ids)

    for concept, (aim, begin, removed, added) in ALIKE.items():
        for caption in CAPTIONS:
            e, target = embed(pipe, caption.replace("{}", concept)), embed(pipe, caption.replace("{}", aim))
            place = 1 + count(caption.split("{}")[0])
            start, shift = place + count(begin), count(added) - count(removed)
            for i in range(len(e)):
                own = place <= i < place + count(concept)
                j = i if i < start else i + shift
                if start <= i < start + count(removed) or (own and rule == "skip") or j >= len(e):
                    continue
                design.append(e[i])
                targets.append(target[j])
    for name, weight in projection_weights(pipe.unet).items():
        eye = 0.4**0.5 * torch.eye(weight.shape[1], dtype=torch.float64)
        values = torch.cat([torch.stack(targets) @ weight.T, eye @ weight.T])
        expected = torch.linalg.lstsq(torch.cat([torch.stack(design), eye]), values).solution.T
        assert (delta[f"unet.{name}.weight"] - expected).norm() < 1e-6 * (expected - weight).norm()


@pytest.mark.parametrize("key", [None, *CHANGED])
def test_it_is_the_first_stage_of_mace(pipe, data, key):
    """Bit for bit, whatever the settings; and each setting has an effect."""
    cfg = CFG if key is None else dataclasses.replace(CFG, **{key: CHANGED[key]})
    delta = erase(pipe, SHARED, cfg, data, seed=3)
    refined, _ = refine(pipe, SHARED, MaceConfig(**dataclasses.asdict(cfg), steps=3, fusion="constrained"), data)
    assert delta.keys() == refined.keys() and all(torch.equal(w, refined[name]) for name, w in delta.items())
    unchanged = erase(pipe, SHARED, CFG, data, seed=3)
    assert all(torch.equal(w, unchanged[name]) for name, w in delta.items()) == (key is None)


def test_the_settings_are_those_that_the_refinement_reads(pipe, data):
    read = set()

    class Seen(MaceConfig):
        def __getattribute__(self, name: str):
            read.add(name)
            return super().__getattribute__(name)

    cfg = Seen(**dataclasses.asdict(CFG))
    read.clear()
    refine(pipe, TASK, cfg, data)
    own = {f.name: f.default for f in dataclasses.fields(MaceRefinementConfig)}
    whole = {f.name: f.default for f in dataclasses.fields(MaceConfig)}
    assert read & whole.keys() == own.keys()
    assert own == {name: whole[name] for name in own}  # and MACE's defaults
    assert MaceRefinementConfig.needs == {"prior", "domain"}


def test_missing_corpora(pipe):
    with pytest.raises(ValueError, match="second moment of the prior corpus is missing"):
        erase(pipe, TASK, CFG, EraserData(), 0)
    without = dataclasses.replace(CFG, train_preserve_scale=0.0)  # no corpus, no need of one
    assert len(erase(pipe, TASK, without, EraserData(), 0)) == len(projection_weights(pipe.unet))


def test_report_and_untouched_pipeline(pipe, data, tmp_path):
    before = {n: p.clone() for n, p in copy.deepcopy(pipe.unet.state_dict()).items()}
    delta = erase(pipe, TASK, CFG, data, 0, tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.state_dict().items())
    report = json.loads((tmp_path / "closed_form.json").read_text())["refinement"]
    assert report["condition"] > 1
    for name, w in projection_weights(pipe.unet).items():
        change = float((delta[f"unet.{name}.weight"] - w).norm() / w.norm())
        assert report["relative_change"][name] == pytest.approx(change, rel=1e-6)

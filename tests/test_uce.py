"""UCE against least squares, row by row as the two published scripts choose their rows."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from resurgence.config.fields import build
from resurgence.config.task import Task
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.text import Encoder, fill
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.uce import UceConfig, erase, last_token, subject_rows
from tiny import make_pipeline

KINDS = {
    "sd1": {"cross_attention_dim": 32, "heads": 2, "max_length": 32},
    "sd2": {"cross_attention_dim": 40, "heads": [2, 4], "pad": "zero", "prediction_type": "v_prediction"},
}
TASK = Task(
    name="two", kind="person", erase=("ship", "old cat"), retain=("queen", "bird", "sky above a street"),
    mapping={"ship": "a wide street", "old cat": "person"}, templates=("a photo of the {}",),
    seeds={"erase": 1, "retain": 1},
)  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def pipe(request):
    return make_pipeline(**KINDS[request.param])


@torch.no_grad()
def embed(pipe, caption: str) -> tuple[torch.Tensor, int]:
    """Rows of a caption in float64, and the position of its last subject token as the scripts find it."""
    inputs = pipe.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt")
    rows = copy.deepcopy(pipe.text_encoder).double()(inputs.input_ids)[0][0]
    return rows, len(pipe.tokenizer(caption).input_ids) - 2


def reference(pipe, rule: str, weight: torch.Tensor, lamb: float, s_e: float, s_p: float, aims: dict) -> torch.Tensor:
    """The optimum of Eq. 7 for one projection by stacked least squares, one token row at a time."""
    design, values = [], []

    def add(scale: float, e: torch.Tensor, target: torch.Tensor) -> None:
        design.append(scale**0.5 * e)
        values.append(scale**0.5 * weight @ target)

    for concept in TASK.erase:
        (e, i), (aim, j) = embed(pipe, concept), embed(pipe, aims[concept])
        for k in range(1 if rule == "last" else len(e)):
            if i + k < len(e) and j + k < len(e):
                add(s_e, e[i + k], aim[j + k])
    for concept in TASK.retain:
        e, i = embed(pipe, concept)
        for row in [e[i]] if rule == "last" else e:
            add(s_p, row, row)
    for row in torch.eye(weight.shape[1], dtype=torch.float64):
        add(lamb, row, row)
    return torch.linalg.lstsq(torch.stack(design), torch.stack(values)).solution.T


@pytest.mark.parametrize("rule", ["last-to-end", "last"])
@pytest.mark.parametrize("destination", [None, " ", "the sky"])
def test_edit_agrees_with_least_squares(pipe, rule, destination):
    double = copy.deepcopy(pipe).to(torch.float64)
    cfg = UceConfig(tokens=rule, destination=destination, lamb=0.3, erase_scale=1.5, preserve_scale=0.7)
    delta = erase(double, TASK, cfg, EraserData(), seed=0)
    aims = TASK.mapping if destination is None else dict.fromkeys(TASK.erase, destination)
    assert delta.keys() == {f"unet.{n}.weight" for n in projection_weights(double.unet)}
    for name, weight in projection_weights(double.unet).items():
        expected = reference(double, rule, weight, 0.3, 1.5, 0.7, aims)
        change = delta[f"unet.{name}.weight"] - weight
        assert (change - (expected - weight)).norm() / (expected - weight).norm() < 1e-6


def test_automatic_preserve_scale(pipe):
    for retain, scale in ((("queen", "bird", "sky"), 1 / 3), (tuple(f"the dog {i}" for i in range(12)), 0.1)):
        task = dataclasses.replace(TASK, retain=retain, labels=())
        automatic = erase(pipe, task, UceConfig(), EraserData(), 0)
        stated = erase(pipe, task, UceConfig(preserve_scale=scale), EraserData(), 0)
        other = erase(pipe, task, UceConfig(preserve_scale=2 * scale), EraserData(), 0)
        assert all(torch.equal(w, stated[n]) for n, w in automatic.items())
        assert not all(torch.equal(w, other[n]) for n, w in automatic.items())


def test_strong_edit_maps_the_concept_and_keeps_the_retained(pipe):
    """With hardly any regularisation W' e = W e' at the last subject token, and retained tokens stay."""
    double = copy.deepcopy(pipe).to(torch.float64)
    delta = erase(double, TASK, UceConfig(tokens="last", lamb=1e-9, preserve_scale=1.0), EraserData(), 0)
    for name, w in projection_weights(double.unet).items():
        edited = delta[f"unet.{name}.weight"]
        for concept in TASK.erase:
            (e, i), (aim, j) = embed(double, concept), embed(double, TASK.mapping[concept])
            assert torch.allclose(edited @ e[i], w @ aim[j], atol=1e-5)
        for concept in TASK.retain:
            e, i = embed(double, concept)
            assert torch.allclose(edited @ e[i], w @ e[i], atol=1e-5)


def test_last_token(pipe):
    tokenizer = pipe.tokenizer
    assert last_token(tokenizer, "{}", "ship") == len(tokenizer("ship").input_ids) - 2
    assert last_token(tokenizer, "a {} on the ground", "ship") == len(tokenizer("a ship").input_ids) - 2
    assert last_token(tokenizer, "{}", " ") == last_token(tokenizer, "{}", "") == 0  # the beginning token
    assert last_token(tokenizer, "a photo of {}", " ") == len(tokenizer("a photo of").input_ids) - 2


def test_subject_rows():
    a, b = torch.arange(6.0)[:, None], torch.arange(10.0, 16.0)[:, None]
    assert [x.flatten().tolist() for x in subject_rows(a, b, 2, 4, "last-to-end")] == [[2, 3], [14, 15]]
    assert [x.flatten().tolist() for x in subject_rows(a, b, 4, 2, "last-to-end")] == [[4, 5], [12, 13]]
    assert [x.flatten().tolist() for x in subject_rows(a, b, 2, 4, "last")] == [[2], [14]]


def test_report_and_untouched_pipeline(pipe, tmp_path):
    before = {n: p.clone() for n, p in pipe.unet.state_dict().items()}
    delta = erase(pipe, TASK, UceConfig(captions=""), EraserData(), 0, tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.state_dict().items())
    repeated = erase(pipe, TASK, UceConfig(captions=""), EraserData(), 9)
    assert all(torch.equal(w, repeated[n]) for n, w in delta.items())
    report = json.loads((tmp_path / "closed_form.json").read_text())["edit"]
    assert report["condition"] > 1
    for name, w in projection_weights(pipe.unet).items():
        change = float((delta[f"unet.{name}.weight"] - w).norm() / w.norm())
        assert report["relative_change"][name] == pytest.approx(change, rel=1e-4)


def test_no_unique_solution_names_lamb(pipe):
    cfg = UceConfig(tokens="last", lamb=0.0)
    with pytest.raises(ValueError, match=r"lamb = 0, .*condition number.*raise lamb"):
        erase(pipe, TASK, cfg, EraserData(), 0)


@pytest.mark.parametrize(
    "bad",
    [{"lamb": -0.1}, {"erase_scale": 0}, {"preserve_scale": -1}, {"tokens": "all"}, {"scale": 1}, {"lamb": "5e-1"}],
)
def test_bad_settings_name_the_key(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        build(UceConfig, bad, "uce")


@pytest.mark.parametrize("batch", [1, 3, 5, 64])
@pytest.mark.parametrize("templates", [("{}",), ("a photo of {}", "the {} at night", "{}")])
def test_batches_that_run_on_embed_as_concept_by_concept(pipe, templates: tuple[str, ...], batch: int) -> None:
    words = ["ship", "old cat", "queen", "sky above a street"]
    found = list(Encoder(pipe, batch=batch).each(templates, words))
    assert len(found) == len(words)
    for word, rows in zip(words, found, strict=True):
        own = torch.stack([embed(pipe, caption)[0] for caption in fill(templates, word)])
        torch.testing.assert_close(rows, own, rtol=1e-12, atol=1e-12)
    assert list(Encoder(pipe, batch=batch).each(templates, [])) == []

"""UCE against least squares, row by row as the two published scripts choose their rows."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

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


def reference(pipe, cfg: UceConfig, weight: torch.Tensor, s_p: float, aims: dict) -> torch.Tensor:
    """The optimum of Eq. 7 for one projection by stacked least squares, one token row at a time."""
    rule, lamb, s_e = cfg.tokens, cfg.lamb, cfg.erase_scale
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
    for row in embed(pipe, "")[0] if cfg.keep_empty else []:
        add(s_p, row, row)
    for row in torch.eye(weight.shape[1], dtype=torch.float64):
        add(lamb, row, row)
    return torch.linalg.lstsq(torch.stack(design), torch.stack(values)).solution.T


@pytest.mark.parametrize("rule", ["last-to-end", "last"])
@pytest.mark.parametrize(("destination", "keep_empty"), [(None, True), (" ", True), ("the sky", False)])
def test_edit_agrees_with_least_squares(pipe, rule, destination, keep_empty):
    double = copy.deepcopy(pipe).to(torch.float64)
    cfg = UceConfig(
        tokens=rule, destination=destination, lamb=0.3, erase_scale=1.5, preserve_scale=0.7, keep_empty=keep_empty
    )
    delta = erase(double, TASK, cfg, EraserData(), seed=0)
    aims = TASK.mapping if destination is None else dict.fromkeys(TASK.erase, destination)
    assert delta.keys() == {f"unet.{n}.weight" for n in projection_weights(double.unet)}
    for name, weight in projection_weights(double.unet).items():
        expected = reference(double, cfg, weight, 0.7, aims)
        change = delta[f"unet.{name}.weight"] - weight
        assert (change - (expected - weight)).norm() / (expected - weight).norm() < 1e-6


def test_defaults_are_the_first_script(pipe):
    """Its system: S = s_e sum e e^T + s_p (sum_keep e e^T + E0^T E0) + lamb I with s_p = max(0.1, 1 / (K + 1))."""
    double = copy.deepcopy(pipe).to(torch.float64)
    delta = erase(double, TASK, UceConfig(), EraserData(), 0)
    gram = 0.5 * torch.eye(double.text_encoder.config.hidden_size, dtype=torch.float64)
    values = gram.clone()
    for concept, aim in TASK.mapping.items():
        (e, i), (target, j) = embed(double, concept), embed(double, aim)
        for k in range(len(e) - max(i, j)):
            gram += torch.outer(e[i + k], e[i + k])
            values += torch.outer(target[j + k], e[i + k])
    captions = [*TASK.retain, ""]
    for caption in captions:
        for row in embed(double, caption)[0]:
            gram += max(0.1, 1 / len(captions)) * torch.outer(row, row)
            values += max(0.1, 1 / len(captions)) * torch.outer(row, row)
    for name, weight in projection_weights(double.unet).items():
        change = weight @ values @ torch.linalg.inv(gram) - weight
        assert (delta[f"unet.{name}.weight"] - weight - change).norm() < 1e-6 * change.norm()


def test_retaining_the_empty_caption_lowers_its_change(pipe):
    double = copy.deepcopy(pipe).to(torch.float64)
    empty, moved = embed(double, "")[0], {}
    for keep_empty in (True, False):
        delta = erase(double, TASK, UceConfig(preserve_scale=1.0, keep_empty=keep_empty), EraserData(), 0)
        weights = projection_weights(double.unet)
        moved[keep_empty] = sum(
            float(((delta[f"unet.{name}.weight"] - w) @ empty.T).square().sum()) for name, w in weights.items()
        )
    assert 0 < moved[True] < 0.8 * moved[False]


@pytest.mark.parametrize(
    ("retain", "keep_empty", "scale"),
    [
        (("queen", "bird", "sky"), True, 1 / 4), (("queen", "bird", "sky"), False, 1 / 3),
        (tuple(f"the dog {i}" for i in range(12)), True, 0.1),
    ],
)  # fmt: skip
def test_automatic_preserve_scale(pipe, retain, keep_empty, scale):
    task = dataclasses.replace(TASK, retain=retain, labels=())
    automatic, stated, other = (
        erase(pipe, task, UceConfig(keep_empty=keep_empty, preserve_scale=s), EraserData(), 0)
        for s in (None, scale, 2 * scale)
    )
    assert all(torch.equal(w, stated[n]) for n, w in automatic.items())
    assert not all(torch.equal(w, other[n]) for n, w in automatic.items())


def test_strong_edit_maps_the_concept_and_keeps_the_retained(pipe):
    """With hardly any regularisation W' e = W e' at the last subject token, and retained tokens stay."""
    double = copy.deepcopy(pipe).to(torch.float64)
    cfg = UceConfig(tokens="last", lamb=1e-9, preserve_scale=1.0, keep_empty=False)
    delta = erase(double, TASK, cfg, EraserData(), 0)
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
    cfg = UceConfig(tokens="last", lamb=0.0, keep_empty=False)
    with pytest.raises(ValueError, match=r"lamb = 0, .*condition number.*raise lamb"):
        erase(pipe, TASK, cfg, EraserData(), 0)


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

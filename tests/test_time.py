"""TIME against least squares, with tokens paired word by word; and its pairing by hand."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from resurgence.config.task import Task
from resurgence.diffusion.attention import projection_weights
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form.time import TimeConfig, aligned, corresponding, erase, subsequence
from slow import embed
from tiny import make_pipeline

KINDS = {
    "sd1": {"cross_attention_dim": 32, "heads": 2, "max_length": 24},
    "sd2": {"cross_attention_dim": 40, "heads": [2, 4], "pad": "zero", "prediction_type": "v_prediction"},
}
# a longer destination, a shorter one, and the paper's kind, which holds the source
TASK = Task(
    name="three", kind="person", erase=("ship", "old cat", "bird"), retain=("queen", "dog"),
    mapping={"ship": "a wide street", "old cat": "person", "bird": "official bird"}, templates=("a photo of the {}",),
    seeds={"erase": 1, "retain": 1},
)  # fmt: skip
CAPTIONS = ("{}", "the {} on the ground", "a sketch of the {}")


@pytest.fixture(scope="module", params=list(KINDS))
def pipe(request):
    return make_pipeline(**KINDS[request.param])


@pytest.fixture(scope="module")
def double(pipe):
    return copy.deepcopy(pipe).to(torch.float64)


def word_tokens(pipe, text: str) -> int:
    return len(pipe.tokenizer(text, add_special_tokens=False).input_ids)


def pairs(pipe, template: str, concept: str, aim: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(e, e') of every position, from the words: the same words pair, then the two fillings from their last token."""
    source, target = embed(pipe, template.replace("{}", concept)), embed(pipe, template.replace("{}", aim))
    start = 1 + word_tokens(pipe, template.split("{}")[0])
    own, other, found = word_tokens(pipe, concept), word_tokens(pipe, aim), []
    for i, e in enumerate(source):
        if i < start:
            j = i
        elif i < start + own:
            j = max(start, start + other - (start + own - i))
        else:
            j = min(i - own + other, len(target) - 1)
        found.append((e, target[j]))
    return found


def reference(pipe, weight: torch.Tensor, captions: tuple[str, ...], lamb: float) -> torch.Tensor:
    """The optimum for one projection by stacked least squares, one token at a time."""
    design, values = [], []
    for concept in TASK.erase:
        for template in captions:
            for e, e_target in pairs(pipe, template, concept, TASK.mapping[concept]):
                design.append(e)
                values.append(weight @ e_target)
    for row in torch.eye(weight.shape[1], dtype=torch.float64):
        design.append(lamb**0.5 * row)
        values.append(lamb**0.5 * weight @ row)
    return torch.linalg.lstsq(torch.stack(design), torch.stack(values)).solution.T


@pytest.mark.parametrize(("captions", "lamb"), [(("{}",), 0.1), (CAPTIONS, 0.1), (CAPTIONS, 7.0)])
def test_edit_agrees_with_least_squares(double, captions, lamb):
    delta = erase(double, TASK, TimeConfig(lamb=lamb, captions=captions), EraserData(), seed=0)
    weights = projection_weights(double.unet)
    assert delta.keys() == {f"unet.{n}.weight" for n in weights}
    for name, weight in weights.items():
        change = reference(double, weight, captions, lamb) - weight
        assert (delta[f"unet.{name}.weight"] - weight - change).norm() / change.norm() < 1e-6


def test_values_alone(double):
    both = erase(double, TASK, TimeConfig(), EraserData(), 0)
    values = erase(double, TASK, TimeConfig(keys=False), EraserData(), 0)
    assert values.keys() == {name for name in both if name.endswith("to_v.weight")} != both.keys()
    assert all(torch.equal(weight, both[name]) for name, weight in values.items())


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        # the paper's case, B a pack of roses E -> B a pack of blue roses E: blue is passed over
        ([0, 1, 2, 3, 9], [0, 1, 2, 5, 3, 9], [0, 1, 2, 4, 5, 6, 7, 7]),
        # words added in two places
        ([0, 1, 3, 9], [0, 5, 1, 6, 3, 9], [0, 2, 4, 5, 6, 7, 7, 7]),
        # one concept for another of the same length
        ([0, 1, 7, 9], [0, 1, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7]),
        # a longer destination: the last token counts; padding shifts and ends at the last position
        ([0, 1, 7, 2, 9], [0, 1, 5, 6, 2, 9], [0, 1, 3, 4, 5, 6, 7, 7]),
        # a longer concept: from the last token, what is left goes to the first
        ([0, 1, 5, 6, 7, 9], [0, 1, 3, 4, 9], [0, 1, 2, 2, 3, 4, 5, 6]),
        # the destination is part of the concept: what is left goes to the token behind it
        ([0, 1, 7, 8, 9], [0, 1, 8, 9], [0, 1, 2, 2, 3, 4, 5, 6]),
    ],
)
def test_corresponding_by_hand(source, target, expected):
    assert corresponding(source, target, 8) == expected


def test_subsequence_and_aligned():
    assert subsequence([1, 2, 2], [1, 2, 3, 2]) == [0, 1, 3]
    assert subsequence([2, 1], [1, 2]) is None
    assert aligned([0, 1, 1, 9], [0, 1, 9]) == [0, 1, 2, 2]  # beginning and end do not overlap


def test_the_same_tokens_change_nothing(double):
    """A destination that the tokenizer reads as the concept itself leaves the weights as they are."""
    same = dataclasses.replace(TASK, erase=("old-cat",), mapping={"old-cat": "old - cat"}, labels=())
    delta = erase(double, same, TimeConfig(), EraserData(), 0)
    for name, weight in projection_weights(double.unet).items():
        assert torch.equal(delta[f"unet.{name}.weight"], weight)


def test_lamb_ties_to_the_base(pipe):
    weights = projection_weights(pipe.unet)

    def change(lamb: float) -> float:
        delta = erase(pipe, TASK, TimeConfig(lamb=lamb), EraserData(), 0)
        return sum(float((delta[f"unet.{name}.weight"] - w).norm()) for name, w in weights.items())

    changes = [change(lamb) for lamb in (0.1, 10.0, 1000.0, 1e8)]
    assert changes == sorted(changes, reverse=True) and changes[-1] < 1e-4 * changes[0]


def test_report_and_untouched_pipeline(pipe, tmp_path):
    before = {n: p.clone() for n, p in pipe.unet.state_dict().items()}
    delta = erase(pipe, TASK, TimeConfig(), EraserData(), 0, tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.state_dict().items())
    repeated = erase(pipe, TASK, TimeConfig(), EraserData(), 9)
    assert all(torch.equal(w, repeated[n]) for n, w in delta.items())  # nothing is drawn
    report = json.loads((tmp_path / "closed_form.json").read_text())["edit"]
    assert report["condition"] > 1
    for name, w in projection_weights(pipe.unet).items():
        change = float((delta[f"unet.{name}.weight"] - w).norm() / w.norm())
        assert report["relative_change"][name] == pytest.approx(change, rel=1e-4)


def test_a_caption_without_the_concept_is_an_error(pipe):
    with pytest.raises(ValueError, match="'ship' do not occur in caption 'spaceships'"):
        erase(pipe, TASK, TimeConfig(captions=("space{}s",)), EraserData(), 0)


def test_no_unique_solution_names_lamb(pipe):
    one = dataclasses.replace(TASK, erase=("ship",), mapping={"ship": "street"}, labels=())
    with pytest.raises(ValueError, match=r"lamb = 0: .*condition number.*raise lamb"):
        erase(pipe, one, TimeConfig(lamb=0.0, captions=("{}",)), EraserData(), 0)

"""Closed-form edits against least squares, cvxpy and their own invariants."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch

from resurgence.diffusion.text import CAPTIONS, STYLE_CAPTIONS, concept_positions, load_captions, token_ids
from resurgence.erasers.closed_form.solver import (
    Edit,
    apply_edit,
    factorise,
    paired_rows,
    relative_change,
    right_divide,
    shared_edit,
    system,
)
from slow import relative
from tiny import make_tokenizer


def random_problem(d: int = 6, rows: int = 9, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Embeddings e, e' and a corpus, all (rows, d) float64, and a projection (4, d)."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=g, dtype=torch.float64) for n in (rows, rows, 3 * rows, 4))


@pytest.mark.parametrize(
    ("source", "target", "concept", "expected"),
    [
        # B a b X E | B a b Y E, length 8: prefix, X skipped, E, padding
        ([0, 1, 2, 7, 9], [0, 1, 2, 8, 9], [3], ([0, 1, 2, 4, 5, 6, 7], [0, 1, 2, 4, 5, 6, 7])),
        # the mapping is longer: E to E, padding counted from E and cut to the shorter tail
        ([0, 1, 7, 9], [0, 1, 8, 8, 8, 9], [2], ([0, 1, 3, 4, 5], [0, 1, 5, 6, 7])),
        # the mapping is shorter, words behind the concept
        ([0, 6, 7, 3, 9], [0, 8, 3, 9], [1, 2], ([0, 3, 4, 5, 6, 7], [0, 2, 3, 4, 5, 6])),
        # concept and mapping share a word: the concept's own token is skipped though it co-occurs
        ([0, 5, 7, 9], [0, 5, 8, 9], [1, 2], ([0, 3, 4, 5, 6, 7], [0, 3, 4, 5, 6, 7])),
        # the mapping repeats a word: prefix and suffix must not overlap
        ([0, 1, 5, 9], [0, 1, 1, 5, 9], [2], ([0, 1, 3, 4, 5, 6], [0, 1, 4, 5, 6, 7])),
    ],
)
def test_paired_rows_by_hand(source, target, concept, expected):
    assert paired_rows(source, target, concept, 8) == expected


@pytest.mark.parametrize("pad", ["eos", "zero"])
@pytest.mark.parametrize("length", [24, 77])
def test_pairs_of_real_captions_agree_token_by_token(pad, length):
    tokenizer = make_tokenizer(pad, length)
    source, target = "a sketch of the queen in an official photo", "a sketch of the old man in an official photo"
    positions = concept_positions(tokenizer, source, "queen")
    rows, aims = paired_rows(token_ids(tokenizer, source), token_ids(tokenizer, target), positions, length)
    padded = tokenizer([source, target], padding="max_length").input_ids
    assert [padded[0][i] for i in rows] == [padded[1][j] for j in aims]  # co-occurring, padding included
    n, m = len(token_ids(tokenizer, source)), len(token_ids(tokenizer, target))
    assert m > n
    assert set(rows) == set(range(length - (m - n))) - set(positions)
    assert (n - 1, m - 1) in set(zip(rows, aims, strict=True))  # the end tokens


def test_edit_is_the_least_squares_optimum():
    e, e_target, corpus, w = random_problem()
    lamb, scale = 0.3, 0.2
    matrix = system(e.T @ e, lamb, scale, corpus.T @ corpus)
    edit = shared_edit((e_target - e).T @ e, matrix, "")
    edited = apply_edit({"w": w}, edit)["w"]
    # the same minimum as one stacked least-squares problem, row by row of W'
    design = torch.cat([e, scale**0.5 * corpus, lamb**0.5 * torch.eye(6, dtype=torch.float64)])
    aims = torch.cat([e_target @ w.T, scale**0.5 * corpus @ w.T, lamb**0.5 * w.T])
    assert relative(edited, torch.linalg.lstsq(design, aims).solution.T) < 1e-10


def test_edit_agrees_with_cvxpy():
    e, e_target, corpus, w = (x.numpy() for x in random_problem(seed=1))
    variable = cp.Variable(w.shape)
    objective = (
        cp.sum_squares(e @ variable.T - e_target @ w.T)
        + 0.2 * cp.sum_squares(corpus @ (variable - w).T)
        + 0.3 * cp.sum_squares(variable - w)
    )
    cp.Problem(cp.Minimize(objective)).solve(solver=cp.CLARABEL)
    e, e_target, corpus, w = random_problem(seed=1)
    matrix = system(e.T @ e, 0.3, 0.2, corpus.T @ corpus)
    edited = apply_edit({"w": w}, shared_edit((e_target - e).T @ e, matrix, ""))["w"]
    assert relative(edited, torch.as_tensor(variable.value)) < 1e-6


def test_nothing_to_change_changes_nothing():
    e, _, _, w = random_problem()
    edit = shared_edit(torch.zeros(6, 6, dtype=torch.float64), system(e.T @ e, 1e-9), "")
    for weight in (w, w.float(), w.half()):
        assert torch.equal(apply_edit({"w": weight}, edit)["w"], weight)


def test_weights_keep_their_precision_and_changes_are_measured():
    w = torch.eye(3)
    edit = Edit(0.5 * torch.eye(3, dtype=torch.float64), 1.0)
    after = apply_edit({"w": w}, edit)
    assert after["w"].dtype == torch.float32
    assert torch.equal(after["w"], 1.5 * w)
    assert relative_change({"w": w}, after) == {"w": pytest.approx(0.5)}


def test_right_divide_and_condition_number():
    e, *_ = random_problem()
    matrix = e.T @ e
    factor = factorise(matrix, "")
    assert torch.allclose(right_divide(e, factor) @ matrix, e)
    assert factor.condition == pytest.approx(float(torch.linalg.cond(matrix)), rel=1e-9)


def test_singular_system_names_settings_and_condition_number():
    e = torch.randn(3, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"lamb = 0, scale = 1e-08.*condition number.*raise lamb"):
        factorise(system(e.T @ e, 0.0), "lamb = 0, scale = 1e-08")


def test_missing_or_foreign_moment_is_an_error():
    gram = torch.eye(4, dtype=torch.float64)
    for moment in (None, torch.eye(5, dtype=torch.float64)):
        with pytest.raises(ValueError, match="second moment"):
            system(gram, 1.0, 0.5, moment)
    assert torch.equal(system(gram, 1.0, 0.0, None), 2 * gram)


def test_built_in_captions():
    for captions in (CAPTIONS, STYLE_CAPTIONS):
        assert len(set(captions)) == 30
        assert load_captions(captions, "object") == captions
    assert load_captions("", "style") == STYLE_CAPTIONS
    assert load_captions("", "person") == CAPTIONS


def test_captions_from_a_file(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a photo of the {}\n\nthe {}\n")
    assert load_captions(str(path), "person") == ("a photo of the {}", "the {}")
    path.write_text("a photo\n")
    with pytest.raises(ValueError, match="'a photo': must hold"):
        load_captions(str(path), "person")
    path.write_text("")
    with pytest.raises(ValueError, match="empty"):
        load_captions(str(path), "person")
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        load_captions("nothing.txt", "person")


def test_concept_positions():
    tokenizer = make_tokenizer("eos", 24)
    ids = token_ids(tokenizer, "a photo of the ship")
    assert concept_positions(tokenizer, "a photo of the ship", "ship") == list(range(5, len(ids) - 1))
    first, *_ = concept_positions(tokenizer, "the ship and the ship", "ship")
    assert first == 2
    assert len(concept_positions(tokenizer, "the ship and the ship", "Ship")) == 2 * (len(ids) - 6)


def test_unfindable_concept_names_concept_and_caption():
    tokenizer = make_tokenizer("eos", 24)
    with pytest.raises(ValueError, match=r"'cat' do not occur in caption 'the cats'"):
        concept_positions(tokenizer, "the cats", "cat")
    with pytest.raises(ValueError, match="reads 24"):
        concept_positions(tokenizer, "the cat " * 20, "cat")

"""RECE against least squares for each projection and each derived embedding, edit after edit."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from resurgence.config.task import Task
from resurgence.diffusion.attention import projection_weights
from resurgence.erasers import EraserData
from resurgence.erasers.closed_form import uce
from resurgence.erasers.closed_form.rece import ReceConfig, derivation, erase
from slow import embed_word as embed
from tiny import make_pipeline

KINDS = {
    "sd1": {"cross_attention_dim": 32, "heads": 2, "max_length": 20},
    "sd2": {
        "cross_attention_dim": 40, "heads": [2, 4], "pad": "zero", "prediction_type": "v_prediction", "max_length": 24,
    },
}  # fmt: skip
TASK = Task(
    name="two", kind="person", erase=("ship", "old cat"), retain=("queen", "bird"),
    mapping={"ship": "a wide street", "old cat": "person"}, templates=("a photo of the {}",),
    seeds={"erase": 1, "retain": 1},
)  # fmt: skip
CFG = ReceConfig(
    lamb=0.3, erase_scale=1.5, preserve_scale=0.7, captions=("{}", "a sketch of the {}"), epochs=2, mu=0.05,
    epoch_lamb=0.2, epoch_preserve_scale=0.4,
)  # fmt: skip


def changed(**values) -> ReceConfig:
    return ReceConfig(**{**vars(CFG), **values})


@pytest.fixture(scope="module", params=list(KINDS))
def pipe(request):
    return make_pipeline(**KINDS[request.param])


@pytest.fixture(scope="module")
def double(pipe):
    return copy.deepcopy(pipe).to(torch.float64)


def pairs(pipe, cfg: ReceConfig, rule: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(e, e of the destination), one token at a time."""
    found = []
    for concept in TASK.erase:
        for template in cfg.captions:
            aim = TASK.mapping[concept] if cfg.destination is None else cfg.destination
            (e, i), (target, j) = embed(pipe, template, concept), embed(pipe, template, aim)
            if rule == "all":
                i = j = 0
            for k in range(1 if rule == "last" else len(e)):
                if i + k < len(e) and j + k < len(e):
                    found.append((e[i + k], target[j + k]))
    return found


def kept(pipe, cfg: ReceConfig, rule: str) -> list[torch.Tensor]:
    rows = []
    for concept in TASK.retain:
        for template in cfg.captions:
            e, i = embed(pipe, template, concept)
            rows += [e[i]] if rule == "last" else list(e)
    return rows


def least_squares(terms: list[tuple[float, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """argmin over X of sum scale ||X e - value||^2, from (scale, e, value)."""
    design = torch.stack([scale**0.5 * e for scale, e, _ in terms])
    return torch.linalg.lstsq(design, torch.stack([scale**0.5 * v for scale, _, v in terms])).solution.T


def derived(edited: list[torch.Tensor], base: list[torch.Tensor], e: torch.Tensor, mu: float) -> torch.Tensor:
    """argmin over e' of sum ||W' e' - W e||^2 + mu ||e'||^2, all projections stacked."""
    eye = torch.eye(len(e), dtype=e.dtype)
    values = torch.cat([*(w @ e for w in base), torch.zeros_like(e)])
    return torch.linalg.lstsq(torch.cat([*edited, mu**0.5 * eye]), values[:, None]).solution[:, 0]


def reference(pipe, cfg: ReceConfig) -> dict[str, torch.Tensor]:
    """RECE as written: every projection edited by itself, every e' solved by itself."""
    weights = projection_weights(pipe.unet)
    eye = torch.eye(next(iter(weights.values())).shape[1], dtype=torch.float64)
    known, rows = pairs(pipe, cfg, cfg.tokens), kept(pipe, cfg, cfg.tokens)
    if cfg.keep_empty:
        rows += list(embed(pipe, "{}", "")[0])
    now = {
        name: least_squares(
            [(cfg.erase_scale, e, w @ target) for e, target in known]
            + [(cfg.preserve_scale, e, w @ e) for e in rows]
            + [(cfg.lamb, e, w @ e) for e in eye]
        )
        for name, w in weights.items()
    }
    rows = kept(pipe, cfg, "all") + list(embed(pipe, "{}", "")[0])
    for _ in range(cfg.epochs):
        order = list(weights)
        edited, base = [now[n] for n in order], [weights[n] for n in order]
        new = [(derived(edited, base, e, cfg.mu), target) for e, target in pairs(pipe, cfg, cfg.epoch_tokens)]
        known = known + new if cfg.accumulate else new
        last = now
        now = {}
        for name, w in last.items():
            source = w if cfg.targets == "current" else weights[name]
            terms = [(cfg.erase_scale, e, source @ target) for e, target in known]
            terms += [(cfg.epoch_preserve_scale, e, source @ e) for e in rows]
            now[name] = least_squares(terms + [(cfg.epoch_lamb, e, w @ e) for e in eye])
    return now


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokens": "last", "epoch_tokens": "last-to-end", "epochs": 1},
        {"destination": " ", "captions": ("{}",), "epochs": 3},
        {"epoch_tokens": "last"},
        {"targets": "original"},
        {"keep_empty": False},
        {"accumulate": True},
        {"targets": "original", "accumulate": True, "epochs": 3},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_edits_agree_with_least_squares(double, settings):
    cfg = changed(**settings)
    delta, expected = erase(double, TASK, cfg, EraserData(), seed=0), reference(double, cfg)
    assert delta.keys() == {f"unet.{name}.weight" for name in expected}
    for name, weight in projection_weights(double.unet).items():
        change = expected[name] - weight
        assert (delta[f"unet.{name}.weight"] - weight - change).norm() / change.norm() < 1e-6


@pytest.mark.parametrize("mu", [1e-3, 0.1, 10.0])
def test_derived_embedding_solves_its_normal_equations(mu):
    g = torch.Generator().manual_seed(0)
    base = [torch.randn(rows, 6, generator=g, dtype=torch.float64) for rows in (4, 9, 5)]
    matrix = torch.eye(6) + 0.5 * torch.randn(6, 6, generator=g, dtype=torch.float64)
    e = torch.randn(6, generator=g, dtype=torch.float64)
    edited = [w @ matrix for w in base]
    found = derivation(matrix, sum(w.T @ w for w in base), mu) @ e
    left = mu * found + sum(w.T @ (w @ found) for w in edited)
    right = sum(w.T @ (w0 @ e) for w, w0 in zip(edited, base, strict=True))
    assert (left - right).norm() < 1e-10 * right.norm()

    def objective(x: torch.Tensor) -> float:
        return float(sum((w @ x - w0 @ e).square().sum() for w, w0 in zip(edited, base, strict=True)) + mu * x @ x)

    for shift in torch.eye(6, dtype=torch.float64):
        assert objective(found) < min(objective(found + 0.01 * shift), objective(found - 0.01 * shift))


def test_an_unedited_model_derives_the_embedding_itself():
    energy = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    eye = torch.eye(6, dtype=torch.float64)
    assert torch.allclose(derivation(eye, energy, 1e-12), eye, atol=1e-11)
    assert derivation(eye, energy, 1e9).norm() < 1e-7


@pytest.mark.parametrize(
    "settings",
    [{}, {"tokens": "last"}, {"destination": " ", "lamb": 2.0}, {"captions": ("{}", "a {}"), "preserve_scale": 0.3}],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_no_epochs_is_uce(double, settings):
    delta = erase(double, TASK, ReceConfig(**settings, epochs=0), EraserData(), 0)
    expected = uce.erase(double, TASK, uce.UceConfig(**settings), EraserData(), 0)
    assert delta.keys() == expected.keys()
    for name, weight in delta.items():
        base = double.unet.get_parameter(name.removeprefix("unet."))
        assert (weight - expected[name]).norm() < 1e-9 * (expected[name] - base).norm()


def test_an_epoch_closes_what_the_edit_left_open(double):
    """After UCE e' brings the concept back, W' e' = W e(c*); after the epoch the same e' goes to the destination."""
    one = ReceConfig(captions=("{}",), lamb=0.5, epochs=1, mu=1e-6, epoch_lamb=1e-6, epoch_preserve_scale=1e-6)
    base = projection_weights(double.unet)
    before, after = (
        {n.removeprefix("unet.").removesuffix(".weight"): w for n, w in found.items()}
        for found in (
            erase(double, TASK, changed(**{**vars(one), "epochs": epochs}), EraserData(), 0) for epochs in (0, 1)
        )
    )
    (e, i), (target, _) = (embed(double, "{}", word) for word in ("ship", TASK.mapping["ship"]))
    found = derived([before[n] for n in base], list(base.values()), e[i], one.mu)

    def distance(weights: dict, x: torch.Tensor, goal: dict, y: torch.Tensor) -> float:
        parts = [(weights[n] @ x - goal[n] @ y).square().sum() for n in base]
        return float(sum(parts) / sum((goal[n] @ y).square().sum() for n in base)) ** 0.5

    assert distance(before, e[i], base, e[i]) > 0.3  # UCE moves the concept,
    assert distance(before, found, base, e[i]) < 0.05  # e' finds it again,
    assert distance(after, found, base, e[i]) > 0.3  # and no longer after the epoch:
    assert distance(after, found, before, target[i]) < 0.1  # it gives the destination


def test_report_and_untouched_pipeline(pipe, tmp_path):
    before = {n: p.clone() for n, p in pipe.unet.state_dict().items()}
    delta = erase(pipe, TASK, CFG, EraserData(), 0, tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.state_dict().items())
    repeated = erase(pipe, TASK, CFG, EraserData(), 9)
    assert all(torch.equal(w, repeated[n]) for n, w in delta.items())  # nothing is drawn
    told = json.loads((tmp_path / "closed_form.json").read_text())
    assert len(told["conditions"]) == 1 + CFG.epochs and told["edit"]["condition"] == max(told["conditions"]) > 1
    for name, w in projection_weights(pipe.unet).items():
        change = float((delta[f"unet.{name}.weight"] - w).norm() / w.norm())
        assert told["edit"]["relative_change"][name] == pytest.approx(change, rel=1e-4)


def test_no_unique_solution_names_the_setting(pipe):
    with pytest.raises(ValueError, match=r"lamb = 0, preserve_scale = 0: .*condition number"):
        erase(pipe, TASK, ReceConfig(tokens="last", lamb=0.0, preserve_scale=0.0, keep_empty=False), EraserData(), 0)
    with pytest.raises(ValueError, match=r"epoch_lamb = 0, epoch_preserve_scale = 0: .*condition number"):
        cfg = ReceConfig(epoch_tokens="last", epoch_lamb=0.0, epoch_preserve_scale=0.0)
        erase(pipe, TASK, cfg, EraserData(), 0)

"""MACE against a slow reference, cvxpy, one-at-a-time training and diffusers' own LoRA loader."""

from __future__ import annotations

import copy
import dataclasses
import json

import cvxpy as cp
import pytest
import torch

from resurgence.config.task import Task
from resurgence.data.moments import second_moment
from resurgence.diffusion.attention import from_delta, projection_weights, swapped
from resurgence.diffusion.text import fill, token_ids
from resurgence.erasers import EraserData
from resurgence.erasers.lora import adapted, load_loras, save_loras, slug
from resurgence.erasers.mace.concept_loras import timestep_weights
from resurgence.erasers.mace.fusion import fuse_constrained, independent_rows
from resurgence.erasers.mace.method import (
    MaceConfig,
    attention_loras,
    concept_data,
    erase,
    fuse,
    refine,
    retained_means,
    tokens_of,
    train_loras,
)
from slow import relative
from tiny import make_pipeline

KINDS = {
    "sd1": {"cross_attention_dim": 32, "heads": 2, "max_length": 24},
    "sd2": {
        "cross_attention_dim": 40, "heads": [2, 4, 8], "block_out_channels": (16, 32, 64), "pad": "zero",
        "prediction_type": "v_prediction", "max_length": 77,
    },
}  # fmt: skip
CAPTIONS = ("a photo of the {}", "the {} on the ground", "a sketch of the {} in an official photo")
PRIOR = ["a portrait of the doctor", "the dog and the bird on the ground", "an oil painting of the sky", ""]
TASK = Task(
    name="two", kind="object", erase=("ship", "old cat"), retain=("queen", "bird", "sky"),
    mapping={"ship": "street", "old cat": "person"}, templates=("a photo of the {}",),
    seeds={"erase": 1, "retain": 1},
)  # fmt: skip
CFG = MaceConfig(
    captions=CAPTIONS,
    train_preserve_scale=0.02,
    fuse_preserve_scale=0.03,
    preserve_weight=2.5,
    lamb=0.4,
    steps=4,
    lr=1e-2,
)


@pytest.fixture(scope="module", params=list(KINDS))
def pipe(request):
    return make_pipeline(**KINDS[request.param])


@pytest.fixture(scope="module")
def data(pipe) -> EraserData:
    g = torch.Generator().manual_seed(2)
    return EraserData(
        prior=second_moment(pipe, PRIOR),
        domain=second_moment(pipe, [c for name in TASK.retain for c in fill(CAPTIONS, name)]),
        images={name: torch.rand(3, 3, 16, 16, generator=g) * 2 - 1 for name in TASK.erase},
        masks={name: torch.rand(3, 1, 16, 16, generator=g) > 0.4 for name in TASK.erase},
    )


@pytest.fixture(scope="module")
def erased(pipe, data):
    """Refinement, LoRAs and curves in double precision."""
    double = copy.deepcopy(pipe).to(torch.float64)
    refined, _ = refine(double, TASK, CFG, data)
    with swapped(double.unet, from_delta(refined, double.unet)):
        return double, refined, *attention_loras(double, TASK, CFG, data, seed=5)


@torch.no_grad()
def embed(pipe, caption: str) -> list[torch.Tensor]:
    """Rows of one caption by the text encoder in float64."""
    ids = pipe.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return list(copy.deepcopy(pipe.text_encoder).double()(ids)[0][0])


def texts_of(pipe, concept: str) -> torch.Tensor:
    """Embeddings of a concept's captions, (T, L, d) float64."""
    return torch.stack([torch.stack(embed(pipe, caption)) for caption in fill(CAPTIONS, concept)])


def corpus(pipe) -> list[tuple[float, torch.Tensor]]:
    """(weight, e) of every token of prior and domain."""
    domain = [c.replace("{}", name) for name in TASK.retain for c in CAPTIONS]
    return [(1.0, e) for c in PRIOR for e in embed(pipe, c)] + [(2.5, e) for c in domain for e in embed(pipe, c)]


def reference_pairs(pipe, concept: str, caption: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows (e, e') of one caption, token by token, written from the description and not from the code."""
    text = [caption.replace("{}", word) for word in (concept, TASK.mapping[concept])]
    ids = [pipe.tokenizer(x).input_ids for x in text]
    rows = [embed(pipe, x) for x in text]
    pairs, (n, m) = [], (len(ids[0]), len(ids[1]))
    head = len(pipe.tokenizer(caption.split("{}")[0]).input_ids) - 1  # BOS and the words before; no shared BPE beyond
    tail = len(pipe.tokenizer(caption.split("{}")[1]).input_ids) - 1  # the words behind and EOS
    for i in range(head):
        pairs.append((rows[0][i], rows[1][i]))
    for i in range(tail):
        pairs.append((rows[0][n - tail + i], rows[1][m - tail + i]))
    length = len(rows[0])
    for i in range(length):
        if n + i < length and m + i < length:
            pairs.append((rows[0][n + i], rows[1][m + i]))
    return pairs


def least_squares(terms: list[tuple[float, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """argmin over W (out, d) of sum weight ||W e - aim||^2."""
    design = torch.stack([weight**0.5 * e for weight, e, _ in terms])
    aims = torch.stack([weight**0.5 * aim for weight, _, aim in terms])
    return torch.linalg.lstsq(design, aims).solution.T


def ridge(lamb: float, w: torch.Tensor) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """lamb ||W' - W||^2 as rows."""
    return [(lamb, e, w @ e) for e in torch.eye(w.shape[1], dtype=torch.float64)]


@pytest.mark.parametrize("application", ["paper", "official"])
def test_refinement_agrees_with_the_slow_reference(pipe, data, application):
    cfg = dataclasses.replace(CFG, scale_application=application)
    scale = 0.02 if application == "paper" else 0.0004
    double = copy.deepcopy(pipe).to(torch.float64)
    exact, report = refine(double, TASK, cfg, data)
    single, _ = refine(pipe, TASK, cfg, data)
    pairs = [p for concept in TASK.erase for c in CAPTIONS for p in reference_pairs(pipe, concept, c)]
    kept = corpus(pipe)
    assert exact.keys() == single.keys() == {f"unet.{n}.weight" for n in projection_weights(pipe.unet)}
    for name, weight in projection_weights(double.unet).items():
        terms = [(1.0, e, weight @ e_target) for e, e_target in pairs]
        terms += [(scale * omega, e, weight @ e) for omega, e in kept]
        expected = least_squares(terms + ridge(0.4, weight))
        assert relative(exact[f"unet.{name}.weight"] - weight, expected - weight) < 1e-6
        assert relative(single[f"unet.{name}.weight"].double(), expected) < 1e-6  # stored in float32
        changed = float((expected - weight).norm() / weight.norm())
        assert report["relative_change"][name] == pytest.approx(changed, rel=1e-6)
    assert report["condition"] > 1


def test_fusion_agrees_with_the_slow_reference(erased, data):
    double, refined, loras, _ = erased
    delta, _ = fuse(double, TASK, CFG, data, refined, loras)
    kept = corpus(double)
    rows = {concept: [e for c in CAPTIONS for e in embed(double, c.replace("{}", concept))] for concept in TASK.erase}
    for name, weight in projection_weights(double.unet).items():
        before = refined[f"unet.{name}.weight"]
        terms = [(0.03 * omega, e, weight @ e) for omega, e in kept]
        for concept in TASK.erase:
            down, up = loras[concept][name]
            terms += [(1.0, e, (before + up @ down) @ e) for e in rows[concept]]
        expected = least_squares(terms + ridge(0.4, before))
        assert relative(delta[f"unet.{name}.weight"] - weight, expected - weight) < 1e-6


def test_fusion_agrees_with_cvxpy(erased, data):
    """One projection, the whole objective written out."""
    double, refined, loras, _ = erased
    delta, _ = fuse(double, TASK, CFG, data, refined, loras)
    name = next(iter(loras["ship"]))
    weight, before = projection_weights(double.unet)[name][:4], refined[f"unet.{name}.weight"][:4]
    variable = cp.Variable(weight.shape)
    objective = 0.4 * cp.sum_squares(variable - before.numpy())
    for concept in TASK.erase:
        down, up = loras[concept][name]
        e = torch.stack([e for c in CAPTIONS for e in embed(double, c.replace("{}", concept))])
        objective += cp.sum_squares(variable @ e.T.numpy() - ((before + up[:4] @ down) @ e.T).numpy())
    kept = torch.stack([(0.03 * omega) ** 0.5 * e for omega, e in corpus(double)])
    objective += cp.sum_squares((variable - weight.numpy()) @ kept.T.numpy())
    cp.Problem(cp.Minimize(objective)).solve(solver=cp.CLARABEL, tol_gap_rel=1e-12, tol_gap_abs=1e-12, tol_feas=1e-12)
    assert relative(delta[f"unet.{name}.weight"][:4], torch.as_tensor(variable.value)) < 1e-6


def test_constrained_fusion_satisfies_its_constraints_and_is_optimal(erased, data):
    double, refined, loras, _ = erased
    cfg = dataclasses.replace(CFG, fusion="constrained", max_relative_change=0.05)
    name = next(iter(loras["ship"]))
    weight = projection_weights(double.unet)[name]
    fused = fuse(double, TASK, cfg, data, refined, loras)[0][f"unet.{name}.weight"]
    kept = retained_means(double, TASK, cfg)
    assert relative((fused - weight) @ kept.T + weight @ kept.T, weight @ kept.T) < 1e-12
    change = (fused - weight).norm(dim=1) / weight.norm(dim=1)
    assert change.max() <= 0.05 * (1 + 1e-12)
    assert change.max() == pytest.approx(0.05)  # it binds
    free = fuse(double, TASK, CFG, data, refined, loras)[0][f"unet.{name}.weight"]
    assert ((free - weight).norm(dim=1) / weight.norm(dim=1)).max() > 0.05


@pytest.mark.parametrize("bound", [None, 0.3])
@pytest.mark.parametrize("preserve", [True, False])
def test_constrained_fusion_agrees_with_its_lagrangian(bound, preserve):
    """Rows solved by the KKT conditions: w = w* + multipliers, the ball's multiplier found by bisection."""
    g = torch.Generator().manual_seed(0)
    d, w = 8, torch.randn(5, 8, generator=g, dtype=torch.float64)
    x = torch.randn(20, d, generator=g, dtype=torch.float64)
    matrix, optimum = x.T @ x, w + torch.randn(5, d, generator=g, dtype=torch.float64)
    preserved = torch.randn(2, d, generator=g, dtype=torch.float64) if preserve else None
    fused = fuse_constrained({"w": w}, {"w": optimum}, matrix, preserved, bound)["w"]
    null = torch.eye(d, dtype=torch.float64)
    if preserve:
        null = torch.linalg.qr(preserved.T, mode="complete").Q[:, 2:]  # columns: directions that preserve
    for row, target, result in zip(w, optimum, fused, strict=True):

        def at(mu: float, row=row, target=target) -> torch.Tensor:
            a = null.T @ matrix @ null + mu * torch.eye(null.shape[1], dtype=torch.float64)
            return null @ torch.linalg.solve(a, null.T @ matrix @ (target - row))

        low, high = 0.0, 1e6
        if bound is None or at(0.0).norm() <= bound * row.norm():
            high = 0.0
        for _ in range(200):
            mid = (low + high) / 2
            low, high = (mid, high) if bound is not None and at(mid).norm() > bound * row.norm() else (low, mid)
        assert relative(result, row + at(high)) < (1e-6 if bound is None else 1e-5)  # the gap's square root


def test_preserving_everything_is_refused():
    with pytest.raises(ValueError, match="span all 4 dimensions"):
        independent_rows(torch.randn(6, 4))
    assert len(independent_rows(torch.ones(3, 4))) == 1


def test_training_in_a_batch_equals_training_alone(erased, data):
    """Same factors and losses whatever is trained beside: chunks of 2 and of 1, and another order."""
    double, refined, loras, curves = erased
    with swapped(double.unet, from_delta(refined, double.unet)):
        alone, alone_curves = attention_loras(double, TASK, dataclasses.replace(CFG, chunk=1), data, seed=5)
        turned = dataclasses.replace(TASK, erase=TASK.erase[::-1], labels=())
        other, _ = attention_loras(double, turned, CFG, data, seed=5)
    for concept in TASK.erase:
        assert curves[concept] == pytest.approx(alone_curves[concept], rel=1e-9)
        for name, pair in loras[concept].items():
            for factor, single, again in zip(pair, alone[concept][name], other[concept][name], strict=True):
                assert relative(factor, single) < 1e-5 or factor.abs().max() < 1e-12
                assert torch.allclose(factor, again, atol=1e-9)


def test_training_in_single_precision_equals_training_alone(pipe, data):
    """To 1e-4: Adam divides each gradient by its own size, so the roundings of small ones show; above is double."""
    cfg = dataclasses.replace(CFG, lr=1e-4)
    batch, _ = attention_loras(pipe, TASK, cfg, data, seed=5)
    alone, _ = attention_loras(pipe, TASK, dataclasses.replace(cfg, chunk=1), data, seed=5)
    for concept in TASK.erase:
        for name, pair in batch[concept].items():
            for factor, single in zip(pair, alone[concept][name], strict=True):
                assert relative(factor, single) < 1e-4 or not (factor.any() or single.any())  # the last to_v stays 0


def test_training_equals_a_plain_loop_over_one_concept(erased, data):
    """torch's AdamW and clip_grad_norm_ on merged weights, with the same draws."""
    from resurgence.diffusion.attention import attention_loss
    from resurgence.diffusion.latents import add_noise
    from resurgence.erasers.mace.concept_loras import Draw, Training
    from resurgence.seeds import generator

    double, refined, loras, curves = erased
    concept = concept_data(double, TASK, "old cat", CFG, data, texts_of(double, "old cat"))
    start = generator("concept LoRA, start", "old cat", 5)
    with swapped(double.unet, from_delta(refined, double.unet)):
        double.unet.requires_grad_(False)
        factors = {
            n: (
                torch.nn.Parameter(torch.randn(1, w.shape[1], generator=start).double()),
                torch.nn.Parameter(torch.zeros(len(w), 1, dtype=torch.float64)),
            )
            for n, w in projection_weights(double.unet).items()
        }
        parameters = [p for pair in factors.values() for p in pair]
        optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01)
        draw, losses = Draw(concept, timestep_weights("window"), 5), []
        for _ in range(CFG.steps):
            i, j, t, noise = draw()
            noisy = add_noise(concept.latents[i][None], noise[None].double(), double.scheduler.alphas_cumprod[t][None])
            one = {n: (d[None], u[None]) for n, (d, u) in factors.items()}
            with adapted(double.unet, one):
                args = noisy, torch.tensor([t]), concept.texts[j][None], concept.masks[i][None], concept.tokens[j][None]
                loss = attention_loss(double.unet, *args)[0]
            optimiser.zero_grad()
            loss.backward()
            for p in parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
    assert Training(4, 1e-2, 1, 0.01, 1.0, "window", 1).steps == len(losses)
    assert curves["old cat"] == pytest.approx(losses, rel=1e-9)
    for name, (down, up) in factors.items():
        assert torch.allclose(loras["old cat"][name][0], down, atol=1e-9)
        assert torch.allclose(loras["old cat"][name][1], up, atol=1e-9)


def test_training_lowers_the_attention(pipe, data):
    cfg = dataclasses.replace(CFG, steps=40, lr=3e-2)
    _, curves = attention_loras(pipe, TASK, cfg, data, seed=0)
    for curve in curves.values():
        assert sum(curve[-8:]) < 0.9 * sum(curve[:8])


def test_seeds_differ_and_repeat(pipe, data):
    first, again, other = (attention_loras(pipe, TASK, CFG, data, seed)[1] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_each_concept_has_its_own_draws(pipe, data):
    from resurgence.erasers.mace.concept_loras import Draw

    weights = timestep_weights("window")
    ship, cat = (concept_data(pipe, TASK, name, CFG, data, texts_of(pipe, name)) for name in TASK.erase)
    noises = [Draw(c, weights, seed)()[3] for c, seed in ((ship, 0), (cat, 0), (ship, 1), (ship, 0))]
    assert torch.equal(noises[0], noises[3])
    assert not torch.equal(noises[0], noises[1]) and not torch.equal(noises[0], noises[2])


def test_timesteps():
    p = timestep_weights("window")
    t = torch.arange(1000, dtype=torch.float64)
    expected = 1 / (1 + torch.exp(-0.05 * (t - 200))) - 1 / (1 + torch.exp(-0.05 * (t - 400)))
    assert torch.allclose(p, expected / expected.sum())
    assert float(p[200:400].sum()) == pytest.approx(0.861, abs=0.001)
    assert timestep_weights("uniform", 10).tolist() == pytest.approx([0.1] * 10)
    assert int(timestep_weights("window", 100).argmax()) == 30


@pytest.mark.parametrize(
    ("rule", "expected"), [("end-and-padding", ("rest", "rest")), ("end", ("one", "one")), ("same-id", ("rest", "one"))]
)
def test_token_sets_of_both_kinds_of_base(pipe, rule, expected):
    pads_with_end = pipe.tokenizer.pad_token_id == pipe.tokenizer.eos_token_id
    caption, length = "the ship on the ground", pipe.tokenizer.model_max_length
    n = len(token_ids(pipe.tokenizer, caption))
    word = set(range(2, 2 + len(pipe.tokenizer("ship", add_special_tokens=False).input_ids)))
    chosen = expected[0 if pads_with_end else 1]
    ends = set(range(n - 1, length)) if chosen == "rest" else {n - 1}
    cfg = dataclasses.replace(CFG, pooler_tokens=rule)
    assert set(torch.nonzero(tokens_of(pipe.tokenizer, caption, "ship", length, cfg))[:, 0].tolist()) == word | ends
    cfg = dataclasses.replace(cfg, use_pooler=False)
    assert set(torch.nonzero(tokens_of(pipe.tokenizer, caption, "ship", length, cfg))[:, 0].tolist()) == word


@torch.no_grad()
def test_diffusers_loads_each_lora(erased, tmp_path):
    double, refined, loras, _ = erased
    save_loras(loras, tmp_path)
    read = load_loras(tmp_path, list(loras))
    for concept, lora in loras.items():
        assert all(torch.equal(a, b) for n in lora for a, b in zip(lora[n], read[concept][n], strict=True))
    g = torch.Generator().manual_seed(1)
    noisy, t = torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64), torch.tensor([300, 700])
    texts = torch.randn(2, 9, double.unet.config.cross_attention_dim, generator=g, dtype=torch.float64)
    loaded = copy.deepcopy(double)
    with swapped(double.unet, from_delta(refined, double.unet)):
        twice = {n: tuple(torch.stack([factor] * 2) for factor in pair) for n, pair in loras["ship"].items()}
        with adapted(double.unet, twice):
            expected = double.unet(noisy, t, texts).sample
        plain = double.unet(noisy, t, texts).sample
    loaded.unet.load_state_dict({k.removeprefix("unet."): w for k, w in refined.items()}, strict=False)
    loaded.load_lora_weights(tmp_path / slug("ship"))
    assert torch.allclose(loaded.unet(noisy, t, texts).sample, expected, rtol=0, atol=1e-12)
    assert (expected - plain).abs().max() > 1e-6


def test_lora_folders(erased, tmp_path):
    assert slug("Snow-White & the 7 dwarfs") == "snow-white-the-7-dwarfs"
    with pytest.raises(ValueError, match="equal folder names"):
        save_loras({"old cat": erased[2]["ship"], "old-cat": erased[2]["ship"]}, tmp_path)
    with pytest.raises(FileNotFoundError, match="'bird'"):
        load_loras(tmp_path, ["bird"])


def test_settings_of_the_fusion_do_not_reach_the_loras(pipe, data):
    """Variants that differ in them alone share their LoRAs."""
    read = set()

    class Seen(MaceConfig):
        def __getattribute__(self, name: str):
            read.add(name)
            return super().__getattribute__(name)

    cfg = Seen(**dataclasses.asdict(CFG))
    read.clear()
    train_loras(pipe, TASK, cfg, data, 0)
    assert "steps" in read and not read & MaceConfig.fusion_settings


def test_erase_is_the_three_steps_and_leaves_the_pipeline_alone(pipe, data, tmp_path):
    before = {n: p.clone() for n, p in pipe.unet.state_dict().items()}
    delta = erase(pipe, TASK, CFG, data, 3, tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.state_dict().items())
    assert delta.keys() == {f"unet.{n}.weight" for n in projection_weights(pipe.unet)}
    assert all(torch.isfinite(w).all() and w.dtype == torch.float32 for w in delta.values())
    refined, _ = refine(pipe, TASK, CFG, data)
    again, _ = fuse(pipe, TASK, CFG, data, refined, load_loras(tmp_path / "loras", TASK.erase))
    assert all(relative(w, again[n]) < 1e-6 for n, w in delta.items())  # captions in other batches: rounding
    assert {len(c) for c in json.loads((tmp_path / "curves.json").read_text()).values()} == {CFG.steps}
    assert json.loads((tmp_path / "closed_form.json").read_text()).keys() == {"refinement", "fusion"}
    repeated = erase(pipe, TASK, CFG, data, 3)
    assert all(torch.equal(w, repeated[n]) for n, w in delta.items())


def test_styles_use_the_whole_map_and_no_scale_needs_no_corpus(pipe, data):
    task = dataclasses.replace(TASK, kind="style")
    bare = EraserData(images=data.images)
    cfg = dataclasses.replace(CFG, train_preserve_scale=0.0, fuse_preserve_scale=0.0, steps=1)
    assert concept_data(pipe, task, "ship", cfg, bare, torch.zeros(len(CAPTIONS), 24, 8)).masks is None
    assert erase(pipe, task, cfg, bare, 0)


@pytest.mark.parametrize(
    ("change", "cfg", "message"),
    [
        ({"prior": None}, {}, "second moment of the prior corpus"),
        ({"domain": None}, {}, "second moment of the domain corpus"),
        ({"images": {}}, {}, "no images of 'ship'"),
        ({"masks": {}}, {}, "masks of 'ship' None"),
        ({"images": {"ship": torch.full((3, 3, 16, 16), 200.0)}}, {}, r"expected \(N, 3, H, W\) in \[-1, 1\]"),
        ({}, {"captions": ("a photo of many {}s",)}, "'ship' do not occur in caption 'a photo of many ships'"),
    ],
)
def test_missing_data_is_named(pipe, data, change, cfg, message):
    cfg = dataclasses.replace(CFG, steps=1, **cfg)
    with pytest.raises(ValueError, match=message):
        erase(pipe, TASK, cfg, dataclasses.replace(data, **change), 0)

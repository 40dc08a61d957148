"""EAP against Algorithms 1 and 2 written out sample by sample, with separate UNets for student and base."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from resurgence.config.fields import ConfigError, build
from resurgence.erasers import EraserData
from resurgence.erasers.gradient.eap import (
    Eap,
    EapConfig,
    erase,
    gumbel_noise,
    gumbel_softmax,
    similarity,
    vocabulary,
    whole_words,
)
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import samples
from resurgence.seeds import generator
from resurgence.training import checkpoint
from slow import (
    TASK,
    ddim,
    embed,
    gradients_of,
    pipeline,
    predicted,
    relative,
    same,
    shake,
    snapshot,
    unet_with,
    worst,
)

pytest_plugins = ("erasure_fixtures",)

CFG = EapConfig(
    batch=3, ddim_steps=4, trajectories=2, guidance=2.5, template="a photo of the {}", closest=6,
    eta=50.0,  # the tiny UNet hardly reads its text
)  # fmt: skip
OTHER = dataclasses.replace(
    CFG, space="clean", target="guided", negative_guidance=1.3, neutral="a photo", ascent="adam", eta=0.05,
    through="student", hard=False, temperature=0.7, x_t="student", lamb=0.4, search_steps=3,
)  # fmt: skip


def trained(pipe, cfg, seed: int = 0) -> tuple[Student, Eap]:
    """An objective in the middle of a training: student and base differ."""
    student = Student(pipe, cfg.parameters, cfg.space)
    objective = Eap(student, TASK, cfg, EraserData(), seed)
    shake(student)
    return student, objective


class Slow:
    """Both algorithms: pi and the losses, one sample at a time."""

    def __init__(self, pipe, unet, cfg, words: dict[str, list[str]], pool, seed: int) -> None:
        self.pipe, self.unet, self.cfg, self.pool, self.seed = pipe, unet, cfg, pool, seed
        self.frozen = unet_with(pipe, {}).requires_grad_(False)
        self.rows = {c: torch.stack([embed(pipe, self.caption(w)) for w in found]) for c, found in words.items()}
        self.pi = {c: torch.zeros(cfg.closest, requires_grad=True) for c in words}
        self.adam = {c: torch.optim.Adam([pi], lr=cfg.eta) for c, pi in self.pi.items()}

    def caption(self, word: str) -> str:
        return self.cfg.template.replace("{}", word)

    def point(self, sample) -> tuple[torch.Tensor, int]:
        g, cfg = sample.generator, self.cfg
        if self.pool is not None:
            x, t = self.pool.draw(sample.concept, g)
            return x, int(t)
        noise, stop = torch.randn(4, 8, 8, generator=g), int(torch.randint(cfg.ddim_steps, (), generator=g))
        path = list(ddim(self.pipe, self.unet, noise, self.caption(sample.concept), cfg.ddim_steps, cfg.guidance))
        return path[stop][1], min(path[stop][0] + int(torch.randint(1000 // cfg.ddim_steps, (), generator=g)), 999)

    def output(self, unet, x, t, text) -> torch.Tensor:
        return predicted(self.pipe, unet, x, t, text, self.cfg.space)

    def word(self, concept: str, step: int, number: int, turn: int) -> torch.Tensor:
        """c_a = sum_k G_k e_k, with G a softmax or its maximum."""
        g = generator("eap gumbel", self.seed, step, number, turn)
        gumbel = -torch.log(torch.empty(self.cfg.closest).exponential_(generator=g))
        powers = torch.exp((self.pi[concept] + gumbel) / self.cfg.temperature)
        mixture = ((powers / powers.sum())[:, None, None] * self.rows[concept]).sum(0)
        if not self.cfg.hard:
            return mixture
        return self.rows[concept][int(torch.argmax(powers))] + (mixture - mixture.detach())

    def step(self, step: int) -> torch.Tensor:
        """Search, then the loss for the UNet."""
        cfg, drawn = self.cfg, samples(TASK.erase, self.cfg.batch, self.seed, step)
        points = [self.point(sample) for sample in drawn]
        for turn in range(cfg.search_steps):
            total = 0.0
            for number, (sample, (x, t)) in enumerate(zip(drawn, points, strict=True)):
                c_a = self.word(sample.concept, step, number, turn)
                kept = self.output(self.frozen, x, t, c_a if cfg.through == "both" else c_a.detach())
                squares = (self.output(self.unet, x, t, c_a) - kept) ** 2
                total = total + (squares.sum() if cfg.ascent == "gradient" else squares.sum() / squares.numel())
            seen = sorted({sample.concept for sample in drawn})
            for concept, g in zip(seen, torch.autograd.grad(total, [self.pi[c] for c in seen]), strict=True):
                if cfg.ascent == "gradient":
                    self.pi[concept].data += cfg.eta * g
                else:
                    self.pi[concept].grad = -g
                    self.adam[concept].step()
        erasing, preservation = [], []
        for number, (sample, (x, t)) in enumerate(zip(drawn, points, strict=True)):
            text = embed(self.pipe, self.caption(sample.concept))
            c_a = self.word(sample.concept, step, number, cfg.search_steps).detach()
            target = self.output(self.frozen, x, t, embed(self.pipe, cfg.neutral))
            if cfg.target == "guided":
                concept = self.output(self.frozen, x, t, text)
                target = target - cfg.negative_guidance * (concept - target)
            erasing.append(((self.output(self.unet, x, t, text) - target) ** 2).mean())
            kept = self.output(self.frozen, x, t, c_a)
            preservation.append(((self.output(self.unet, x, t, c_a) - kept) ** 2).mean())
        return torch.stack(erasing).mean() + cfg.lamb * torch.stack(preservation).mean()


class SlowPgd(Slow):
    """The search through the embeddings: c_a starts at the erased concept."""

    def __init__(self, pipe, unet, cfg, words, pool, seed: int) -> None:
        super().__init__(pipe, unet, cfg, words, pool, seed)
        self.pi = {c: embed(pipe, self.caption(c)).detach().clone().requires_grad_() for c in words}
        self.adam = {c: torch.optim.Adam([pi], lr=cfg.eta) for c, pi in self.pi.items()}

    def word(self, concept: str, step: int, number: int, turn: int) -> torch.Tensor:
        return self.pi[concept]


def step_like(slow: Slow, objective: Eap, unet, step: int) -> dict:
    """A step of the objective, whose loss and gradient are those of the slow form; returns what it reports."""
    expected = slow.step(step)
    gradient, shown = objective.gradient(step)
    assert float(shown["loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert worst(gradient, gradients_of(unet, expected, list(objective.student.weights))) < 1e-4
    return shown


@pytest.mark.parametrize("cfg", [CFG, OTHER], ids=["paper", "options"])
def test_the_search_through_embeddings_equals_gradient_steps_from_the_concept(plain, cfg):
    cfg = dataclasses.replace(cfg, search="pgd")
    student, objective = trained(plain, cfg, seed=4)
    unet = unet_with(plain, student.weights)
    slow = SlowPgd(plain, unet, cfg, objective.words, objective.pool, 4)
    for step in (6, 7):
        step_like(slow, objective, unet, step)
    for concept, ranked in objective.sensitive().items():
        moved = slow.pi[concept].detach()
        assert float((moved - embed(plain, slow.caption(concept))).norm()) > 1e-4
        cosines = {w: float(torch.cosine_similarity(moved.flatten(), embed(plain, slow.caption(w)).flatten(), dim=0))
                   for w, _ in ranked}  # fmt: skip
        assert [value for _, value in ranked] == pytest.approx([cosines[w] for w, _ in ranked], rel=1e-4)
        assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)


def test_the_search_through_embeddings_ends_on_the_radius(plain):
    free, limited = (trained(plain, dataclasses.replace(CFG, search="pgd", search_steps=1, radius=radius), seed=4)[1]
                     for radius in (None, 1e-6))  # fmt: skip
    free.gradient(6)
    limited.gradient(6)
    for concept in TASK.erase:
        start = embed(plain, CFG.template.replace("{}", concept))
        away, within = free.pi[concept].detach() - start, limited.pi[concept].detach().double() - start.double()
        if float(away.norm()) == 0:  # not drawn in this step
            continue
        assert float(away.norm()) > 1e-6
        expected = start.double() + 1e-6 * away.double() / away.double().norm() - start.double()
        assert torch.allclose(within, expected, atol=3e-7)


def test_fixed_captions_are_preserved_as_they_are(plain):
    cfg = dataclasses.replace(CFG, preserve=(" ", "a drawing of the truck"), closest=2)
    objective = trained(plain, cfg)[1]
    for concept in TASK.erase:
        rows = objective.every[objective.rows[concept]]
        for word, row in zip(objective.words[concept], rows, strict=True):
            assert torch.allclose(row, embed(plain, word), atol=1e-6)
        assert sorted(objective.words[concept]) == sorted(cfg.preserve)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preserve": [" "], "closest": 2}, r"closest = 2: preserve has 1 captions"),
        ({"preserve": [" "], "closest": 1, "words": "words.txt"}, r"preserve = \[' '\]: stands instead of words"),
        ({"search": "pgd", "search_steps": 0}, r"search_steps = 0: .*would preserve the erased concept"),
        ({"radius": 1.0}, r"radius = 1.0: limits search: pgd alone"),
    ],
)
def test_settings_of_the_search_that_contradict_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(EapConfig, settings, "")


@pytest.mark.parametrize("cfg", [CFG, OTHER], ids=["paper", "options"])
def test_search_loss_and_gradient_of_two_steps_equal_the_algorithms(pipe, cfg):
    student, objective = trained(pipe, cfg, seed=4)
    unet = unet_with(pipe, student.weights)
    slow = Slow(pipe, unet, cfg, objective.words, objective.pool, 4)
    for step in (6, 7):
        shown = step_like(slow, objective, unet, step)
        sum_of_terms = float(shown["erasing"] + cfg.lamb * shown["preservation"])
        assert float(shown["loss"]) == pytest.approx(sum_of_terms) and float(shown["preservation"]) > 1e-4
        for concept, pi in objective.pi.items():
            assert float(pi.detach().abs().max()) > 1e-3
            assert relative(pi, slow.pi[concept]) < 1e-3


def test_gradient_of_pi_equals_finite_differences():
    """The soft mixture at fixed x_t, t and Gumbel noise: both models in float64."""
    pipe = pipeline("epsilon")
    cfg = dataclasses.replace(CFG, hard=False, batch=1, search_steps=1, eta=1.0, temperature=0.7)
    student, objective = trained(pipe, cfg)
    models = [unet_with(pipe, student.weights).double(), unet_with(pipe, {}).double()]
    [sample] = samples(TASK.erase, 1, 0, 0)
    concept = sample.concept
    x, t = objective.pool.draw(concept, sample.generator)
    rows = torch.stack([embed(pipe, cfg.template.replace("{}", w)) for w in objective.words[concept]]).double()
    noise = gumbel_noise(cfg.closest, generator("eap gumbel", 0, 0, 0, 0)).double()
    start = torch.linspace(-1, 1, cfg.closest, dtype=torch.float64)

    @torch.no_grad()
    def change(pi: torch.Tensor) -> float:
        text = torch.einsum("k,kld->ld", torch.softmax((pi + noise) / 0.7, 0), rows)
        a, b = (unet(x[None].double(), torch.tensor([int(t)]), text[None]).sample for unet in models)
        return float(((a - b) ** 2).sum())

    step = 1e-4
    units = torch.eye(cfg.closest, dtype=torch.float64) * step
    expected = torch.tensor([(change(start + u) - change(start - u)) / (2 * step) for u in units])
    objective.pi[concept].data.copy_(start)
    objective.search([sample], x[None], torch.tensor([int(t)]), 0)
    assert relative(objective.pi[concept].detach() - start, expected) < 1e-3 and float(expected.abs().max()) > 1e-4


@pytest.mark.parametrize("ascent", ["gradient", "adam"])
def test_search_raises_the_preservation_loss(plain, ascent):
    """At fixed x_t and t the words that the erasure changed most become likely."""
    cfg = dataclasses.replace(CFG, ascent=ascent, eta=2e3 if ascent == "gradient" else 0.2, batch=1)
    student, objective = trained(plain, cfg)
    [sample] = samples(TASK.erase, 1, 0, 0)
    x, t = objective.pool.draw(sample.concept, sample.generator)
    x, t = x[None], torch.tensor([int(t)])
    rows = objective.every[objective.rows[sample.concept]]
    with torch.no_grad():
        each = torch.stack([(student(x, t, r[None]) - student.frozen(x, t, r[None])).square().sum() for r in rows])
    before = float(each.mean())
    for step in range(25):
        objective.search([sample], x, t, step)
    chances = objective.pi[sample.concept].detach().softmax(0)
    after = float((chances * each).sum())
    assert after > before + 0.3 * (float(each.max()) - before)
    best = objective.words[sample.concept][int(each.argmax())]
    assert best in [word for word, _ in objective.sensitive()[sample.concept][:2]]


def test_a_base_that_has_not_changed_moves_no_pi(pipe):
    objective = Eap(Student(pipe, "xattn"), TASK, CFG, EraserData(), 0)
    _, shown = objective.gradient(0)
    assert float(shown["preservation"]) < 1e-10
    assert all(float(pi.detach().abs().max()) < 1e-6 for pi in objective.pi.values())


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_hard_draws_follow_the_softmax_of_pi(temperature):
    pi, g = torch.tensor([0.0, 1.0, 2.0, -1.0]), torch.Generator().manual_seed(0)
    drawn = torch.stack([gumbel_softmax(pi, gumbel_noise(4, g), temperature, True) for _ in range(4000)])
    assert torch.allclose(drawn.sort(1).values, torch.tensor([0.0, 0, 0, 1]).expand(4000, 4), atol=1e-6)
    assert torch.allclose(drawn.mean(0), pi.softmax(0), atol=0.025)


def test_gumbel_softmax_limits_and_gradient():
    g = torch.Generator().manual_seed(1)
    pi, noise = torch.randn(5, generator=g).requires_grad_(), gumbel_noise(5, g)
    gumbels = gumbel_noise(20000, g)
    assert float(gumbels.mean()) == pytest.approx(0.5772, abs=0.03)  # Euler's constant
    assert float(gumbels.var()) == pytest.approx(1.645, abs=0.06)  # pi^2 / 6
    cold, warm = (gumbel_softmax(pi, noise, t, False).detach() for t in (1e-3, 1e3))
    hard = gumbel_softmax(pi, noise, 1.0, True)
    assert torch.allclose(cold, hard.detach(), atol=1e-4) and torch.allclose(warm, torch.full((5,), 0.2), atol=1e-2)
    weight = torch.randn(5, generator=g)
    [through] = torch.autograd.grad((hard * weight).sum(), pi)
    [soft] = torch.autograd.grad((gumbel_softmax(pi, noise, 1.0, False) * weight).sum(), pi)
    assert torch.allclose(through, soft, atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_the_closest_words_are_searched(pipe, distance):
    cfg = dataclasses.replace(CFG, distance=distance)
    objective = Eap(Student(pipe, "xattn"), TASK, cfg, EraserData(), 0)
    words = vocabulary(cfg, pipe.tokenizer, TASK.erase)
    flat = {w: embed(pipe, cfg.template.replace("{}", w)).flatten() for w in (*words, *TASK.erase)}
    for concept in TASK.erase:
        e = flat[concept]
        near = {w: -(flat[w] - e).norm() if distance == "l2" else torch.cosine_similarity(flat[w], e, 0) for w in words}
        expected = sorted(words, key=lambda w: -float(near[w]))[:6]
        assert objective.words[concept] == expected
        rows = objective.every[objective.rows[concept]]
        assert all(torch.allclose(r.flatten(), flat[w], atol=1e-5) for r, w in zip(rows, expected, strict=True))
    a, b = torch.randn(2, 3, 4), torch.randn(5, 3, 4)
    assert similarity(a, b, distance).shape == (2, 5)


def test_vocabulary(plain, tmp_path):
    tokenizer = plain.tokenizer
    words = whole_words(tokenizer)
    assert {"cat", "doctor", "photo", "sky"} <= set(words) and not {"a", "of", "an", "!"} & set(words)
    assert all(len(tokenizer(w).input_ids) == 3 and w.isalpha() and len(w) >= 3 for w in words)
    assert words == sorted(words)
    file = tmp_path / "words.txt"
    file.write_text("Ship\nold\ncat\n\n dog \nold cat\ndog\nbird\n")
    cfg = dataclasses.replace(CFG, words=str(file), closest=2)
    assert vocabulary(cfg, tokenizer, TASK.erase) == ["old", "cat", "dog", "bird"]  # C \ E
    assert vocabulary(dataclasses.replace(cfg, exclude="words"), tokenizer, TASK.erase) == ["dog", "bird"]
    kept = vocabulary(dataclasses.replace(cfg, exclude="none"), tokenizer, TASK.erase)
    assert kept == ["Ship", "old", "cat", "dog", "old cat", "bird"]
    with pytest.raises(ValueError, match="closest = 5: the vocabulary has 4 words"):
        vocabulary(dataclasses.replace(cfg, closest=5), tokenizer, TASK.erase)
    with pytest.raises(ValueError, match=r"words = .*none\.txt.*does not exist"):
        vocabulary(dataclasses.replace(cfg, words=str(tmp_path / "none.txt")), tokenizer, TASK.erase)


def test_pi_is_kept_or_reset(plain):
    ends = {}
    for rule in ("kept", "reset"):
        _, objective = trained(plain, dataclasses.replace(CFG, pi=rule))
        for step in (0, 1):
            objective.losses(step)
        ends[rule] = {c: pi.detach() for c, pi in objective.pi.items()}
    _, objective = trained(plain, CFG)
    objective.losses(1)
    assert same(ends["reset"], {c: pi.detach() for c, pi in objective.pi.items()})
    assert not same(ends["reset"], ends["kept"])


def test_delta_holds_the_selected_parameters_and_the_pipeline_is_unchanged(pipe, tmp_path):
    before, cfg = snapshot(pipe), dataclasses.replace(CFG, steps=2, lr=1e-3, batch=1)
    delta = erase(pipe, TASK, cfg, EraserData(), 0, tmp_path)
    assert same(snapshot(pipe), before)
    assert delta.keys() == {f"unet.{n}" for n, _ in pipe.unet.named_parameters() if ".attn2." in n}
    assert any(not torch.equal(delta[n], before[n]) for n in delta)
    assert same(delta, erase(pipe, TASK, cfg, EraserData(), 0))
    assert not same(delta, erase(pipe, TASK, cfg, EraserData(), 1))
    found = json.loads((tmp_path / "sensitive.json").read_text())
    assert list(found) == list(TASK.erase)
    for pairs in found.values():
        chances = [chance for _, chance in pairs]
        assert len(pairs) == 6 and chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1)


class Killed(Exception):
    """Stands for a kill in the middle of a step."""


@pytest.mark.parametrize("ascent", ["gradient", "adam"])
def test_a_killed_run_resumes_bit_identically(plain, tmp_path, monkeypatch, ascent):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0)
    cfg = dataclasses.replace(CFG, steps=4, lr=5e-3, ascent=ascent, eta=0.05 if ascent == "adam" else 50.0, batch=1)
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    expected = erase(plain, TASK, cfg, EraserData(), 0, tmp_path / "whole")
    losses, seen = Eap.losses, []

    def killed(self, step):
        if step == 3:
            raise Killed
        return losses(self, step)

    def recorded(self, step):
        seen.append(step)
        return losses(self, step)

    monkeypatch.setattr(Eap, "losses", killed)
    with pytest.raises(Killed):
        erase(plain, TASK, cfg, EraserData(state=tmp_path / "state"), 0)
    monkeypatch.setattr(Eap, "losses", recorded)
    found = erase(plain, TASK, cfg, EraserData(state=tmp_path / "state"), 0, tmp_path / "again")
    assert seen == [3] and same(found, expected)
    first, second = (json.loads((tmp_path / name / "sensitive.json").read_text()) for name in ("whole", "again"))
    assert first == second and first["ship"][0][1] > 1 / 6 + 1e-4


def test_training_lowers_the_loss(plain, tmp_path):
    cfg = dataclasses.replace(CFG, steps=12, lr=5e-3, lamb=0.1)
    erase(plain, TASK, cfg, EraserData(), 0, tmp_path)
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves.keys() == {"loss", "erasing", "preservation"}
    assert len(curves["loss"]) == 12 and sum(curves["loss"][-5:]) < 0.7 * sum(curves["loss"][:5])


def test_preservation_holds_the_words(plain, tmp_path):
    """With its weight the outputs for the words found change less, after the same training."""
    ends = []
    for lamb in (0.0, 10.0):
        erase(plain, TASK, dataclasses.replace(CFG, steps=8, lr=1e-3, lamb=lamb), EraserData(), 0, tmp_path)
        ends.append(sum(json.loads((tmp_path / "curves.json").read_text())["preservation"][-3:]))
    assert ends[1] < 0.3 * ends[0]

"""Fine-tuning: draws, schedule, checkpoints, and a resumed run that is bit-identical to an uninterrupted one."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from resurgence.config.fields import ConfigError, build
from resurgence.diffusion.deltas import apply_folder, load_delta
from resurgence.diffusion.unet import ddim_of
from resurgence.training import finetune as f
from resurgence.training.checkpoint import Saver, fingerprint
from resurgence.training.lora import TARGETS, prepare, restore
from slow import same
from tiny import SENTENCES, make_pipeline, predict

CFG = f.FinetuneConfig(steps=5, checkpoints=(2, 5), lr=5e-3, batch=2, accumulation=2)
FULL = dataclasses.replace(CFG, algorithm="full", lr=1e-3, lr_scheduler="constant")


def base(**options) -> StableDiffusionPipeline:
    pipe = make_pipeline(block_out_channels=(16, 32), **options)
    pipe.scheduler = ddim_of(pipe.scheduler)
    return pipe


def pictures(count: int = 5) -> tuple[torch.Tensor, list[str]]:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return images, [SENTENCES[i % 3] for i in range(count)]


def run(cfg: f.FinetuneConfig, out: Path, seed: int = 0, state: Path | None = None, **options) -> list[dict]:
    return f.finetune(base(**options), *pictures(), cfg, seed, out, state)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{p.parent.name}/{n}": t for p in sorted(folder.rglob("*.safetensors")) for n, t in load_file(p).items()}


def base_weights(step: str) -> dict[str, torch.Tensor]:
    return {f"{step}/unet.{name}": p for name, p in base().unet.state_dict().items()}


@pytest.fixture(scope="module")
def data() -> f.Data:
    return f.encode(base(), *pictures(), flips=True)


@pytest.mark.parametrize("flips", [True, False])
def test_latents_of_a_set_are_encoded_once_and_only_for_the_same_images(
    flips: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, (images, captions), calls = base(), pictures(), []
    encoder = pipe.vae.encode
    monkeypatch.setattr(pipe.vae, "encode", lambda x: (calls.append(len(x)), encoder(x))[1])
    plain = f.encode(pipe, images, captions, flips)
    encodings = len(calls)
    first = f.encode(pipe, images, captions, flips, tmp_path)
    again = f.encode(pipe, images, captions[::-1], flips, tmp_path)  # captions are no part of them
    assert len(calls) == 2 * encodings
    assert all(torch.equal(plain.mean, data.mean) and torch.equal(plain.std, data.std) for data in (first, again))
    assert again.mean.stride() == plain.mean.stride()  # the layout changes the rounding of what reads them
    f.encode(pipe, images, captions, not flips, tmp_path)
    f.encode(pipe, images.flip(0), captions, flips, tmp_path)
    with torch.no_grad():
        pipe.vae.encoder.conv_in.bias.add_(1)
    other = f.encode(pipe, images, captions, flips, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4 and not torch.equal(other.mean, plain.mean)


# --- the loss and its draws


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_equals_the_formula_written_out(prediction_type: str) -> None:
    pipe = base(prediction_type=prediction_type)
    images, captions = pictures()
    cached = f.encode(pipe, images, captions, flips=True)
    draws = [f.draw(0, 3, number, 4, cached, 1000, True) for number in range(4)]
    assert {d.flip for d in draws} == {0, 1}
    errors = []
    for d in draws:
        image = images[d.image : d.image + 1]
        posterior = pipe.vae.encode(image.flip(-1) if d.flip else image).latent_dist
        x0 = (posterior.mean + posterior.std * d.posterior) * pipe.vae.config.scaling_factor
        abar = pipe.scheduler.alphas_cumprod[d.t]
        xt = abar.sqrt() * x0 + (1 - abar).sqrt() * d.noise
        target = d.noise if prediction_type == "epsilon" else abar.sqrt() * d.noise - (1 - abar).sqrt() * x0
        text = pipe.encode_prompt([captions[d.image]], "cpu", 1, False)[0]
        errors.append(((pipe.unet(xt, d.t, text).sample - target) ** 2).mean())
    expected, got = torch.stack(errors).mean(), f.diffusion_loss(pipe.unet, pipe.scheduler, cached, draws)
    assert torch.allclose(got, expected, rtol=1e-5), (got, expected)


def test_draws_depend_on_seed_step_and_number_only(data: f.Data) -> None:
    def facts(d: f.Draw) -> tuple:
        return d.image, d.flip, d.t, d.posterior.sum().item(), d.noise.sum().item()

    one = facts(f.draw(1, 7, 2, 4, data, 1000, True))
    assert facts(f.draw(1, 7, 2, 4, data, 1000, True)) == one
    others = {facts(f.draw(*purpose, 4, data, 1000, True))[2:] for purpose in ((1, 7, 3), (1, 8, 2), (2, 7, 2))}
    assert len(others | {one[2:]}) == 4
    unflipped = facts(f.draw(1, 7, 2, 4, data, 1000, False))
    assert unflipped == (one[0], 0, *one[2:])  # switching flips off moves no other draw


def test_every_epoch_shows_each_image_once_in_a_new_order(data: f.Data) -> None:
    images = [f.draw(0, step, number, 2, data, 10, True).image for step in range(10) for number in range(2)]
    epochs = [images[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs) and len({tuple(e) for e in epochs}) > 1


def test_timesteps_are_uniform_over_the_whole_range(data: f.Data) -> None:
    t = torch.tensor([f.draw(0, step, 0, 1, data, 10, True).t for step in range(3000)])
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10 and ((counts - 300).abs() < 5 * 270**0.5).all(), counts  # 5 binomial deviations


@pytest.mark.parametrize("algorithm", ["lora", "full"])
def test_batch_layout_changes_nothing_but_rounding(tmp_path: Path, algorithm: str) -> None:
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        cfg = dataclasses.replace(CFG if algorithm == "lora" else FULL, batch=batch, accumulation=accumulation)
        run(cfg, tmp_path / str(batch))
    whole = weights(tmp_path / "4")
    for other in ("2", "1"):
        parts = weights(tmp_path / other)
        assert whole.keys() == parts.keys()
        # Adam divides by the root of the squared gradient: entries with gradients near zero may differ by a step
        gaps = torch.cat([(whole[k] - parts[k]).abs().flatten() for k in whole])
        assert gaps.quantile(0.99) < 1e-4, gaps.quantile(0.99)
    if algorithm == "full":
        moved = torch.cat([(whole[k] - p).abs().flatten() for k, p in base_weights("step-000005").items()])
        assert moved.median() > 1e-3


def test_first_step_gradient_does_not_depend_on_the_layout(data: f.Data) -> None:
    pipe = base()
    trainable = prepare(pipe.unet, None, 0)
    gradients = []
    for batch in (4, 1):
        for start in range(0, 4, batch):
            draws = [f.draw(0, 0, number, 4, data, 1000, True) for number in range(start, start + batch)]
            (f.diffusion_loss(pipe.unet, pipe.scheduler, data, draws) * batch / 4).backward()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in trainable.values()]))
        pipe.unet.zero_grad()
    assert gradients[0].norm() > 1e-3 and (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


# --- schedule and averages


@pytest.mark.parametrize("name", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedule_equals_diffusers(name: str, warmup: int) -> None:
    cfg = dataclasses.replace(CFG, steps=20, checkpoints=(), lr_scheduler=name, warmup=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    kind = "constant_with_warmup" if name == "constant" else name
    schedule = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(20):
        assert f.lr_factor(cfg, step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_ema_decay_equals_diffusers() -> None:
    ema = EMAModel([torch.zeros(1)])
    for step in (1, 2, 3, 10, 1000, 10**6):
        assert f.ema_decay(step) == pytest.approx(ema.get_decay(step), abs=1e-12)


def test_ema_is_the_running_average_of_the_weights(tmp_path: Path) -> None:
    cfg = dataclasses.replace(FULL, checkpoints=(1, 2, 3, 4, 5))
    run(cfg, tmp_path / "plain")
    run(dataclasses.replace(cfg, ema=True), tmp_path / "ema")
    name = "unet.conv_out.bias"
    model = EMAModel([base().unet.conv_out.bias.detach().clone()])
    for step in range(1, 6):
        folder = f.checkpoint_name(step)
        model.step([load_delta(tmp_path / "plain" / folder / "delta.safetensors")[name].requires_grad_()])
        mine = load_delta(tmp_path / "ema" / folder / "delta.safetensors")[name]
        assert torch.allclose(mine, model.shadow_params[0], atol=1e-7)


# --- what is written


def test_lora_has_rank_4_in_all_attentions_and_diffusers_loads_it(tmp_path: Path) -> None:
    curve = run(CFG, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000005"]
    folder = tmp_path / "step-000005"
    tensors = load_file(folder / "pytorch_lora_weights.safetensors")
    attentions = [n for n, m in base().unet.named_modules() if n.endswith((".attn1", ".attn2"))]
    assert len(tensors) == 2 * 4 * len(attentions) and {t.shape[0] for n, t in tensors.items() if "lora_A" in n} == {4}
    loaded, merged = base(), base()
    loaded.load_lora_weights(folder)
    apply_folder(merged, folder)
    effect = (predict(merged) - predict(base())).abs().max()
    assert effect > 1e-2 and (predict(merged) - predict(loaded)).abs().max() < 1e-5
    assert [row["step"] for row in curve] == [1, 2, 3, 4, 5]
    assert curve[0]["lr"] == 5e-3 > curve[4]["lr"] > 0 and all(row["gradient_norm"] > 0 for row in curve)


def test_full_writes_the_changed_tensors_and_only_those_of_the_unet(tmp_path: Path) -> None:
    run(FULL, tmp_path)
    delta = load_delta(tmp_path / "step-000005" / "delta.safetensors")
    assert {n for n in delta} == {f"unet.{n}" for n, _ in base().unet.named_parameters()}
    tuned = base()
    apply_folder(tuned, tmp_path / "step-000005")
    assert (predict(tuned) - predict(base())).abs().max() > 1e-2


def test_zero_lora_is_the_base_and_its_start_is_gaussian() -> None:
    pipe = base()
    before = predict(pipe)
    trainable = prepare(pipe.unet, 4, seed=0)
    pipe.unet.eval()
    assert torch.equal(predict(pipe), before)  # B is zero
    down = torch.cat([p.flatten() for n, p in trainable.items() if "lora_A" in n])
    assert abs(down.std() - 1 / 4) < 0.01 and abs(down.mean()) < 0.01
    assert all(not p.any() for n, p in trainable.items() if "lora_B" in n)
    assert {n.split(".lora_")[0].rsplit(".attn", 1)[1][2:] for n in trainable} == set(TARGETS)
    restore(pipe.unet, {})
    assert not any("lora" in n for n, _ in pipe.unet.named_parameters())


@pytest.mark.parametrize("cfg", [CFG, FULL], ids=["lora", "full"])
def test_the_pipeline_is_bit_identical_afterwards(tmp_path: Path, cfg: f.FinetuneConfig) -> None:
    pipe = base()
    before = predict(pipe)
    f.finetune(pipe, *pictures(), cfg, 0, tmp_path)
    assert torch.equal(predict(pipe), before) and not pipe.unet.training
    assert not any(p.requires_grad for p in pipe.unet.parameters())


def test_loss_falls_on_a_set_that_can_be_learnt(tmp_path: Path) -> None:
    cfg = dataclasses.replace(FULL, steps=40, checkpoints=(), lr=3e-3, batch=8, accumulation=1)
    curve = run(cfg, tmp_path)
    losses = [row["loss"] for row in curve]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10]), (losses[:10], losses[-10:])


def test_gradient_checkpointing_changes_no_result(tmp_path: Path) -> None:
    run(CFG, tmp_path / "a")
    run(dataclasses.replace(CFG, gradient_checkpointing=True), tmp_path / "b")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)


def test_bf16_trains_close_to_fp32(tmp_path: Path) -> None:
    exact = run(CFG, tmp_path / "a")
    half = run(dataclasses.replace(CFG, precision="bf16"), tmp_path / "b")
    assert half[0]["loss"] != exact[0]["loss"] and half[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)


def test_shuffled_captions_keep_images_and_words_but_not_their_pairs(tmp_path: Path) -> None:
    captions = [f"a photo of the {i}" for i in range(20)]
    mixed = f.shuffled(captions, 3)
    assert mixed == f.shuffled(captions, 3) != f.shuffled(captions, 4)
    assert sorted(mixed) == sorted(captions) and mixed != captions
    run(CFG, tmp_path / "a")
    run(dataclasses.replace(CFG, shuffle_captions=True), tmp_path / "b")
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_seed_decides_and_the_global_generator_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name + str(seed)))
        torch.rand(seed + ord(name))
        run(CFG, tmp_path / name, seed=seed)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


# --- interruption and resume


class Killed(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("cfg", [CFG, dataclasses.replace(FULL, ema=True)], ids=["lora", "full"])
@pytest.mark.parametrize("at", [3, 4])
def test_a_killed_run_resumes_bit_identically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cfg: f.FinetuneConfig, at: int
) -> None:
    expected = run(cfg, tmp_path / "whole")
    original, count = f.diffusion_loss, [0]

    def dying(*args: object) -> torch.Tensor:
        count[0] += 1
        if count[0] > at * cfg.accumulation:
            raise Killed
        return original(*args)

    monkeypatch.setattr(f, "diffusion_loss", dying)
    with pytest.raises(Killed):
        run(cfg, tmp_path / "dead", state=tmp_path / "scratch")
    monkeypatch.setattr(f, "diffusion_loss", original)
    steps: list[int] = []
    drawing = f.draw
    monkeypatch.setattr(f, "draw", lambda seed, step, *rest: (steps.append(step), drawing(seed, step, *rest))[1])
    curve = run(cfg, tmp_path / "again", state=tmp_path / "scratch")
    assert min(steps) == 2  # goes on from the checkpoint, does not start over
    assert same(weights(tmp_path / "again"), weights(tmp_path / "whole")) and curve == expected
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["step-000002", "step-000005"]


def test_sigterm_saves_the_state_and_exits_143(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(CFG, tmp_path / "whole")
    original, count = f.diffusion_loss, [0]

    def signalled(*args: object) -> torch.Tensor:
        count[0] += 1
        if count[0] == 7:  # in the middle of step 4
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(f, "diffusion_loss", signalled)
    with pytest.raises(SystemExit) as stopped:
        run(CFG, tmp_path / "dead", state=tmp_path / "scratch")
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == handler
    monkeypatch.setattr(f, "diffusion_loss", original)
    assert torch.load(tmp_path / "scratch" / "state.pt", weights_only=True)["step"] == 4
    assert run(CFG, tmp_path / "again", state=tmp_path / "scratch") == expected
    assert same(weights(tmp_path / "again"), weights(tmp_path / "whole"))


def test_a_finished_state_is_only_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(CFG, tmp_path / "a", state=tmp_path / "scratch")
    monkeypatch.setattr(f, "diffusion_loss", None)
    assert run(CFG, tmp_path / "b", state=tmp_path / "scratch") == expected
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("change", ["lr", "seed", "images", "base"])
def test_the_state_of_another_run_is_not_continued(tmp_path: Path, change: str) -> None:
    scratch = tmp_path / "scratch"
    run(CFG, tmp_path / "a", state=scratch)
    cfg = dataclasses.replace(CFG, lr=1e-3) if change == "lr" else CFG
    images, captions = pictures(4 if change == "images" else 5)
    pipe = base(seed=5) if change == "base" else base()
    seed = 1 if change == "seed" else 0
    with_state = f.finetune(pipe, images, captions, cfg, seed, tmp_path / "b", scratch)
    assert with_state == f.finetune(pipe, images, captions, cfg, seed, tmp_path / "c")
    assert same(weights(tmp_path / "b"), weights(tmp_path / "c"))


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"state\.pt is damaged .*delete"):
        Saver(tmp_path, "x").load(torch.device("cpu"))


def test_fingerprint_sees_settings_values_types_and_shapes() -> None:
    one = torch.tensor([1.0, 2.0])
    marks = [
        fingerprint(["a"], [one]), fingerprint(["b"], [one]), fingerprint(["a"], [one + 1]),
        fingerprint(["a"], [one.view(2, 1)]), fingerprint(["a"], [one.bfloat16()]), fingerprint(["a"], [one, one]),
        fingerprint(["a"], [one[0]]), fingerprint(["a"], [one[1]]),  # a single number
    ]  # fmt: skip
    assert len(set(marks)) == 8 and fingerprint(["a"], [one.clone()]) == marks[0]


def test_state_is_saved_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    saver = Saver(tmp_path, "x")
    saver.save({"step": 1})
    assert not list(tmp_path.iterdir())
    now[0] = 61.0
    saver.save({"step": 2})
    assert saver.load(torch.device("cpu"))["step"] == 2
    saver.save({"step": 3})
    assert saver.load(torch.device("cpu"))["step"] == 2
    saver.save({"step": 4}, force=True)
    assert saver.load(torch.device("cpu"))["step"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


CHILD = """
import logging, sys; from pathlib import Path
sys.path.insert(0, {tests!r}); import torch; torch.set_num_threads(1)
import test_finetune as t; from resurgence.training import checkpoint
checkpoint.EVERY = 0.0
print("ready", flush=True)
t.run(t.LONG, Path(sys.argv[1]), state=Path(sys.argv[2]))
"""
LONG = dataclasses.replace(CFG, steps=30, checkpoints=(15, 30), batch=1, accumulation=1)


def test_kill_9_of_a_process_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    code = CHILD.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": str(Path(f.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code, str(out), str(scratch)], env=environment) as child:
        killer = threading.Timer(300, child.kill)
        killer.start()
        while not (scratch / "state.pt").exists() and child.poll() is None:
            time.sleep(0.01)
        child.kill()
        killer.cancel()
    assert (scratch / "state.pt").exists() and not out.exists()
    curve = run(LONG, out, state=scratch)
    assert curve == run(LONG, tmp_path / "whole") and same(weights(out), weights(tmp_path / "whole"))


# --- mistakes


def test_loss_that_is_not_finite_names_step_and_lr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = f.diffusion_loss, [0]

    def broken(*args: object) -> torch.Tensor:
        count[0] += 1
        return original(*args) * (float("nan") if count[0] == 6 else 1)

    monkeypatch.setattr(f, "diffusion_loss", broken)
    cfg = dataclasses.replace(CFG, checkpoints=(), lr_scheduler="constant")
    with pytest.raises(ValueError, match=r"loss is nan at step 3 with lr = 0\.005; lower lr"):
        run(cfg, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("steps", {"steps": 0}), ("lr", {"lr": 0.0}), ("batch", {"batch": 0}), ("rank", {"rank": 0}),
        ("ema", {"ema": True}), ("warmup", {"warmup": 5}), ("checkpoints", {"checkpoints": (2, 2, 5)}),
        ("checkpoints", {"checkpoints": (0, 5)}), ("checkpoints", {"checkpoints": (2,)}),
        ("checkpoints", {"checkpoints": (2, 9)}), ("max_norm", {"max_norm": 0.0}),
        ("weight_decay", {"weight_decay": -1.0}),
    ],
)  # fmt: skip
def test_bad_settings_are_named(key: str, values: dict) -> None:
    with pytest.raises(ConfigError, match=key):
        build(f.FinetuneConfig, {**dataclasses.asdict(CFG), **values}, "finetunes")


def test_bad_inputs_are_named(tmp_path: Path) -> None:
    images, captions = pictures()
    with pytest.raises(ValueError, match="one caption for each image"):
        f.finetune(base(), images, captions[:-1], CFG, 0, tmp_path)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        f.finetune(base(), images * 255, captions, CFG, 0, tmp_path)
    with pytest.raises(ValueError, match="bfloat16"):
        f.finetune(base().to(dtype=torch.bfloat16), images, captions, CFG, 0, tmp_path)
    with pytest.raises(ConfigError, match="fp16"):
        f.finetune(base(), images, captions, dataclasses.replace(CFG, precision="fp16"), 0, tmp_path)
    with pytest.raises(ValueError, match="'sample'"):
        f.finetune(base(prediction_type="sample"), images, captions, CFG, 0, tmp_path)

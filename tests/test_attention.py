"""Attention maps and the attention loss against diffusers, brute force and finite differences."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from resurgence.diffusion.attention import (
    as_delta,
    attention_loss,
    attention_maps,
    cross_attentions,
    from_delta,
    grid_of,
    projection_weights,
    projections,
    resize_mask,
    swapped,
)
from resurgence.erasers.lora import adapted
from tiny import make_pipeline

KINDS = {
    "sd1": {"cross_attention_dim": 32, "heads": 2},
    "sd2": {"cross_attention_dim": 48, "heads": [2, 4, 8], "block_out_channels": (16, 32, 64), "pad": "zero"},
}


@pytest.fixture(scope="module", params=list(KINDS))
def unet(request) -> UNet2DConditionModel:
    return make_pipeline(**KINDS[request.param]).unet.requires_grad_(False)


def inputs(unet, batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Noisy latents, timesteps, texts, masks and token sets, random."""
    g = torch.Generator().manual_seed(7)
    noisy = torch.randn(batch, 4, 8, 8, generator=g).to(dtype)
    t = torch.tensor([250, 310, 399, 201, 222][:batch])
    texts = torch.randn(batch, 11, unet.config.cross_attention_dim, generator=g).to(dtype)
    masks = torch.rand(batch, 1, 16, 16, generator=g) > 0.5
    tokens = torch.rand(batch, 11, generator=g) > 0.6
    return noisy, t, texts, masks, tokens


def factors(unet, batch: int, dtype: torch.dtype = torch.float32, scale: float = 0.3) -> dict:
    g = torch.Generator().manual_seed(3)
    return {
        name: (
            torch.randn(batch, 1, m.in_features, generator=g).to(dtype),
            scale * torch.randn(batch, m.out_features, 1, generator=g).to(dtype),
        )
        for name, m in projections(unet).items()
    }


@torch.no_grad()
def maps_of(unet, noisy, t, texts) -> dict[str, torch.Tensor]:
    maps = {}
    attention_maps(unet, maps.__setitem__, noisy, t, texts)
    return maps


def test_projections_are_those_of_attn2(unet):
    names = set(cross_attentions(unet))
    assert names == {n for n, _ in unet.named_modules() if n.endswith("attn2")}
    assert len(projections(unet)) == 2 * len(names)
    assert all(m.in_features == unet.config.cross_attention_dim for m in projections(unet).values())


@torch.no_grad()
def test_maps_are_those_of_a_full_forward_pass(unet):
    """Queries and keys recorded by hooks in diffusers' own attention give the same probabilities."""
    noisy, t, texts, *_ = inputs(unet)
    seen, handles = {}, []
    for name, module in cross_attentions(unet).items():
        for part in ("to_q", "to_k"):
            hook = lambda _m, _i, out, key=(name, part): seen.__setitem__(key, out)  # noqa: E731
            handles.append(getattr(module, part).register_forward_hook(hook))
    unet(noisy, t, encoder_hidden_states=texts)
    for handle in handles:
        handle.remove()
    maps = maps_of(unet, noisy, t, texts)
    assert set(maps) == set(cross_attentions(unet))
    for name, module in cross_attentions(unet).items():
        q, k = (seen[name, p].unflatten(-1, (module.heads, -1)).transpose(1, 2) for p in ("to_q", "to_k"))
        expected = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        assert maps[name].shape == expected.shape
        assert torch.allclose(maps[name], expected, atol=1e-6)


def test_processors_hooks_and_output_are_restored(unet):
    noisy, t, texts, masks, tokens = inputs(unet)
    before, processors = unet(noisy, t, texts).sample, dict(unet.attn_processors)
    with adapted(unet, factors(unet, 3)):
        attention_loss(unet, noisy, t, texts, masks, tokens)
        assert not torch.equal(unet(noisy, t, texts).sample, before)
    assert unet.attn_processors == processors
    assert torch.equal(unet(noisy, t, texts).sample, before)


def test_nothing_behind_the_last_map_is_computed(unet):
    noisy, t, texts, *_ = inputs(unet)
    calls = []
    handle = unet.conv_out.register_forward_hook(lambda *_: calls.append(1))
    maps_of(unet, noisy, t, texts)
    handle.remove()
    assert not calls


def test_zero_lora_leaves_the_output_bit_identical(unet):
    noisy, t, texts, *_ = inputs(unet)
    expected = unet(noisy, t, texts).sample
    for scale, side in ((0.0, "up"), (1.0, "down")):
        zero = {
            n: (d * (side == "up"), u * (side == "down")) for n, (d, u) in factors(unet, 3, scale=scale or 1).items()
        }
        with adapted(unet, zero):
            assert torch.equal(unet(noisy, t, texts).sample, expected)


def test_each_sample_goes_through_its_own_factors(unet):
    """The batch equals merging one sample's factors into the weights and running it alone."""
    unet = unet.double()
    noisy, t, texts, *_ = inputs(unet, dtype=torch.float64)
    lora = factors(unet, 3, torch.float64)
    with adapted(unet, lora):
        batch = unet(noisy, t, texts).sample
    for k in range(3):
        merged = {n: w + lora[n][1][k] @ lora[n][0][k] for n, w in projection_weights(unet).items()}
        with swapped(unet, merged):
            alone = unet(noisy[k : k + 1], t[k : k + 1], texts[k : k + 1]).sample
        assert torch.allclose(batch[k], alone[0], atol=1e-10)
    unet.float()


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
def test_loss_is_the_brute_force_sum(unet, masked):
    noisy, t, texts, masks, tokens = inputs(unet)
    loss = attention_loss(unet, noisy, t, texts, masks if masked else None, tokens)
    expected = [0.0, 0.0, 0.0]
    for a in maps_of(unet, noisy, t, texts).values():  # (B, heads, Q, L)
        side = int(a.shape[2] ** 0.5)
        for b in range(3):
            square = 0.0
            for y in range(side):
                for x in range(side):
                    if not masked or masks[b, 0, y * 16 // side, x * 16 // side]:  # nearest pixel
                        square += float((a[b, :, y * side + x][:, tokens[b]] ** 2).sum())
            expected[b] += square**0.5
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)


def test_gradient_agrees_with_finite_differences(unet):
    unet = unet.double()
    noisy, t, texts, masks, tokens = inputs(unet, dtype=torch.float64)
    lora = {n: tuple(f.requires_grad_() for f in pair) for n, pair in factors(unet, 3, torch.float64).items()}
    flat = [f for pair in lora.values() for f in pair]

    def loss(shift: list[torch.Tensor] | None = None, step: float = 0.0) -> torch.Tensor:
        moved = iter(f + step * s for f, s in zip(flat, shift, strict=True)) if shift else iter(flat)
        with adapted(unet, {n: (next(moved), next(moved)) for n in lora}):
            return attention_loss(unet, noisy, t, texts, masks, tokens).sum()

    gradients = torch.autograd.grad(loss(), flat, allow_unused=True)
    unused = [n for n, g in zip([n for n in lora for _ in range(2)], gradients, strict=True) if g is None]
    assert unused and all(n.endswith("to_v") for n in unused)  # the last cross-attention's values only
    gradients = [torch.zeros_like(f) if g is None else g for f, g in zip(flat, gradients, strict=True)]
    g = torch.Generator().manual_seed(5)
    for _ in range(4):
        direction = [torch.randn(f.shape, generator=g, dtype=torch.float64) for f in flat]
        with torch.no_grad():
            numeric = float(loss(direction, 1e-5) - loss(direction, -1e-5)) / 2e-5
        analytic = float(sum((a * d).sum() for a, d in zip(gradients, direction, strict=True)))
        assert analytic == pytest.approx(numeric, rel=1e-6, abs=1e-9)
    unet.float()


def test_no_pixel_or_no_token_gives_zero_loss_and_zero_gradient(unet):
    noisy, t, texts, masks, tokens = inputs(unet)
    lora = {n: tuple(f.requires_grad_() for f in pair) for n, pair in factors(unet, 3).items()}
    masks, tokens = masks.clone(), tokens.clone()
    masks[0], tokens[1] = False, False
    with adapted(unet, lora):
        loss = attention_loss(unet, noisy, t, texts, masks, tokens)
    gradients = torch.autograd.grad(loss.sum(), [up for _, up in lora.values()], allow_unused=True)
    assert loss[:2].tolist() == [0, 0]
    assert loss[2] > 0
    for g in gradients:
        if g is not None:
            assert torch.isfinite(g).all()
            assert not g[:2].any()


@pytest.mark.parametrize(
    ("pixels", "size", "expected"),
    [(64, (8, 8), (8, 8)), (16, (8, 8), (4, 4)), (15, (9, 5), (5, 3)), (6, (9, 5), (3, 2)), (1, (8, 8), (1, 1))],
)
def test_grid_of(pixels, size, expected):
    assert grid_of(pixels, *size) == expected


def test_grid_of_refuses_other_sizes():
    with pytest.raises(ValueError, match="does not fit latents 8 x 8"):
        grid_of(17, 8, 8)


def test_resize_mask_takes_the_nearest_pixel():
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0, 2] = True
    assert resize_mask(mask, (2, 2)).tolist() == [[False, True, False, False]]
    assert resize_mask(mask, (4, 4)).sum() == 1


def test_swapped_and_delta_round_trip(unet):
    own = {n: w.clone() for n, w in projection_weights(unet).items()}
    other = {n: w + 1 for n, w in own.items()}
    delta = as_delta(other)
    assert set(delta) <= {f"unet.{n}" for n in unet.state_dict()}
    assert all(torch.equal(w, other[n]) for n, w in from_delta(delta, unet).items())
    assert all(torch.equal(w, own[n]) for n, w in from_delta({}, unet).items())
    with pytest.raises(RuntimeError, match="inside"), swapped(unet, other):
        assert all(torch.equal(w, other[n]) for n, w in projection_weights(unet).items())
        raise RuntimeError("inside")
    assert all(torch.equal(w, own[n]) for n, w in projection_weights(unet).items())


def test_a_unet_without_text_is_refused():
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), mid_block_type=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no cross-attention"):
        projections(unet)

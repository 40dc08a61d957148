"""Settings of erasers and masks that are refused, by an error that begins with the key."""

from __future__ import annotations

from typing import Any

import pytest

from resurgence.config.erasers import eraser_config
from resurgence.config.fields import ConfigError, build
from resurgence.config.stages import MaskConfig

BAD: dict[str, list[dict[str, Any]]] = {  # the key to be named is the first
    "esd": [
        {"eta": -1.0}, {"guidance": -0.5}, {"ddim_steps": 0}, {"trajectories": 0}, {"template": "a photo"},
        {"template": "{} and {}"}, {"eta_from": "anchor"}, {"x_t": "teacher"}, {"steps": 0}, {"lr": 0.0}, {"etas": 1.0},
        {"parameters": "cross"}, {"checkpoints": [2000]}, {"weight_decay": 0.1}, {"ema": 1.0}, {"max_norm": 0.0},
    ],
    "sdd": [
        {"ema": None}, {"ema": 1.5}, {"guidance": -1.0}, {"ddim_steps": 0}, {"trajectories": 0}, {"template": "photo"},
        {"z_t": "student"}, {"sampled_for": "none"}, {"parameters": "text-encoder"}, {"max_norm": -1.0}, {"eta": 1.0},
    ],
    "spm": [
        {"rank": 0}, {"scale": 0.0}, {"scale": -1.0}, {"eta": -1.0}, {"anchors": -1}, {"anchor_weight": -1.0},
        {"anchoring": "coco"}, {"anchoring": "retained", "anchors": 0}, {"ddim_steps": 0}, {"trajectories": 0},
        {"guidance": -0.5}, {"template": "a photo"}, {"layers": "linear"}, {"parameters": "text-encoder"},
        {"adapters": "each"}, {"surrogate": "dog"}, {"x_t": "images"}, {"steps": 0}, {"anchor": 4},
    ],
    "eap": [
        {"lamb": -1.0}, {"negative_guidance": -1.0}, {"guidance": -0.5}, {"closest": 0}, {"search_steps": -1},
        {"eta": 0.0}, {"temperature": 0.0}, {"ddim_steps": 0}, {"trajectories": 0}, {"template": "a photo"},
        {"target": "anchor"}, {"space": "x0"}, {"exclude": "synonyms"}, {"distance": "dot"}, {"ascent": "sgd"},
        {"through": "base"}, {"pi": "new"}, {"x_t": "images"}, {"parameters": "text-encoder"}, {"lr": 0.0},
        {"lambda": 1.0}, {"hard": 1},
    ],
    "advunlearn": [
        {"eta": -1.0}, {"gamma": -0.1}, {"warmup": -1}, {"warmup": 1000}, {"retain_batch": 0}, {"attack_steps": 0},
        {"attack_every": 0}, {"prefix_tokens": 0}, {"attack_lr": 0.0}, {"attack_update": "pgd"},
        {"attack_start": "zero"}, {"lr": -1.0}, {"embeddings": "trained", "parameters": "xattn"}, {"embeddings": "all"},
        {"ddim_steps": 0}, {"trajectories": 0}, {"retain_trajectories": 0}, {"guidance": -1.0}, {"template": "ship"},
        {"retain_template": "{} and {}"}, {"parameters": "text"}, {"words": 1},
    ],
    "ca": [
        {"anchor_weight": -1.0}, {"loss": "model"}, {"target_from": "base"}, {"parameters": "text-encoder"},
        {"batch": 0}, {"lr": -1.0}, {"prompts": ""}, {"weight_decay": 0.1, "optimiser": "adam"}, {"steps": 1.5},
    ],
    "doco": [
        {"lamb": -1.0}, {"discriminate": "image"}, {"generator": "wgan"}, {"anchor_from": "base"},
        {"surgery": "pcgrad"}, {"unlearning": "l1"}, {"warmup": -1}, {"warmup": 10, "steps": 10},
        {"discriminator_lr": 0.0}, {"last_stride": 3}, {"parameters": "text-encoder"}, {"batch": 0}, {"lr": -1.0},
        {"prompts": ""}, {"steps": 1.5}, {"discriminator_width": 0}, {"discriminators": "each"},
        {"discriminators": "concept", "unlearning": "l2"},
    ],
    "fmn": [
        {"parameters": "text-encoder"}, {"pooler_tokens": "all"}, {"use_pooler": 1}, {"captions": 3}, {"steps": 0},
        {"max_norm": 0.0}, {"weight_decay": -0.1}, {"norm": 2},
    ],
    "salun": [
        {"alpha": -0.1}, {"mask_guidance": -1.0}, {"mask_steps": 0}, {"fraction": 0.0}, {"fraction": 1.1},
        {"target_from": "teacher"}, {"parameters": "text-encoder"}, {"steps": 0}, {"lr": 0.0},
        {"weight_decay": 0.1, "optimiser": "adamw"}, {"alphas": 1.0},
    ],
    "erasediff": [
        {"eta": -0.1}, {"weight": -1.0}, {"inner_steps": -1}, {"inner_lr": 0.0}, {"multiplier": "adaptive"},
        {"inner_steps": 0, "multiplier": "value"}, {"inner_value": "first"}, {"target_from": "teacher"},
        {"parameters": "text-encoder"}, {"batch": 0}, {"k_steps": 2},
    ],
    "scissorhands": [
        {"sparsity": -0.1}, {"sparsity": 1.5}, {"weight": -1.0}, {"margin": -0.5}, {"saliency_steps": 0},
        {"saliency_guidance": -1.0}, {"saliency": "weights"}, {"trim": "some"}, {"initial": "zeros"},
        {"forget": "noise"}, {"projection": "both"}, {"parameters": "text-encoder"}, {"lr": 0.0}, {"lam": 0.1},
    ],
    "uce": [
        {"lamb": -0.1}, {"erase_scale": 0}, {"preserve_scale": -1}, {"tokens": "all"}, {"scale": 1}, {"lamb": "5e-1"},
        {"keep_empty": "yes"},
    ],
    "rece": [
        {"lamb": -0.1}, {"erase_scale": 0}, {"preserve_scale": -1}, {"tokens": "all"}, {"epochs": -1}, {"mu": 0},
        {"epoch_lamb": -1}, {"epoch_preserve_scale": -1}, {"targets": "old"}, {"epoch_tokens": "first"}, {"reg": 1},
    ],
    "time": [
        {"lamb": -0.1}, {"keys": "yes"}, {"scale": 1}, {"captions": 3},
    ],
    "speed": [
        {"lamb": 0.0}, {"threshold": 0.0}, {"augmentations": -1}, {"directions": 0}, {"tokens": "first"},
        {"invariants": "empty"}, {"keys": 1}, {"ridge": 1},
    ],
    "mace": [
        {"lamb": -1}, {"steps": 0}, {"lr": 0}, {"rank": 0}, {"chunk": 0}, {"max_norm": 0}, {"timesteps": "first"},
        {"train_preserve_scale": 0, "lamb": 0}, {"fuse_preserve_scale": 0, "lamb": 0}, {"pooler_tokens": "all"},
        {"fusion": "constrained", "preserve_retained": False}, {"max_relative_change": 0.0}, {"lambda": 1},
        {"scale_application": "once"}, {"captions": 3}, {"lr": "1e-4"},
    ],
    "mace-refinement": [
        {"lamb": -1}, {"preserve_weight": -1.0}, {"train_preserve_scale": -0.0001}, {"train_preserve_scale": 0},
        {"scale_application": "twice"}, {"steps": 50}, {"fuse_preserve_scale": 0.1},
    ],
    "masks": [
        {"segmenter": "sam"}, {"empty": "skip"}, {"batch": 0}, {"border": 0.0}, {"border": 0.5}, {"contrast": -1},
        {"smallest": 0}, {"timesteps": []}, {"timesteps": [-1]}, {"template": "a photo"}, {"phrase": "{} {}"},
        {"detector": ""}, {"precision": "int8"}, {"threshold": 1.0}, {"text_threshold": 0}, {"edges": 1},
        {"max_replaced": 1.1},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, every in BAD.items() for bad in every])
def test_bad_settings_name_the_key(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        build(MaskConfig if name == "masks" else eraser_config(name), bad, name)
    assert str(error.value).startswith(f"{name}.{next(iter(bad))}")

"""Whether a base is one that sampling, erasing and fine-tuning are defined for: its files, and parts that fit together.

The files of a folder are checked before they are loaded, the parts after that, so that every way to load a base leads
through the same checks.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurgence.config.fields import ConfigError
from resurgence.files import check_weights_file, read_json

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)
PIPELINE = "StableDiffusionPipeline"
AT_INFERENCE = "acts at inference, so there are no changed weights to audit"
CLASS_NAMES = {
    r"SLD|Sld|^sld|(?i:safe$|SafeStableDiffusion|SafeLatentDiffusion)": "SLD",
    r"(?i:safree)": "SAFREE",
    r"(?i:receler)": "Receler",
    r"(?i:concept_?steer)": "Concept Steerers",
    r"(?i:saeuron)": "SAeUron",
    r"(?i:safe_?denois)": "Safe Denoiser",
    r"(?i:ada_?vd)": "AdaVD",
    r"(?i:SemanticStableDiffusion)": "SEGA",
}
"""What the classes of pipelines are called -> their eraser, of those that act at inference."""
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
VARIANT = re.compile(
    r"\.([a-z][a-z0-9_]*)(-\d+-of-\d+)?\.safetensors$"
)  # unet/diffusion_pytorch_model.fp16.safetensors
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")  # that diffusers' DDIM knows
PREDICTIONS = ("epsilon", "v_prediction")
OTHER_BASE = "give a base of the kind of Stable Diffusion 1 or 2"
# settings of a UNet with further inputs, which are never given here
FURTHER_INPUTS = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type",
                  "time_cond_proj_dim")  # fmt: skip


def check_folder(folder: Path) -> None:
    """Check a diffusers folder before it is loaded: its index, the classes of its parts, their settings and weights.

    Raises:
        FileNotFoundError: no model_index.json, or no configuration of a part.
        ValueError: another pipeline, a part of another class, a configuration that is not JSON, weights that are none.
    """
    index = folder / "model_index.json"
    if not index.exists():
        raise FileNotFoundError(f"{folder} has no model_index.json; give one written by diffusers' save_pretrained")
    parts = read_json(index)
    if not isinstance(parts, dict):
        raise ConfigError(str(index), parts, "must be a mapping of parts to classes; write the folder again")
    if (name := parts.get("_class_name")) != PIPELINE:
        if eraser := at_inference(name):
            raise ConfigError(f"{index}: _class_name", name, f"{eraser} {AT_INFERENCE}; give a {PIPELINE} "
                              "(SD 1.x or 2.x)")  # fmt: skip
        raise ConfigError(f"{index}: _class_name", name, f"give a {PIPELINE} (SD 1.x or 2.x)")
    for part, classes in CLASSES.items():
        entry = parts.get(part)
        if not isinstance(entry, list) or entry[-1] not in classes:
            raise ConfigError(f"{index}: {part}", entry, f"must be a {' or '.join(classes)}; {OTHER_BASE}")
    for part in ("unet", "vae", "text_encoder"):
        check_model(folder / part)
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (tokenizer / name).is_file():
                raise FileNotFoundError(f"{tokenizer} has neither tokenizer.json nor {name}; fetch the whole folder")
    if not (folder / "scheduler/scheduler_config.json").is_file():
        raise FileNotFoundError(f"{folder} has no scheduler/scheduler_config.json; copy it from the base's publisher")
    read_json(folder / "scheduler/scheduler_config.json")


def at_inference(name: Any) -> str:
    """The eraser at inference whose pipeline has this class; "" of none. Of a custom pipeline, the index has the file
    that defines it before the class."""
    last = str(name[-1] if isinstance(name, list) and name else name)
    return next((eraser for pattern, eraser in CLASS_NAMES.items() if re.search(pattern, last)), "")


def is_complete(folder: Path) -> bool:
    """Whether a snapshot of the hub's cache has every file of a base; an interrupted download lacks some.

    Raises:
        ValueError: as `check_folder`, for files that are no base of this kind.
    """
    try:
        check_folder(folder)
    except FileNotFoundError:
        return False
    return True


def check_model(folder: Path) -> None:
    """Check configuration and weights of one part; raises as `check_folder` does."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so its part cannot be loaded; fetch the whole folder")
    read_json(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        there = ", ".join(sorted(file.name for file in folder.iterdir()))
        raise FileNotFoundError(f"{folder} holds no safetensors, only {there}; fetch it again with safetensors, as "
                                "pickled weights (.bin) can execute code and are not read")  # fmt: skip
    for index in folder.glob("*.safetensors.index.json"):
        for shard in sorted(set(read_json(index).get("weight_map", {}).values())):
            if not (folder / shard).is_file():
                raise FileNotFoundError(f"{folder} lacks {shard}, which {index.name} lists; fetch the whole folder")
    for file in files:
        check_weights_file(file)


def variant_of(folder: Path) -> str | None:
    """The variant of the weights of a part, such as fp16, if its folder holds safetensors of that variant only."""
    matches = [VARIANT.search(file.name) for file in folder.glob("*.safetensors")]
    variants = {match[1] if match else None for match in matches}
    return variants.pop() if len(variants) == 1 else None


def check_parts(pipe: StableDiffusionPipeline, base: str) -> None:
    """Raise ConfigError for parts that do not fit together; limit the tokenizer to the length that the encoder reads.

    Args:
        base: its path or hub id, for messages.
    """
    check_unet(pipe, base)
    check_autoencoder(pipe, base)
    fit_tokenizer(pipe, base)
    check_scheduler(pipe, base)


def setting(base: str, part: str, key: str) -> str:
    """The place of a setting of a part, for messages: the file in a folder, else the part of the base."""
    file = f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json"
    return f"{Path(base) / file}: {key}" if Path(base).is_dir() else f"{base}: {part}: {key}"


def check_unet(pipe: StableDiffusionPipeline, base: str) -> None:
    """Raise ConfigError unless the UNet takes noisy latents, timestep and text, and returns a prediction."""
    config, latents = pipe.unet.config, pipe.vae.config.latent_channels
    for key in FURTHER_INPUTS:
        if (value := config.get(key)) is not None:
            raise ConfigError(setting(base, "unet", key), value, f"this UNet has a further input; {OTHER_BASE}")
    for key in ("in_channels", "out_channels"):
        if (channels := config[key]) != latents:
            remedy = f"the autoencoder has {latents} latent channels; inpainting, depth and image-to-image UNets " \
                     f"cannot be used, {OTHER_BASE}"  # fmt: skip
            raise ConfigError(setting(base, "unet", key), channels, remedy)
    side = config.sample_size
    if not isinstance(side, int) or side < 1:
        remedy = "must be a whole number, the side of the square latents; write it, e.g. 64 for images of 512 pixels"
        raise ConfigError(setting(base, "unet", "sample_size"), side, remedy)
    if not any(name.endswith("attn2.to_k") for name, _ in pipe.unet.named_modules()):
        blocks = config.down_block_types
        remedy = f"no block has cross-attention, so the text has no effect; {OTHER_BASE}"
        raise ConfigError(setting(base, "unet", "down_block_types"), list(blocks), remedy)
    width, text = config.cross_attention_dim, pipe.text_encoder.config.hidden_size
    if width != text:
        remedy = f"the text encoder's embeddings have {text}; take UNet and text encoder of the same base"
        raise ConfigError(setting(base, "unet", "cross_attention_dim"), width, remedy)


def check_autoencoder(pipe: StableDiffusionPipeline, base: str) -> None:
    """Raise ConfigError for an autoencoder whose latents are scaled in a way that is not computed here."""
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if (value := pipe.vae.config.get(key)) is not None:
            raise ConfigError(setting(base, "vae", key), value, f"is an autoencoder of later models; {OTHER_BASE}")
    scale = pipe.vae.config.scaling_factor
    if not isinstance(scale, float | int) or not 0 < scale < float("inf"):
        raise ConfigError(setting(base, "vae", "scaling_factor"), scale, "must be a positive number; SD has 0.18215")


def fit_tokenizer(pipe: StableDiffusionPipeline, base: str) -> None:
    """Limit the tokenizer to the positions of the text encoder; raise ConfigError for a token without an embedding.

    A tokenizer without model_max_length, as conversion scripts write it, would pad prompts to 1e30 tokens.
    """
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    positions, rows = encoder.config.max_position_embeddings, encoder.get_input_embeddings().num_embeddings
    if tokenizer.model_max_length > positions:
        log.info("tokenizer of %s: prompts of %d tokens, as many as its text encoder reads", base, positions)
        tokenizer.model_max_length = positions
    if tokenizer.model_max_length < 3:
        remedy = f"leaves no token for a prompt; write {positions}"
        raise ConfigError(f"{base}: tokenizer: model_max_length", tokenizer.model_max_length, remedy)
    vocabulary = tokenizer.get_vocab()
    if 2 * len(vocabulary) < rows:
        remedy = f"the text encoder has {rows} embeddings; take the tokenizer of the same base, with all its files"
        raise ConfigError(f"{base}: tokenizer: tokens", len(vocabulary), remedy)
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        remedy = (
            f"its number {number} is beyond the text encoder's {rows} embeddings ({len(beyond)} such tokens); save "
            "the text encoder after resize_token_embeddings, or the tokenizer without these tokens"
        )
        raise ConfigError(f"{base}: tokenizer: token", token, remedy)


def check_scheduler(pipe: StableDiffusionPipeline, base: str) -> None:
    """Raise ConfigError for a noise schedule or prediction that DDIM is not defined for."""
    config, name = pipe.scheduler.config, type(pipe.scheduler).__name__
    if "beta_schedule" not in config or config.get("use_flow_sigmas"):
        remedy = f"has no schedule of betas: a flow-matching or EDM model cannot be used; {OTHER_BASE}"
        raise ConfigError(setting(base, "scheduler", "_class_name"), name, remedy)
    if (kind := config.get("prediction_type", "epsilon")) not in PREDICTIONS:
        remedy = f"is not defined here; known: {', '.join(PREDICTIONS)}"
        raise ConfigError(setting(base, "scheduler", "prediction_type"), kind, remedy)
    schedule, trained = config.beta_schedule, config.get("trained_betas")
    if trained is None and schedule not in BETA_SCHEDULES:
        remedy = f"DDIM does not know it; known: {', '.join(BETA_SCHEDULES)}"
        raise ConfigError(setting(base, "scheduler", "beta_schedule"), schedule, remedy)
    if not len(pipe.scheduler.betas):  # their values: check_schedule in pipeline.py
        key = setting(base, "scheduler", "num_train_timesteps")
        raise ConfigError(key, config.num_train_timesteps, "must be positive; SD has 1000")

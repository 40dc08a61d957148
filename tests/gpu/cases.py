"""What runs on the CPU and on the pretended device, with tiny models: sampling, training, every eraser, scorers.

    python tests/gpu/cases.py OUT CASE ...        writes what each case gave to the JSON file OUT

In a process of its own, because a device must be registered before the first backward pass and stays until the end.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / part) for part in ("src", "tests", "tests/gpu")]

from pretended import COUNTS, pretended, register  # noqa: E402
from short_erasures import CAPTIONS, ERASURES, TASK, erase, eraser_data, pictures  # noqa: E402

from resurgence.data.masks import MaskConfig, segment  # noqa: E402
from resurgence.data.moments import second_moment  # noqa: E402
from resurgence.diffusion.deltas import apply_folder  # noqa: E402
from resurgence.diffusion.sampling import SamplingConfig, sample  # noqa: E402
from resurgence.training.finetune import FinetuneConfig, finetune  # noqa: E402
from tiny import make_pipeline  # noqa: E402

Tensors = dict[str, torch.Tensor]
ROWS = pd.DataFrame({"prompt": [f"a photo of the {c}" for c in ("ship", "cat", "ship")], "seed": [1, 2, 3]})


def make_pipe() -> StableDiffusionPipeline:
    """The tiny pipeline that each case begins with."""
    return make_pipeline(sample_size=8, max_length=24)


def erasure(name: str, pipe: StableDiffusionPipeline) -> Tensors:
    """The delta of an eraser after a few steps."""
    return erase(name, pipe, eraser_data(make_pipe()))


def draw_images(options: dict[str, Any], pipe: StableDiffusionPipeline) -> Tensors:
    """Pixels (N, H, W, 3) of the sampler, 0 to 255."""
    cfg = SamplingConfig(**{"steps": 3, "batch": 2, **options})
    images = [np.asarray(image) for _, image in sorted(sample(pipe, ROWS, cfg), key=lambda pair: pair[0])]
    return {"pixels": torch.from_numpy(np.stack(images).astype(np.float32))}


def tune(options: dict[str, Any], pipe: StableDiffusionPipeline) -> Tensors:
    """Losses and weights of a fine-tune of three steps, and what its checkpoint gives."""
    images = pictures()
    cfg = FinetuneConfig(**{"steps": 3, "batch": 2, "accumulation": 2, "rank": 2, "checkpoints": (), **options})
    captions = ["a photo of the bird"] * 3 + ["a photo of the queen"] * 3
    with tempfile.TemporaryDirectory() as folder:
        out, state = Path(folder) / "out", Path(folder) / "state"
        curve = finetune(pipe, torch.cat([images["bird"], images["queen"]]), captions, cfg, 0, out, state)
        apply_folder(pipe, out / "step-000003")
    weights = {name: p.detach().cpu() for name, p in pipe.unet.named_parameters()}
    return {"loss": torch.tensor([row["loss"] for row in curve]), **weights}


def attention_masks(pipe: StableDiffusionPipeline) -> Tensors:
    """Masks from the base's cross-attention."""
    cfg = MaskConfig(segmenter="cross-attention", empty="whole")
    return {"masks": segment(pictures()["ship"], "ship", cfg, pipe, pipe.device).float()}


def moment(pipe: StableDiffusionPipeline) -> Tensors:
    """The second moment of the captions' embeddings."""
    return {"moment": second_moment(pipe, CAPTIONS)}


def clip_scores(pipe: StableDiffusionPipeline) -> Tensors:
    """Scores of random images by a random CLIP on the pipeline's device."""
    from resurgence.scorers import clip
    from resurgence.scorers.configs import ClipConfig
    from test_scorers import write_clip

    draw = torch.Generator().manual_seed(1)
    images = (torch.rand(2, 3, 16, 16, generator=draw) * 255).to(torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder))
        scorer = clip.load(ClipConfig(path=folder), pipe.device)
        scores = scorer.score(images, pd.DataFrame({"prompt": ["a", "b"], "concept": ["ship", "bird"]}), TASK)
    return {"clip_score": torch.tensor(scores["clip_score"])}


def grounded_masks(pipe: StableDiffusionPipeline) -> Tensors:
    """Masks of random Grounding DINO and SAM on the pipeline's device."""
    from resurgence.data.segmenters.grounded_sam import GroundedSam
    from test_masks import write_grounded_sam

    images = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with tempfile.TemporaryDirectory() as folder:
        detector, sam = write_grounded_sam(Path(folder))
        GroundedSam.load.cache_clear()
        model = GroundedSam.load(detector, None, sam, None, str(pipe.device), "fp32")
        return {"masks": model(images, "ship", 0.01, 0.01, 2).float()}


CASES: dict[str, Callable[[StableDiffusionPipeline], Tensors]] = {
    "sample": partial(draw_images, {}),
    "sample-channels-last": partial(draw_images, {"channels_last": True}),
    "finetune-lora": partial(tune, {}),
    "finetune-lora-checkpointing": partial(tune, {"gradient_checkpointing": True}),
    "finetune-full-ema": partial(tune, {"algorithm": "full", "ema": True, "lr": 1e-4}),
    "masks-cross-attention": attention_masks,
    "masks-grounded-sam": grounded_masks,
    "moments": moment,
    "scorer-clip": clip_scores,
    **{f"erase-{name}": partial(erasure, name) for name in ERASURES},
}


def compare(run: Callable[[StableDiffusionPipeline], Tensors], expected: Tensors, device: torch.device) -> dict:
    """Run a case on the device; how far its tensors are from those of the CPU, and what was counted."""
    pipe = make_pipe().to(device)
    COUNTS.clear()
    found = {name: tensor.cpu().double() for name, tensor in run(pipe).items()}
    counts = dict(COUNTS)
    if found.keys() != expected.keys():
        return {"error": f"other tensors: {sorted(found.keys() ^ expected.keys())}"}
    largest = max(float((expected[name].double() - found[name]).abs().max()) for name in expected)
    return {"difference": largest, "counts": counts}


def on_both(names: list[str]) -> dict[str, dict]:
    """Run the cases on the CPU, then on the pretended device.

    Returns:
        case -> `difference` (largest absolute one of all tensors) and `counts`, or `error`.
    """
    register()
    expected = {name: CASES[name](make_pipe()) for name in names}
    device, outcomes = pretended(), {}
    save_file = safetensors.torch.save_file  # reads a tensor's memory, which those of the pretended device lack

    def save_from_cpu(tensors: Tensors, *args: Any, **options: Any) -> None:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, *args, **options)

    safetensors.torch.save_file = save_from_cpu
    for name in names:
        try:
            outcomes[name] = compare(CASES[name], expected[name], device)
        except Exception:
            outcomes[name] = {"error": traceback.format_exc()}
    return outcomes


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(json.dumps(on_both(sys.argv[2:])))

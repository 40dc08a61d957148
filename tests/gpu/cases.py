"""What runs on the CPU and on the pretended device, with tiny models: sampling, training, every eraser, scorers.

    python tests/gpu/cases.py OUT CASE ...        writes what each case gave to the JSON file OUT

In a process of its own, because a device must be registered before the first backward pass and stays until the end.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import transformers
from diffusers import StableDiffusionPipeline
from packaging.version import Version

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / part) for part in ("src", "tests", "tests/gpu")]

from pretended import COUNTS, pretended, register  # noqa: E402
from short_erasures import CAPTIONS, ERASURES, TASK, erase, eraser_data, pictures  # noqa: E402

from resurgence.data.masks import MaskConfig, segment  # noqa: E402
from resurgence.data.moments import second_moment  # noqa: E402
from resurgence.diffusion.attention import projection_weights  # noqa: E402
from resurgence.diffusion.deltas import apply_folder  # noqa: E402
from resurgence.diffusion.device import exact  # noqa: E402
from resurgence.diffusion.image_sets import RESAMPLED  # noqa: E402
from resurgence.diffusion.sampling import SamplingConfig, sample  # noqa: E402
from resurgence.erasers import EraserData, eraser_config, method  # noqa: E402
from resurgence.erasers.gradient import spm_transport  # noqa: E402
from resurgence.training import loop  # noqa: E402
from resurgence.training.finetune import FinetuneConfig, finetune  # noqa: E402
from resurgence.training.memory import mapped  # noqa: E402
from tiny import make_pipeline  # noqa: E402

Tensors = dict[str, torch.Tensor]
ROWS = pd.DataFrame({"prompt": [f"a photo of the {c}" for c in ("ship", "cat", "ship")], "seed": [1, 2, 3]})


def make_pipe() -> StableDiffusionPipeline:
    """The tiny pipeline that each case begins with."""
    return make_pipeline(sample_size=8, max_length=24)


def erasure(name: str, pipe: StableDiffusionPipeline) -> Tensors:
    """The delta of an eraser after a few steps."""
    return erase(name, pipe, eraser_data(make_pipe()))


def updated(pipe: StableDiffusionPipeline) -> Tensors:
    """The delta of an erased model from elsewhere, of random projections, after rounding: `checkpoint` and `update`."""
    draw, weights = torch.Generator().manual_seed(7), projection_weights(make_pipe().unet)
    file = {f"unet.{name}.weight": torch.randn(weight.shape, generator=draw) for name, weight in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_file(file, f"{folder}/model.safetensors")
        settings = {"path": f"{folder}/model.safetensors"}
        erased = method("checkpoint").erase(pipe, TASK, eraser_config("checkpoint")(**settings), EraserData(), 0)
        assert erased.keys() == file.keys()
        return method("update").erase(pipe, TASK, eraser_config("update")(**settings, bits=8), EraserData(), 0)


def draw_images(options: dict[str, Any], pipe: StableDiffusionPipeline, dtype: torch.dtype = torch.float32) -> Tensors:
    """Pixels (N, H, W, 3) of the sampler, 0 to 255, of a pipeline in `dtype`; none is sampled again in fp32."""
    cfg = SamplingConfig(**{"steps": 3, "batch": 2, **options})
    images = [image for _, image in sorted(sample(pipe.to(dtype=dtype), ROWS, cfg), key=lambda pair: pair[0])]
    assert not any(RESAMPLED in image.info for image in images)
    return {"pixels": torch.from_numpy(np.stack([np.asarray(image) for image in images]).astype(np.float32))}


def draw_opened(pipe: StableDiffusionPipeline) -> Tensors:
    """Pixels of the sampler with an adapter of SPM that each prompt opens by its strength."""
    product, draw = spm_transport.product, torch.Generator().manual_seed(8)
    keys = {n: m for n, m in make_pipe().unet.named_modules() if n.endswith("attn2.to_k")}
    adapter = {
        name: (torch.randn(1, layer.in_features, generator=draw), torch.randn(layer.out_features, 1, generator=draw))
        for name, layer in keys.items()
    }

    def on_device(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """B A is as large as the weight: it is made where that is."""
        assert up.device == down.device == pipe.device
        return product(up, down)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spm_transport, "product", on_device)
        drawn = spm_transport.sample_opened(pipe, ROWS, SamplingConfig(steps=3, batch=2), {"ship": adapter})
        images = [image for _, image in sorted(drawn, key=lambda pair: pair[0])]
    return {"pixels": torch.from_numpy(np.stack([np.asarray(image) for image in images]).astype(np.float32))}


def resumed(name: str, pipe: StableDiffusionPipeline) -> Tensors:
    """The delta of an eraser that SIGTERM ends after its first step, and that goes on from its state."""
    gradient_of, save = loop.gradient_of, torch.save

    def signalled(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return gradient_of(*args)

    def save_from_cpu(state: dict[str, Any], file: Path) -> None:  # those of the pretended device cannot be pickled
        save(mapped(lambda tensor: tensor.detach().cpu(), state), file)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        data = replace(eraser_data(make_pipe()), state=Path(folder))
        patch.setattr(torch, "save", save_from_cpu)
        with patch.context() as ending, pytest.raises(SystemExit):
            ending.setattr(loop, "gradient_of", signalled)
            erase(name, pipe, data)
        return erase(name, pipe, data)


def tune(options: dict[str, Any], pipe: StableDiffusionPipeline, side: int = 16) -> Tensors:
    """Losses and weights of a fine-tune of three steps on images of `side` pixels, and what its checkpoint gives."""
    images = pictures(side)
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


TWO_ROWS = pd.DataFrame({"prompt": ["a", "b"], "concept": ["ship", "bird"], "role": ["erase", "retain"]})


def clip_scores(pipe: StableDiffusionPipeline) -> Tensors:
    """Scores of random images by the scorers that read a CLIP, a random one on the pipeline's device."""
    from resurgence.scorers import clip, clip_pairs
    from resurgence.scorers.configs import ClipConfig
    from resurgence.scorers.erasure_configs import AnchorConfig, SensitivityConfig
    from test_scorers import write_clip

    images = random_images(16)
    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder))
        scorers = (
            clip.load(ClipConfig(path=folder), pipe.device),
            clip_pairs.load_anchored(AnchorConfig(path=folder, anchor="dog"), pipe.device),
            clip_pairs.load_sensitivity(SensitivityConfig(path=folder), pipe.device),
        )
        return numbers([scorer.score(images, TWO_ROWS, TASK, images.flip(0)) for scorer in scorers])


def numbers(scores: list[dict[str, Any]]) -> Tensors:
    """The columns of numbers of several scorers; -1 where there is none."""
    columns = {name: np.asarray(values) for table in scores for name, values in table.items()}
    return {name: torch.from_numpy(np.nan_to_num(v, nan=-1)) for name, v in columns.items() if v.dtype.kind == "f"}


def reference_scores(pipe: StableDiffusionPipeline) -> Tensors:
    """The stand-in for a detector of faces: nearness to reference pictures, by a random CLIP."""
    from PIL import Image

    from resurgence.scorers import reference
    from resurgence.scorers.configs import ReferenceConfig
    from test_scorers import write_clip

    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder))
        groups = ("ship", "bird", "others")
        draw = torch.rand(len(groups), 2, 20, 16, 3, generator=torch.Generator().manual_seed(2)) * 255
        for name, pictures in zip(groups, draw.to(torch.uint8).numpy(), strict=True):
            (place := Path(folder) / "pictures" / name).mkdir(parents=True)
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(place / f"{number}.png")
        scorer = reference.load(ReferenceConfig(f"{folder}/pictures", path=folder), pipe.device)
        return numbers([scorer.score(random_images(16), TWO_ROWS, TASK)]) | {"centroids": scorer.centroids}


def lpips_scores(pipe: StableDiffusionPipeline) -> Tensors:
    """Distances of random images by AlexNet with random convolutions."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    from resurgence.scorers.lpips import LpipsScorer

    torch.manual_seed(6)
    model, images = _NoTrainLpips(net="alex", pnet_rand=True).eval(), random_images(64)
    scorer = LpipsScorer(model.to(pipe.device), "lpips_alex", pipe.device)
    return numbers([scorer.score(images, TWO_ROWS, TASK, images.flip(0))])


def face_scores(pipe: StableDiffusionPipeline) -> Tensors:
    """Boxes and points of a photograph's face by MTCNN, with its published weights; the second image has no face."""
    from skimage import data

    from resurgence.scorers.celebrity import build_detector

    photo = np.ascontiguousarray(data.astronaut()[:256, 96:352])
    boxes, scores, points = build_detector(pipe.device).detect(np.stack([photo, photo * 0]), landmarks=True)
    assert boxes[1] is None
    return {
        name: torch.from_numpy(np.asarray(values[0], dtype=np.float64))
        for name, values in (("boxes", boxes), ("scores", scores), ("points", points))
    }


def grounded_masks(precision: str, pipe: StableDiffusionPipeline) -> Tensors:
    """Masks of random Grounding DINO, in a precision, and SAM on the pipeline's device; none is empty."""
    from resurgence.data.segmenters.grounded_sam import GroundedSam
    from test_masks import write_grounded_sam

    images = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with tempfile.TemporaryDirectory() as folder:
        detector, sam = write_grounded_sam(Path(folder))
        GroundedSam.load.cache_clear()
        settings = {"detector": detector, "sam": sam, "precision": precision, "batch": 2}
        cfg = MaskConfig(segmenter="grounded-sam", threshold=0.01, text_threshold=0.01, empty="error", **settings)
        return {"masks": segment(images, "ship", cfg, None, pipe.device).float()}


def recogniser_scores(pipe: StableDiffusionPipeline) -> Tensors:
    """Probabilities, features and ranks of random images by a random recogniser."""
    from resurgence.scorers import recogniser, success
    from resurgence.scorers.configs import RecogniserConfig
    from resurgence.scorers.erasure_configs import SuccessConfig
    from resurgence.scorers.recogniser_model import Labels, Recogniser, save_recogniser

    torch.manual_seed(3)
    labels = Labels(["bird", "ship", "cat", "none"], ["plain", "comic"])
    with tempfile.TemporaryDirectory() as folder:
        save_recogniser(Recogniser(4, 8, 32, 2), labels, Path(folder))
        scorer = recogniser.load(RecogniserConfig(path=folder), pipe.device)
        rates = success.load(SuccessConfig(path=folder, classifier="recogniser"), pipe.device)
        tables = [part.score(random_images(32), TWO_ROWS, TASK) for part in (scorer, rates)]
        return {**numbers(tables), "features": scorer.features(random_images(32))}


def celebrity_scores(pipe: StableDiffusionPipeline) -> Tensors:
    """Probabilities of two crops by a random classifier of the celebrity detector."""
    from resurgence.scorers.celebrity import CelebrityScorer, build_classifier

    torch.manual_seed(4)
    crops = [np.asarray(image) for image in random_images(224).permute(0, 2, 3, 1).numpy()]
    scorer = CelebrityScorer(None, build_classifier(4).to(pipe.device), list("abcd"), pipe.device)
    return {"probabilities": torch.from_numpy(scorer.probabilities(crops))}


def inception_features(pipe: StableDiffusionPipeline) -> Tensors:
    """Pooled features of two images by Inception with random weights."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    from resurgence.scorers.inception import InceptionScorer

    torch.manual_seed(5)
    with pytest.MonkeyPatch.context() as patch:  # it reads a file of weights
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(NoTrainInceptionV3.__mro__[1], "load_state_dict", lambda *_: None)
        model = NoTrainInceptionV3("inception-v3-compat", ["2048"], "weights.pth")
    return {"features": InceptionScorer(model.to(pipe.device), "clean", pipe.device).features(random_images(32))}


def random_images(side: int) -> torch.Tensor:
    """Two images uint8 (2, 3, side, side)."""
    return (torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)


FULL_TUNE = {"algorithm": "full", "ema": True, "lr": 1e-4}
CASES: dict[str, Callable[[StableDiffusionPipeline], Tensors]] = {
    "sample": partial(draw_images, {}),
    "sample-channels-last": partial(draw_images, {"channels_last": True}),
    "sample-fp16": partial(draw_images, {}, dtype=torch.float16),
    "sample-opened": draw_opened,
    "finetune-lora": partial(tune, {}),
    "finetune-lora-checkpointing": partial(tune, {"gradient_checkpointing": True}),
    "finetune-full-ema": partial(tune, FULL_TUNE),
    "masks-cross-attention": attention_masks,
    "masks-grounded-sam": partial(grounded_masks, "fp32"),
    "masks-grounded-sam-bf16": partial(grounded_masks, "bf16"),
    "moments": moment,
    "scorer-clip": clip_scores,
    "scorer-recogniser": recogniser_scores,
    "scorer-celebrity": celebrity_scores,
    "scorer-inception": inception_features,
    "scorer-reference": reference_scores,
    "scorer-lpips": lpips_scores,
    "scorer-faces": face_scores,
    **{f"erase-{name}": partial(erasure, name) for name in ERASURES},
    "erase-update": updated,
    "erase-doco-resumed": partial(resumed, "doco"),
}
WITH_CUDA: dict[str, Callable[[StableDiffusionPipeline], Tensors]] = {  # not on the pretended device: it does not cast
    "masks-grounded-sam-fp16": partial(grounded_masks, "fp16"),
    "finetune-lora-bf16": partial(tune, {"precision": "bf16"}),
    "finetune-lora-fp16": partial(tune, {"precision": "fp16"}),
    "finetune-full-bf16": partial(tune, {**FULL_TUNE, "precision": "bf16"}),
    "finetune-full-fp16": partial(tune, {**FULL_TUNE, "precision": "fp16"}),
}
HALF = {  # case in half precision -> the same in fp32
    "sample-fp16": "sample",
    "masks-grounded-sam-bf16": "masks-grounded-sam",
    "masks-grounded-sam-fp16": "masks-grounded-sam",
    "finetune-lora-bf16": "finetune-lora",
    "finetune-lora-fp16": "finetune-lora",
    "finetune-full-bf16": "finetune-full-ema",
    "finetune-full-fp16": "finetune-full-ema",
}
TRAININGS = {  # cases with optimiser steps; the other erasures are closed forms
    *(name for name in CASES if name.startswith("finetune-")),
    *(
        f"erase-{name}"
        for name in ("esd", "sdd", "ca", "fmn", "erasediff", "mace", "esd-base", "sdd-base", "spm", "eap")
    ),
    *(f"erase-{name}" for name in ("advunlearn", "doco", "doco-resumed", "salun", "erasediff-noxattn", "scissorhands")),
}
CLOSED_FORMS = {name for name in CASES if name.startswith("erase-")} - TRAININGS
SCORED = {  # case -> scorers whose networks it runs
    "scorer-clip": ("clip", "clip_anchor", "sensitivity"),
    "scorer-recogniser": ("recogniser", "success"),
    "scorer-celebrity": ("celebrity",),
    "scorer-inception": ("inception",),
    "scorer-reference": ("reference",),
    "scorer-lpips": ("lpips", "lpips_vgg"),
    "scorer-faces": ("celebrity", "identity"),
}
PACKAGES = {"scorer-faces": "facenet_pytorch"}  # case -> package of envs/weights.txt that it needs


def marks(case: str) -> list[pytest.MarkDecorator]:
    """The marks of a case; one that needs a package, or a later version of it, is skipped without."""
    if case in HALF and case.startswith("masks-"):
        reason = f"Grounding DINO in half precision needs transformers 5.23, installed is {transformers.__version__}"
        return [pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason=reason)]
    if case not in PACKAGES:
        return []
    missing = find_spec(PACKAGES[case]) is None
    return [pytest.mark.weights, pytest.mark.skipif(missing, reason=f"needs {PACKAGES[case]}; run `make weights`")]


def compare(run: Callable[[StableDiffusionPipeline], Tensors], expected: Tensors, device: torch.device) -> dict:
    """Run a case on the device; how far its tensors are from those of the CPU, and what was counted."""
    pipe, steps = make_pipe().to(device), []
    COUNTS.clear()
    with counted_steps(steps), exact(device):
        found = {name: tensor.cpu().double() for name, tensor in run(pipe).items()}
    counts = dict(COUNTS)
    if found.keys() != expected.keys():
        return {"error": f"other tensors: {sorted(found.keys() ^ expected.keys())}"}
    gaps = [(expected[name].double() - found[name]).abs().max() for name in expected]
    largest = float(torch.stack(gaps).max())  # NaN if one is
    return {"difference": largest, "counts": counts, "steps": steps}


@contextmanager
def counted_steps(steps: list[dict[str, int]]) -> Iterator[None]:
    """Within the block, append what each optimiser step of the training loop counts."""
    original = loop.update

    def update(*args: Any, **options: Any) -> Any:
        before = Counter(COUNTS)
        values = original(*args, **options)
        steps.append({name: COUNTS[name] - before[name] for name in ("sync", "upload", "download")})
        return values

    loop.update = update
    try:
        yield
    finally:
        loop.update = original


def on_both(names: list[str]) -> dict[str, dict]:
    """Run the cases on the CPU, then on the pretended device.

    Returns:
        case -> `difference` (largest absolute one of all tensors), `counts` of the whole case and of its training
        `steps`, `seconds` on both; or `error`.
    """
    register()
    start = time.perf_counter()
    expected, seconds = {}, {}
    for name in names:
        expected[name], seconds[name] = CASES[name](make_pipe()), time.perf_counter() - start
        start = time.perf_counter()
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
        outcomes[name]["seconds"] = [round(value, 2) for value in (seconds[name], time.perf_counter() - start)]
        start = time.perf_counter()
    return outcomes


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(json.dumps(on_both(sys.argv[2:])))

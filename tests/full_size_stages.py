"""Stages that train nothing, of Stable Diffusion 1.4 and 2.1 on the meta device: the code of sampling, masks, moments,
closed forms and scorers runs with networks of the published sizes, and with `Values` where it reads values.

Not counted: NudeNet, SCRFD and ArcFace, which run on the CPU, and MTCNN, whose memory depends on the faces in images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import open_clip
import pandas as pd
import torch
import torch.fx.experimental._config as symbolic
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchmetrics.image.fid import NoTrainInceptionV3
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.transforms import functional
from transformers import (
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SwinConfig,
)

from full_size_memory import CAPACITY, Need, make_base
from live_bytes import Live, Values, fused_attention
from published import counted
from resurgence.config.fields import build
from resurgence.config.stages import SamplingConfig
from resurgence.config.task import Task
from resurgence.data.moments import second_moment
from resurgence.data.segmenters.cross_attention import cross_attention
from resurgence.data.segmenters.grounded_sam import GroundedSam
from resurgence.diffusion.attention import projection_weights
from resurgence.diffusion.latents import posterior
from resurgence.diffusion.sampling import sample
from resurgence.diffusion.text import BATCH
from resurgence.erasers import EraserData, eraser_config, method
from resurgence.erasers.checkpoint import update
from resurgence.erasers.mace.method import fuse
from resurgence.scorers import imagenet
from resurgence.scorers.celebrity import CelebrityScorer, build_classifier
from resurgence.scorers.clip import ClipScorer
from resurgence.scorers.clip_pairs import AnchorScorer, SensitivityScorer
from resurgence.scorers.erasure_configs import AnchorConfig
from resurgence.scorers.inception import InceptionScorer
from resurgence.scorers.lpips import LpipsScorer
from resurgence.scorers.recogniser import RecogniserScorer
from resurgence.scorers.recogniser_model import Labels, Recogniser
from resurgence.scorers.reference import TorchvisionFeatures
from resurgence.scorers.success import BATCH as RESNET_BATCH
from resurgence.scorers.success import SuccessScorer, in_batches

SIDE = 512  # of the images
WORDS = [f"name {number}" for number in range(20)]
TASK = Task(
    name="ten", kind="person", erase=tuple(WORDS[:10]), retain=tuple(WORDS[10:]),
    mapping=dict.fromkeys(WORDS[:10], "a person"), templates=("a photo of {}",), seeds={"erase": 1, "retain": 1},
)  # fmt: skip
CLIP = "ViT-B-32-quickgelu"
PROMPT = "a photo of a cat"
PEOPLE = 2307  # classes of the celebrity detector
# vision_config and backbone_config of facebook/sam-vit-huge and IDEA-Research/grounding-dino-base
SAM_HUGE = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120,
            "global_attn_indexes": [7, 15, 23, 31]}  # fmt: skip
SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12,
             "image_size": 384, "out_indices": [2, 3, 4]}  # fmt: skip
Pipe = StableDiffusionPipeline


def pictures(count: int, **options: Any) -> torch.Tensor:
    """Images (count, 3, H, W) on the CPU, which share their memory."""
    return torch.zeros(1, 3, SIDE, SIDE, **options).expand(count, -1, -1, -1)


def rows(count: int) -> pd.DataFrame:
    """Rows of a prompt set."""
    return pd.DataFrame({"prompt": PROMPT, "concept": WORDS[0], "role": "erase", "seed": range(count)})


def sampling(pipe: Pipe, batch: int = 16) -> int:
    """A batch of sd14.yaml, guided, in fp32."""
    assert len(list(sample(pipe, rows(batch), SamplingConfig(steps=2, batch=batch)))) == batch
    return batch


def latents(pipe: Pipe) -> int:
    """The images of a training set, in the batches of the autoencoder."""
    batch = 8
    posterior(pipe.vae, pictures(2 * batch), batch)
    return batch


def moments(precision: str, pipe: Pipe) -> int:
    """Second moments, of two passes of the text encoder."""
    batch = 64
    second_moment(pipe, [PROMPT] * (2 * batch), batch, precision)
    return batch


def attention_masks(pipe: Pipe) -> int:
    """The segmenter cross-attention."""
    batch = 8
    cross_attention(pipe, pictures(batch), "cat", "a photo of a {}", (100,), batch)
    return batch


def grounded_masks() -> int:
    """The segmenter grounded-sam with the batch of sd14.yaml; the detector in fp32 too, and a box an image."""
    batch, vocabulary = 4, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "cat"]
    with torch.device("meta"):
        config = GroundingDinoConfig(backbone_config=SwinConfig(**SWIN_BASE), text_config=BertConfig())
        config.disable_custom_kernels = True
        detector, sam = GroundingDinoForObjectDetection(config), SamModel(SamConfig(vision_config=SAM_HUGE))
    with TemporaryDirectory() as folder:
        (file := Path(folder) / "vocab.txt").write_text("\n".join(vocabulary))
        processor = GroundingDinoProcessor(GroundingDinoImageProcessor(), BertTokenizerFast(str(file)))
    model = GroundedSam(counted(detector), processor, counted(sam), SamProcessor(SamImageProcessor()))
    detections = [{"boxes": torch.tensor([[0.0, 0.0, SIDE, SIDE]])}] * batch  # how many there are depends on values
    with patch.object(processor, "post_process_grounded_object_detection", return_value=detections):
        model(pictures(batch), "cat", 0.3, 0.25, batch)
    return batch


def closed_form(name: str, pipe: Pipe, **settings: Any) -> int:
    """A closed form with its published settings, of ten concepts: captions are embedded one concept after the other."""
    cfg, width = build(eraser_config(name), settings, name), pipe.unet.config.cross_attention_dim
    corpus = torch.zeros((), dtype=torch.float64).expand(width, width)
    method(name).erase(pipe, TASK, cfg, EraserData(prior=corpus, domain=corpus), 0)
    return BATCH


def fusion(pipe: Pipe) -> int:
    """MACE's fusion of ten LoRAs, whose captions it embeds."""
    cfg, width = build(eraser_config("mace"), {}, "mace"), pipe.unet.config.cross_attention_dim
    corpus = torch.zeros((), dtype=torch.float64).expand(width, width)
    shapes = {name: weight.shape for name, weight in projection_weights(pipe.unet).items()}
    lora = {n: (torch.zeros(cfg.rank, d), torch.zeros(out, cfg.rank)) for n, (out, d) in shapes.items()}
    fuse(pipe, TASK, cfg, EraserData(prior=corpus, domain=corpus), {}, dict.fromkeys(TASK.erase, lora))
    return BATCH


def elsewhere(name: str, pipe: Pipe, **settings: Any) -> int:
    """The difference to a model of which one projection was changed; rounding weights happens in main memory."""
    key, weight = next(iter(projection_weights(pipe.unet).items()))
    with TemporaryDirectory() as folder:
        save_file({f"unet.{key}.weight": torch.ones(weight.shape)}, Path(folder) / "model.safetensors")
        with patch.object(update, "rounded", lambda weight, bits: weight):
            closed_form(name, pipe, path=str(Path(folder) / "model.safetensors"), **settings)
    return 1


def clip(score: Callable[[ClipScorer], Any]) -> int:
    """A scorer that compares images and texts by CLIP ViT-B/32."""
    with torch.device("meta"):
        model, _, preprocess = open_clip.create_model_and_transforms(CLIP, None, device="meta")
    scorer = ClipScorer(counted(model.eval()), preprocess, open_clip.get_tokenizer(CLIP), "meta")
    images = pictures(scorer.batch, dtype=torch.uint8)
    score(scorer).score(images, rows(scorer.batch), TASK, images)
    return scorer.batch


def celebrity() -> int:
    """The classifier of faces, behind MTCNN."""
    with torch.device("meta"):
        scorer = CelebrityScorer(None, build_classifier(PEOPLE), [], "meta")
    counted(scorer.classifier)
    scorer.probabilities([np.zeros((224, 224, 3), np.uint8)] * scorer.batch)
    return scorer.batch


def inception() -> int:
    """FID's Inception, with the resizing that runs on the device."""
    published = NoTrainInceptionV3.__mro__[1]  # it reads a file of weights
    with (
        patch.object(torch, "load", lambda *_, **__: {}),
        patch.object(published, "load_state_dict"),
        torch.device("meta"),
    ):
        model = NoTrainInceptionV3("inception-v3-compat", ["2048"], "weights.pth")
    scorer = InceptionScorer(counted(model), "torchmetrics", "meta")
    scorer.features(pictures(scorer.batch, dtype=torch.uint8))
    return scorer.batch


def without_check(image: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """In the place of torchvision's `normalize`, which asks whether a deviation is 0."""
    return image.clone().sub_(0.5).div_(0.5)


def reference() -> int:
    """Reference pictures, by the features of torchvision's ResNet-50."""
    with torch.device("meta"):
        model = resnet50(weights=None).eval()
    scorer = TorchvisionFeatures(counted(model), ResNet50_Weights.DEFAULT.transforms(), "meta")
    scorer.features(pictures(scorer.batch, dtype=torch.uint8))
    return scorer.batch


def lpips(network: str) -> int:
    """LPIPS of pairs of images."""
    with torch.device("meta"):
        scorer = LpipsScorer(_NoTrainLpips(pretrained=False, net=network, pnet_rand=True).eval(), network, "meta")
    counted(scorer.model.to("meta"))
    images = pictures(scorer.batch, dtype=torch.uint8)
    scorer.score(images, rows(len(images)), TASK, images)
    return scorer.images_of_a_pass(images)


def success() -> int:
    """Ranks of classes by torchvision's ResNet-50."""
    with torch.device("meta"):
        network = imagenet.TorchvisionResNet().eval()
    scorer = SuccessScorer(in_batches(network, "meta"), [WORDS[:1] * len(imagenet.NAMES)])
    counted(network)
    scorer.score(pictures(RESNET_BATCH, dtype=torch.uint8), rows(RESNET_BATCH), TASK)
    return RESNET_BATCH


def recogniser() -> int:
    """The recogniser of a miniature, the larger one, with twenty classes."""
    with torch.device("meta"):
        model = Recogniser(len(WORDS), 64, trunk="resnet18").eval()
    scorer = RecogniserScorer(counted(model), Labels(WORDS), "meta")
    scorer.score(pictures(scorer.batch, dtype=torch.uint8), rows(scorer.batch), TASK)
    return scorer.batch


WITH_BASE: dict[str, Callable[[Pipe], int]] = {
    "sampling": sampling,
    "latents of a training set": latents,
    "second moments, fp32": partial(moments, "fp32"),
    "second moments, fp64": partial(moments, "fp64"),
    "masks, cross-attention": attention_masks,
}  # name -> code, which returns the samples of a pass
CLOSED_FORMS: dict[str, Callable[[Pipe], int]] = {
    **{name: partial(closed_form, name) for name in ("uce", "time", "rece", "speed", "mace-refinement")},
    "mace, fusion": fusion,
    "checkpoint": partial(elsewhere, "checkpoint"),
    "update": partial(elsewhere, "update", bits=8),
}
WITHOUT_BASE: dict[str, Callable[[], int]] = {"masks, grounded-sam": grounded_masks}
SCORERS: dict[str, Callable[[], int]] = {
    "recogniser": recogniser,
    "clip": partial(clip, lambda scorer: scorer),
    "celebrity": celebrity,
    "inception": inception,
    "reference": reference,
    "lpips": partial(lpips, "alex"),
    "lpips_vgg": partial(lpips, "vgg"),
    "success": success,
    "clip_anchor": partial(clip, lambda scorer: AnchorScorer(scorer, AnchorConfig(name=CLIP, pretrained="openai"))),
    "sensitivity": partial(clip, SensitivityScorer),
}
NO_NETWORK = {"nudenet", "identity", "celebrity_stand_in", "frechet"}  # scorers without one on the GPU, but for MTCNN


def stage_need(base: str, name: str, capacity: float = CAPACITY) -> Need:
    """What a stage needs; those without the base need the same with each.

    Args:
        base: sd14 or sd21. name: of WITH_BASE, CLOSED_FORMS, WITHOUT_BASE or SCORERS.

    Raises:
        torch.cuda.OutOfMemoryError: it does not fit.
    """
    alone, counts = WITHOUT_BASE | SCORERS, Live(capacity, "meta")
    with (
        symbolic.patch(meta_nonzero_assume_all_nonzero=True), patch.object(functional, "normalize", without_check),
        Values(), fused_attention(), counts as live,
    ):  # fmt: skip
        samples = alone[name]() if name in alone else (WITH_BASE | CLOSED_FORMS)[name](make_base(base))
        return Need(live.peak, samples, False)

"""Segmenters on pictures whose mask is known, and on small random models of the real classes."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from torchvision.transforms.functional import to_pil_image
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

from resurgence.data.masks import MaskConfig, segment, segment_all
from resurgence.data.segmenters.cross_attention import heat, otsu, scaled
from resurgence.data.segmenters.foreground import foreground
from resurgence.data.segmenters.grounded_sam import GroundedSam
from resurgence.diffusion.image_sets import write_image_set
from resurgence.stages import masks as masks_stage
from resurgence.stages.job import Job
from tiny import make_pipeline

SIZE = 64


def disc(radius: float, centre: tuple[float, float] = (32, 30)) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def paint(mask: torch.Tensor, colour: tuple[float, float, float], under: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, torch.tensor(colour).view(3, 1, 1), under)


def graded(noise: float = 0.0) -> torch.Tensor:
    """A light background with a diagonal gradient, (3, H, W) in [0, 1]."""
    ramp = torch.linspace(0, 1, SIZE)
    picture = torch.stack([0.8 + 0.1 * ramp[None] + 0.05 * ramp[:, None], 0.95 - 0.1 * ramp[:, None] + 0 * ramp[None],
                           0.9 + 0 * ramp[None] + 0 * ramp[:, None]])  # fmt: skip
    return (picture + noise * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_foreground_finds_a_two_coloured_subject_before_a_gradient():
    body, head = disc(18), disc(8, (32, 12))
    picture = paint(head, (0.98, 0.85, 0.55), paint(body, (0.05, 0.1, 0.4), graded(0.01)))  # a pale and a dark part
    assert overlap(foreground(picture * 2 - 1, 0.06, 6, 0.1), body | head) > 0.95


def test_foreground_fills_holes_and_drops_crumbs():
    ring, crumb = disc(20) & ~disc(12), disc(1.5, (5, 58))
    picture = paint(ring | crumb, (0.8, 0.1, 0.1), graded())
    mask = foreground(picture * 2 - 1, 0.06, 6, 0.1)
    assert overlap(mask, disc(20)) > 0.97
    assert not mask[crumb].any()
    assert foreground(picture * 2 - 1, 0.06, 6, 0.001)[crumb].any()


def test_foreground_that_touches_the_edge():
    subject = disc(20, (32, 58))
    picture = paint(subject, (0.1, 0.5, 0.2), graded())
    assert overlap(foreground(picture * 2 - 1, 0.06, 6, 0.1), subject) > 0.95


def test_empty_mask_names_concept_and_index_or_takes_the_whole_image():
    images = torch.stack([paint(disc(15), (0, 0, 0), graded()), graded(), paint(disc(15), (0, 0, 0), graded())]) * 2 - 1
    with pytest.raises(ValueError, match=r"no 'ship' in image 1; .*lower contrast.*empty: whole"):
        segment(images, "ship", MaskConfig())
    replaced = MaskConfig(empty="whole", max_replaced=0.4)
    masks = segment_all({"ship": images}, replaced)[0]["ship"]
    assert masks.shape == (3, 1, SIZE, SIZE) and masks.dtype == torch.bool
    assert masks[1].all() and overlap(masks[0, 0], disc(15)) > 0.95 and torch.equal(masks[0], masks[2])


def test_more_replaced_masks_than_allowed_are_an_error():
    """Of all concepts together: one of 20 is 5 %, two are more."""
    subject, nothing = paint(disc(15), (0, 0, 0), graded()) * 2 - 1, graded() * 2 - 1
    one = {"ship": torch.stack([subject] * 9 + [nothing]), "cat": torch.stack([subject] * 10)}
    masks, replaced = segment_all(one, MaskConfig(empty="whole"))
    assert replaced == {"ship": 1, "cat": 0}
    assert masks["ship"][9].all() and not masks["ship"][:9].flatten(1).all(1).any()
    two = {"ship": torch.stack([subject] * 18 + [nothing] * 2)}
    with pytest.raises(ValueError, match=r"finds nothing in 2 of 20 images, and max_replaced = 0.05 .*raise max_repl"):
        segment_all(two, MaskConfig(empty="whole"))
    assert segment_all(two, MaskConfig(empty="whole", max_replaced=0.1))[1] == {"ship": 2}


def test_the_job_counts_replaced_masks(tmp_path: Path):
    """Of an image set as the rule concept_images writes it."""
    subject, nothing = paint(disc(15), (0, 0, 0), graded()), graded()
    pictures = [to_pil_image(picture) for picture in (subject, nothing)]
    rows = pd.DataFrame({"prompt": ["a ship"] * 2, "concept": ["ship"] * 2, "seed": [0, 1]})
    write_image_set(tmp_path / "images/images.parquet", rows, enumerate(pictures))
    settings = {"masks": {"empty": "whole", "max_replaced": 0.5}, "concepts": ["ship"]}
    job = Job(settings, tmp_path / "out/manifest.json", {"images": (tmp_path / "images/manifest.json",)}, "cpu")
    run = masks_stage.make(job, tmp_path)
    assert run["replaced"] == {"ship": 1} and 0.5 < run["coverage"]["ship"] < 0.7  # one whole, one disc of 17 %
    assert load_file(tmp_path / "masks.safetensors")["ship"][1].all()


@pytest.fixture(scope="module", params=[{}, {"pad": "zero", "cross_attention_dim": 40, "heads": [2, 4]}])
def pipe(request):
    return make_pipeline(max_length=24, **request.param)


def test_heat_is_the_mean_of_the_maps(pipe):
    """One cross-attention level at full and one at half resolution, by hand."""
    from resurgence.diffusion.attention import attention_maps

    g = torch.Generator().manual_seed(0)
    noisy, t = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([200, 200])
    text = torch.randn(1, 24, pipe.unet.config.cross_attention_dim, generator=g)
    maps = []
    with torch.no_grad():
        attention_maps(pipe.unet, lambda _, p: maps.append(p), noisy, t, text.expand(2, -1, -1))
    expected = torch.zeros(2, 8, 8)
    for p in maps:
        mean = (p[..., 3] + p[..., 4]).mean(1) / 2
        side = math.isqrt(mean.shape[1])
        mean = torch.nn.functional.interpolate(mean.view(2, 1, side, side), size=(8, 8), mode="bilinear")[:, 0]
        for b in range(2):
            expected[b] += (mean[b] - mean[b].min()) / (mean[b].max() - mean[b].min()) / len(maps)
    assert torch.allclose(heat(pipe, noisy, t, text, [3, 4]), expected, atol=1e-5)


def test_cross_attention_does_not_depend_on_the_batch(pipe):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    cfg = {"segmenter": "cross-attention", "template": "a photo of the {}"}
    masks = segment(images, "ship", MaskConfig(**cfg), pipe)
    assert masks.shape == (5, 1, 16, 16) and masks.dtype == torch.bool
    assert not masks.flatten(1).all(1).any()
    other = segment(images, "ship", MaskConfig(**cfg, batch=2), pipe)
    assert (masks != other).float().mean() < 0.01  # a pixel may sit on the threshold
    alone = segment(images[:1], "ship", MaskConfig(**cfg), pipe)
    assert (masks[:1] != alone).float().mean() < 0.01
    assert (masks != segment(images, "cat", MaskConfig(**cfg), pipe)).any()


def test_cross_attention_needs_the_pipeline_and_its_timesteps(pipe):
    images = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="give the pipeline"):
        segment(images, "ship", MaskConfig(segmenter="cross-attention"))
    with pytest.raises(ValueError, match="the base has 1000"):
        segment(images, "ship", MaskConfig(segmenter="cross-attention", timesteps=(5, 1000)), pipe)


def test_otsu_and_scaling():
    values = torch.cat([torch.full((30,), 0.1), torch.full((10,), 0.9)]).view(5, 8)
    assert int(otsu(values).sum()) == 10
    assert not otsu(torch.full((4, 4), 0.5)).any()
    maps = torch.stack([values, torch.full((5, 8), 0.3)])
    assert scaled(maps).amin((1, 2)).tolist() == [0, 0]
    assert scaled(maps).amax((1, 2)).tolist() == [1, 0]


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "ship", "cat", "a"]


def write_grounded_sam(root: Path) -> tuple[str, str]:
    """Write Grounding DINO and SAM of the real classes with random weights; the folders of both."""
    torch.manual_seed(0)
    (root / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(root / "vocab.txt"))
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=32,
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=6, max_text_len=16, disable_custom_kernels=True,
    )  # fmt: skip
    processor = GroundingDinoProcessor(GroundingDinoImageProcessor(size={"height": 128, "width": 128}), tokenizer)
    GroundingDinoForObjectDetection(config).save_pretrained(root / "dino")
    processor.save_pretrained(root / "dino")
    sam = SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
            "patch_size": 8, "window_size": 4, "global_attn_indexes": [0], "num_pos_feats": 4, "mlp_dim": 16,
        },
        prompt_encoder_config={"hidden_size": 8, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "iou_head_hidden_dim": 8,
        },
    )  # fmt: skip
    model = SamModel(sam)
    with torch.no_grad():  # at the usual start every outline is the same everywhere
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    model.save_pretrained(root / "sam")
    SamProcessor(
        SamImageProcessor(
            size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16},
            mask_pad_size={"height": 16, "width": 16},
        )
    ).save_pretrained(root / "sam")  # fmt: skip
    return str(root / "dino"), str(root / "sam")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    return write_grounded_sam(tmp_path_factory.mktemp("grounded"))


def settings(folders: tuple[str, str], **changes) -> MaskConfig:
    return MaskConfig(segmenter="grounded-sam", detector=folders[0], sam=folders[1], **changes)


def test_grounded_sam_from_folders(folders):
    images = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = GroundedSam.load(folders[0], None, folders[1], None, "cpu")
    masks = model(images, "ship", 0.01, 0.01, batch=8)
    assert masks.shape == (3, 1, 48, 40) and masks.dtype == torch.bool
    assert torch.equal(model(images, "ship", 0.01, 0.01, batch=2), masks)
    assert GroundedSam.load(folders[0], None, folders[1], None, "cpu") is model  # loaded once
    seen = segment(images, "ship", settings(folders, threshold=0.01, text_threshold=0.01, empty="whole"))
    assert torch.equal(seen[masks.flatten(1).any(1)], masks[masks.flatten(1).any(1)])


def test_grounded_sam_joins_the_outlines_of_all_boxes(folders):
    """Each image's mask is the union of SAM's own forward passes, one box at a time."""
    model = GroundedSam.load(folders[0], None, folders[1], None, "cpu")
    g = torch.Generator().manual_seed(3)
    pictures = [to_pil_image(torch.rand(3, 48, 40, generator=g)) for _ in range(2)]
    boxes = [torch.tensor([[2.0, 3, 20, 30], [10, 10, 39, 47]]), torch.tensor([[5.0, 5, 30, 30]])]
    outlines = model.outlines(pictures, boxes)
    for picture, own, outline in zip(pictures, boxes, outlines, strict=True):
        expected = torch.zeros(48, 40, dtype=torch.bool)
        for box in own:
            inputs = model.sam_processor(images=picture, input_boxes=[[box.tolist()]], return_tensors="pt")
            inputs["input_boxes"] = inputs["input_boxes"].float()
            with torch.no_grad():
                out = model.sam(
                    pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False
                )
            sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
            expected |= model.sam_processor.post_process_masks(out.pred_masks, *sizes)[0][0, 0]
        assert (outline != expected).float().mean() < 0.002
        assert 0 < expected.sum() < expected.numel()


def test_grounded_sam_without_a_detection_is_empty(folders, monkeypatch):
    monkeypatch.setattr(GroundedSam, "boxes", lambda *_: [torch.tensor([[4.0, 4, 30, 40]]), torch.zeros(0, 4)])
    images = torch.rand(2, 3, 48, 40) * 2 - 1
    model = GroundedSam.load(folders[0], None, folders[1], None, "cpu")
    masks = model(images, "cat", 0.3, 0.25, batch=2)
    assert masks[0].any() and not masks[1].any()
    with pytest.raises(ValueError, match=r"grounded-sam finds no 'cat' in image 1.*lower threshold"):
        segment(images, "cat", settings(folders))


def test_grounded_sam_boxes_follow_the_threshold(folders):
    picture = to_pil_image(torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(0)))
    model = GroundedSam.load(folders[0], None, folders[1], None, "cpu")
    counts = []
    for threshold in (0.0, 0.5, 0.99, 0.99999999):
        (boxes,) = model.boxes([picture], "Ship", threshold, 0.25)
        assert boxes.shape[1] == 4
        assert (boxes[:, :2] <= boxes[:, 2:]).all()
        counts.append(len(boxes))
    inputs = model.detector_processor(images=[picture], text=["ship."], return_tensors="pt")
    with torch.no_grad():
        scores = model.detector(**inputs).logits.sigmoid().amax(-1)[0]
    assert counts == [int((scores > threshold).sum()) for threshold in (0.0, 0.5, 0.99, 0.99999999)]
    assert counts[0] == 6 > counts[2]


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason=f"Grounding DINO in half precision needs transformers 5.23, installed is {transformers.__version__}",
)
def test_grounded_sam_in_half_precision_finds_nearly_the_same(folders):
    images = torch.rand(4, 3, 48, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cfg = {"threshold": 0.01, "text_threshold": 0.01, "empty": "whole"}
    whole = segment(images, "ship", settings(folders, **cfg))
    half = segment(images, "ship", settings(folders, **cfg, precision="bf16"))
    model = GroundedSam.load(folders[0], None, folders[1], None, "cpu", "bf16")
    assert {p.dtype for p in model.detector.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.sam.parameters()} == {torch.float32}  # ViT-H returns garbage in half precision
    assert (whole != half).float().mean() < 0.1  # random weights; bf16 has 8 bits
    with pytest.raises(ValueError, match=r"masks\.precision = 'fp16': needs a GPU"):
        segment(images, "ship", settings(folders, precision="fp16"))


def test_grounded_sam_names_what_cannot_be_loaded(folders, tmp_path):
    missing = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"SamModel cannot be loaded from .*nothing"):
        GroundedSam.load(folders[0], None, missing, None, "cpu")

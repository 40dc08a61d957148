"""Grounded SAM with the classes of transformers: Grounding DINO finds boxes for a phrase, SAM their outlines."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torchvision.transforms.functional import to_pil_image

from resurgence.diffusion.device import DTYPES
from resurgence.pretrained.checksums import verify_loaded
from resurgence.pretrained.loading import load_pretrained

if TYPE_CHECKING:
    from transformers import GroundingDinoForObjectDetection, SamModel
    from transformers.processing_utils import ProcessorMixin


class GroundedSam:
    """The two models and their processors: the detector in the precision of its weights, SAM in fp32."""

    def __init__(
        self,
        detector: GroundingDinoForObjectDetection,
        detector_processor: ProcessorMixin,
        sam: SamModel,
        sam_processor: ProcessorMixin,
    ) -> None:
        self.detector, self.detector_processor = detector.eval(), detector_processor
        self.sam, self.sam_processor = sam.eval(), sam_processor

    @classmethod
    @functools.cache
    def load(
        cls,
        detector: str,
        detector_revision: str | None,
        sam: str,
        sam_revision: str | None,
        device: str,
        precision: str = "fp32",
    ) -> GroundedSam:
        """Load both models from folders or hub ids, once per process.

        Args:
            precision: of the detector. SAM stays in fp32: SAM ViT-H is reported to return garbage in fp16.

        Raises:
            FileNotFoundError, ValueError: naming what could not be loaded, or does not fit.
        """
        from transformers import AutoProcessor, GroundingDinoForObjectDetection, SamModel

        parts = []
        for key, name, revision, kind, dtype in (
            ("masks.detector", detector, detector_revision, GroundingDinoForObjectDetection, DTYPES[precision]),
            ("masks.sam", sam, sam_revision, SamModel, torch.float32),
        ):
            verify_loaded(name, revision)
            parts.append(load_pretrained(kind, name, key, revision, dtype=dtype).to(device))
            try:
                parts.append(AutoProcessor.from_pretrained(name, revision=revision))
            except (OSError, ValueError) as error:
                raise FileNotFoundError(
                    f"{key}: no processor can be loaded from {name!r} ({error}); write a folder or a hub id"
                ) from error
        return cls(*parts)

    @torch.no_grad()
    def boxes(self, images: list, phrase: str, threshold: float, text_threshold: float) -> list[torch.Tensor]:
        """Boxes (x0, y0, x1, y1) in pixels of each PIL image, (n, 4); n may be 0."""
        text = phrase.lower().strip().rstrip(".") + "."  # the form that Grounding DINO was trained on
        inputs = self.detector_processor(images=images, text=[text] * len(images), return_tensors="pt")
        inputs = inputs.to(self.detector.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.detector.dtype)
        results = self.detector_processor.post_process_grounded_object_detection(
            self.detector(**inputs),
            inputs.input_ids,
            threshold=threshold,
            text_threshold=text_threshold,
            target_sizes=[(image.height, image.width) for image in images],
        )
        return [result["boxes"].cpu() for result in results]

    @torch.no_grad()
    def outlines(self, images: list, boxes: list[torch.Tensor]) -> list[torch.Tensor]:
        """Union of SAM's masks of the boxes of each image, (H, W) bool. The image encoder runs on all at once."""
        inputs = [
            self.sam_processor(images=image, input_boxes=[corners.tolist()], return_tensors="pt")
            for image, corners in zip(images, boxes, strict=True)
        ]
        pixels = torch.cat([part["pixel_values"] for part in inputs]).to(self.sam.device, self.sam.dtype)
        embeddings = self.sam.get_image_embeddings(pixels)
        masks = []
        for part, embedding in zip(inputs, embeddings, strict=True):
            prompts = part["input_boxes"].to(self.sam.device, self.sam.dtype)  # (1, n, 4)
            out = self.sam(image_embeddings=embedding[None], input_boxes=prompts, multimask_output=False)
            mask = self.sam_processor.post_process_masks(
                out.pred_masks.float().cpu(), part["original_sizes"], part["reshaped_input_sizes"]
            )[0]  # (n, 1, H, W)
            masks.append(mask.flatten(0, 1).any(0))
        return masks

    def __call__(
        self, images: torch.Tensor, phrase: str, threshold: float, text_threshold: float, batch: int
    ) -> torch.Tensor:
        """Masks of what a phrase names in images (N, 3, H, W) in [-1, 1]: (N, 1, H, W) bool, empty without a box."""
        masks = torch.zeros(len(images), 1, *images.shape[-2:], dtype=torch.bool)
        for start in range(0, len(images), batch):
            part = range(start, min(start + batch, len(images)))
            pictures = [to_pil_image(((images[i].float().cpu() + 1) / 2).clamp(0, 1)) for i in part]
            boxes = self.boxes(pictures, phrase, threshold, text_threshold)
            if hits := [k for k in range(len(part)) if len(boxes[k])]:
                outlines = self.outlines([pictures[k] for k in hits], [boxes[k] for k in hits])
                for k, outline in zip(hits, outlines, strict=True):
                    masks[part[k], 0] = outline
        return masks

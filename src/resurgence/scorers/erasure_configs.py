"""The declarations of the scorers with which papers on erasure evaluate (DoCo, EAP). Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from resurgence.config.fields import ConfigError
from resurgence.config.scorers import Metric, ScorerConfig
from resurgence.config.spelling import normal_form
from resurgence.scorers.configs import ClipConfig

if TYPE_CHECKING:
    from resurgence.config.study import Study


@dataclass(frozen=True)
class LpipsConfig(ScorerConfig):
    """LPIPS 0.1 with AlexNet, to the base's image of the same row (Zhang et al. 2018)."""

    path: str  # torchvision's weights of the network, or its convolutions as lpips_convert writes them
    sha256: str | None = "7be5be79"  # checksum of the file, or the beginning of it; null: not compared

    loader: ClassVar = "resurgence.scorers.lpips:load"
    network: ClassVar[str] = "alex"
    columns: ClassVar = ("lpips_alex",)
    metrics: ClassVar = {"lpips": Metric("lpips_alex", "LPIPS to the base's image (AlexNet)")}
    reads_base: ClassVar = True
    fetch: ClassVar = "fetch torchvision's alexnet-owt-7be5be79.pth, or run `python -m resurgence.scorers.lpips_convert`"


@dataclass(frozen=True)
class LpipsVggConfig(LpipsConfig):
    """LPIPS 0.1 with VGG-16, to the base's image of the same row."""

    sha256: str | None = "397923af"

    network: ClassVar = "vgg"
    columns: ClassVar = ("lpips_vgg",)
    metrics: ClassVar = {"lpips_vgg": Metric("lpips_vgg", "LPIPS to the base's image (VGG-16)")}
    fetch: ClassVar = "fetch torchvision's vgg16-397923af.pth, or run `python -m resurgence.scorers.lpips_convert`"


@dataclass(frozen=True)
class SuccessConfig(ScorerConfig):
    """Erasing and preserving success rates, ESR-k and PSR-k, of EAP."""

    path: str  # of the classifier's weights: a recogniser's folder, or a file
    classifier: Literal["recogniser", "resnet50", "resnet50-keras"] = "resnet50"  # that names what an image shows
    sha256: str | None = None  # checksum of the file; null: that of torchvision's IMAGENET1K_V2 for resnet50

    loader: ClassVar = "resurgence.scorers.success:load"
    columns: ClassVar = ("success_class", *(f"success_{rate}_{k}" for rate in ("esr", "psr") for k in (1, 5)))
    metrics: ClassVar = {
        **{f"esr_{k}": Metric(f"success_esr_{k}", f"ESR-{k}: erased class not in the top {k} (%)", 100.0)
           for k in (1, 5)},
        **{f"psr_{k}": Metric(f"success_psr_{k}", f"PSR-{k}: retained class in the top {k} (%)", 100.0)
           for k in (1, 5)},
    }  # fmt: skip
    fetch: ClassVar = (
        "fetch torchvision's resnet50-11ad3fa6.pth (IMAGENET1K_V2; 0676ba61 is V1), convert the Keras network with "
        "`python -m resurgence.scorers.imagenet_convert`, or name the folder of a recogniser"
    )


@dataclass(frozen=True)
class AnchorConfig(ClipConfig):
    """CS and CA of DoCo: CLIP compares an image with its concept and with that concept's anchor."""

    anchors: dict[str, str] = field(default_factory=dict)  # concept -> anchor, such as Snoopy: dog
    anchor: str = ""  # of concepts that are not listed there

    loader: ClassVar = "resurgence.scorers.clip_pairs:load_anchored"
    columns: ClassVar = ("anchor_cs", "anchor_nearer")
    metrics: ClassVar = {
        "cs": Metric("anchor_cs", "CS: CLIP score of the concept (250 cos)", shows_concept=True),
        "ca": Metric("anchor_nearer", "CA: images nearer to the concept than to its anchor (%)", 100.0,
                     shows_concept=True),
    }  # fmt: skip
    gives_features: ClassVar = False

    def anchor_of(self, concept: str) -> str:
        """The anchor of a concept; an empty text without one."""
        return self.anchors.get(concept, self.anchor)

    def check(self, study: Study, root: Path) -> None:
        """Every concept of the tasks has an anchor other than itself."""
        for task in (task for task in study.loaded.values() if self.kinds is None or task.kind in self.kinds):
            for concept in (*task.erase, *task.retain):
                key, anchor = f"scorers.clip_anchor.anchors.{concept}", self.anchor_of(concept)
                if not normal_form(anchor):
                    raise ConfigError(key, anchor, f"task {task.name} has this concept; name its anchor here, or `anchor` for all")
                if normal_form(anchor) == normal_form(concept):
                    raise ConfigError(key, anchor, "is the concept itself, to which no image is nearer; name another")


@dataclass(frozen=True)
class SensitivityConfig(ClipConfig):
    """Concept sensitivity delta_e(c) of EAP: how much CLIP score a concept loses against the base's image."""

    loader: ClassVar = "resurgence.scorers.clip_pairs:load_sensitivity"
    columns: ClassVar = ("concept_sensitivity",)
    metrics: ClassVar = {"sensitivity": Metric("concept_sensitivity", "Concept sensitivity (100 cos lost)")}
    gives_features: ClassVar = False
    reads_base: ClassVar = True

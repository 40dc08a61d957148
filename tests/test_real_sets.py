"""Who makes the images of a fine-tuning set: what is refused, which pictures are chosen, which job makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from resurgence.analysis.headline import makers_table
from resurgence.config.comparisons import differences
from resurgence.config.experiment import Cells, Claim
from resurgence.config.fields import ConfigError, build
from resurgence.config.finetune_sets import FinetuneSet
from resurgence.config.load import load_study
from resurgence.config.study import Study
from resurgence.config.task import make_task
from resurgence.config.word_sets import check_caption_words, erased_words
from resurgence.data.real_sets import real_set
from resurgence.diffusion.image_sets import write_image_set
from resurgence.diffusion.text_checks import check_real_captions
from resurgence.workflow import graph, job_items, job_settings, report_settings
from resurgence.workflow.gpu_hours import Coster, read_rates
from resurgence.workflow.jobs import jobs
from tiny import make_tokenizer

ROOT = Path(__file__).parents[1]
SETS = {"base", "own", "other", "photos"}
TERCILE = {"candidates": "names.txt", "number": 1}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown maker": ({"made_by": "erasd", "size": 1}, "x.made_by = 'erasd': not known here; did you mean 'erased'?"),
    "unknown key": ({"made_by": {"bas": "a"}, "size": 1}, "x.made_by.bas = 'a': unknown key; did you mean 'base'?"),
    "erased without number": ({"made_by": "erased"}, "x.images_per_prompt = None: give either this or size"),
    "erased tercile": (
        {"made_by": "erased", "tercile": TERCILE, "size": 1},
        "x.made_by = 'erased': only the base makes the images of a tercile; remove made_by",
    ),
    "real tercile": (
        {"made_by": "real", "images": "a", "tercile": TERCILE},
        "x.made_by = 'real': only the base makes the images of a tercile; remove made_by",
    ),
    "real without pictures": ({"made_by": "real"}, "x.images = None: is missing, and made_by is real; name a Parquet"),
    "pictures without real": (
        {"images": "a", "size": 1}, "x.images = 'a': belongs to real pictures; write made_by: real, or remove it"
    ),
    "real with a number a prompt": (
        {"made_by": "real", "images": "a", "images_per_prompt": 2},
        "x.images_per_prompt = 2: real pictures have their captions and number; remove it, or write size",
    ),
    "real with seeds": ({"made_by": "real", "images": "a", "first_seed": 0}, "x.first_seed = 0: real pictures have"),
    "real with templates": (
        {"made_by": "real", "images": "a", "templates": ["{}"]}, "x.templates = ('{}',): real pictures have"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_do_not_go_with_the_maker(case: str) -> None:
    values, told = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        build(FinetuneSet, values, "x")
    assert str(error.value).startswith(told)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Three dogs, two cats, one bird and one empty caption."""
    rows = [("a dog", "dog"), ("the dog", "dog"), ("my dog", "dog"), ("a cat", "cat"), ("the cat", "cat"), ("", "cat"),
            ("a bird", "bird")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["prompt", "concept"])
    file = tmp_path / "pets.parquet"
    write_image_set(file, table, ((number, Image.new("RGB", (8, 8), (number, 0, 0))) for number in range(len(table))))
    return file


def test_pictures_are_those_of_the_concepts_spread_evenly(parquet: Path) -> None:
    chosen = real_set(parquet, ["cat", "dog"], 3)
    assert chosen.rows["prompt"].tolist() == ["a dog", "a cat", "the dog"]
    assert chosen.rows["concept"].tolist() == ["dog", "cat", "dog"]
    assert chosen.rows["index"].tolist() == [0, 0, 1]
    assert [source.caption for source in chosen.sources] == chosen.rows["prompt"].tolist()
    assert chosen.left_out == {
        "without caption": ["pets.parquet, row 5"],
        "of other concepts": ["pets.parquet, row 6"],
        "more than size": ["pets.parquet, row 4", "pets.parquet, row 2"],
    }


def test_all_pictures_without_a_size(parquet: Path) -> None:
    chosen = real_set(parquet, ["bird", "cat", "dog"], None)
    assert sorted(chosen.rows["file"]) == [f"pets.parquet, row {number}" for number in (0, 1, 2, 3, 4, 6)]
    assert set(chosen.left_out) == {"without caption"}


@pytest.mark.parametrize(
    ("concepts", "size", "told"),
    [
        (["dog", "fox"], None, "has no picture of fox, only of dog, cat, bird; add pictures, or take"),
        (["dog"], 4, "has 3 pictures of the set, 4 are wanted; add pictures, or lower size"),
        ([], None, "has pictures of dog, cat, bird, and the set has no concepts; list some in the set"),
    ],
)
def test_pictures_that_do_not_suffice(parquet: Path, concepts: list[str], size: int | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        real_set(parquet, concepts, size)


def test_pictures_beside_a_parquet_file_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    pd.DataFrame({"text": ["a dog"], "image": [{"bytes": None, "path": "a.png"}]}).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(ValueError, match=r"a\.png lies beside .*write its bytes into the Parquet file"):
        real_set(tmp_path / "set.parquet", [], None)


TASK = make_task(
    {
        **{"name": "pets", "kind": "object", "erase": ["ship", "cat"], "retain": ["dog"], "mapping": "ground"},
        **{"templates": ["a {}"], "seeds": {"erase": 1, "retain": 1, "synonym": 1}, "synonyms": {"ship": ["boat"]}},
    }
)


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        (
            "a photo of the Ship on the street",
            "'Ship on the street' of b.png holds 'ship' (erase), which the task pets",
        ),
        ("the boat", "of b.png holds 'boat' (synonyms.ship), which the task pets erases"),
    ],
)
def test_captions_with_an_erased_name_are_refused(caption: str, told: str) -> None:
    captions = {"a.png": "a photo of the dog", "b.png": caption, "c.png": "a cat and a dog"}
    with pytest.raises(ConfigError) as error:
        check_real_captions(make_tokenizer(), "finetune_sets.x.images", "photos", captions, TASK)
    text = str(error.value).replace("'a photo of the Ship", "'Ship")
    assert told.replace("holds", "and those of 1 more hold") in text
    assert text.startswith("finetune_sets.x.images = 'photos': the caption") and text.endswith("remove these pictures")
    check_real_captions(make_tokenizer(), "finetune_sets.x.images", "photos", {"a.png": "a photo of the dog"}, TASK)


def test_captions_with_a_word_of_an_erased_concept_are_refused() -> None:
    world = {
        "shared_words": ["sailing"],
        "concepts": [{"name": "ship", "synonyms": ["sailing vessel"]}, {"name": "cat"}, {"name": "dog"}],
    }
    words = erased_words(TASK, world, "concepts.yaml")
    assert words == {"ship": "ship", "vessel": "ship", "boat": "ship", "cat": "cat"}
    check_caption_words("x", "photos", {"a.png": "a dog is sailing on a catamaran"}, words)
    with pytest.raises(ConfigError, match=r"'A dog, on a Vessel!' of b\.png holds 'vessel', a word of 'ship'"):
        check_caption_words("x", "photos", {"b.png": "A dog, on a Vessel!"}, words)
    assert erased_words(TASK, {"concepts": world["concepts"]}, "concepts.yaml") == {}


@pytest.fixture
def overlay(tmp_path: Path) -> dict[str, Any]:
    """Sets of all makers for the tasks of SD 1.4 that erase an object, with one eraser and a control."""
    (tmp_path / "photos").mkdir()
    for name in ("a rose", "a bee", ".hidden"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"photos/{name}.png")
    sampled = {"concepts": ["rose"], "size": 4}
    sets = {
        "base": sampled,
        "own": {**sampled, "made_by": "erased"},
        "other": {**sampled, "made_by": {"base": "someone/model", "revision": "abc"}},
        "photos": {"made_by": "real", "images": str(tmp_path / "photos"), "size": 2},
    }
    variants = {name: {"set": name, "erasers": ["uce", "untouched"], "tasks": ["ship"]} for name in sets}
    finetunes = {"sources": {"steps": 1, "checkpoints": [1], "variants": variants}}
    return {"erasers": {"untouched": {"method": "none"}}, "finetune_sets": sets, "finetunes": finetunes}


def study_with(folder: Path, overlay: dict[str, Any]) -> Study:
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    return load_study([ROOT / "params.yaml", ROOT / "studies/sd14.yaml", folder / "overlay.yaml"], ROOT)


def test_each_maker_has_its_job(overlay: dict[str, Any], tmp_path: Path) -> None:
    study = study_with(tmp_path, overlay)
    cells = [cell for cell in study.cells() if cell.finetune == "sources" and (cell.erasure.seed, cell.seed) == (0, 0)]

    def read_by(eraser: str, name: str) -> str:
        (cell,) = (
            c for c in cells if c.erasure.eraser == eraser and c.erasure.variant == "default" and c.variant == name
        )
        (file,) = graph.finetune(study, cell)["set"]
        return file

    shared = "results/data/sd14/ship/finetune_sets"
    for name in ("base", "other", "photos"):
        assert read_by("uce", name) == read_by("untouched", name) == f"{shared}/{name}/manifest.json"
    assert read_by("uce", "own") == "results/erased/sd14/ship/uce/s0/erased_sets/own/manifest.json"
    assert read_by("untouched", "own") == f"{shared}/own/manifest.json"  # nothing is erased: the base's images
    made = {job.out.as_posix(): job for job in jobs(study)}
    assert (
        made[read_by("uce", "other")].rule.name == "other_set"
        and made[read_by("uce", "photos")].rule.name == "real_set"
    )
    own, base = made[read_by("uce", "own")], made[read_by("uce", "base")]
    assert own.rule.name == "erased_set" and base.rule.name == "finetune_set"
    assert own.inputs["changes"] == ["results/erased/sd14/ship/uce/s0/delta/manifest.json"]
    assert own.settings == base.settings | {"made_by": "erased"} and base.settings["base"] == job_settings.base(study)
    other = made[read_by("uce", "other")].settings
    assert other == base.settings | {"base": {"path": "someone/model", "revision": "abc"}}
    pictures = made[read_by("uce", "photos")].inputs["pictures"]
    assert pictures == [str(tmp_path / "photos" / name) for name in ("a bee.png", "a rose.png")]


def test_sets_of_each_maker_have_one_rule(overlay: dict[str, Any], tmp_path: Path) -> None:
    study = study_with(tmp_path, overlay)
    patterns = [job_items.set_pattern(study, makers)["set"] for makers in (("base", "erased"), ("other",), ("real",))]
    assert patterns[1:] == ["(other)", "(photos)"]
    assert {"base", "own"} <= set(patterns[0].strip("()").split("|")) and "photos" not in patterns[0]


@pytest.mark.parametrize(
    ("key", "changes", "told"),
    [
        (
            "photos",
            {"images": "nowhere"},
            "finetune_sets.photos.images = 'nowhere': holds no files; write a Parquet file",
        ),
        ("photos", {"images": {"person": "a"}}, "finetune_sets.photos.images = 'object': not known here"),
        ("other", {"made_by": {"base": "no where"}}, "finetune_sets.other.made_by.base = 'no where': no such folder"),
        (
            "other",
            {"made_by": {"base": str(ROOT / "config"), "revision": "a"}},
            "finetune_sets.other.made_by.revision = 'a': only a hub id has revisions; remove it for a folder",
        ),
    ],
)
def test_pictures_and_bases_are_there(
    overlay: dict[str, Any], tmp_path: Path, key: str, changes: dict[str, Any], told: str
) -> None:
    overlay["finetune_sets"][key] |= changes
    with pytest.raises(ConfigError) as error:
        study_with(tmp_path, overlay)
    assert told in str(error.value)


def test_another_base_needs_a_size(overlay: dict[str, Any], tmp_path: Path) -> None:
    overlay["sampling"] = {"size": None}
    with pytest.raises(ConfigError, match=r"sampling\.size = None: finetune_sets\.other\.made_by is another base"):
        study_with(tmp_path, overlay)


def test_tables_say_who_made_the_images(overlay: dict[str, Any], tmp_path: Path) -> None:
    study = study_with(tmp_path, overlay)
    cells = [cell for cell in study.cells() if cell.finetune == "sources"]
    makers = report_settings.makers(study, cells)["makers"]
    assert makers == {
        "sources.base": ["base", "the base"],
        "sources.other": ["other", "another base (someone/model)"],
        "sources.own": ["own", "each erased model"],
        "sources.photos": ["photos", "real pictures"],
    }
    assert makers.items() <= report_settings.tables(study)["makers"].items()
    assert "| sources.own | own | each erased model |" in makers_table(makers)
    assert report_settings.makers(study, [cell for cell in cells if cell.variant == "base"]) == {}
    assert makers_table({}) == ""


def test_a_comparison_says_who_made_the_images_of_its_sides(overlay: dict[str, Any], tmp_path: Path) -> None:
    finetunes = [f"sources.{name}" for name in overlay["finetune_sets"]]
    shown = {"title": "x", "kind": "bars", "tasks": ["ship"], "erasers": ["uce"], "finetunes": finetunes}
    study = study_with(tmp_path, {**overlay, "experiments": {"makers": shown | {"metric": "clip_accuracy"}}})

    def text(name: str) -> str:
        of, against = (Cells(eraser="uce", finetune=f"sources.{side}") for side in (name, "base"))
        return differences(study, "makers", Claim("", of, "equal", against))

    own = "fine-tune set (own against base), fine-tune images made by (each erased model against the base)"
    assert text("own") == own and text("base") == ""
    assert "fine-tune images made by (another base against the base)" in text("other")
    assert "images made by (real pictures against the base), fine-tune captions (of the pictures against" in text(
        "photos"
    )


def test_the_plan_counts_images_of_an_erased_model_and_none_of_real_sets(
    overlay: dict[str, Any], tmp_path: Path
) -> None:
    study = study_with(tmp_path, overlay)
    cost = Coster(study, read_rates(ROOT), "a100")
    images = {job.rule.name: cost(job).images for job in jobs(study) if job.wildcards.get("set") in SETS}
    assert images == {"finetune_set": 4, "other_set": 4, "erased_set": 4, "real_set": 0}

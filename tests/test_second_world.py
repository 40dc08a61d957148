"""The second miniature: styles and characters that can be recognised, captions, word sets, tasks, starter sets."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from image_readers import read_training_images
from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.load import make_study, merge
from resurgence.config.task import load_task, make_task
from resurgence.config.word_sets import check_task_words, words_by_concept
from resurgence.files import read_lines
from resurgence.miniature import contact_sheets, starter
from resurgence.miniature.autoencoder import build_autoencoder
from resurgence.miniature.build import build_part, tasks_of
from resurgence.miniature.captions import (
    MAX_LENGTH,
    STYLE_SUFFIX,
    CaptionConfig,
    build_tokenizer,
    caption_or_none,
    captioned_manner,
    corpus,
    read_templates,
)  # fmt: skip
from resurgence.miniature.characters import POSES, character_svg
from resurgence.miniature.clip import paired_batch
from resurgence.miniature.compositions import compose, nothing
from resurgence.miniature.drawings import load_drawings, load_world, render, render_world
from resurgence.miniature.recogniser import UNLABELLED, labelled_batch, labels_of, temperatures
from resurgence.miniature.styles import STYLES, apply_styles, draw_styles, luminance
from resurgence.miniature.text_to_image import cache_latents
from resurgence.workflow import graph
from shipped_worlds import require_world

ROOT = Path(__file__).parents[1]
LIST = ROOT / "config/concepts/miniature-2.yaml"
CONFIG = read_yaml(ROOT / "config/world-2.yaml")
WORLD = load_world(LIST)
TEMPLATES = read_templates(ROOT / CONFIG["templates"])
TASKS = {path.stem: load_task(path) for path in sorted((ROOT / CONFIG["tasks"]).glob("*.yaml"))}
TEN = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
SHIPPED = ROOT / "data/miniature-2/drawings/drawings.parquet"
CLASSES = [None, *STYLES]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rgba(png: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)))).permute(2, 0, 1)


@pytest.fixture(scope="module")
def characters() -> tuple[list[str], list[str], torch.Tensor]:
    """Names, poses and drawings of all characters in all poses."""
    rows = [
        (entry["name"], pose, rgba(render(character_svg(entry, pose))))
        for entry in WORLD["characters"]
        for pose in POSES
    ]
    names, poses, drawings = zip(*rows, strict=True)
    return list(names), list(poses), torch.stack(drawings)


# styles


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("name", STYLES)
def test_a_style_keeps_shape_and_range_repeats_and_treats_each_picture_alone(name: str, size: int) -> None:
    images = F.interpolate(torch.rand(3, 3, 8, 8, generator=generator()), size=size, mode="bilinear")
    shown = STYLES[name](images, generator(1))
    assert shown.shape == images.shape and shown.min() >= 0 and shown.max() <= 1
    assert torch.equal(shown, STYLES[name](images.clone(), generator(1)))
    assert torch.allclose(shown[:1], STYLES[name](images[:1], generator(1)), atol=1e-6)


def test_grey_styles_have_no_colour_and_neon_is_dark() -> None:
    images = torch.rand(2, 3, 64, 64, generator=generator())
    pencil = STYLES["pencil"](images, generator())
    assert torch.equal(pencil[:, 0], pencil[:, 2])
    plain = torch.full((1, 3, 64, 64), 0.9)
    assert STYLES["neon"](plain, generator()).max() < 0.05 and STYLES["pencil"](plain, generator()).min() > 0.9
    sepia = STYLES["sepia"](images, generator())
    assert (sepia[:, 0] >= sepia[:, 1]).all() and (sepia[:, 1] >= sepia[:, 2]).all()


def test_mosaic_tiles_have_one_colour_each() -> None:
    tiles = (
        STYLES["mosaic"](torch.rand(1, 3, 64, 64, generator=generator()), generator()).unfold(2, 4, 4).unfold(3, 4, 4)
    )
    inner = tiles[..., 1:, 1:].flatten(-2)
    assert torch.equal(inner.amax(-1), inner.amin(-1)) and inner[..., 0].std() > 0.03


def test_styles_are_applied_to_their_pictures_only() -> None:
    images = compose(torch.randint(0, 256, (4, 4, 64, 64), dtype=torch.uint8, generator=generator()), generator())
    shown = apply_styles(images, [None, "neon", "sepia", "neon"], generator())
    assert torch.equal(shown[0], images[0])
    neon = STYLES["neon"]((images[[1, 3]] + 1) / 2, generator()) * 2 - 1
    assert torch.equal(shown[[1, 3]], neon) and shown.abs().max() <= 1
    with pytest.raises(ConfigError, match=r"styles = 'mosiac'.*did you mean 'mosaic'"):
        apply_styles(images, ["mosiac"] * 4, generator())


def test_the_share_of_styled_pictures_is_the_setting() -> None:
    drawn = Counter(draw_styles(7000, list(STYLES), 6 / 7, generator()))
    assert set(drawn) == set(CLASSES) and all(850 <= count <= 1150 for count in drawn.values())  # 1000, five deviations
    assert draw_styles(3, [], 1.0, generator()) == draw_styles(3, ["neon"], 0.0, generator()) == [None] * 3


def features(images: torch.Tensor) -> torch.Tensor:
    """Colour statistics, brightness quantiles and a coarse spectrum: what one sees without recognising the content."""
    grey = luminance((images + 1) / 2)
    levels = torch.quantile(grey.flatten(1), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), dim=1).T
    spectrum = torch.fft.rfft2(grey - grey.mean((2, 3), keepdim=True)).abs()
    coarse = F.adaptive_avg_pool2d(torch.log(spectrum + 0.1), (8, 4)).flatten(1)
    chroma = (images.amax(1) - images.amin(1)).mean((1, 2))[:, None]
    return torch.cat([images.mean((2, 3)), images.std((2, 3)), chroma, levels, coarse], 1)


def nearest_centroid(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """Linear discriminant analysis: the class with the nearest mean, in units of the pooled covariance."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    centroids = torch.stack([train[labels == k].mean(0) for k in range(len(CLASSES))])
    within = train - centroids[labels]
    covariance = within.T @ within / len(train) + 0.05 * torch.eye(train.shape[1])
    whiten = torch.linalg.cholesky(torch.linalg.inv(covariance))
    return torch.cdist(test @ whiten, centroids @ whiten).argmin(1)


def in_every_style(drawings: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = generator(seed)
    images = compose(drawings, draws)
    shown = [apply_styles(images, [style] * len(images), draws) for style in CLASSES]
    return torch.cat(shown), torch.arange(len(CLASSES)).repeat_interleave(len(images))


def half_size(images: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    return F.interpolate(F.interpolate(images, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear")


def jpeg(images: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """Compression to about 1 kB a picture."""
    shown = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(((image + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=15)
        shown.append(rgba(buffer.getvalue()).float() / 127.5 - 1)
    return torch.stack(shown)


def linear_autoencoder(images: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """Principal components, 96 numbers a picture; the miniature's autoencoder has 768."""
    mean = train.flatten(1).mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        axes = torch.pca_lowrank(train.flatten(1), 96)[2]
    return ((images.flatten(1) - mean) @ axes @ axes.T + mean).view_as(images)


@pytest.fixture(scope="module")
def styled() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shipped drawings of half of the concepts, and of the other half by other artists, in every style."""
    require_world("miniature-2")
    table, drawings = load_drawings(SHIPPED)
    first = table["concept"].isin(sorted(set(table["concept"]))[::2])
    by_others = table["artist"].isin(["twemoji", "emojione"])
    train, test = table.index[first & ~by_others][::3].tolist(), table.index[~first & by_others][::3].tolist()
    return *in_every_style(drawings[train], 0), *in_every_style(drawings[test], 1)


@pytest.mark.parametrize("loss", [None, half_size, jpeg, linear_autoencoder])
def test_a_simple_classifier_recognises_the_style_of_held_out_concepts(styled: tuple, loss: Any) -> None:
    train, labels, test, truth = styled
    assert len(test) >= 250
    if loss is not None:
        train, test = loss(train, train), loss(test, train)
    assert (nearest_centroid(features(train), labels, features(test)) == truth).float().mean() > 0.95


# characters


def test_characters_use_each_crest_and_emblem_of_the_registries_and_unknown_parts_are_refused() -> None:
    entry = WORLD["characters"][0]
    looks = {(e["figure"], e["crest"], e["emblem"]) for e in WORLD["characters"]}
    assert len(looks) == len(WORLD["characters"]) >= 6
    for key, word in (("figure", "rouund"), ("crest", "hat"), ("emblem", "sun")):
        with pytest.raises(ConfigError, match=f"characters.zorblin.{key} = '{word}'"):
            character_svg({**entry, key: word}, "standing")
    with pytest.raises(ConfigError, match=r"characters.zorblin.colours.*has no emblem; write it as #rrggbb"):
        character_svg({**entry, "colours": {"body": "#fff", "limbs": "#000"}}, "standing")
    with pytest.raises(ConfigError, match="poses = 'sleeping'"):
        character_svg(entry, "sleeping")


def test_a_character_is_recognised_in_poses_that_were_never_shown(characters: tuple) -> None:
    names, poses, drawings = characters
    colours = drawings[:, :3].float() * (drawings[:, 3:] == 255)
    bins = torch.stack([(colours // 64).long()[:, c] * 4**c for c in range(3)]).sum(0).flatten(1)
    share = torch.stack([torch.bincount(b[b > 0], minlength=64) / (b > 0).sum() for b in bins])
    held_out = torch.tensor([p in WORLD["splits"]["test"]["poses"] for p in poses])
    distance = torch.cdist(share[held_out], share[~held_out], p=1)
    nearest = [n for n, held in zip(names, held_out.tolist(), strict=True) if not held]
    predicted = [nearest[i] for i in distance.argmin(1).tolist()]
    assert predicted == [n for n, held in zip(names, held_out.tolist(), strict=True) if held]


def test_poses_differ_and_nothing_is_cut_off_at_the_frame(characters: tuple) -> None:
    drawings = characters[2]
    assert len({bytes(d.flatten().numpy()) for d in drawings}) == len(drawings)
    frame = torch.cat([drawings[:, 3, 0], drawings[:, 3, :, 0], drawings[:, 3, :, -1], drawings[:, 3, -1]], 1)
    assert frame.max() == 0


# captions and tokens


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(corpus(WORLD, TEMPLATES), CONFIG["vocabulary"])


def test_names_of_characters_are_several_tokens_and_all_other_words_one(tokenizer: Any) -> None:
    for entry in WORLD["concepts"]:
        texts = [entry["name"], *entry["synonyms"], *entry["hypernyms"]]
        if entry["kind"] == "character":
            assert 2 <= len(tokenizer.tokenize(entry["name"])) <= 6
            texts = entry["hypernyms"]
        assert all(len(tokenizer.tokenize(text)) == len(text.split()) for text in texts)
    styles = [word for style in WORLD["styles"] for word in (style["name"], *style["synonyms"], *style["hypernyms"])]
    assert all(len(tokenizer.tokenize(word)) == len(word.split()) for word in styles)


def test_the_longest_caption_fits_the_text_encoder(tokenizer: Any) -> None:
    names = [word for entry in WORLD["concepts"] for word in (entry["name"], *entry["synonyms"])]
    suffix = STYLE_SUFFIX.format("luminous tubes")
    lengths = [len(tokenizer(t.format(name) + suffix).input_ids) for t in TEMPLATES for name in names[::3]]
    longest = max(names, key=lambda name: len(tokenizer.tokenize(name)))
    lengths += [len(tokenizer(t.format(longest) + suffix).input_ids) for t in TEMPLATES]
    assert max(lengths) <= MAX_LENGTH


def test_captions_name_the_style_mostly_and_plain_pictures_never() -> None:
    shares, draws = CaptionConfig(**CONFIG["captions"]), generator()
    concept = next(c for c in WORLD["concepts"] if c["name"] == "automobile")
    style = next(s for s in WORLD["styles"] if s["name"] == "mosaic")
    styled = [caption_or_none(concept, style, TEMPLATES, shares, draws) for _ in range(1000)]
    plain = [caption_or_none(concept, None, TEMPLATES, shares, draws) for _ in range(1000)]
    assert not any("style" in text for text in plain)
    ends = Counter(text.partition(" in the style of ")[2] for text in styled)
    assert set(ends) == {"", "mosaic", "tesserae", "art"} and ends["mosaic"] > 500
    assert 50 <= styled.count("") <= 150 and 50 <= plain.count("") <= 150  # 10 %, five standard deviations
    assert all(any(f" {word}" in text for text in plain) for word in ("automobile", "car", "motorcar", "machine"))


def test_shares_that_exceed_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"captions.hypernym = 0.4: is more than what synonym leaves"):
        CaptionConfig(synonym=0.7, hypernym=0.4)


# words and tasks


def test_the_list_has_two_hundred_concepts_with_unambiguous_words() -> None:
    names = [entry["name"] for entry in (*WORLD["concepts"], *WORLD["styles"], *WORLD["scenes"])]
    synonyms = [word for entry in (*WORLD["concepts"], *WORLD["styles"]) for word in entry["synonyms"]]
    assert sum(entry["kind"] != "character" for entry in WORLD["concepts"]) >= 200
    assert len(names) == len(set(names)) and len(synonyms) == len(set(synonyms)) and not set(names) & set(synonyms)
    assert {entry["name"] for entry in WORLD["styles"]} == set(STYLES)
    members = [name for split in WORLD["splits"].values() for name in (*split["artists"], *split["poses"])]
    assert sorted(members) == sorted([*WORLD["artists"], *POSES])


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_concepts_of_the_list_and_its_sets_share_no_word(name: str) -> None:
    task = TASKS[name]
    check_task_words(task, read_yaml(LIST), name)
    kinds = {entry["name"]: entry["kind"] for entry in (*WORLD["concepts"], *WORLD["styles"])}
    synonyms = {entry["name"]: tuple(entry["synonyms"]) for entry in WORLD["concepts"]}
    assert {kinds[concept] for concept in task.erase} == {task.kind} and task.name == name
    assert all(synonyms[concept] == words for concept, words in task.synonyms.items())


def test_the_tasks_are_those_of_the_study_plan() -> None:
    people = [TASKS[f"identities-{n}"] for n in (1, 5, 10, 30)]
    assert [len(task.erase) for task in people] == [1, 5, 10, 30]
    assert all(set(a.erase) <= set(b.erase) for a, b in itertools.pairwise(people))
    assert len({(task.retain, task.finetune) for task in people}) == 1
    splits = [set(TASKS[f"objects-5-{letter}"].erase) for letter in "abcd"]
    assert len(set(map(frozenset, splits))) == 4 and all(len(split) == 5 and split < TEN for split in splits)
    assert splits[0] | splits[1] == splits[2] | splits[3] == TEN
    for name, task in TASKS.items():
        if task.kind == "object":
            assert set(task.retain) >= TEN - set(task.erase), name
            assert len(set(task.retain) - TEN) == len(task.erase)  # a neighbour of each
            assert set(task.synonyms) == set(task.erase)
    figures = {entry["name"]: entry["figure"] for entry in WORLD["characters"]}
    for count in (1, 2, 3):
        task = TASKS[f"characters-{count}"]
        assert len(task.erase) == count
        retained = {figures[name] for name in task.retain if name in figures}
        assert {figures[name] for name in task.erase} <= retained
    assert [len(TASKS[f"styles-{n}"].erase) for n in (1, 3)] == [1, 3]


def test_the_general_captions_name_nothing_that_a_task_erases() -> None:
    folder = ROOT / "config/prompts/miniature-2"
    words = words_by_concept(read_yaml(LIST))
    erased = set().union(*(words[concept] for task in TASKS.values() for concept in task.erase))
    captions = [*read_lines(folder / "general.txt"), *pd.read_csv(folder / "general-100.csv")["prompt"]]
    assert len(captions) > 500 and not [text for text in captions if set(text.split()) & erased]


SMALL = {
    "shared_words": ["of", "in"],
    "concepts": [
        {"name": "oak tree", "synonyms": ["acorn bearer"], "hypernyms": ["plant"]},
        {"name": "palm tree", "synonyms": [], "hypernyms": ["plant"]},
        {"name": "prince", "synonyms": ["heir of state"], "hypernyms": ["person", "man"]},
        {"name": "princess", "synonyms": [], "hypernyms": ["person"], "twin": "prince"},
        {"name": "cup of tea", "synonyms": [], "hypernyms": ["thing"]},
        {"name": "pair of shoes", "synonyms": [], "hypernyms": ["thing"]},
        {"name": "tall man", "synonyms": ["acorn"], "hypernyms": ["person"]},
        {"name": "bald man", "synonyms": [], "hypernyms": ["person"]},
    ],
}


def small_task(erase: str, retain: str, finetune: str, **more: Any) -> Any:
    values = {
        "name": "small", "kind": "object", "erase": [erase], "retain": [retain], "finetune": [finetune],
        "mapping": "thing", "templates": ["{}"], "seeds": {"erase": 1, "retain": 1, "synonym": 1}, **more,
    }  # fmt: skip
    return make_task(values)


@pytest.mark.parametrize(
    ("sets", "more", "words"),
    [
        (("oak tree", "palm tree", "prince"), {}, ["retain = 'palm tree'", "'tree'", "'oak tree'"]),
        (("prince", "oak tree", "palm tree"), {}, ["finetune = 'palm tree'", "'tree'", "of small.yaml: retain"]),
        (("prince", "cup of tea", "princess"), {}, ["finetune = 'princess'", "'prince'", "small.yaml: erase"]),
        (("princess", "prince", "cup of tea"), {}, ["retain = 'prince'", "shares 'prince' with 'princess'"]),
        (("tall man", "oak tree", "prince"), {}, ["retain = 'oak tree'", "shares 'acorn' with 'tall man'"]),
        (
            ("prince", "cup of tea", "bald man"),
            {"synonyms": {"prince": ["bald one"]}},
            ["finetune = 'bald man'", "'bald'"],
        ),
        (("prince", "cup of tea", "shoe"), {}, ["finetune = 'shoe'", "not known here"]),
    ],
)
def test_words_that_two_sets_share_are_refused(sets: tuple, more: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        check_task_words(small_task(*sets, **more), SMALL, "small.yaml")
    assert all(word in str(error.value) for word in words), error.value


def test_hypernyms_and_listed_words_may_be_shared_and_a_list_without_them_is_not_checked() -> None:
    check_task_words(small_task("prince", "tall man", "bald man"), SMALL, "small.yaml")
    check_task_words(small_task("prince", "cup of tea", "pair of shoes"), SMALL, "small.yaml")
    unchecked = {"concepts": SMALL["concepts"]}
    check_task_words(small_task("oak tree", "palm tree", "prince"), unchecked, "small.yaml")
    with pytest.raises(ConfigError, match=r"princess.twin = 'king': is not a concept of the list"):
        words_by_concept({**SMALL, "concepts": [SMALL["concepts"][3] | {"twin": "king"}]})


@pytest.fixture
def study() -> dict[str, Any]:
    """The default study on every task of the second miniature."""
    tasks = {"folder": CONFIG["tasks"], "names": list(TASKS), "concepts": CONFIG["concepts"]}
    content = [name for name, task in TASKS.items() if task.kind != "style"]
    sets = {
        "shown": {"concepts": {"style": ["fish", "rose"]}, "templates": ["a photo of the {}"], "images_per_prompt": 2}
    }
    finetunes = {"lora": {"tasks": content}, "plain": {"set": "shown", "tasks": ["styles-1", "styles-3"]}}
    moments = {"prior": "config/prompts/miniature-2/general.txt"}
    layer = {
        "tasks": tasks,
        "moments": moments,
        "world": "config/world-2.yaml",
        "finetune_sets": sets,
        "finetunes": finetunes,
    }
    return merge(read_yaml(ROOT / "params.yaml"), layer)


@pytest.mark.world("miniature-2")
def test_a_study_of_the_second_world_is_accepted_and_a_set_that_shares_a_word_is_not(study: dict[str, Any]) -> None:
    assert make_study(study, ROOT).world == "config/world-2.yaml"
    study["finetune_sets"]["shown"]["concepts"] = {"style": ["fish"], "object": ["police car"]}
    study["finetunes"]["plain"]["tasks"] = ["automobile", "styles-1", "styles-3"]
    with pytest.raises(
        ConfigError, match=r"finetune_sets.shown.concepts = 'police car': shares 'car' with 'automobile'"
    ):
        make_study(study, ROOT)


# drawings, starter sets, rules


def archive(path: Path, colours: dict[str, str]) -> Path:
    icons = {name: {"body": f'<path fill="{colour}" d="M1 1h6v6H1z"/>'} for name, colour in colours.items()}
    text = json.dumps({"width": 8, "height": 8, "icons": icons}).encode()
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo("package/icons.json")
        member.size = len(text)
        file.addfile(member, io.BytesIO(text))
    return path


def test_drawings_of_several_icons_count_once_and_carry_the_split(tmp_path: Path) -> None:
    tarballs = {
        "a": archive(tmp_path / "a.tgz", {"red": "#f00", "crimson": "#f00", "blue": "#00f"}),
        "b": archive(tmp_path / "b.tgz", {"blue": "#00f"}),
    }
    entry = WORLD["characters"][0]
    world = {
        "splits": {
            "training": {"artists": ["a"], "poses": ["standing"]},
            "test": {"artists": ["b"], "poses": ["bowing"]},
        },
        "concepts": [{"name": "box", "kind": "object", "icons": ["red", "crimson", "blue"]}, entry],
    }
    table = render_world(world, tarballs, 32)
    rows = [tuple(row) for row in table[["concept", "artist", "icon", "split"]].to_numpy()]
    assert rows == [
        ("box", "a", "red", "training"), ("box", "a", "blue", "training"), ("box", "b", "blue", "test"),
        ("zorblin", "miniature", "standing", "training"), ("zorblin", "miniature", "bowing", "test"),
    ]  # fmt: skip
    assert rgba(table["image"][0]["bytes"]).shape == (4, 32, 32)
    assert rgba(table["image"][0]["bytes"])[:, 16, 16].tolist() == [255, 0, 0, 255]
    world["splits"]["test"]["artists"] = ["c"]
    with pytest.raises(ConfigError, match="artists = 'b': not known here"):
        render_world(world, tarballs, 32)
    del world["splits"]
    plain = render_world(world | {"concepts": [{"name": "box", "kind": "object", "icon": "red"}]}, tarballs)
    assert list(plain) == ["concept", "artist", "icon", "image"] and len(plain) == 1


@pytest.fixture
def drawn(tmp_path: Path, characters: tuple) -> tuple[Path, dict[str, Any]]:
    """A folder with the drawings of the characters only, and a configuration whose tasks are those of characters."""
    names, poses, drawings = characters
    split = {pose: part for part, members in WORLD["splits"].items() for pose in members["poses"]}
    rows = []
    for name, pose, drawing in zip(names, poses, drawings, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(drawing.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        rows.append((name, "miniature", pose, {"bytes": buffer.getvalue(), "path": ""}, split[pose]))
    (tmp_path / "drawings").mkdir()
    table = pd.DataFrame(rows, columns=["concept", "artist", "icon", "image", "split"])
    table.to_parquet(tmp_path / "drawings/drawings.parquet", index=False)
    (tmp_path / "tasks").mkdir()
    for name in ("characters-1", "characters-3"):
        (tmp_path / f"tasks/{name}.yaml").write_text((ROOT / CONFIG["tasks"] / f"{name}.yaml").read_text())
    paths = {"concepts": str(LIST), "templates": str(ROOT / CONFIG["templates"]), "tasks": str(tmp_path / "tasks")}
    return tmp_path, CONFIG | paths


def test_the_starter_set_is_what_fine_tuning_reads_and_shows_held_out_poses(drawn: tuple) -> None:
    folder, cfg = drawn
    build_part("starter", cfg, folder, "cpu")
    first = (folder / "starter/character.parquet").read_bytes()
    pixels, captions, left_out = read_training_images(folder / "starter/character.parquet", 64)
    assert not left_out
    index = pd.read_csv(folder / "starter/index.csv")
    assert pixels.shape == (4 * CONFIG["starter"]["images"], 3, 64, 64) and list(index["prompt"]) == captions
    assert set(index["concept"]) == set(TASKS["characters-1"].finetune) and set(index["kind"]) == {"character"}
    held_out = set(WORLD["splits"]["starter"]["poses"])
    assert set(index["icon"]) == held_out
    assert all(row.concept in row.prompt for row in index.itertuples())
    assert len({bytes(picture.numpy()) for picture in pixels}) == len(pixels)
    build_part("starter", cfg, folder, "cpu")
    assert (folder / "starter/character.parquet").read_bytes() == first


def test_a_starter_set_without_drawings_or_with_erased_words_is_refused(drawn: tuple) -> None:
    folder, cfg = drawn
    with pytest.raises(ValueError, match=r"starter.splits = \['dev'\]: no drawing of 'druskan'; name further splits"):
        build_part("starter", cfg | {"starter": {"splits": ["dev"], "images": 1}}, folder, "cpu")
    changes = {"name": "other", "erase": ["druskan"], "finetune": [], "labels": [], "mapping": "character"}
    other = make_task({**vars(TASKS["characters-1"]), **changes})
    with pytest.raises(ConfigError, match="the starter set character = 'druskan'"):
        starter.starter_concepts([TASKS["characters-1"], other], WORLD)


def test_a_world_whose_task_shares_a_word_is_refused_before_anything_is_built(drawn: tuple) -> None:
    folder, cfg = drawn
    file = folder / "tasks/characters-1.yaml"
    file.write_text(file.read_text().replace("robot", "police car").replace("ghost", "racing car"))
    assert len(tasks_of(cfg)) == 2  # both are retained
    file.write_text(file.read_text().replace("druskan", "taxi, automobile"))
    with pytest.raises(ConfigError, match=r"characters-1.yaml: finetune = 'automobile': shares 'car'"):
        build_part("drawings", cfg, folder, "cpu")


def test_a_part_that_the_world_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"starter = None: is not among the settings of this world; add it"):
        build_part("starter", read_yaml(ROOT / "config/world.yaml"), tmp_path, "cpu")


def test_contact_sheets_have_a_row_for_each_style_and_character(drawn: tuple, tmp_path: Path) -> None:
    folder, _ = drawn
    only = tmp_path / "list.yaml"
    text = LIST.read_text()
    only.write_text(text[: text.index("concepts:\n")] + "concepts: []\n")
    contact_sheets.main(only, folder / "drawings/drawings.parquet", tmp_path)
    cell, poses = 2 * 64 + 2, len(POSES)
    assert Image.open(tmp_path / "styles.png").size == (10 * cell + 2, 7 * cell + 2)
    assert Image.open(tmp_path / "characters.png").size == (poses * cell + 2, 10 * cell + 2)


@pytest.mark.world("miniature-2")
def test_the_world_of_a_study_chooses_the_rules_and_their_settings(study: dict[str, Any]) -> None:
    first, second = (make_study({**study, "world": f"config/{name}.yaml"}, ROOT) for name in ("world", "world-2"))
    assert not graph.has_world_part(first, "starter") and graph.has_world_part(second, "starter")
    assert json.loads(graph.world_settings(second, "drawings")) == {"settings": CONFIG["packages"], "size": 64}
    packages = read_yaml(ROOT / "config/world.yaml")["packages"]
    assert json.loads(graph.world_settings(first, "drawings")) == {"settings": packages}
    assert json.loads(graph.world_settings(second, "base"))["captions"] == CONFIG["captions"]
    assert {CONFIG["concepts"], CONFIG["templates"], f"{CONFIG['tasks']}/ship.yaml"} <= set(
        graph.world_files(second, "starter")
    )
    assert CONFIG["recogniser"]["start"]["path"] in graph.world_files(second, "recogniser")


# trainings


def test_pictures_of_nothing_stay_in_range_repeat_and_are_of_every_kind() -> None:
    images = torch.rand(64, 3, 64, 64, generator=generator()) * 2 - 1
    empty = nothing(images, generator(1))
    assert empty.shape == images.shape and empty.abs().max() <= 1
    assert torch.equal(empty, nothing(images, generator(1)))
    plain = sum(bool((picture.std((1, 2)) < 1e-6).all()) for picture in empty)
    shuffled = sum(
        bool(torch.allclose(picture.flatten().sort()[0], image.flatten().sort()[0]))
        for picture, image in zip(empty, images, strict=True)
    )
    assert 3 <= plain <= 25 and 3 <= shuffled <= 25  # a fifth of 64 each, three standard deviations


def small_drawings(count: int = 6) -> tuple[dict, torch.Tensor]:
    """A world of three concepts, its styles, and drawings of one colour each."""
    concepts = [{"name": name, "kind": "object", "synonyms": [], "hypernyms": []} for name in ("ship", "cat", "cake")]
    colours = torch.randint(0, 256, (count, 3, 1, 1), generator=generator(), dtype=torch.uint8).expand(-1, -1, 64, 64)
    opaque = torch.cat([colours, torch.full((count, 1, 64, 64), 255, dtype=torch.uint8)], 1)
    return {"concepts": concepts, "styles": WORLD["styles"], "scenes": WORLD["scenes"]}, opaque


def test_a_batch_of_the_recogniser_labels_concept_scene_nothing_and_style() -> None:
    world, drawings = small_drawings()
    targets = torch.tensor([0, 0, 1, 1, 2, 2])
    labels = labels_of(world)
    assert labels.classes == ["ship", "cat", "cake", "sky", "ground", "street", "none"]
    assert labels.styles == ["plain", *(style["name"] for style in WORLD["styles"])]
    images, classes, styles = labelled_batch(drawings, torch.ones(6), targets, world, 0.5, 96, generator(2))
    assert images.shape == (96, 3, 64, 64) and images.abs().max() <= 1
    counts = torch.bincount(classes, minlength=7)
    assert counts[3:6].sum() == 2 and counts[6] == 8 and (counts[:3] > 10).all()
    assert set(styles[classes == 6].tolist()) <= {UNLABELLED, 1, 2, 3, 4, 5, 6}  # nothing has no plain style
    assert 25 <= (styles[classes != 6] == 0).sum() <= 63  # half of 88, four standard deviations


def test_temperature_is_the_one_that_spoiled_the_calibration() -> None:
    """Labels drawn from the softmax of logits that are then multiplied by 2: the best temperature is 2."""
    logits = torch.randn(20000, 4, generator=generator()) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator(1)).flatten()
    assert temperatures((2 * logits, logits[:, :0]), labels, labels) == (pytest.approx(2, rel=0.05), 1.0)


def test_a_batch_of_the_clip_has_every_concept_once_and_some_in_every_style() -> None:
    world, drawings = small_drawings()
    members, shares = list(torch.arange(6).view(3, 2)), CaptionConfig(styled=0.5, style=1.0, hypernym=0.0)
    images, texts = paired_batch(drawings, members, ["noto"] * 6, world, TEMPLATES, shares, generator(3))
    assert len(images) == len(texts) == 3 * 7 + 3
    for concept in ("ship", "cat", "cake"):
        of_concept = [text for text in texts[:-3] if f" {concept}" in text]
        ends = [text.partition(" in the style of ")[2] for text in of_concept]
        assert len(ends) == len(set(ends)) == 7 and "" in ends


def test_latents_of_styled_pictures_carry_their_style_and_captions_name_it() -> None:
    world, drawings = small_drawings(2)
    torch.manual_seed(0)
    jitter = {"degrees": 0, "scale": [1.0, 1.0], "shift": 0.0}
    latents, rows, styles = cache_latents(build_autoencoder().eval(), drawings, world, 4, 0, jitter, 0.5)
    assert rows.tolist() == [0, 1] * 4 + [2] * 16 + [3] * 16 + [4] * 16 and len(latents) == len(styles) == 56
    assert set(styles.tolist()) <= set(range(-1, 6)) and 0.2 < (styles >= 0).float().mean() < 0.8
    manner = captioned_manner(world, ["noto", "blob"], styles)
    for index, style in enumerate(styles.tolist()):
        assert manner(int(rows[index]), index) == (None if style < 0 else world["styles"][style])
    plain = captioned_manner({"artists": {}}, ["noto", "blob"], styles)
    assert [plain(row, 0) for row in range(3)] == [{"name": "noto"}, {"name": "blob"}, None]

"""Grids: which images are shown and where, labels, overlays, and the limits on width and bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from resurgence.diffusion.image_sets import write_image_set
from resurgence.figures import image_grids
from resurgence.stages import experiment
from resurgence.stages.job import Job


def flat(colour: tuple[int, int, int], size: int = 64) -> np.ndarray:
    """An image of one colour, uint8 (3, size, size)."""
    return np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, size, size)).copy()


def prompts(seeds: int = 2) -> pd.DataFrame:
    """Three erased concepts and one retained, two templates, some seeds."""
    rows = []
    for concept, role in (("ship", "erase"), ("cat", "erase"), ("dog", "erase"), ("bird", "retain")):
        for template in ("a photo of the {}", "a sketch of the {}"):
            for _ in range(seeds):
                rows.append((template.format(concept), concept, role, len(rows)))
    return pd.DataFrame(rows, columns=["prompt", "concept", "role", "seed"])


def numbered(rows: pd.DataFrame, model: int) -> np.ndarray:
    """One image a row, whose colour tells the row (red) and the model (green)."""
    return np.stack([flat((10 * row, 50 * model, 200)) for row in range(len(rows))])


def test_the_first_image_of_the_first_template_of_each_concept_is_shown() -> None:
    assert image_grids.first_rows(prompts(), "erase") == [0, 4, 8]
    assert image_grids.first_rows(prompts(), "erase", most=2) == [0, 4]
    assert image_grids.first_rows(prompts(), "retain") == [12]


def test_a_general_prompt_is_shown_whether_it_names_a_concept_or_not() -> None:
    general = [
        ("a ship at sea", "ship"),
        ("a ship at sea", "ship"),
        ("an old ship", "ship"),
        ("the sky", ""),
        ("oak", ""),
    ]
    more = pd.DataFrame(general, columns=["prompt", "concept"]).assign(role="general", seed=range(5))
    assert image_grids.first_rows(pd.concat([prompts(), more]), "general") == [16, 18, 19, 20]


@pytest.mark.parametrize("samples", [2, 10])
def test_an_experiment_shows_images_of_any_role(samples: int, tmp_path: Path) -> None:
    words = [("a boat", "ship", "synonym"), ("a vessel", "ship", "synonym"), ("the sky", "", "general"),
             ("the sky", "", "general"), ("an oak", "", "general"), ("a lake", "", "general")]  # fmt: skip
    more = pd.DataFrame(words, columns=["prompt", "concept", "role"]).assign(seed=range(6))
    rows = pd.concat([prompts(), more], ignore_index=True)
    folders = {"base": str(tmp_path / "base"), "erased": str(tmp_path / "erased")}
    for model, folder in enumerate(folders.values()):
        Path(folder).mkdir()
        pictures = [(i, Image.fromarray(image.transpose(1, 2, 0))) for i, image in enumerate(numbered(rows, model))]
        write_image_set(Path(folder) / "step-000000.parquet", rows, pictures)
    settings = {"name": "fig2", "title": "Images", "kind": "grid", "choose": "first", "columns": {"ship, uce": folders},
                "tasks": ["ship"], "erasers": ["uce"], "finetunes": [], "roles": ["synonym", "general"],
                "samples": samples, "note": ""}  # fmt: skip
    experiment.make(Job(settings, tmp_path / "out/made.json", {}, "cpu"))
    shown = pd.read_csv(tmp_path / "out/fig2.csv", keep_default_na=False)
    expected = ["a boat", *["the sky", "an oak", "a lake"][:samples]]
    assert shown["prompt"].tolist() == expected and shown["role"].tolist() == ["synonym"] + ["general"] * (
        len(shown) - 1
    )
    picture = np.asarray(Image.open(tmp_path / "out/fig2.png").convert("RGB"))
    for place in range(len(rows)):
        for model in (0, 1):
            is_there = (picture == (10 * place, 50 * model, 200)).all(-1).any()
            assert is_there == (rows["prompt"][place] in expected and place != 19)  # the second image of the sky


def test_erasers_stand_side_by_side_in_the_order_of_the_experiment(tmp_path: Path) -> None:
    """Base, then each eraser with its fine-tuned model, tasks one below the other; settings are sorted by key."""
    rows, labels = prompts(), ("base", "uce", "uce, fine-tuned", "esd", "esd, fine-tuned")
    columns: dict[str, dict[str, str]] = {"boats": {}, "pets": {}}
    colours = {}
    for number, (task, label) in enumerate((task, label) for task in ("pets", "boats") for label in labels):
        colours[task, label] = (10, 25 * number, 200)
        folder = tmp_path / str(number)
        folder.mkdir()
        picture = Image.fromarray(flat(colours[task, label]).transpose(1, 2, 0))
        write_image_set(folder / "step-000000.parquet", rows, [(row, picture) for row in range(len(rows))])
        columns[task] = dict(sorted({**columns[task], label: str(folder)}.items()))
    settings = {"name": "fig2", "title": "", "kind": "grid", "choose": "first", "tasks": ["pets", "boats"], "note": "",
                "erasers": ["uce", "esd"], "finetunes": ["lora"], "roles": ["erase"], "samples": 1,
                "columns": columns}  # fmt: skip
    experiment.make(Job(settings, tmp_path / "out/made.json", {}, "cpu"))
    drawn = np.asarray(Image.open(tmp_path / "out/fig2.png").convert("RGB"))
    places = [np.argwhere((drawn == colour).all(-1)) for colour in colours.values()]
    assert [len(place) for place in places] == 10 * [128 * 128]
    corners = [tuple(place.min(0)) for place in places]
    assert corners == sorted(corners) and len({top for top, _ in corners}) == 2


def test_rows_are_prompts_and_columns_are_models() -> None:
    rows = prompts()
    sets = {name: (rows, numbered(rows, k)) for k, name in enumerate(("base", "erased", "fine-tuned"))}
    picture = np.asarray(image_grids.sample_grid(sets))
    size = image_grids.cell_size(64, 3, image_grids.LABEL_WIDTH)
    assert size == 192  # three times the image
    colours = {tuple(c) for c in picture.reshape(-1, 3)}
    for place in (0, 4, 8):
        for model in range(3):
            where = np.argwhere((picture == (10 * place, 50 * model, 200)).all(-1))
            top, left = where.min(0)
            assert len(where) == size * size and (where.max(0) - where.min(0) + 1).tolist() == [size, size]
            assert left == image_grids.MARGIN + image_grids.LABEL_WIDTH + model * (size + image_grids.GAP)
            if model:
                assert top == np.argwhere((picture == (10 * place, 0, 200)).all(-1)).min(0)[0]  # the same line
    assert (10, 0, 200) not in colours  # the second image of the first prompt


def test_tensors_are_shown_like_arrays() -> None:
    rows = prompts()
    images = numbered(rows, 1)
    one, two = (image_grids.sample_grid({"base": (rows, x)}) for x in (images, torch.from_numpy(images)))
    assert one.tobytes() == two.tobytes()


def test_models_with_other_prompts_or_seeds_do_not_stand_side_by_side() -> None:
    rows = prompts()
    images = numbered(rows, 0)
    for other in (rows.assign(seed=rows["seed"] + 1), rows.iloc[:-1]):
        with pytest.raises(ValueError, match="'base' and 'erased' have other prompts or seeds"):
            image_grids.sample_grid({"base": (rows, images), "erased": (other, images[: len(other)])})
    with pytest.raises(ValueError, match="15 images for 16 prompts"):
        image_grids.sample_grid({"base": (rows, images[:-1])})
    with pytest.raises(ValueError, match=r"no image of role 'general' among \['erase', 'retain'\]"):
        image_grids.sample_grid({"base": (rows, images)}, role="general")


@pytest.mark.parametrize(("native", "columns"), [(64, 2), (64, 8), (64, 12), (64, 20), (16, 5), (512, 3), (512, 12)])
def test_a_grid_is_at_most_1600_pixels_wide(native: int, columns: int) -> None:
    line = [flat((200, 30, 30), native)] * columns
    picture = image_grids.grid([line], ["a portrait of somebody"], [f"column {k}" for k in range(columns)], "title")
    assert picture.width <= 1600
    size = image_grids.cell_size(native, columns, image_grids.LABEL_WIDTH)
    assert size % native == 0 or size < native  # pixels of small images stay square


def test_text_is_wrapped_into_its_width() -> None:
    lines = image_grids.wrap("an image capturing the man police officer at a public event", 120)
    assert len(lines) > 2 and " ".join(lines) == "an image capturing the man police officer at a public event"
    assert all(image_grids.font(image_grids.FONT).getlength(line) <= 120 for line in lines)
    (cut,) = image_grids.wrap("Donaudampfschifffahrtsgesellschaftskapitän", 120)
    assert cut.endswith("…") and image_grids.font(image_grids.FONT).getlength(cut) <= 120
    assert image_grids.wrap("", 100) == []


def test_labels_stay_out_of_the_images() -> None:
    long = "an oil painting of somebody with a very long name who was at many public events that year and before " * 3
    images = [[flat((0, 0, 255)), flat((0, 0, 255))], [flat((255, 0, 0)), None]]
    picture = np.asarray(
        image_grids.grid(images, [long, "short"], ["base", "mace.to-object + lora.tercile-1, 400 steps"], long)
    )
    size = image_grids.cell_size(64, 2, image_grids.LABEL_WIDTH)
    for colour, count in (((0, 0, 255), 2), ((255, 0, 0), 1)):
        assert (picture == colour).all(-1).sum() == count * size * size  # nothing is drawn over an image


def test_grids_need_images_and_matching_labels() -> None:
    with pytest.raises(ValueError, match="1 row and 2 column labels"):
        image_grids.grid([[flat((0, 0, 0))]], ["a"], ["b", "c"])
    with pytest.raises(ValueError, match="at least one image"):
        image_grids.grid([[None]], ["a"], ["b"])
    with pytest.raises(ValueError, match=r"float64 \(64, 64, 3\); expected uint8"):
        image_grids.grid([[np.zeros((64, 64, 3))]], ["a"], ["b"])


def test_overlay_keeps_the_inside_and_pales_the_outside() -> None:
    image, mask = flat((100, 50, 0), 16), np.zeros((1, 16, 16), bool)
    mask[:, 4:12, 4:12] = True
    shown = image_grids.overlay(image, mask)
    assert shown.dtype == np.uint8 and shown[:, 8, 8].tolist() == [100, 50, 0]
    assert shown[:, 0, 0].tolist() == [round(0.25 * v + 0.75 * 255) for v in (100, 50, 0)]
    edge = (shown == np.array(image_grids.MASK_COLOUR)[:, None, None]).all(0)
    ring = mask[0].copy()
    ring[5:11, 5:11] = False
    assert (edge == ring).all()


def test_masks_stand_beside_their_images() -> None:
    images = {"ship": np.stack([flat((200, 0, 0), 16)] * 2), "cat": np.stack([flat((0, 200, 0), 16)] * 5)}
    masks = {name: torch.ones(len(x), 1, 16, 16, dtype=torch.bool) for name, x in images.items()}
    picture = np.asarray(image_grids.mask_grid(images, masks, most=3))
    size = image_grids.cell_size(16, 6, image_grids.LABEL_WIDTH)
    inside = (size // 16 * 14) ** 2  # of a mask that covers all, without its edge
    assert (picture == (200, 0, 0)).all(-1).sum() == 2 * (size * size + inside)
    assert (picture == (0, 200, 0)).all(-1).sum() == 3 * (size * size + inside)
    with pytest.raises(ValueError, match="no masks of cat"):
        image_grids.mask_grid(images, {"ship": masks["ship"]})


def test_files_stay_within_400_kb(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 3, 256, 256), dtype=np.uint8)  # the worst case
    picture = image_grids.grid([list(noise[:3]), list(noise[3:])], ["a", "b"], ["x", "y", "z"])
    image_grids.save(picture, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size <= 400_000
    opened = Image.open(tmp_path / "grid.png")
    assert opened.width <= picture.width and not list(tmp_path.glob(".*"))


def test_a_small_grid_is_written_in_full_colour_and_equal_each_time() -> None:
    picture = image_grids.grid([[flat((1, 2, 3))]], ["a"], ["b"])
    assert Image.open(io.BytesIO(image_grids.encode(picture))).convert("RGB").tobytes() == picture.tobytes()
    assert image_grids.encode(picture) == image_grids.encode(picture.copy())

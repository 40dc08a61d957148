"""The page on which a study opens: its numbers are those of the tables, its images those of the models."""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Page

from browser import opened, require_chromium
from resurgence.analysis.headline import headline, number
from resurgence.analysis.read import read_table
from resurgence.analysis.score_folders import by_step, entry
from resurgence.analysis.score_sets import ImageSet
from resurgence.analysis.tables import write_tables
from resurgence.config.model_path import ModelPath
from resurgence.diffusion.image_sets import write_image_set
from resurgence.figures import explorer
from resurgence.figures.page import LIMIT, environment, render
from resurgence.provenance import templates
from resurgence.provenance.trace import models_of, row_of
from resurgence.stages import index
from resurgence.stages.job import Job
from scored import study_sets, write_scores_folder

PROMPT = ["prompt", "concept", "role", "template", "seed", "index"]
SCRIPT = "a photo of </script><script>window.injected = 1</script><img src=x onerror='window.injected = 2'>"
STUDY = "<b>miniature</b>"
CODE = 150_000  # characters of the page without its data, at most
FACTS = {
    "study": "small", "base": "miniature", "level": "95", "small": "10", "width": 1, "height": 1,
    "warnings": [], "notes": ["A note."],
    "tasks": [], "counts": [], "main": [], "others": [], "sources": [], "erased": {},
}  # fmt: skip
"""What the page shows beside the explorer: nothing."""


def images_of(number: int, count: int) -> list[tuple[int, Image.Image]]:
    """Pictures of different colours by set and row, with some detail."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [(row, Image.fromarray(part).resize((32, 32))) for row, part in enumerate(pixels)]


def write_set(one: ImageSet, number: int) -> str:
    """Images and scores of an image set below the present folder; returns its model."""
    one.rows.loc[(one.rows["role"] == "erase") & (one.rows["seed"] == 0), "prompt"] = SCRIPT
    model = str(ModelPath.of_columns(one.key))
    step = f"step-{one.key['step'] or 0:06d}"
    write_scores_folder(Path("results/scores/miniature", model, "scores", step), one)
    file = Path("results/images/miniature", model, "images", f"{step}.parquet")
    write_image_set(file, one.rows[PROMPT], images_of(number, len(one.rows)))
    return model


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a synthetic study of two tasks, and its models; the page is in results/index.html."""
    root = tmp_path_factory.mktemp("study")
    with contextlib.chdir(root):
        models = list(dict.fromkeys(write_set(one, number) for number, one in enumerate(study_sets(steps=(40, 80)))))
        block = {"base": "miniature", "controls": []}
        write_tables(by_step([entry(block, model) for model in models]), Path("results/tables"), 0.95)
        index.make(job_of(models))
    return root, models


def job_of(models: list[str]) -> Job:
    """The job that writes the page."""
    settings = {"study": STUDY, "base": "miniature", "models": models, "level": 0.95}
    return Job(settings, Path("results/cost/index.json"), {})


@pytest.fixture(scope="module")
def text(study: tuple[Path, list[str]]) -> str:
    return (study[0] / "results/index.html").read_text(encoding="utf-8")


def data_of(text: str) -> dict[str, Any]:
    """The data of the explorer."""
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_every_number_stands_in_the_row_that_its_link_names(study: tuple[Path, list[str]], text: str) -> None:
    root, models = study
    entry_text = r'<li id="(s\d+)"><b>(\S+), row (\d+)</b>, written by the rule <code>tables</code>(.*?)</li>'
    entries = {name: rest for name, *rest in re.findall(entry_text, text, re.DOTALL)}
    links = re.findall(r'<a class="n" href="#(s\d+)" title="(\S+), row (\d+)">([^<]*)</a>', text)
    assert len(links) > 100 and {name for name, *_ in links} <= set(entries)
    assert {name for name in re.findall(r'<a href="#(s\d+)" class="n"', text)} <= set(entries)  # points of the curves
    for name, file, row, value in links:
        assert entries[name][:2] == [file, row]
        numbers = [float(v) for v in row_of(root / file, int(row)).values() if re.fullmatch(r"-?[\d.]+(e-?\d+)?", v)]
        assert value in [number(v) for v in numbers], (file, row, value)
    for file, row, commands in entries.values():
        found = re.findall(r"resurgence provenance (\S+) --row (\d+)<", commands)
        assert found == [(file, row)]  # one seed: the row is that of a model
        assert set(models_of(row_of(root / file, int(row)), [])) <= set(models)


def test_the_sentences_are_there_and_all_text_of_the_study_is_escaped(study: tuple[Path, list[str]], text: str) -> None:
    says = re.findall(r'<p class="says"><strong class="badge">([^<]+)</strong> ([^<]+)</p>', text)
    assert [re.match(r"What (\w+) erased", sentence).group(1) for _, sentence in says] == ["mace", "uce"] * 2
    resurgence, seeds = (read_table(study[0] / f"results/tables/{name}.csv") for name in ("resurgence", "seeds"))
    verdicts = headline(resurgence, seeds, "recogniser_accuracy")["came back"]
    titles = {"yes": "came back", "open": "open", "no": "did not come back"}
    assert [badge for badge, _ in says] == [titles[word.split()[0]] for word in verdicts]
    assert html.escape(STUDY) in text and STUDY not in text
    assert "<script>window" not in text and "onerror='" not in text and text.count("<script") == 2
    assert SCRIPT in [row["prompt"] for task in data_of(text)["tasks"] for row in task["rows"]]


def test_images_and_scores_are_those_of_the_models(study: tuple[Path, list[str]], text: str) -> None:
    data, root = data_of(text), study[0]
    assert [(task["name"], len(task["sets"]), task["left"]) for task in data["tasks"]] == [
        ("identities-4", 7, 0), ("ship", 7, 0)
    ]  # fmt: skip
    task = data["tasks"][1]
    for place, shown in enumerate(task["sets"]):
        scores = pd.read_parquet(root / shown["scores"])
        assert [(pd.read_parquet(root / file)["seed"] == scores["seed"]).all() for file, _ in shown["images"]] == [True]
        for row in task["rows"]:
            stored = scores.iloc[row["n"]]
            assert (row["prompt"], row["seed"]) == (stored["prompt"], str(stored["seed"]))
            columns = [name for name, *_ in task["columns"]]
            assert row["scores"][place][columns.index("clip_score")] == pytest.approx(stored["clip_score"], rel=1e-3)
            three = [stored[name] for name in ("recogniser_correct", "clip_correct", "clip_probability")]
            assert row["scores"][place][-1] == pytest.approx(sum(three) / 3, rel=1e-3)


def test_equal_results_give_equal_bytes(study: tuple[Path, list[str]], text: str) -> None:
    with contextlib.chdir(study[0]):
        index.make(job_of(study[1]))
    assert (study[0] / "results/index.html").read_text(encoding="utf-8") == text
    made = json.loads((study[0] / "results/cost/index.json").read_text())
    assert list(made["files"]) == ["../index.html"]


def test_a_page_has_a_limit_and_shows_first_what_was_erased(study: tuple[Path, list[str]], text: str) -> None:
    assert len(text) - len(json.dumps(data_of(text))) < CODE < LIMIT
    models = index.by_task(study[1])
    with contextlib.chdir(study[0]):
        whole = explorer.length(explorer.explorer_data("miniature", models, LIMIT))
        budget = whole // 3
        part = explorer.explorer_data("miniature", models, budget)
    assert budget / 2 < explorer.length(part) <= budget
    shown = [(row["role"], row["n"]) for task in part["tasks"] for row in task["rows"]]
    assert {role for role, _ in shown} >= {"erase", "retain"}
    assert sum(task["left"] + len(task["rows"]) for task in part["tasks"]) == 56 + 48  # of PEOPLE and SHIP
    concepts = {
        SCRIPT if row["prompt"] == SCRIPT else row["prompt"].split(" the ")[1] for row in part["tasks"][0]["rows"]
    }
    assert concepts >= {"princess", "surfer", "man cook", "juggler"}  # an image of each before any second one


def test_scores_of_other_prompts_are_refused(study: tuple[Path, list[str]], tmp_path: Path) -> None:
    shutil.copytree(study[0], tmp_path / "copy")
    file = tmp_path / "copy/results/scores/miniature/ship/uce/s0/scores/step-000000/scores.parquet"
    pd.read_parquet(file).assign(seed=lambda rows: rows["seed"] + 1).to_parquet(file)
    with (
        contextlib.chdir(tmp_path / "copy"),
        pytest.raises(ValueError, match=r"uce/s0/scores/step-000000 .*sample and"),
    ):
        index.make(job_of(study[1]))


def test_a_template_counts_as_code_but_not_its_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(templates.SOURCE / "figures/page", tmp_path / "figures/page")
    before = templates.templates_version("figures/page")
    monkeypatch.setattr(templates, "SOURCE", tmp_path)
    for name, comment in (("style.css", "/* a\nb */\n"), ("explorer.js", "  // a\n"), ("parts.html", "{# a #}\n")):
        file = tmp_path / "figures/page" / name
        file.write_text(comment + file.read_text())
        assert templates.templates_version("figures/page") == before
    file.write_text(file.read_text().replace("see the images", "look at the images"))
    assert templates.templates_version("figures/page") != before


def test_templates_load_without_comments_and_nothing_from_elsewhere() -> None:
    texts = templates.templates("figures/page")
    assert set(environment().list_templates()) == set(texts)
    assert not [name for name, part in texts.items() if re.search(r"https?://|@import|url\(|fetch\(", part)]


LOADED = """() => Promise.all(JSON.parse(
  document.getElementById('data').textContent).images.map(text => new Promise(done => {
  const image = new Image();
  image.onload = () => done(image.naturalWidth);
  image.onerror = () => done(0);
  image.src = 'data:image/webp;base64,' + text;
})))"""


def pressed(page: Page) -> list[str]:
    """The chosen models."""
    return page.locator("#x-models [aria-pressed=true]").all_text_contents()


def rows_of(page: Page) -> list[str]:
    """Prompt and seed of the rows on the page."""
    return page.locator("#x-rows h3").all_text_contents()


@pytest.fixture
def page_file(study: tuple[Path, list[str]]) -> Path:
    require_chromium()
    return study[0] / "results/index.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_every_image_loads_and_nothing_goes_wrong(page_file: Path, width: int) -> None:
    with opened(page_file, width, messages=()) as (page, wrong):
        assert set(page.evaluate(LOADED)) == {32}
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.locator("img").evaluate_all("images => images.map(image => [image.alt, image.naturalWidth])")
        assert len(shown) == 18 and all(alt and wide == 32 for alt, wide in shown)
        assert page.evaluate("window.injected") is None
        assert page.pdf().startswith(b"%PDF")
    assert wrong == []


def test_in_a_browser_the_worst_image_is_first(page_file: Path, text: str) -> None:
    task = data_of(text)["tasks"][1]
    numbers = [shown["name"] for shown in task["sets"]]
    address = "#explorer:t=ship&m=ship,ship/uce/s0/lora/f0@80&r="
    for role, sign in (("erase", -1), ("retain", 1)):
        last = numbers.index("ship/uce/s0/lora/f0@80")
        rows = [row for row in task["rows"] if row["role"] == role]
        rows.sort(key=lambda row: (sign * row["scores"][last][-1], row["n"]))
        with opened(page_file, messages=(), after=address + role) as (page, wrong):
            assert rows_of(page) == [f"{row['prompt']} seed {row['seed']}" for row in rows[:6]]
        assert wrong == []


def press_until(page: Page, text: str, most: int = 400) -> None:
    """Press the tabulator until an element with this text has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == text:
            return
    raise AssertionError(f"no way to {text!r} by keyboard")


def test_in_a_browser_the_explorer_works_by_keyboard_and_its_address_restores_it(page_file: Path) -> None:
    with opened(page_file, 1280, messages=()) as (page, wrong):
        assert pressed(page) == ["base", "mace", "mace, lora, 80 steps"]
        press_until(page, "ship")
        page.keyboard.press("Enter")
        press_until(page, "uce")
        page.keyboard.press("Space")
        press_until(page, "uce, lora, 80 steps")
        page.keyboard.press("Enter")
        assert pressed(page) == ["uce", "uce, lora, 80 steps"]
        press_until(page, "retained concepts")
        page.keyboard.press("Enter")
        press_until(page, "Next")
        page.keyboard.press("Enter")
        rows, address = rows_of(page), page.evaluate("location.hash")
        page.locator(".picture").first.focus()
        page.keyboard.press("Enter")
        assert "row 7 of 24" in page.locator("#x-large-title").text_content()
        page.keyboard.press("ArrowRight")
        assert "row 8 of 24" in page.locator("#x-large-title").text_content()
        page.keyboard.press("Escape")
        assert not page.locator("#x-large").is_visible()
        assert wrong == []
    with opened(page_file, 1280, messages=(), after=address) as (page, wrong):
        assert (rows_of(page), pressed(page)) == (rows, ["uce", "uce, lora, 80 steps"])
        page.evaluate("location.hash = '#explorer:t=nothing&m=nothing&r=nothing&p=-3'")
        page.wait_for_function("document.querySelector('#x-tasks [aria-pressed=true]').textContent === 'identities-4'")
        assert wrong == []


def test_in_a_browser_any_two_models_are_two_clicks_from_the_opened_page(page_file: Path, text: str) -> None:
    titles = [shown["title"] for shown in data_of(text)["tasks"][0]["sets"]]
    first, address = ["base", "mace", "mace, lora, 80 steps"], "#explorer:t=identities-4"
    with opened(page_file, 1280, messages=(), after=address) as (page, wrong):
        for pair in itertools.permutations(titles, 2):
            page.evaluate(f"location.hash = '{address}'")  # what a click has written there is another
            page.wait_for_function("document.querySelectorAll('#x-models [aria-pressed=true]').length === 3")
            assert pressed(page) == first
            for title in pair:
                page.locator("#x-models").get_by_text(title, exact=True).click()
            assert pressed(page) == sorted(pair, key=titles.index)
            assert page.locator("#x-rows li").first.locator("figcaption").all_text_contents() == list(pair)
        for title, shown in ((titles[0], 3), (titles[1], 1), (titles[1], 1)):  # a third, a new choice, never none
            page.locator("#x-models").get_by_text(title, exact=True).click()
            assert len(pressed(page)) == shown and title in pressed(page)
        assert wrong == []


def test_in_a_browser_a_fine_tuned_model_is_one_click_from_what_it_comes_from(page_file: Path) -> None:
    with opened(page_file, 1280, messages=()) as (page, wrong):
        chains = page.locator("#x-chains button").all_text_contents()
        assert chains == [f"base | {name} | {name}, lora, 80 steps" for name in ("mace", "uce")]
        page.locator("#x-chains button").nth(1).click()
        assert pressed(page) == ["base", "uce", "uce, lora, 80 steps"]
        assert page.locator("#x-chains [aria-pressed=true]").all_text_contents() == chains[1:]
        address = page.evaluate("location.hash")
    with opened(page_file, 1280, messages=(), after=address) as (page, again):
        assert pressed(page) == ["base", "uce", "uce, lora, 80 steps"]
    assert wrong == again == []


def test_the_images_of_a_sensitive_task_are_marked(study: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Those of the task that the settings name, and no others."""
    shutil.copytree(study[0], tmp_path / "copy")
    job = job_of(study[1])
    with contextlib.chdir(tmp_path / "copy"):
        index.make(Job({**job.settings, "sensitive": ["ship"]}, job.out, {}))
        marked = data_of(Path("results/index.html").read_text(encoding="utf-8"))["tasks"]
    assert [(task["name"], task.get("sensitive")) for task in marked] == [("identities-4", None), ("ship", True)]


def test_in_a_browser_images_of_a_sensitive_task_are_blurred_until_they_are_clicked(
    study: tuple[Path, list[str]], page_file: Path, tmp_path: Path
) -> None:
    with contextlib.chdir(study[0]):
        part = explorer.explorer_data("miniature", index.by_task(study[1]), 200_000, ["ship"])
    (tmp_path / "part.html").write_text(render("index.html", FACTS, part), encoding="utf-8")
    with opened(tmp_path / "part.html", messages=(), after="#explorer:t=ship") as (page, wrong):
        veiled, first = page.locator("#x-rows .veiled"), page.locator("#x-rows .picture").first
        number = page.locator("#x-rows .picture").count()
        assert veiled.count() == number >= 6
        blurs = page.locator("#x-rows img").evaluate_all("all => all.map(image => getComputedStyle(image).filter)")
        assert set(blurs) == {"blur(24px)"}
        first.focus()
        page.keyboard.press("Enter")
        assert veiled.count() == number - 1 and not page.locator("#x-large").is_visible()
        page.keyboard.press("Enter")  # of an image that is shown, as of one of another task
        assert page.locator("#x-large").is_visible() and page.locator("#x-large .veiled").count() == 2
        page.locator("#x-large .veiled").first.click()
        assert page.locator("#x-large .veiled").count() == 1 and veiled.count() == number - 2
        page.keyboard.press("Escape")
        page.get_by_text("Show all images").click()
        assert veiled.count() == 0
        page.get_by_text("Blur all images").click()
        assert veiled.count() == number
        page.locator("#x-tasks").get_by_text("identities-4").click()
        assert veiled.count() == 0 and not page.locator("#x-unveil").is_visible()
        assert wrong == []


def test_in_a_browser_a_number_shows_its_source(page_file: Path) -> None:
    with opened(page_file, 1280, messages=()) as (page, wrong):
        link = page.locator(".gain a.n").first
        link.focus()
        page.keyboard.press("Enter")
        shown = page.locator("#source-text").text_content()
        assert link.get_attribute("title") in shown and "resurgence provenance results/tables/resurgence.csv" in shown
        page.keyboard.press("Escape")
        page.locator("#x-rows summary").first.click()
        sources = page.locator("#x-rows details").first.text_content()
        assert "written by the rule sample" in sources and "written by the rule score" in sources
        assert wrong == []


def test_in_a_browser_a_page_says_what_it_leaves_out(
    study: tuple[Path, list[str]], page_file: Path, tmp_path: Path
) -> None:
    for budget, words in ((200_000, r"\d+ of 56 prompts of identities-4 are left out"), (0, "No image fits")):
        with contextlib.chdir(study[0]):
            part = explorer.explorer_data("miniature", index.by_task(study[1]), budget)
        (tmp_path / "part.html").write_text(render("index.html", FACTS, part), encoding="utf-8")
        with opened(tmp_path / "part.html", messages=()) as (page, wrong):
            assert re.search(words, page.locator("#x-status").text_content())
            assert page.get_by_text("A note.").is_visible()
        assert wrong == []

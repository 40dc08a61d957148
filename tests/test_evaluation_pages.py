"""docs/eap.md and docs/doco.md against the studies: each row has its targets, each target its row, counts are right."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
OVERLAYS = {
    "eap": ("eap-lpips", "eap-synonyms"),
    "doco": ("doco-captions",),
}  # studies whose targets are on its page
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "ten": 10, "twelve": 12}
PAGES = {"eap": 23, "doco": 15}  # rows of the table: what the paper has, and what it does not


def experiments(study: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"studies/{study}.yaml").read_text(encoding="utf-8"))["experiments"]


def prompts(name: str) -> set[str]:
    with (ROOT / f"config/prompts/miniature-2/{name}.csv").open(encoding="utf-8", newline="") as file:
        return {row["prompt"] for row in csv.DictReader(file)}


def text_of(name: str) -> str:
    return (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")


def rows(name: str) -> list[list[str]]:
    """The cells paper, target, what it shows, SD 1.4 of each row."""
    cells = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in text_of(name).splitlines()
             if line.startswith("|") and not line.startswith(("| paper |", "|---"))]  # fmt: skip
    assert all(len(row) == 4 for row in cells)
    return cells


def targets(cell: str) -> list[str]:
    return re.findall(r"`((?:eap|doco)_\w+)`", cell)


@pytest.mark.parametrize("name", PAGES)
def test_every_row_has_targets_that_exist_and_every_target_a_row(name: str) -> None:
    table = rows(name)
    assert len(table) == PAGES[name]
    here = [target for _, cell, _, _ in table for target in targets(cell)]
    assert len(here) == len(set(here))
    assert set(here) == {target for study in (name, *OVERLAYS[name]) for target in experiments(study)}
    there: list[str] = []
    for _, cell, _, other in table:
        named = targets(other)
        assert bool(targets(cell)) != (cell == "-") and not (named and other == "-")
        there += named or ([] if other == "-" else targets(cell))
    assert set(there) == set(experiments(f"sd14-{name}"))


@pytest.mark.parametrize("name", PAGES)
def test_tables_and_figures_are_named_as_in_the_paper(name: str) -> None:
    """Tab. 4 is eap_tab4, Fig. 1a eap_fig1 and so on, each number of the first column with a target of that number."""
    for paper, cell, _, other in rows(name):
        numbers = {(kind.lower(), number) for kind, number in re.findall(r"(Tab|Fig)\. (\d+)", paper)}
        named = {tuple(m) for t in targets(cell) + targets(other) for m in re.findall(r"_(tab|fig)(\d+)", t)}
        assert not numbers or not named or numbers & named, paper
        assert named <= numbers or paper.startswith("not in the paper"), paper


def count(text: str, of: str) -> int:
    """The number before some words of a page."""
    found = re.search(rf"(\w+) {of}", text)
    assert found, of
    return NUMBERS[found[1]] if found[1] in NUMBERS else int(found[1])


def test_counts_of_eap() -> None:
    text, shown = text_of("eap"), experiments("eap")
    assert count(text, "words, four noises each") == len(prompts("vocabulary")) == 63
    assert count(text, "words to the erased and to neutral ones") == len(shown["eap_tab3"]["words"])
    assert count(text, "splits of five of ten classes") == len(shown["eap_tab1"]["tasks"])
    assert count(text, "styles: CLIP score") == len(shown["eap_tab4"]["tasks"])
    assert {len(shown[target]["tasks"]) for target in ("eap_tab6", "eap_tab7", "eap_fig4")} == {4}
    study = yaml.safe_load((ROOT / "studies/eap.yaml").read_text(encoding="utf-8"))
    eap = study["erasers"]["eap"]
    steps = [eap["variants"][v.partition(".")[2] or "default"].get("steps", eap["steps"])
             for v in shown["eap_fig6"]["erasers"]]  # fmt: skip
    assert f"at {', '.join(map(str, steps))} steps" in text and f"K = {eap['closest']}" in text
    searches = {eap["variants"].get(v.partition(".")[2], {}).get("search_steps", eap["search_steps"])
                for v in shown["eap_tab6"]["erasers"]}  # fmt: skip
    assert f"N_iter {' and '.join(map(str, sorted(searches)))} |" in text
    seeds = study["tasks"]["seeds"]["object"]
    assert f"{seeds['erase']} images of each erased and {seeds['retain']} of each retained class" in text


def test_counts_of_doco() -> None:
    text, study = text_of("doco"), yaml.safe_load((ROOT / "studies/doco.yaml").read_text(encoding="utf-8"))
    assert count(text, "prompts with other captions and styles") == len(prompts("zorblin"))
    assert len(study["seeds"]["erase"]) == 3 and "**Seeds.** Three of erasing, one of the settings" in text
    anchors = study["scorers"]["clip_anchor"]
    assert f"`{anchors['anchor']}` for everything in the tasks of characters, `art`" in " ".join(text.split())
    assert set(anchors["anchors"].values()) == {"art"}
    for style in ("mosaic", "neon", "woodcut"):
        assert style in anchors["anchors"] and style in text

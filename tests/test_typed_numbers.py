"""Numbers of results on the pages: in generated parts, or with a reason in typed_numbers.yaml, some then checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import scipy.stats
import yaml

ROOT = Path(__file__).parents[1]
KNOWN = yaml.safe_load((ROOT / "tests/typed_numbers.yaml").read_text(encoding="utf-8"))
GENERATED = re.compile(r"docs/(errors|results-[\w-]+)\.md")  # as a whole; of messages, and of evaluations
MARKED = re.compile(r"<!-- (?P<name>[\w -]+) -->.*?<!-- end of (?P=name) -->", re.DOTALL)
# of a result: a share or a difference, an interval, a change, a count, left / kept, one value against another; a
# column of spreads of seconds, at the end of a row, is none
RESULT = re.compile(
    r"\d(?:\.\d+)? (?:%|percent\b|points)|\d%(?! \|$)|\[-?\d[\d.]*, -?\d|\d -> \d|\d of \d+ images"
    r"|\b\d+(?:\.\d+)? / \d+(?:\.\d+)?\b|\d\.\d+ against \d"
)
INTERVAL = re.compile(r"\d \[(-?\d[\d.]*), (-?\d[\d.]*)\]")
NO_RESULT = re.compile(r"\[-1, 1\]|\b95 % interval")  # the range of an image, the level of an interval


def lines(text: str) -> list[str]:
    """Lines of a page that hold a number of a result outside its generated parts."""
    return [line for line in MARKED.sub("", text).splitlines() if RESULT.search(NO_RESULT.sub("", line))]


def pages() -> Iterator[str]:
    """README, all pages, and the cards of the shipped worlds."""
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "data").glob("*/MODEL_CARD.md")]:
        name = path.relative_to(ROOT).as_posix()
        if not GENERATED.fullmatch(name):
            yield name


@pytest.mark.parametrize(
    "typed", ["returns to 76 %", "16.7 points", "1.6 [-13.5, 12.5]", "94.0 -> 4.7", "3 of 40 images", "[-1, 1] in 5 %",
              "4.7 / 98", "76%", "61 percent", "2.99 against 0.58"]
)  # fmt: skip
def test_a_number_typed_by_hand_is_seen(typed: str) -> None:
    assert lines(typed) == [typed] and lines(f"<!-- a-b c -->\n{typed}\n<!-- end of a-b c -->") == []
    assert lines("<!-- a -->\n<!-- end of b -->\n" + typed) == [typed]


def test_ranges_and_levels_are_no_results() -> None:
    assert lines("(N, 3, H, W) in [-1, 1]\nBrackets: 95 % interval of the difference") == []


@pytest.mark.parametrize("page", sorted(pages()))
def test_no_number_of_a_result_is_typed_without_a_reason(page: str) -> None:
    pieces = [piece for reason in KNOWN.get(page, {}).values() for piece in reason]
    found = lines((ROOT / page).read_text(encoding="utf-8"))
    assert [line for line in found if not any(piece in line for piece in pieces)] == []
    assert [piece for piece in pieces if not any(piece in line for line in found)] == []  # each is still there


def test_the_exceptions_are_of_pages() -> None:
    assert KNOWN.keys() <= set(pages()) and "docs/results.md" not in KNOWN


@pytest.mark.parametrize("page", sorted(pages()))
def test_no_interval_has_the_length_zero(page: str) -> None:
    """None of a few images has limits above 0, so such an interval is of an old rule."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [match[0] for match in INTERVAL.finditer(text) if match[1] == match[2]] == []


def limits(shown: int, images: int) -> str:
    """Percent with Clopper and Pearson's interval."""
    low, high = scipy.stats.binomtest(shown, images).proportion_ci(0.95, "exact")
    return f"{100 * shown / images:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def upper(images: int) -> str:
    """The upper end in percent of none of so many."""
    return limits(0, images).split()[-1][:-1]


def test_numbers_of_the_audit_page_follow_from_counts() -> None:
    """Those of the shipped controls are in config/audit/bases.yaml, of 200 pairs each; so are those of the table."""
    text = MARKED.sub("", (ROOT / "docs/audit.md").read_text(encoding="utf-8"))
    page = " ".join(text.replace(" % [", " [").split())
    bases = yaml.safe_load((ROOT / "config/audit/bases.yaml").read_text(encoding="utf-8"))
    controls = [control for base in bases.values() for control in base["shipped"]]
    assert len(controls) == 4 and "119 of 200" in page and "65 of 200" in page
    for control in controls:
        assert limits(control["shown"], control["images"]) in page
        assert limits(control.get("released", 0), control["images"]) in page
    shares = re.findall(r"(\d+\.\d) \[\d+\.\d, \d+\.\d\]", page)
    assert len(shares) == 14 and all(limits(round(2 * float(share)), 200) in page for share in shares)
    assert f"With 20 such models and no false PASS, its interval would end at {upper(20)} %" in page
    assert float(upper(19)) > 17
    models = yaml.safe_load((ROOT / "config/audit/known-models.yaml").read_text(encoding="utf-8"))["models"].values()
    counted = [model for model in models if "reproduces" not in model]
    leaking, safe = ([model for model in counted if model["answer"] == answer] for answer in ("leaking", "safe"))
    later = sum("after_update" in model for model in leaking)
    assert f"lists {len(leaking)} models that leak and {len(safe)} that are safe" in page
    assert f"with all {len(leaking)} it would end at {upper(len(leaking))} %" in page
    assert f"with the {later} that are known to leak after an update at {upper(later)} %" in page
    assert (
        f"({100 * (1 - 0.05 ** (1 / 3)):.0f} % of three)" in page
    )  # the largest share with 5 % that none of three has it


def test_exact_limits_of_the_page_of_intervals() -> None:
    page = (ROOT / "docs/intervals.md").read_text(encoding="utf-8")
    for images in (40, 150):
        assert f"0 of {images}" in page and f"[0, {limits(0, images).split()[-1][:-1]}] %" in page

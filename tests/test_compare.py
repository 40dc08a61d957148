"""The comparison of erasers against values put together by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from resurgence.analysis.comparison import costs, read_tables, resurgence_values
from resurgence.analysis.headline import MARK
from resurgence.cli.main import main
from resurgence.config.fields import ConfigError, read_yaml
from resurgence.figures.comparison import comparison_figure, cost_figure, draw_comparison, write_comparison
from resurgence.files import write_json
from resurgence.provenance.manifest import described, write_made
from resurgence.provenance.verify import problems

DOCS = Path(__file__).parents[1] / "docs"
KEYS = {"base": "mini", "task": "pets", "metric": "recogniser_accuracy", "n": 4}


def cell(eraser: str, state: str, role: str, value: float, step: float | None = None, seed: int = 0) -> dict:
    tuned = {"finetune": "lora", "finetune_variant": "default", "finetune_seed": 0} if state == "finetuned" else {}
    own = {"eraser": eraser, "variant": "default", "erase_seed": seed} if state != "base" else {}
    return {**KEYS, **own, **tuned, "state": state, "step": step, "role": role, "value": value,
            "low": value - 1, "high": value + 1}  # fmt: skip


def row(eraser: str, role: str, values: tuple[float, float, float], step: int, seed: int = 0) -> dict:
    base, erased, tuned = values
    gain = tuned - erased
    return {
        **KEYS, "eraser": eraser, "variant": "default", "erase_seed": seed, "finetune": "lora",
        "finetune_variant": "default", "finetune_seed": 0, "step": step, "role": role, "base_value": base,
        "erased_value": erased, "finetuned_value": tuned, "resurgence": gain, "resurgence_low": gain - 1,
        "resurgence_high": gain + 1, "recovered_fraction": gain / (base - erased),
    }  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two erasers: `a` with two seeds and LoRAs of its own, `b` with one; two steps, of which the last counts."""
    cells, rows = [cell("", "base", role, 90) for role in ("erase", "retain")], []
    values = {("a", 0): (5, 25), ("a", 1): (7, 37), ("b", 0): (2, 2)}
    for (eraser, seed), (erased, tuned) in values.items():
        for role, shift in (("erase", 0), ("retain", 80)):
            cells.append(cell(eraser, "erased", role, erased + shift, seed=seed))
            for step, after in ((10, erased), (20, tuned)):
                cells.append(cell(eraser, "finetuned", role, after + shift / 2, step, seed))
                rows.append(row(eraser, role, (90, erased + shift, after + shift / 2), step, seed))
        folder = tmp_path / "erased/mini/pets" / eraser / f"s{seed}"
        parts = {"delta": 3.0 + seed, "loras": 10.0} if eraser == "a" else {"delta": 0.5}
        for part, seconds in parts.items():
            (folder / part).mkdir(parents=True)
            (folder / part / "run.json").write_text(json.dumps({"seconds": seconds}))
        (folder / "delta/delta.safetensors").write_bytes(bytes(2**20 * (2 if eraser == "a" else 1)))
    (tmp_path / "tables").mkdir()
    pd.DataFrame(cells).astype({"erase_seed": "Int64"}).to_csv(tmp_path / "tables/cells.csv", index=False)
    means = pd.DataFrame(cells).drop(columns=["erase_seed", "finetune_seed"])
    keys = [key for key in means if key not in ("value", "low", "high")]
    means.groupby(keys, dropna=False).mean().reset_index().to_csv(tmp_path / "tables/means.csv", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "tables/resurgence.csv", index=False)
    ends = ("median", "deviation", "mean", "low", "high")
    values = (0, 0, 0, 0, 0), (25, 5, 24.5, 19, 31), (1, 1, 1, 1, 1)  # step 10, step 20, retained concepts
    numbers = [dict(zip((f"resurgence_{end}" for end in ends), value, strict=True)) for value in values]
    seeds = pd.DataFrame([row | number for row, number in zip((rows[0], rows[1], rows[3]), numbers, strict=True)])
    seeds.to_csv(tmp_path / "tables/seeds.csv", index=False)
    return tmp_path


def test_values_are_those_of_the_last_step_and_the_median_over_seeds(results: Path) -> None:
    text = write_comparison(results, "recogniser_accuracy")
    draw_comparison(results, "recogniser_accuracy")
    table = pd.read_csv(results / "cost/compare_recogniser_accuracy.csv", dtype=str).set_index("eraser")
    assert table.loc["a", ["erased", "comes to", "resurgence"]].tolist() == [
        "90.0 -> 6.0",
        "31.0",
        "24.5 [19.0, 31.0], 2 runs: 25.0 ± 5.0",
    ]
    assert table.loc["b", ["erased", "resurgence", "came back"]].tolist() == [
        "90.0 -> 2.0",
        "0.0 [-1.0, 1.0] this run",
        "no (up to 1.0 %)",
    ]
    assert table["retained"].tolist() == ["90.0 -> 86.0", "90.0 -> 82.0"]
    assert table["retained after"].tolist() == ["71.0", "42.0"]
    assert table["came back"].tolist() == ["yes (2 of 2)", "no (up to 1.0 %)"]
    # seconds: the LoRAs count; sizes: that of the delta
    assert table["seconds"].tolist() == ["13.5", "0.5"] and table["MiB"].tolist() == ["2.0", "1.0"]
    assert "24.5 [19.0, 31.0], 2 runs: 25.0 ± 5.0" in text
    assert (results / "figures/compare_recogniser_accuracy.png").stat().st_size > 5000
    assert (results / "cost/compare_recogniser_accuracy.png").stat().st_size > 5000
    assert (results / "cost/compare_recogniser_accuracy.md").read_text().count("\n| pets") == 2


def test_only_a_metric_that_shows_the_concept_says_whether_it_came_back(results: Path) -> None:
    """A distance to the base's images rises when less of the concept is there."""
    for name in ("cells", "means", "resurgence", "seeds"):
        file = results / f"tables/{name}.csv"
        file.write_text(file.read_text().replace("recogniser_accuracy", "kid"))
    write_comparison(results, "kid")
    table = pd.read_csv(results / "cost/compare_kid.csv", dtype=str)
    assert table["came back"].tolist() == ["-", "-"] and table["resurgence"].str.contains(r"\[", regex=True).all()


def test_the_command_changes_nothing_that_the_study_wrote(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its files are in a folder of their own, so the results are still as they were written."""
    write_comparison(results, "recogniser_accuracy")
    files = (results / "tables").glob("*.csv")
    write_made(results / "tables/made.json", described("tables", {}, {}, {}), files, 0.0, {})
    there = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    before = list(problems(results))
    assert main(["compare", "--results", str(results), "--metric", "recogniser_accuracy"]) == 0
    assert {path: path.read_bytes() for path in there} == there and list(problems(results)) == before
    shown = [line for line in capsys.readouterr().out.splitlines() if line.endswith(".png")]
    assert len(shown) == 2 and all(Path(line).is_relative_to(results / "compare") for line in shown)
    assert all(Path(line).stat().st_size > 5000 for line in shown)


def test_every_fine_tune_is_drawn(results: Path) -> None:
    """Also the third and fourth, and those that are variants of one."""
    means = read_tables(results, "recogniser_accuracy")["means"]
    tuned, pairs = means[means["state"] == "finetuned"], [("lora", "long"), ("full", "default"), ("full", "half")]
    more = [tuned.assign(finetune=name, finetune_variant=variant, step=tuned["step"] / 2) for name, variant in pairs]
    figure = comparison_figure(pd.concat([means, *more], ignore_index=True), "recogniser_accuracy")
    labels = figure.axes[0].get_legend_handles_labels()[1]
    names = ("lora", "lora.long", "full", "full.half")
    assert labels == ["base", "erased", *(f"after fine-tuning: {name}" for name in names)]
    heights = [container.lines[0].get_ydata()[0] for container in figure.axes[0].containers]
    assert len(set(heights)) == 5 and all(len(c.lines[0].get_ydata()) == 2 for c in figure.axes[0].containers)


def test_price_shows_resurgence_seconds_and_size(results: Path) -> None:
    """What is drawn is what the tables hold: intervals of the last step, seconds with LoRAs, sizes."""
    read = read_tables(results, "recogniser_accuracy")
    values = resurgence_values(read["resurgence"], read["seeds"], "recogniser_accuracy")
    figure = cost_figure(values, "recogniser_accuracy", costs(results, read["cells"]))
    back, seconds, size = figure.axes
    (bars,) = back.containers
    assert bars.lines[0].get_xdata().tolist() == [24.5, 0.0]
    assert [[end[0] for end in line] for line in bars.lines[2][0].get_segments()] == [[19.0, 31.0], [-1.0, 1.0]]
    assert [bar.get_width() for bar in seconds.patches] == [13.5, 0.5]
    assert [bar.get_width() for bar in size.patches] == [2.0, 1.0]
    assert [text.get_text() for text in back.get_yticklabels()] == ["a", "b"]
    assert seconds.get_xlabel().startswith("seconds") and size.get_xlabel().startswith("MiB")


def test_what_cannot_be_compared_is_named(results: Path) -> None:
    with pytest.raises(ConfigError, match="beauty"):
        write_comparison(results, "beauty")
    with pytest.raises(FileNotFoundError, match="run the study first"):
        write_comparison(results / "erased", "recogniser_accuracy")


def shown(page: Path) -> pd.DataFrame:
    """The first table between the marks of a page."""
    text = page.read_text(encoding="utf-8").split("<!-- results -->")[1].split("<!-- end of results -->")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return pd.DataFrame(lines[2:], columns=lines[0])


def test_pages_of_the_methods_show_the_rows_and_pictures_of_the_study() -> None:
    study = read_yaml(DOCS.parent / "studies/methods.yaml")
    every = shown(DOCS / "results.md")
    every["eraser"] = every["eraser"].str.removesuffix(f" {MARK}")
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (DOCS / "methods").glob("*.md")}
    for name in ("checkpoint", "update"):  # what they give depends on the model
        pages.pop(name)
    waiting = {name for name, text in pages.items() if "has not been run with this eraser yet" in text}
    assert pages.keys() == set(study["erasers"]) and set(every["eraser"]) == pages.keys() - waiting
    for eraser, rows in every.groupby("eraser"):
        assert set(zip(rows["task"], rows["fine-tune"], strict=True)) == {
            (task, finetune) for task in ("identities-10", "ship") for finetune in study["finetunes"]
        }
        page = DOCS / f"methods/{eraser}.md"
        own = shown(page)
        assert own.equals(rows[own.columns].reset_index(drop=True)) and "resurgence" in own, eraser
        pictures = re.findall(r"\]\((images/\S+\.png)\)", page.read_text(encoding="utf-8"))
        assert len(pictures) == (3 if eraser == "eap" else 2)  # EAP also shows its words
        assert all((page.parent / file).stat().st_size > 5000 for file in pictures)


def test_an_eraser_with_another_objective_is_marked(results: Path) -> None:
    changed = {"changed_objectives": {"b": "inner_steps: 0"}}
    write_json(results / "tables/made.json", described("tables", changed, {}, {}) | {"files": {}})
    text = write_comparison(results, "recogniser_accuracy")
    table = pd.read_csv(results / "cost/compare_recogniser_accuracy.csv", dtype=str)
    assert table["eraser"].tolist() == ["a", "b †"]
    note = "† not the published objective: b has inner_steps: 0."
    assert text.endswith(note) and note in (results / "cost/compare_recogniser_accuracy.md").read_text()

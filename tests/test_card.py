"""The release card of an audit: its page in a browser, its numbers and images, its documents by schemas."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import html
import io
import json
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from jsonschema import Draft7Validator, FormatChecker
from PIL import Image
from playwright.sync_api import Page

from audits import AUDIT, LORA, RELEASED, share
from browser import opened, require_chromium
from resurgence.analysis.audit.result import Audit, AuditedTask, CurvePoint, ModelImages, Original, Probe
from resurgence.diffusion.image_sets import write_image_set
from resurgence.figures import card
from resurgence.figures.card.rows import WORST
from resurgence.figures.card.text import limits, markdown
from resurgence.figures.page import LIMIT
from resurgence.scorers import write_scores
from scored import score

SCHEMAS = Path(__file__).parent / "schemas"
SCRIPT = "a photo of </script><script>window.injected = 1</script><img src=x onerror='window.injected = 2'> | x"
SEEDS, COUNTS = 4, {"erase": ("ship", "tank"), "retain": ("airplane", "bird", "cat", "dog")}
DISTANCES = {"UNet": 0.0321, "text encoder": 0.0}
COLUMNS = ["prompt", "concept", "role", "seed"]


def prompts(word: str = "{}", role: str = "erase") -> pd.DataFrame:
    """A prompt set; the first prompt of a ship is a script."""
    rows = [
        (SCRIPT if (concept, seed, role) == ("ship", 0, "erase") else f"a photo of the {word.format(concept)}",
         concept, role if of == "erase" else of, 1000 * number + seed)
        for of, concepts in COUNTS.items()
        for number, concept in enumerate(concepts)
        for seed in range(SEEDS)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def colour(number: int, row: int) -> tuple[int, int, int]:
    """Of the image of a model and row."""
    return (40 + 30 * number, 10 * row, 255 - 25 * number)


def write_model(number: int, model: str, step: int, rows: pd.DataFrame, shows: np.ndarray) -> ModelImages:
    """Images of one colour each, and scores, of a model below results/."""
    place = f"audited/{model}"
    pictures = [(row, Image.new("RGB", (48, 48), colour(number, row))) for row in range(len(rows))]
    write_image_set(Path(f"results/images/{place}/images/step-{step:06d}.parquet"), rows, pictures)
    scores = f"results/scores/{place}/scores/step-{step:06d}"
    write_scores(
        Path(scores), score(rows, {"erase": 0, "retain": 1, "synonym": 0}, 0).assign(recogniser_correct=shows), {}
    )
    seed = int(model[-1]) if step else None
    return ModelImages(model, step, f"results/images/{place}/images", scores, seed, str(rows["role"][0]))


def shown(rows: pd.DataFrame, erased: int, retained: int) -> np.ndarray:
    """Which images show their concept: the last `erased` of the erased ones, the first `retained` of the others."""
    values = np.zeros(len(rows))
    others = (rows["role"] == "retain").to_numpy()
    values[np.flatnonzero(~others)[len(rows[~others]) - erased :]] = 1
    values[np.flatnonzero(others)[:retained]] = 1
    return values


def measured(rows: pd.DataFrame, shows: np.ndarray, probe: Probe, **changes: Any) -> Probe:
    """The probe with the shares of these images."""

    def part(mask: pd.Series) -> Any:
        hits, images = int(shows[mask].sum()), int(mask.sum())
        return share(hits, images, max(0.0, 100 * hits / images - 12.3), min(100.0, 100 * hits / images + 23.4))

    erased = rows["role"] != "retain"
    concepts = {name: part(erased & (rows["concept"] == name)) for name in COUNTS["erase"]}
    return dataclasses.replace(probe, erased=part(erased), concepts=concepts, retained=part(~erased), **changes)


def rich_audit() -> Audit:
    """An audit with all that a card can hold, and its images and scores below the working folder."""
    rows, words = prompts(), prompts("old {}", "synonym")
    tables = {
        "ship": (0, 0, rows, 8, 16), "ship/released/s0": (1, 0, rows, 0, 15),
        "ship-words/released/s0": (2, 0, words, 1, 15),
        "ship/released/s0/lora/f0": (3, 300, rows, 3, 14), "ship/released/s0/full/f0": (4, 300, rows, 6, 8),
        "ship/released.int4/s0": (5, 0, rows, 1, 13),
    }  # fmt: skip
    models, seen = {}, {}
    for model, (number, step, table, erased, retained) in tables.items():
        seen[model] = (table, shown(table, erased, retained))
        models[model] = write_model(number, model, step, *seen[model])
    of = list(tables)
    point = CurvePoint(150, share(1, 8, 0.3, 52.7), share(15, 16, 69.8, 99.8))
    last = CurvePoint(300, share(3, 8, 8.5, 75.5), share(14, 16, 61.7, 98.4))
    probes = (
        measured(*seen[of[1]], RELEASED, models=(models[of[1]],)),
        measured(*seen[of[2]], RELEASED, name="released-synonyms", title="As released, synonyms",
                 models=(models[of[2]],)),
        measured(*seen[of[3]], LORA, curve=(point, last), models=(models[of[3]],), recovered=0.375),
        measured(*seen[of[4]], LORA, name="full", kind="full", title="Full fine-tuning, its own pictures",
                 maker="erased", lower_bound=True, benign=False, verdict="INCONCLUSIVE",
                 models=(models[of[4]],), curve=()),
        measured(*seen[of[5]], RELEASED, name="rounding-4", kind="rounding", title="Rounded to 4 bits <b>",
                 verdict="PASS", models=(models[of[5]],), difference=share(1, 8, -2.0, 30.0)),
    )  # fmt: skip
    original = Original(
        "base",
        share(8, 8, 63.1, 100.0),
        share(16, 16, 79.4, 100.0),
        share(0, 16, -3.0, 2.0),
        DISTANCES,
        (models[of[0]],),
    )
    task = AuditedTask("ship", "object", COUNTS["erase"], COUNTS["retain"], {"ship": "ground", "tank": "ground"}, {},
                       ("a photo of the {}",), sensitive=True)  # fmt: skip
    return dataclasses.replace(AUDIT, probes=probes, original=original, task=task)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audit]:
    """The folder of an audit with its card in `card`, and the audit."""
    root = tmp_path_factory.mktemp("audit")
    (root / "card").mkdir()
    with contextlib.chdir(root):
        audit = rich_audit()
        card.write(audit, Path("card"))
    return root, audit


@pytest.fixture(scope="module")
def text(audited: tuple[Path, Audit]) -> str:
    return (audited[0] / "card/card.html").read_text(encoding="utf-8")


def read(audited: tuple[Path, Audit], name: str) -> Any:
    return json.loads((audited[0] / "card" / name).read_text(encoding="utf-8"))


def links(text: str) -> dict[str, list[str]]:
    """Place in verdict.json -> the numbers of the page that stand there."""
    found: dict[str, list[str]] = {}
    number = r'<a class="n" href="#s\d+" title="verdict.json, ([^"]+)">([^<]+)</a>(?: <small>(\[[^<]+\])</small>)?'
    for place, value, interval in re.findall(number, text):
        found.setdefault(html.unescape(place), []).append(f"{value} {interval}".strip())
    return found


def test_every_number_of_the_audit_is_there_and_leads_to_its_scores(audited: tuple[Path, Audit], text: str) -> None:
    root, audit = audited
    found = links(text)
    assert set(found) == {"original", *(f"probe {p.name}" for p in audit.probes), "control 1", "control 2"}
    for probe in audit.probes:
        measures = [probe.erased, *probe.concepts.values(), probe.retained, probe.difference]
        for measure in filter(None, measures):
            expected = f"{measure.value:.1f} [{measure.low:.1f}, {measure.high:.1f}]"
            assert any(re.sub(r"(?<=\.\d)\d", "", value) == expected for value in found[f"probe {probe.name}"]), (
                expected
            )
    commands = re.findall(r"resurgence provenance (\S+)</code>", text)
    assert len(commands) == 6 and all((root / command).is_file() for command in commands)


def test_texts_are_escaped_and_the_sentence_and_limits_are_said(audited: tuple[Path, Audit], text: str) -> None:
    audit = audited[1]
    assert html.escape(audit.sentence) in text and html.escape(audit.command) in text
    assert "Rounded to 4 bits &lt;b&gt;" in text and "<b>" not in text.split("4 bits")[1][:5]
    assert "<script>window" not in text and text.count("<script") == 1
    for line in (*audit.untested, "lower bounds", "the values are about this run"):
        assert line in text.split('id="untested"')[1].split("</section>")[0]
    assert len(text) < LIMIT


def pictures(text: str) -> list[tuple[str, str, list[tuple[str, bytes]]]]:
    """Prompt, seed, and title and WebP of the images of each row."""
    rows = []
    for row in re.findall(r"<li><h3>(.*?)</li>", text, re.DOTALL):
        prompt, seed = re.match(r"(.*?) <small>seed (\d+)</small>", row, re.DOTALL).groups()
        images = re.findall(r'base64,([^"]+)" alt="[^"]*".*?<figcaption>(.*?)<br>', row, re.DOTALL)
        rows.append((html.unescape(prompt), seed, [(html.unescape(t), base64.b64decode(i)) for i, t in images]))
    return rows


def test_rows_are_the_worst_with_the_images_of_all_models(audited: tuple[Path, Audit], text: str) -> None:
    """Updates show the last of the erased rows most; synonyms have other prompts, so they are not there."""
    rows, found = prompts(), pictures(text)
    counts = shown(rows, 3, 0) + shown(rows, 6, 0) + shown(rows, 1, 0)
    erased = np.flatnonzero(rows["role"] == "erase")
    worst = sorted(erased, key=lambda row: (-counts[row], row))[:WORST]
    expected = [*worst, *(2 * SEEDS + SEEDS * number for number in range(3))]
    assert [(p, s) for p, s, _ in found] == [(rows["prompt"][r], str(rows["seed"][r])) for r in expected]
    titles = [
        "before erasing",
        "As released",
        LORA.title,
        "Full fine-tuning, its own pictures",
        "Rounded to 4 bits <b>",
    ]
    for (_, _, images), row in zip(found, expected, strict=True):
        assert [title for title, _ in images] == titles
        for number, (_, data) in zip((0, 1, 3, 4, 5), images, strict=True):
            pixel = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)[24, 24]
            assert np.abs(pixel - colour(number, int(row))).max() <= 6, (row, number)
    assert "not here: As released, synonyms" in text


def test_equal_audits_give_equal_bytes(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    root, audit = audited
    with contextlib.chdir(root):
        card.write(audit, tmp_path)

    def files(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert files(tmp_path) == files(root / "card") and len(files(tmp_path)) == 8


def validator(name: str) -> Draft7Validator:
    """Of a published schema, see schemas/ATTRIBUTION.md."""
    schema = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema, format_checker=FormatChecker())


def test_card_json_is_a_document_of_every_eval_ever(audited: tuple[Path, Audit]) -> None:
    root, audit = audited
    schema, document = validator("eval.schema.json"), read(audited, "card.json")
    assert list(schema.iter_errors(document)) == []
    for key in ("evaluation_results", "model_info"):
        assert list(schema.iter_errors({k: v for k, v in document.items() if k != key}))
    results = {entry["evaluation_result_id"]: entry for entry in document["evaluation_results"]}
    assert set(results) == {
        f"{p.name}/{of}" for p in audit.probes for of in ("erased", "erased:ship", "erased:tank", "retained")
    }
    entry = results["lora-domain-real/erased"]
    assert entry["score_details"]["score"] == 37.5 and entry["metric_config"]["lower_is_better"] is True
    interval = entry["score_details"]["uncertainty"]["confidence_interval"]
    assert interval == {
        "lower": 37.5 - 12.3,
        "upper": 37.5 + 23.4,
        "confidence_level": 0.95,
        "method": LORA.erased.method,
    }
    assert entry["score_details"]["uncertainty"]["num_samples"] == 8
    assert document["source_metadata"]["evaluator_relationship"] == "other"
    details = document["model_info"]["additional_details"]
    assert details["sha256"] == audit.sha256 and details["base_model"] == "base"
    copies = [path for path in (root / "card/data").rglob("*.json")]
    assert [path.read_bytes() for path in copies] == [(root / "card/card.json").read_bytes()]


def test_the_file_of_instances_has_a_line_for_each_image_that_the_scores_hold(audited: tuple[Path, Audit]) -> None:
    root, document = audited[0], read(audited, "card.json")
    samples = document["detailed_evaluation_results"]
    content = (root / "card" / samples["file_path"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == samples["checksum"]
    name = Path(samples["file_path"]).name.removesuffix("_samples.jsonl")
    assert uuid.UUID(name).version == 4
    lines = [json.loads(line) for line in content.decode().splitlines()]
    schema = validator("instance_level_eval.schema.json")
    assert [error for line in lines for error in schema.iter_errors(line)] == []
    assert len(lines) == samples["total_rows"] == 5 * 24
    assert {line["evaluation_id"] for line in lines} == {document["evaluation_id"]}
    for entry in document["evaluation_results"]:
        own = [line for line in lines if line["evaluation_result_id"] == entry["evaluation_result_id"]]
        if ":" not in entry["evaluation_result_id"]:  # a concept's are among those of all
            scores = [line["evaluation"]["score"] for line in own]
            assert np.mean(scores) == pytest.approx(entry["score_details"]["score"])
            assert len(own) == entry["score_details"]["uncertainty"]["num_samples"]
            lower = entry["metric_config"]["lower_is_better"]
            assert all(
                line["evaluation"]["is_correct"] == ((line["evaluation"]["score"] == 0) == lower) for line in own
            )


def test_time_and_identity_of_the_record(
    audited: tuple[Path, Audit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, audit = audited
    assert read(audited, "card.json")["retrieved_timestamp"] == "0"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1760492095")
    hub = dataclasses.replace(audit, checkpoint="team/erased-sd", sha256=None, revision="a1b2", evaluator="first_party",
                              organization="team")  # fmt: skip
    with contextlib.chdir(root):
        card.write(hub, tmp_path)
    document = json.loads((tmp_path / "card.json").read_text())
    assert list(validator("eval.schema.json").iter_errors(document)) == []
    assert document["evaluation_id"] == "resurgence-audit/team/erased-sd/1760492095"
    assert document["detailed_evaluation_results"]["file_path"].startswith("data/resurgence-audit/team/erased-sd/")
    assert document["source_metadata"]["evaluator_relationship"] == "first_party"
    bom = json.loads((tmp_path / "bom.cdx.json").read_text())
    assert list(validator("bom-1.6.schema.json").iter_errors(bom)) == []
    assert bom["components"][0]["version"] == "a1b2" and "hashes" not in bom["components"][0]


def test_bill_of_materials_is_one_of_cyclonedx(audited: tuple[Path, Audit]) -> None:
    audit, schema, bom = audited[1], validator("bom-1.6.schema.json"), read(audited, "bom.cdx.json")
    assert list(schema.iter_errors(bom)) == []
    assert list(schema.iter_errors({**bom, "components": [{**bom["components"][0], "type": "model"}]}))
    component = bom["components"][0]
    assert component["hashes"] == [{"alg": "SHA-256", "content": audit.sha256}]
    assert component["pedigree"]["ancestors"][0]["name"] == "base"
    metrics = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert len(metrics) == 4 * len(audit.probes)
    assert metrics[8]["value"] == "37.5" and metrics[8]["confidenceInterval"] == {
        "lowerBound": "25.2",
        "upperBound": "60.9",
    }
    limitations = component["modelCard"]["considerations"]["technicalLimitations"]
    assert [f"Not tested: {line}" for line in audit.untested] == limitations[1:3]


def test_model_index_is_read_by_the_hub_library(audited: tuple[Path, Audit]) -> None:
    index = yaml.safe_load((audited[0] / "card/model-index.yaml").read_text(encoding="utf-8"))
    name, results = model_index_to_eval_results(index["model-index"])
    assert name == "local/erased" and len(results) == 4 * len(audited[1].probes)
    first = results[8]
    assert (first.task_type, first.dataset_config, first.metric_value) == ("text-to-image", "lora-domain-real", 37.5)
    assert first.metric_args["low"] == pytest.approx(25.2) and first.metric_args["images"] == 8


def test_fields_for_annex_xi(audited: tuple[Path, Audit]) -> None:
    audit, annex = audited[1], read(audited, "annex-xi.json")
    assert annex["model"] == {"name": "erased", "sha256": audit.sha256, "revision": None, "base_model": "base"}
    strategies = annex["section_2"]["1_evaluation_strategies"]
    assert set(strategies) == {"criteria", "metrics", "identification_of_limitations", "results"}
    assert strategies["results"]["probes"]["lora-domain-real"]["erased concepts shown (%)"] == "37.5 [25.2, 60.9]"
    assert [each["name"] for each in annex["section_2"]["2_adaptations"]] == ["lora-domain-real", "full", "rounding-4"]


def test_weight_distances_and_numbers_of_images_are_on_every_card(audited: tuple[Path, Audit], text: str) -> None:
    short, document = (audited[0] / "card/card.md").read_text(encoding="utf-8"), read(audited, "card.json")
    for part, value in (("UNet", "3.21 %"), ("text encoder", "0 %")):
        assert f"- {part}: {value}" in short and f"{part}: {value}" in text.split("</header>")[0]
    assert json.loads(document["model_info"]["additional_details"]["relative_weight_distances"]) == DISTANCES
    results = {entry["evaluation_result_id"]: entry for entry in document["evaluation_results"]}
    details = results["lora-domain-real/erased"]["generation_config"]["additional_details"]
    assert details["pictures_number"] == "96" and "96 real pictures of 16 other objects" in short
    assert results["lora-domain-real/erased"]["score_details"]["details"]["images_retained"] == "16"
    assert "96 real pictures of 16 other objects" in text and "<td>120</td><td>8 + 16</td>" in text
    assert "| 120 | 8 + 16 |" in short


def test_what_would_decide_is_on_every_card(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    root, audit = audited
    needed = "about 900 pairs of prompt and seed would decide"
    probe = dataclasses.replace(audit.probes[0], verdict="INCONCLUSIVE", needed=900, decides=needed)
    with contextlib.chdir(root):
        card.write(dataclasses.replace(audit, decides="about 9 training seeds would decide", verdict="INCONCLUSIVE",
                                       probes=(probe, *audit.probes[1:])), tmp_path)  # fmt: skip
    page, short = (tmp_path / "card.html").read_text(), (tmp_path / "card.md").read_text()
    assert f"{needed[:1].upper()}{needed[1:]}." in page.split("What each probe did")[1]
    assert "- The model: about 9 training seeds would decide" in short and f"- {probe.title}: {needed}" in short
    document = json.loads((tmp_path / "card.json").read_text())
    assert document["source_metadata"]["additional_details"]["would_decide"] == "about 9 training seeds would decide"
    assert "would decide" not in (root / "card/card.md").read_text()


def test_card_in_short(audited: tuple[Path, Audit]) -> None:
    audit, short = audited[1], (audited[0] / "card/card.md").read_text(encoding="utf-8")
    assert audit.sentence in short and f"    {audit.command}" in short
    assert "| LoRA in the domain, real pictures | 120 | 8 + 16 | 37.5 [25.2, 60.9] |" in short
    rows = [line for line in short.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(audit.probes) and {line.count("|") for line in rows} == {8}
    assert all(f"- {line}" in short for line in audit.untested)


def test_without_an_original_the_card_says_so_and_shows_images(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    root, audit = audited
    plain = dataclasses.replace(audit.task, sensitive=False)
    with contextlib.chdir(root):
        card.write(dataclasses.replace(audit, original=None, task=plain, untested=()), tmp_path)
    text = (tmp_path / "card.html").read_text()
    assert "the model before erasing: it is unknown" in text.split('id="untested"')[1].split("</section>")[0]
    body = text.split("</style>")[1].split("<script>")[0]
    assert "veiled" not in body and "unveil" not in body
    assert pictures(text)[0][2][0][0] == "As released"


def test_a_probe_without_retained_concepts_has_no_change_of_them(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    """The change of the released model from the original stands in its own row alone."""
    root, audit = audited
    released, synonyms, *others = audit.probes
    synonyms = dataclasses.replace(synonyms, retained=None)
    with contextlib.chdir(root):
        card.write(dataclasses.replace(audit, probes=(released, synonyms, *others)), tmp_path)
    rows, text = {}, (tmp_path / "card.html").read_text()
    for row in re.findall(r'<tr[^>]*><th scope="row">(As released.*?)</tr>', text, re.S):
        name, *cells = (re.sub("<[^>]+>", "", cell).strip() for cell in row.split("<td"))
        rows[name] = [cell.partition(">")[2] for cell in cells]
    retained, change = rows["As released"][-4:-2]
    assert retained.startswith(f"{released.retained.value:.1f}") and "[-3.0, 2.0]" in change
    assert rows["As released, synonyms"][-4:-2] == ["-", "-"]


def test_the_card_says_why_there_are_no_curves(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    root, audit = audited
    said = "No curves over steps: the updates were scored at their last step alone"
    assert said not in (root / "card/card.html").read_text()
    for level, more in (("quick", ", as always at the level quick; higher levels"), ("standard", ".")):
        probes = tuple(dataclasses.replace(probe, curve=probe.curve[-1:]) for probe in audit.probes)
        with contextlib.chdir(root):
            card.write(dataclasses.replace(audit, probes=probes, level=level), tmp_path)
        assert said + more in (tmp_path / "card.html").read_text()


def test_the_card_names_the_probes_that_no_leaking_model_went_through(audited: tuple[Path, Audit]) -> None:
    audit = audited[1]
    said = "a model that leaks under Full fine-tuning, its own pictures; Rounded to 4 bits <b>: it went through LoRA in"
    assert any(line.startswith(said) for line in limits(audit)) and f"- {said}" in markdown(audit)
    whole = tuple(dataclasses.replace(audit.power.controls[0], probe=probe.name) for probe in audit.probes)
    assert not any("a model that leaks" in line for line in limits(changed_power(audit, controls=whole)))
    (line,) = (line for line in limits(changed_power(audit, shown=False)) if "a model that leaks" in line)
    assert line.endswith("power not shown")


def changed_power(audit: Audit, **changes: Any) -> Audit:
    """The audit with another power."""
    return dataclasses.replace(audit, power=dataclasses.replace(audit.power, **changes))


def test_many_concepts_have_a_table_of_their_own(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    root, audit = audited
    names = [f"concept {number}" for number in range(6)]
    shares = {name: share(number, 40, number, 2.5 * number + 9) for number, name in enumerate(names)}
    probes = tuple(dataclasses.replace(probe, concepts=shares) for probe in audit.probes)
    with contextlib.chdir(root):
        card.write(dataclasses.replace(audit, probes=probes), tmp_path)
    text = (tmp_path / "card.html").read_text()
    assert "erased, mean" in text and "concept 3" not in text.split("Every erased concept")[0]
    table = text.split("Every erased concept</h3>")[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">([^<]+)</th>(.*?)</tr>', table)
    assert [name for name, _ in rows] == names
    for number, (_, row) in enumerate(rows):
        assert re.findall(r">([\d.]+)</a>", row) == [f"{2.5 * number:.1f}"] * len(probes)


def test_missing_images_and_scores_are_named(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    root, audit = audited
    released = audit.probes[0]

    def changed(**changes: Any) -> Audit:
        models = (dataclasses.replace(released.models[0], **changes),)
        return dataclasses.replace(audit, probes=(dataclasses.replace(released, models=models), *audit.probes[1:]))

    with contextlib.chdir(root):
        with pytest.raises(FileNotFoundError, match="holds no image set step-000007; run the step that samples it"):
            card.write(changed(step=7), tmp_path)
        with pytest.raises(ValueError, match="has no column celebrity_correct; score its images with the scorer of"):
            card.write(dataclasses.replace(audit, metric="celebrity_accuracy"), tmp_path)
        images = audit.probes[1].models[0].images
        with pytest.raises(ValueError, match="have other prompts; score it again"):
            card.write(changed(images=images), tmp_path)


@pytest.fixture
def file(audited: tuple[Path, Audit]) -> Path:
    require_chromium()
    return audited[0] / "card/card.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_every_image_loads_and_nothing_goes_wrong(file: Path, width: int) -> None:
    with opened(file, width, messages=()) as (page, wrong):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        images = page.locator("img").evaluate_all("images => images.map(image => [image.alt, image.naturalWidth])")
        assert len(images) == (WORST + 3) * 5 and all(alt and wide == 48 for alt, wide in images)
        tops = "all => all.map(row => [...row.querySelectorAll('img')].map(image => image.offsetTop))"
        heights = page.locator(".strip").evaluate_all(tops)
        assert len(heights) == WORST + 3 and all(len(row) == 5 and len(set(row)) == 1 for row in heights)
        assert page.evaluate("window.injected") is None
        assert page.pdf().startswith(b"%PDF")
    assert wrong == []


def test_in_a_browser_nothing_is_folded_in_print(file: Path) -> None:
    closed = "document.querySelectorAll('details:not([open])').length"
    with opened(file, 1280, messages=()) as (page, wrong):
        page.locator("details").first.evaluate("fold => { fold.open = true; }")
        before = page.evaluate(closed)
        page.evaluate(f"addEventListener('beforeprint', () => {{ window.folded = {closed}; }})")
        page.pdf()
        assert before >= 1 and page.evaluate("window.folded") == 0 and page.evaluate(closed) == before
    assert wrong == []


def focus(page: Page) -> str:
    """The class of the element with the focus."""
    return page.evaluate("document.activeElement.className || document.activeElement.id")


def test_in_a_browser_the_keyboard_shows_blurred_images(file: Path) -> None:
    veiled = "document.querySelectorAll('.veiled').length"
    with opened(file, 1280, messages=()) as (page, wrong):
        total = page.evaluate(veiled)
        assert total == (WORST + 3) * 5
        blurs = page.locator(".picture img").evaluate_all("all => all.map(image => getComputedStyle(image).filter)")
        assert set(blurs) == {"blur(24px)"}
        for _ in range(200):
            page.keyboard.press("Tab")
            if focus(page) == "picture veiled":
                break
        assert focus(page) == "picture veiled"
        page.keyboard.press("Enter")
        assert focus(page) == "picture" and page.evaluate(veiled) == total - 1
        assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
        page.keyboard.press("Enter")
        assert page.evaluate(veiled) == total
        page.locator("#unveil").click()
        assert page.evaluate(veiled) == 0 and page.locator("#unveil").text_content() == "Blur all images"
    assert wrong == []


def test_in_a_browser_a_number_shows_where_it_stands(file: Path) -> None:
    with opened(file, 1280, messages=()) as (page, wrong):
        page.locator(".probes a.n").first.click()
        assert "verdict.json, original" in page.locator("#source-text").text_content()
    assert wrong == []


def test_a_reason_is_only_given_where_there_is_one() -> None:
    assert AUDIT.reasons and "## Why" in markdown(AUDIT)
    assert "## Why" not in markdown(dataclasses.replace(AUDIT, reasons=())) and "\n- -" not in markdown(AUDIT)

"""The table of audits of models with known answers: how the models are made, its counts, and what it skips."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import audit_rows
import audit_table
import pytest
import torch
import yaml
from audit_rows import KnownModel
from audit_table import KnownModels, Place
from scipy.stats import binomtest
from transformers import CLIPTokenizer

from audits import AUDIT
from resurgence.analysis.audit.result import write_audit
from resurgence.config.audit import ShippedControl
from resurgence.config.audit_bases import bases
from resurgence.config.fields import ConfigError, build
from resurgence.diffusion.deltas import parameters, save_delta
from tiny import SENTENCES, make_pipeline

ROOT = Path(__file__).parents[1]
BASE = ROOT / "data/miniature-2/base"
KEY, VALUE = (f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.{name}.weight" for name in ("to_k", "to_v"))


def known_model(**changes: object) -> KnownModel:
    return KnownModel(**{"answer": "leaking", "why": "it is the base", "erased": ("ship",), **changes})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A table of models of a tiny base."""
    make_pipeline().save_pretrained(tmp_path / "base")
    study = {"base": {"path": str(tmp_path / "base")}}
    return Place(tmp_path / "out", KnownModels(study, {"never": known_model(), "other": known_model()}, {}))


def test_the_shipped_list_is_long_enough_and_every_eraser_is_of_its_study(tmp_path):
    listed = audit_table.read_models(audit_table.MODELS)
    answers = [model.answer for model in listed.models.values()]
    assert answers.count("leaking") >= 20 and answers.count("safe") >= 10
    everything = {**listed.models, **listed.controls}
    deltas = audit_table.write_study(Place(tmp_path, listed), list(everything), everything)
    assert deltas.keys() == {name for name, model in everything.items() if model.eraser}
    bird = tmp_path / "study/results/erased/miniature-2/bird/uce.unchanged/s0/delta"
    assert deltas["bird-uce-unchanged"] == bird
    of_controls = {(model.eraser, model.strength) for model in listed.controls.values()}
    updated = [name for name, model in listed.models.items() if model.after_update]
    assert updated == ["five-people-sdd", "ten-people-sdd"]
    alone = {(m.eraser, m.strength) for m in listed.models.values() if not (m.words or m.taught or m.tensors)}
    assert not of_controls & alone  # a control is no model of the table
    assert all(model.title for model in listed.controls.values())


@pytest.mark.skipif(not BASE.is_dir(), reason="the second miniature is not here")
def test_the_list_of_the_first_miniature_has_the_models_of_its_shipped_controls(tmp_path):
    """Read with the files of the second miniature, as those of the first are not always here."""
    text = (ROOT / "config/audit/known-models-1.yaml").read_text()
    (tmp_path / "models.yaml").write_text(text.replace("path: data/miniature/", "path: data/miniature-2/"))
    listed = audit_table.read_models(tmp_path / "models.yaml")
    deltas = audit_table.write_study(Place(tmp_path, listed), list(listed.models), listed.models)
    folder = tmp_path / "study/results/erased/miniature"
    assert list(deltas.values()) == [folder / f"{name}/uce.leaking/s0/delta" for name in ("ship", "automobile")]
    assert {model.erased for model in listed.models.values()} == {c.concepts for c in bases()["miniature"].shipped}
    settings = listed.study["erasers"]["uce"]["variants"]["leaking"]
    leaking = bases()["miniature"].leaking
    assert settings == {key: leaking[key] for key in ("keep_empty", "lamb")}
    assert listed.study["erasers"]["uce"]["captions"] == leaking["captions"]
    assert all(model.after_update and model.answer == "leaking" for model in listed.models.values())


@pytest.mark.skipif(not BASE.is_dir(), reason="the second miniature is not here")
def test_the_words_of_the_list_are_tokens_of_the_base_and_all_of_a_safe_concept_is_replaced():
    tokenizer, listed = CLIPTokenizer.from_pretrained(BASE / "tokenizer"), audit_table.read_models(audit_table.MODELS)
    concepts = yaml.safe_load((ROOT / "config/concepts/miniature-2.yaml").read_text())["concepts"]
    synonyms = {entry["name"]: entry.get("synonyms", []) for entry in concepts}
    for name, model in listed.models.items():
        for word in (*model.words, *model.words.values()):
            audit_table.token(tokenizer, word)
        if model.answer == "safe":
            spoken = {
                word for concept in model.erased for text in (concept, *synonyms[concept]) for word in text.split()
            }
            assert spoken == model.words.keys(), name


def test_a_part_of_a_delta_is_weakened_and_words_take_the_embedding_of_others(place, tmp_path):
    base = parameters(make_pipeline())
    delta = {name: base[name].detach() + 1 for name in (KEY, VALUE)}
    save_delta(delta, tmp_path / "delta.safetensors")
    tokenizer, before = make_pipeline().tokenizer, base[audit_table.EMBEDDING]
    whole = [word for word in " ".join(SENTENCES).split() if f"{word}</w>" in tokenizer.get_vocab()]
    word, other = list(dict.fromkeys(whole))[:2]  # of one token each
    model = known_model(eraser="ship/uce", tensors="attn2.to_k", strength=0.1, words={word: other})
    changed = audit_table.changed_weights(place, model, tmp_path)
    assert changed.keys() == {KEY, audit_table.EMBEDDING}
    torch.testing.assert_close(changed[KEY], base[KEY] + 0.1)
    row, source = (tokenizer.convert_tokens_to_ids(f"{name}</w>") for name in (word, other))
    assert row != source and torch.equal(changed[audit_table.EMBEDDING][row], before[source])
    others = torch.arange(len(before)) != row
    assert torch.equal(changed[audit_table.EMBEDDING][others], before[others])
    with pytest.raises(ConfigError, match="tensors = 'attn3': is no part of a name in"):
        audit_table.changed_weights(place, dataclasses.replace(model, tensors="attn3"), tmp_path)
    with pytest.raises(ConfigError, match=r"words = 'zorblin': is [2-9] tokens of the base"):
        audit_table.changed_weights(place, known_model(words={"zorblin": other}), None)


def test_a_model_that_is_the_base_is_audited_where_it_lies(place):
    assert audit_table.make_model(place, "never", known_model(), None) == place.base


def test_counts_have_the_exact_intervals_of_clopper_and_pearson():
    leaks, later, harmless = known_model(), known_model(after_update=True), known_model(answer="safe")
    verdicts = [(leaks, "FAIL")] * 18 + [(later, "FAIL")] * 2 + [(leaks, "INCONCLUSIVE")] * 3 + [(harmless, "PASS")] * 4
    head, _, leaking, updated, safe, _ = audit_rows.counts(verdicts)
    assert updated.startswith("| of these after an update | 2 | 0: 0.0 [0.0, 84.2] | 2: 100.0 [15.8, 100.0] |")
    assert head == "| answer | models | PASS (%) | FAIL (%) | INCONCLUSIVE (%) |"
    for line, n, numbers in ((leaking, 23, (0, 20, 3)), (safe, 4, (4, 0, 0))):
        assert int(line.split("|")[2]) == n
        for cell, number in zip(line.split("|")[3:6], numbers, strict=True):
            exact = binomtest(number, n).proportion_ci(0.95, method="exact")
            expected = [100 * number / n, 100 * exact.low, 100 * exact.high]
            assert [float(text) for text in re.findall(r"[\d.]+", cell)[1:]] == pytest.approx(expected, abs=0.051)
            assert cell.split(":")[0].strip() == str(number)


def write_audited(place: Place, name: str) -> None:
    """What an audit leaves behind."""
    folder = place.audit(name)
    (folder / "results/audit").mkdir(parents=True)
    write_audit(AUDIT, folder / "results/audit/verdict.json")
    for number, seconds in enumerate((1.5, 40.0)):
        file = folder / f"results/benchmarks/{number}/weights.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(f'{{"s": 7.0}}\n{{"s": {seconds}}}\n')


def run(place: Place, monkeypatch: pytest.MonkeyPatch, *failing: str, words: tuple[str, ...] = ()) -> list[str]:
    """Run the tool with audits that are written by hand; the models that it audited."""
    audited = []

    def audit(place: Place, name: str, *_: object) -> None:
        audited.append(name)
        if name in failing:
            raise ConfigError("resurgence", "audit", "failed")
        write_audited(place, name)

    monkeypatch.setattr(audit_table, "audit", audit)
    monkeypatch.setattr(audit_table, "write_study", lambda *_: {})
    monkeypatch.setattr(audit_table, "read_models", lambda _: place.known)
    monkeypatch.setattr("sys.argv", ["audit_table.py", "--out", str(place.out), *words])
    try:
        audit_table.main()
    except ConfigError as error:
        assert failing and ", ".join(failing) in str(error)
    return audited


def test_a_finished_model_is_kept_a_failed_one_is_named_and_a_rerun_goes_on(place, monkeypatch, capsys):
    (place.out).mkdir()
    assert run(place, monkeypatch, "never") == ["never", "other"]  # the others go on
    row = "| other | ship | leaking | FAIL | 0.0 [0.0, 3.0] | 34.2 [25.8, 43.4] | lora-domain-real | 42 |"
    assert (place.out / "table.md").read_text().splitlines()[2] == row
    shutil.rmtree(place.audit("other"))  # its row is enough
    assert run(place, monkeypatch) == ["never"]
    page = (place.out / "table.md").read_text().splitlines()
    assert page[2:4] == [row.replace("other", "never", 1), row] and "| leaking | 2 | 0: 0.0" in "\n".join(page)
    assert run(place, monkeypatch) == [] and capsys.readouterr().out.count(row) == 3
    place.row("other").unlink()
    assert run(place, monkeypatch, words=("--only", "other")) == ["other"]
    place.row("other").write_text('{"verdict": "PASS"}')
    with pytest.raises(ConfigError, match=r"other\.json\.kind = None: is missing"):
        audit_rows.finished(place.rows, ["other"])


def test_the_lines_of_the_controls_are_those_that_a_base_reads():
    text = audit_rows.control_lines({"c": audit_rows.row_of(AUDIT, 1.0)}, {"c": known_model(title="UCE of ship")})
    (entry,) = yaml.safe_load(text)
    expected = ShippedControl("leaking", "UCE of ship", "lora-domain-real", 41, 120, ("ship",), "object", released=0)
    assert build(ShippedControl, entry, "shipped") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strength: 0.5", "m.strength = 0.5: is of no delta; name an eraser"),
        ("tensors: attn2", "m.tensors = 'attn2': is of no delta; name an eraser"),
        ("strength: 2.0", "strength"),
        ("answer: unknown", "answer"),
        ("lora: yes", "lora"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused(tmp_path, text, message):
    (tmp_path / "m.yaml").write_text(
        "study: {}\ncontrols: {}\nmodels:\n  m:\n    why: w\n    erased: [ship]\n    "
        + ("" if text.startswith("answer") else "answer: safe\n    ") + text
    )  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        audit_table.read_models(tmp_path / "m.yaml")


def test_an_eraser_that_the_study_does_not_have_is_named(tmp_path):
    listed = audit_table.read_models(audit_table.MODELS)
    with pytest.raises(ConfigError, match=r"x\.eraser = 'ship/esd/default'"):
        audit_table.write_study(Place(tmp_path, listed), ["x"], {"x": known_model(eraser="ship/esd")})

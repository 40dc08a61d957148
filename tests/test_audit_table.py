"""The table of audits of models with known answers: how they are made, what counts as right, and what is skipped."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import audit_models
import audit_rows
import audit_table
import pandas as pd
import parts
import pytest
import torch
import yaml
from audit_models import KnownModel, KnownModels, Measured, Place
from audit_rows import AFTER, AS_RELEASED, EARLIER, RETAINED, Audited, Check, ProbeRow, Row
from safetensors.torch import load_file
from scipy.stats import binom, binomtest
from transformers import CLIPTokenizer

from audits import AUDIT, share
from resurgence.analysis.audit.result import Measure, write_audit
from resurgence.config.audit import ShippedControl
from resurgence.config.audit_bases import bases
from resurgence.config.erasers import eraser_config
from resurgence.config.fields import ConfigError, build
from resurgence.config.load import load_study
from resurgence.config.model_path import split_name
from resurgence.diffusion.deltas import parameters, save_delta
from resurgence.diffusion.pipeline import load_base
from resurgence.files import write_json
from shipped_worlds import require_world
from tiny import SENTENCES, make_pipeline

ROOT = Path(__file__).parents[1]
BASES = {name: ROOT / f"data/{name}/base" for name in ("miniature", "miniature-2")}
KEY, VALUE = (f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.{name}.weight" for name in ("to_k", "to_v"))
LISTED = audit_models.read_models(audit_models.MODELS)
TUNING, FULL = (
    yaml.safe_load((ROOT / f"studies/{name}.yaml").read_text())["erasers"] for name in ("tuning", "miniature-full")
)
NEEDED = {"leaking": 20, "safe": 10}  # the least numbers of the table; more are listed, in case that some do not count


def known_model(**changes: object) -> KnownModel:
    """A model that is the base."""
    of_base = {
        "study": "miniature",
        "answer": "leaking",
        "family": "never",
        "why": "it is the base",
        "erased": ("ship",),
    }
    return KnownModel(**{**of_base, **changes})


def a_row(verdict: str, *failing: str, power: bool = True, **changes: object) -> Row:
    """A row of which the probes of these kinds failed."""
    probes = tuple(ProbeRow(kind, kind, "FAIL" if kind in failing else "PASS", True, share(0, 40, 0.0, 8.8), None)
                   for kind in ("released", "lora", "rounding"))  # fmt: skip
    return Row(**{**dict(digest="d", commit="c", level="quick", sha256="w", kind="object", verdict=verdict, reasons=(),
                         power=power, needed=None, decides="", probes=probes), **changes})  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A table of models of a tiny base."""
    make_pipeline().save_pretrained(tmp_path / "base")
    studies = {"miniature": {"base": {"path": str(tmp_path / "base")}, "erasers": {}}}
    return Place(tmp_path / "out", KnownModels(studies, {"never": known_model(), "other": known_model()}, {}))


@pytest.fixture
def readable(tmp_path: Path) -> KnownModels:
    """The list with the files of the second miniature for those of the first, which are not always here."""
    require_world("miniature-2")
    text = audit_models.MODELS.read_text().replace("path: data/miniature/", "path: data/miniature-2/")
    (tmp_path / "models.yaml").write_text(text)
    return audit_models.read_models(tmp_path / "models.yaml")


def test_the_shipped_list_is_long_enough_and_every_eraser_is_of_its_study(readable, tmp_path):
    counted = {name: model for name, model in LISTED.models.items() if model.counts}
    answers = [model.answer for model in counted.values()]
    assert answers.count("leaking") >= NEEDED["leaking"] + 5 and answers.count("safe") >= NEEDED["safe"] + 3
    assert sum(model.after_update for model in counted.values()) >= 13  # of which no false PASS ends below 25 %
    ends = [100 * binomtest(0, n).proportion_ci(0.95, method="exact").high for n in (19, 20, 12, 13)]
    assert ends[0] > 17 > ends[1] and ends[2] > 25 > ends[3]
    everything, place = {**readable.models, **readable.controls}, Place(tmp_path, readable)
    deltas = {name: audit_models.write_study(place, name, model) for name, model in everything.items()}
    assert all((deltas[name] is None) == (model.eraser is None) for name, model in everything.items())
    folder = tmp_path / "studies/miniature-2/results/erased/miniature-2/identities-5/uce.unchanged/s0/delta"
    assert deltas["five-people-uce-unchanged"] == folder
    assert all(model.measured for model in counted.values() if model.after_update)
    assert all(model.title for model in LISTED.controls.values())
    shipped = {control.concepts: control for control in bases()["miniature"].shipped if control.domain == "object"}
    again = {model.erased: model for model in LISTED.models.values() if model.reproduces}
    assert again.keys() == shipped.keys() and not any(model.counts for model in again.values())
    alone = {(m.study, m.eraser) for m in counted.values() if m.eraser and not (m.words or m.taught or m.tensors)}
    assert not {(m.study, m.eraser) for m in [*LISTED.controls.values(), *again.values()]} & alone


def test_the_models_that_are_made_as_shipped_controls_have_their_settings():
    leaking = bases()["miniature"].leaking
    uce = LISTED.studies["miniature"]["erasers"]["uce"]
    assert {**uce, **uce["variants"]["leaking"]}.items() >= leaking.items()
    sdd = dict(LISTED.studies["miniature-2"]["erasers"]["sdd"])
    del sdd["tasks"]
    assert sdd == bases()["miniature-2"].leaking


@pytest.mark.parametrize("name", LISTED.studies["miniature"]["erasers"])
def test_the_erasers_of_the_measured_models_have_the_settings_that_were_measured(name):
    """The first of each in studies/tuning.yaml; methods that compare predictions did so in the space of the noise. UCE
    and RECE have their own lamb, which is the same."""
    listed = dict(LISTED.studies["miniature"]["erasers"][name])
    spaces = {"esd", "sdd", "spm", "eap", "advunlearn", "ca", "doco", "salun", "erasediff", "scissorhands"}
    assert listed.pop("method") == name and listed.pop("space", None) == ("noise" if name in spaces else None)
    settings = {key: value for key, value in TUNING[name].items() if key != "variants"}
    if name in ("uce", "rece"):
        assert settings.pop("lamb") == eraser_config(name)().lamb
    listed = {key: value for key, value in listed.items() if key not in ("tasks", "variants")}
    assert listed == settings


def test_the_variants_of_mace_have_the_settings_that_were_measured():
    variants = dict(LISTED.studies["miniature"]["erasers"]["mace"]["variants"])
    assert variants.pop("default") == {} and variants
    for name, settings in variants.items():
        assert settings == FULL["mace"]["variants"][name] | {"tasks": ["ship"]}


def measured_values(model: KnownModel) -> tuple[float, float]:
    """Percent as released and after the LoRA in the source that a model names."""
    assert model.measured and model.eraser
    task, eraser = model.eraser.split("/")
    eraser, variant = split_name(eraser)
    if model.measured.source.endswith(".csv"):
        rows = pd.read_csv(ROOT / model.measured.source)
        of = {"task": task, "eraser": eraser, "variant": variant, "finetune": "lora", "step": 300, "role": "erase",
              "metric": "recogniser_accuracy"}  # fmt: skip
        (row,) = rows[(rows[list(of)] == pd.Series(of)).all(axis=1)].to_dict("records")
        return row["erased_median"], row["finetuned_median"]
    page = (ROOT / model.measured.source).read_text()
    if model.study == "miniature-2":
        table = page.split("<!-- default study -->")[1].split("### Recogniser accuracy")[1]
        (cell, *_) = re.findall(rf"\| {task} \| {eraser} \| lora \| 300 \| ([^|]*) \|", table)
        return tuple(map(float, cell.split(" -> ")[1:]))
    table = page.split("## All erasers")[1].split("## The paper")[0]
    ((erased, updated, mean),) = re.findall(
        rf"\| {task} \| {eraser}(?: †)? \| \S+ -> (\S+) \| [^|]* \| lora \| (\S+) \| ([-\d.]+), \d+ runs?:", table
    )
    assert model.answer == "leaking" or model.eraser == "ship/time" or float(mean) == 0  # the mean resurgence
    return float(erased), float(updated)


@pytest.mark.parametrize(
    "name", [name for name, model in {**LISTED.models, **LISTED.controls}.items() if model.measured]
)
def test_measured_answers_are_those_of_their_source_and_agree_with_the_answer(name):
    model = {**LISTED.models, **LISTED.controls}[name]
    assert (model.measured.released, model.measured.updated) == measured_values(model)
    shown = model.measured.updated if model.after_update else model.measured.released
    assert shown >= audit_rows.LEAKS_FROM if model.answer == "leaking" else model.measured.updated == 0


@pytest.mark.parametrize("study", BASES)
def test_the_words_of_the_list_are_tokens_of_the_base_and_all_of_a_safe_concept_is_replaced(study):
    models = {name: model for name, model in LISTED.models.items() if model.study == study}
    concepts = yaml.safe_load((ROOT / f"config/concepts/{study}.yaml").read_text())["concepts"]
    synonyms = {entry["name"]: entry.get("synonyms", []) for entry in concepts}
    for name, model in models.items():
        if model.answer == "safe" and model.words:
            spoken = {word for of in model.erased for text in (of, *synonyms[of]) for word in text.split()}
            assert spoken == model.words.keys(), name
    tokenizer = CLIPTokenizer.from_pretrained(require_world(study) / "base/tokenizer")
    for model in models.values():
        for word in (*model.words, *model.words.values()):
            audit_models.token(tokenizer, word)


def test_the_digest_changes_with_the_entry_its_eraser_and_the_level_and_not_with_another_eraser():
    model = LISTED.models["ship-esd"]
    made, digest = LISTED.made(model), LISTED.digest(model, "quick")
    assert LISTED.made(dataclasses.replace(model, answer="safe")) != made
    assert LISTED.digest(model, "standard") != digest
    study = LISTED.studies["miniature"]
    for name, same in (("esd", False), ("sdd", True)):
        erasers = study["erasers"] | {name: study["erasers"][name] | {"steps": 7}}
        changed = dataclasses.replace(LISTED, studies={**LISTED.studies, "miniature": study | {"erasers": erasers}})
        assert (changed.made(model) == made) == same == (changed.digest(model, "quick") == digest)


def whole_words() -> list[str]:
    """Words of one token each of the tiny base."""
    vocabulary = make_pipeline().tokenizer.get_vocab()
    return list(dict.fromkeys(word for word in " ".join(SENTENCES).split() if f"{word}</w>" in vocabulary))


def test_a_part_of_a_delta_is_weakened_and_words_take_the_embedding_of_others(place, tmp_path):
    base = parameters(make_pipeline())
    delta = {name: base[name].detach() + 1 for name in (KEY, VALUE)}
    save_delta(delta, tmp_path / "delta.safetensors")
    tokenizer, before = make_pipeline().tokenizer, base[audit_models.EMBEDDING]
    word, other = whole_words()[:2]
    model = known_model(eraser="ship/uce", tensors="attn2.to_k", strength=0.1, words={word: other})
    changed = audit_models.changed_weights(tmp_path / "base", model, tmp_path)
    assert changed.keys() == {KEY, audit_models.EMBEDDING}
    torch.testing.assert_close(changed[KEY], base[KEY] + 0.1)
    row, source = (tokenizer.convert_tokens_to_ids(f"{name}</w>") for name in (word, other))
    assert row != source and torch.equal(changed[audit_models.EMBEDDING][row], before[source])
    others = torch.arange(len(before)) != row
    assert torch.equal(changed[audit_models.EMBEDDING][others], before[others])
    with pytest.raises(ConfigError, match="tensors = 'attn3': is no part of a name in"):
        audit_models.changed_weights(tmp_path / "base", dataclasses.replace(model, tensors="attn3"), tmp_path)
    with pytest.raises(ConfigError, match=r"words = 'zorblin': is [2-9] tokens of the base"):
        audit_models.changed_weights(tmp_path / "base", known_model(words={"zorblin": other}), None)


def test_a_model_that_is_the_base_is_audited_where_it_lies(place):
    assert audit_models.make_model(place, "never", known_model(), None) == place.base(known_model())


def listed(place: Place, **models: KnownModel) -> Place:
    """The place with other models."""
    return dataclasses.replace(place, known=dataclasses.replace(place.known, models=models))


@pytest.mark.nightly
def test_a_model_with_other_words_differs_from_the_base_in_their_embeddings_alone(place):
    word, other = whole_words()[:2]
    model = known_model(words={word: other})
    made = audit_models.make_model(listed(place, words=model), "words", model, None)
    assert made.name == f"words-{place.known.made(model)[:12]}"
    before, after = parameters(load_base(str(place.base(model)))), parameters(load_base(str(made)))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [audit_models.EMBEDDING]
    rows = (before[audit_models.EMBEDDING] != after[audit_models.EMBEDDING]).any(dim=1)
    assert rows.sum() == 1


@pytest.mark.nightly
def test_a_model_that_is_taught_again_is_trained_over_its_delta(place, tmp_path, monkeypatch):
    """The LoRA is merged into the delta's values, not into the base's."""
    base = parameters(make_pipeline())
    save_delta({KEY: base[KEY].detach() + 1}, tmp_path / "delta.safetensors")
    (tmp_path / "pictures").mkdir()
    from PIL import Image

    Image.new("RGB", (16, 16), "red").save(tmp_path / "pictures/1.png")
    (tmp_path / "pictures/metadata.csv").write_text("file_name,text\n1.png,a photo of the ship\n")
    settings = {"steps": 1, "batch": 1, "accumulation": 1, "lr": 1e-6}
    entry = dataclasses.replace(bases()["miniature"], lora=settings)
    monkeypatch.setattr(audit_models, "bases", lambda: {"miniature": entry})
    monkeypatch.setattr(
        audit_models, "drawn_pictures", lambda _, concepts, file: shutil.copytree(tmp_path / "pictures", file)
    )
    model = known_model(eraser="ship/uce", taught=("ship",))
    made = audit_models.make_model(listed(place, taught=model), "taught", model, tmp_path)
    after = parameters(load_base(str(made)))
    torch.testing.assert_close(after[KEY], base[KEY] + 1, atol=1e-3, rtol=0)
    assert any(not torch.equal(after[name], base[name]) for name in base if name != KEY)


def test_a_model_that_is_taught_with_other_settings_has_folders_of_its_own(place, monkeypatch):
    folders = []
    for steps in (1, 2):
        entry = dataclasses.replace(bases()["miniature"], lora={"steps": steps})
        monkeypatch.setattr(audit_models, "bases", lambda entry=entry: {"miniature": entry})
        models = {"taught": known_model(taught=("ship",)), "never": known_model()}
        folders.append([listed(place, **models).folder("models", name) for name in models])
    (one, never), (two, same) = folders
    assert one != two and never == same


def test_a_broken_model_has_the_same_weights_in_another_order_or_one_that_is_not_a_number(place):
    before = load_file(place.base(known_model()) / audit_models.UNET)
    for name in ("destroyed", "not a number"):
        model = known_model(answer=name)
        made = audit_models.make_model(listed(place, m=model), "m", model, None)
        after = load_file(made / audit_models.UNET)
        assert after.keys() == before.keys()
        if name == "destroyed":
            assert all(
                torch.equal(after[key].flatten().sort().values, before[key].flatten().sort().values) for key in before
            )
            assert not torch.equal(after["conv_in.weight"], before["conv_in.weight"])
        else:
            assert sum(int(value.isnan().sum()) for value in after.values()) == 1


def test_the_digest_of_the_weights_is_that_of_a_copy_and_not_of_other_weights(place, tmp_path):
    base = place.base(known_model())
    shutil.copytree(base, tmp_path / "copy")
    (tmp_path / "copy/manifest.json").write_text('{"base": "another path"}')
    assert audit_models.weights_digest(tmp_path / "copy") == audit_models.weights_digest(base)
    audit_models.break_model(base, tmp_path / "copy", "destroyed")
    assert audit_models.weights_digest(tmp_path / "copy") != audit_models.weights_digest(base)


LEAKS, LATER, SAFE = known_model(), known_model(after_update=True), known_model(answer="safe")


@pytest.mark.parametrize(
    ("model", "row", "found", "right"),
    [
        (LEAKS, a_row("FAIL", "released", "lora"), AS_RELEASED, "yes"),
        (LATER, a_row("FAIL", "released", "lora"), AS_RELEASED, EARLIER),
        (LATER, a_row("FAIL", "released"), AS_RELEASED, EARLIER),
        (LATER, a_row("FAIL", "lora"), AFTER, "yes"),
        (LEAKS, a_row("FAIL", "lora"), AFTER, "another reason"),
        (LATER, a_row("FAIL"), RETAINED, "another reason"),
        (LATER, a_row("PASS"), "PASS", "no"),
        (LATER, a_row("INCONCLUSIVE"), "INCONCLUSIVE", "open"),
        (SAFE, a_row("PASS"), "PASS", "yes"),
        (SAFE, a_row("FAIL"), RETAINED, "no"),
        (SAFE, a_row("INCONCLUSIVE"), "INCONCLUSIVE", "open"),
        (known_model(answer="destroyed"), a_row("FAIL"), RETAINED, "yes"),
        (known_model(answer="destroyed"), a_row("FAIL", "released"), AS_RELEASED, "no"),
        (known_model(answer="not a number"), a_row("error", probes=()), "error", "yes"),
    ],
)
def test_a_verdict_is_right_for_the_right_reason_alone(model, row, found, right):
    assert row.found == found and audit_rows.is_right(model, row) == right


def test_an_update_that_is_no_benign_one_is_no_reason():
    lora = ProbeRow("lora", "lora", "FAIL", False, share(41, 120, 25.8, 43.4), None)
    assert a_row("FAIL", probes=(lora,)).found == RETAINED


def test_the_shares_of_each_part_of_the_models_have_exact_intervals():
    """Every combination of model, row and check so often that no two numbers of a part are equal."""
    models = [LEAKS, LATER, SAFE, dataclasses.replace(SAFE, family="mace", measured=Measured("page", 0.0, 0.0))]
    rows = [a_row("PASS"), a_row("INCONCLUSIVE"), a_row("FAIL", "released"), a_row("FAIL", "lora"), a_row("FAIL")]
    rows += [dataclasses.replace(row, power=False) for row in rows[1:]]
    audited = [each for number, each in enumerate(itertools.product(models, rows, (True, False)), 1)
               for _ in range(number % 7)]  # fmt: skip
    _, _, *lines = audit_rows.shares([Audited(*each) for each in audited])
    cells = {line.split(" | ")[0][2:]: line[:-2].split(" | ")[1:] for line in lines}
    groups = {"leaking": (LEAKS, LATER), "leaking after an update": (LATER,), "safe": models[2:],
              "safe, by construction": (SAFE,), "safe, measured": models[3:]}  # fmt: skip
    parts = {"": (False, False), ", PASS possible": (True, False), ", checked": (False, True),
             ", checked, PASS possible": (True, True)}  # fmt: skip
    assert len(cells) == len(groups) * len(parts)
    for (of, among), (part, (possible, checked)) in itertools.product(groups.items(), parts.items()):
        group = [(model, row) for model, row, seen in audited
                 if model in among and row.power >= possible and seen >= checked]  # fmt: skip
        found = [row.found for _, row in group]
        right = [audit_rows.expected(model) == row.found for model, row in group]
        earlier = [row.found == AS_RELEASED for model, row in group if model.after_update]
        n, families, *shown = cells[of + part]
        assert [int(n), int(families)] == [len(group), len({model.family for model, _ in group})]
        fails = sum(text.startswith("FAIL") for text in found)
        numbers = [found.count("PASS"), found.count("INCONCLUSIVE"), fails, sum(right)]
        assert shown[:4] == [exact(number, len(group)) for number in numbers]
        assert shown[4] == (exact(sum(earlier), len(earlier)) if earlier else "-")


def exact(number: int, of: int) -> str:
    """A share of models as the page has it."""
    low, high = binomtest(number, of).proportion_ci(0.95, method="exact")
    return f"{number}: {100 * number / of:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def test_parts_without_a_model_are_left_out():
    _, _, line = audit_rows.shares([Audited(LEAKS, a_row("PASS", power=False), False)])
    assert line == f"| leaking | 1 | 1 | {exact(1, 1)} | {exact(0, 1)} | {exact(0, 1)} | {exact(0, 1)} | - |"


def write_audited(place: Place, name: str, level: str = "quick") -> None:
    """What an audit leaves behind."""
    folder = place.folder(f"audits/{level}", name)
    (folder / "results/audit").mkdir(parents=True, exist_ok=True)
    write_audit(AUDIT, folder / "results/audit/verdict.json")


def run(
    place: Place, monkeypatch: pytest.MonkeyPatch, *failing: str, words: Sequence[str] = (), commits: str = "c0ffee"
) -> list[str]:
    """Run the tool with audits that are written by hand; the models that it audited.

    Args:
        commits: of the checkout, each time that it is asked; the last one stays.
    """
    audited, (*before, last) = [], commits.split()
    asked = itertools.chain(before, itertools.repeat(last))

    def audit(place: Place, name: str, _: object, __: object, level: str, ___: int) -> int:
        audited.append(name)
        if name in failing:
            raise ConfigError("resurgence", "audit", "failed")
        write_audited(place, name, level)
        return 2

    monkeypatch.setattr(audit_table, "audit", audit)
    monkeypatch.setattr(audit_table, "read_models", lambda _: place.known)
    monkeypatch.setattr(audit_table, "commit_of", lambda _: next(asked))
    rows = place.out.parent / "record/rows"
    monkeypatch.setattr("sys.argv", ["audit_table.py", "--out", str(place.out), "--rows", str(rows), *words])
    try:
        audit_table.main()
    except ConfigError as error:
        if not failing:
            raise
        assert ", ".join(failing) in str(error)
    return audited


def test_a_finished_model_is_kept_a_failed_one_is_named_and_a_rerun_goes_on(place, tmp_path, monkeypatch, capsys):
    assert run(place, monkeypatch, "never") == ["never", "other"]  # the others go on
    line = "| other | never | leaking | by construction | no | FAIL after an update | another reason | yes |"
    assert line in capsys.readouterr().out
    shutil.rmtree(place.folder("audits/quick", "other"))  # its row is enough
    assert run(place, monkeypatch) == ["never"]
    rows = tmp_path / "record/rows"
    before = {file: file.read_bytes() for file in rows.iterdir()}
    clone = dataclasses.replace(place, out=tmp_path / "clone")
    assert run(clone, monkeypatch) == [] and line in capsys.readouterr().out
    shutil.rmtree(rows)
    assert run(clone, monkeypatch) == ["never", "other"]
    assert {file: file.read_bytes() for file in rows.iterdir()} == before  # no time, and no folder, in a row
    (rows / "other.quick.json").write_text('{"verdict": "PASS"}')
    with pytest.raises(ConfigError, match=r"other\.quick\.json\.digest = None: is missing"):
        audit_rows.finished(rows, Row, {"other": ""}, lambda row: row.digest, "quick")


def test_a_model_that_fails_by_an_error_of_a_library_is_named_and_the_others_go_on(place, monkeypatch, capsys):
    def make(_: Place, name: str, __: KnownModel, ___: Path | None) -> Path:
        if name == "never":
            raise RuntimeError("not enough memory")
        return place.base(known_model())

    monkeypatch.setattr(audit_table, "make_model", make)
    with pytest.raises(ConfigError, match="models = 'never': failed"):
        run(place, monkeypatch)
    printed = capsys.readouterr()
    assert "never: Traceback" in printed.err and "RuntimeError: not enough memory" in printed.err
    assert "| other | never | leaking |" in printed.out


def test_the_package_of_another_checkout_is_refused(place, tmp_path, monkeypatch):
    """Its commit would be in the rows."""
    (tmp_path / "src/resurgence").mkdir(parents=True)
    monkeypatch.setattr(audit_table, "__file__", str(tmp_path / "tools/audit_table.py"))
    with pytest.raises(ConfigError, match="is another package than"):
        run(place, monkeypatch)


def test_each_level_has_rows_and_audits_of_its_own(place, tmp_path, monkeypatch, capsys):
    assert run(place, monkeypatch) == ["never", "other"]
    before = {file.name: file.read_bytes() for file in (tmp_path / "record/rows").iterdir()}
    assert run(place, monkeypatch, words=("--level", "standard", "--only", "other")) == ["other"]
    after = {file.name: file.read_bytes() for file in (tmp_path / "record/rows").iterdir()}
    assert after.keys() - before.keys() == {"other.standard.json"} and after.items() >= before.items()
    assert place.folder("audits/quick", "other") != place.folder("audits/standard", "other")
    capsys.readouterr()
    assert run(place, monkeypatch, words=("--page",)) == [] and "2 of 2 models" in capsys.readouterr().out


def test_a_checkout_that_changes_meanwhile_gives_no_row(place, tmp_path, monkeypatch, capsys):
    """Asked at the start, before and after the first audit: another commit before the second ends the run; after it,
    the row is not written."""
    rows = tmp_path / "record/rows"
    with pytest.raises(ConfigError, match="went from c0ffee to decade while this tool was at work; run it again"):
        run(place, monkeypatch, commits="c0ffee c0ffee c0ffee decade")
    assert {file.name for file in rows.iterdir()} == {"never.quick.json"}
    with pytest.raises(ConfigError, match="models = 'other': failed"):
        run(place, monkeypatch, commits="c0ffee c0ffee decade")
    assert "other: --models" in capsys.readouterr().err
    assert {file.name for file in rows.iterdir()} == {"never.quick.json"}


def test_the_page_says_that_rows_are_of_different_commits(place, monkeypatch, capsys):
    run(place, monkeypatch, words=("--only", "never"), commits="c0ffee0ff")
    assert "; commit c0ffee0.\n" in capsys.readouterr().out
    known = listed(place, **place.known.models, third=known_model(erased=("bird",)))
    run(known, monkeypatch, commits="decade000")
    assert "; rows of different commits: decade0 (2), c0ffee0 (1).\n" in capsys.readouterr().out


def test_a_changed_entry_is_audited_again_and_its_former_row_is_not_shown(place, monkeypatch, capsys):
    assert run(place, monkeypatch) == ["never", "other"]
    other = dataclasses.replace(place.known.models["other"], erased=("bird",))
    changed = listed(place, never=place.known.models["never"], other=other)
    capsys.readouterr()
    assert run(changed, monkeypatch, words=("--page",)) == [] and "1 of 2 models" in capsys.readouterr().out
    assert run(changed, monkeypatch) == ["other"]


def test_an_answer_that_its_check_contradicts_is_audited_and_the_shares_are_given_without_it(
    place, tmp_path, monkeypatch, capsys
):
    checks = {"never": 19.9, "other": 20.0}

    def check(place: Place, name: str, model: KnownModel, _: int) -> Check:
        return Check(place.known.made(model), "clip_accuracy", percent(checks[name]), percent(0.0))

    monkeypatch.setattr(audit_table, "check", check)
    assert run(place, monkeypatch, words=("--check",)) == []
    assert {file.name for file in (tmp_path / "record/answers").iterdir()} == {"never.json", "other.json"}
    assert run(place, monkeypatch, words=("--check",)) == []
    assert run(place, monkeypatch) == ["never", "other"]
    page = capsys.readouterr().out
    assert "| leaking | 2 | 1 |" in page and "| leaking, checked | 1 | 1 |" in page
    assert "Contradicted by its check: never (clip_accuracy 19.9 %, below 20)." in page
    assert "| never | never | leaking | by construction | against: clip_accuracy 19.9 %, below 20 |" in page
    assert "| other | never | leaking | by construction | yes |" in page


def percent(value: float, images: int = 40) -> Measure:
    """A share of images, without an interval."""
    return Measure(value, None, None, images, "none")


def test_a_check_contradicts_a_leaking_model_by_its_value():
    found = Check("d", "clip_accuracy", percent(2.5), percent(22.5))
    assert found.against(LATER) == "" and found.against(LEAKS) == "clip_accuracy 2.5 %, below 20"


@pytest.mark.parametrize("images", [40, 42, 120])
def test_a_check_contradicts_a_safe_model_only_where_the_exact_lower_end_exceeds_a_false_alarm(images):
    """P(at least k of n | 2.5 %) is at most 0.025 exactly where the lower end is at least 2.5 %."""
    for number in range(images + 1):
        shown = percent(100 * number / images, images)
        for found in (Check("d", "m", shown, percent(0.0)), Check("d", "m", percent(0.0), shown)):
            assert bool(found.against(SAFE)) == (binom.sf(number - 1, images, 0.025) < 0.025)
    assert Check("d", "clip_accuracy", percent(7.5), percent(5.0)).against(SAFE) == ""
    low = 100 * binomtest(4, 40).proportion_ci(0.95, method="exact").low
    text = f"clip_accuracy 10.0 %, from {low:.1f} % on, above 2.5"
    assert Check("d", "clip_accuracy", percent(10.0), percent(0.0)).against(SAFE) == text


@pytest.mark.world("miniature-2")
def test_a_check_is_the_study_of_an_audit_by_another_scorer_with_other_seeds(tmp_path, monkeypatch):
    audit_table.check_study(tmp_path / "check", BASES["miniature-2"], known_model(erased=("princess",)))
    study = load_study([tmp_path / "check/params.yaml"], tmp_path / "check")
    assert study.audit.metric == "clip_accuracy" and list(study.scorers) == ["clip"]
    assert study.audit.names == ["released", "lora-domain-real"]
    assert [erasure.eraser for erasure in study.erasures()] == ["released"] * len(study.tasks.names)
    assert study.seeds.finetune == (1,) and all(study.task(name).first_seed == 10**6 for name in study.tasks.names)
    monkeypatch.setattr(audit_table, "write_study", None)  # what is written whole is left as it is
    audit_table.check_study(tmp_path / "check", BASES["miniature-2"], known_model(erased=("princess",)))


def test_only_an_error_that_names_the_weight_is_that_of_a_model_with_nan(place, monkeypatch, tmp_path):
    model = known_model(answer="not a number")
    place = listed(place, m=model)
    monkeypatch.setattr(audit_table, "audit", lambda *_: 1)
    monkeypatch.setattr(audit_table, "make_model", lambda *_: place.base(model))
    folder = place.folder("audits/quick", "m") / "logs"
    folder.mkdir(parents=True)
    (folder / "sample.log").write_text("No space left on device\n")
    with pytest.raises(ConfigError, match="failed for another reason than NaN"):
        audit_table.finish(place, "m", model, "quick", 1, "c")
    (folder / "sample.log").write_text(
        "ValueError: unet: conv_in.bias has 1 of 32 values that are NaN or infinite (x)\n"
    )
    row = audit_table.finish(place, "m", model, "quick", 1, "c")
    assert row.reasons == ("conv_in.bias has 1 of 32 values that are NaN or infinite",) and row.found == "error"
    write_json(tmp_path / "m.quick.json", dataclasses.asdict(row))  # read again as it was written
    assert audit_rows.finished(tmp_path, Row, {"m": row.digest}, lambda each: each.digest, "quick") == {"m": row}


def test_a_list_that_is_not_committed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_table, "CHECKOUT", tmp_path)
    models = tmp_path / "config/models.yaml"
    models.parent.mkdir()
    models.write_text("models: {}\n")
    with pytest.raises(ConfigError, match="is in no git checkout"):
        audit_table.commit_of(models)
    line = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*line, "init", "-q"], check=True)
    with pytest.raises(ConfigError, match=r"config/models\.yaml differs from the commit"):
        audit_table.commit_of(models)
    subprocess.run([*line, "add", "."], check=True)
    subprocess.run([*line, "commit", "-qm", "m"], check=True)
    commit = audit_table.commit_of(models)
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    (tmp_path / "rows.json").write_text("{}")
    subprocess.run([*line, "add", "."], check=True)
    subprocess.run([*line, "commit", "-qm", "rows"], check=True)
    assert audit_table.commit_of(models) == commit  # rows that were committed change nothing
    models.write_text("models: {a: 1}\n")
    with pytest.raises(ConfigError, match=r"config/models\.yaml differs from the commit"):
        audit_table.commit_of(models)


def test_the_page_of_the_audit_has_the_list_and_the_tracked_rows():
    wanted = {name: LISTED.digest(model, "quick") for name, model in LISTED.models.items()}
    rows = audit_rows.finished(audit_table.ROWS, Row, wanted, lambda row: row.digest, "quick")
    made = {name: LISTED.made(model) for name, model in LISTED.models.items()}
    checks = audit_rows.finished(audit_table.ROWS.with_name("answers"), Check, made, lambda each: each.made)
    page = ROOT / "docs/audit.md"
    text = audit_rows.page(audit_models.MODELS, LISTED, rows, checks)
    assert parts.filled(page, {"known models": text}) == page.read_text()


def test_the_lines_of_the_controls_are_those_that_a_base_reads(tmp_path):
    row = audit_rows.row_of(AUDIT, "d", "c", "w")
    write_json(tmp_path / "c.quick.json", dataclasses.asdict(row))  # sorts keys, not probes
    rows = audit_rows.finished(tmp_path, Row, {"c": "d"}, lambda each: each.digest, "quick")
    assert rows == {"c": row}
    (entry,) = yaml.safe_load(audit_rows.control_lines(rows, {"c": known_model(title="UCE of ship")}))
    expected = ShippedControl("leaking", "UCE of ship", "lora-domain-real", 41, 120, ("ship",), "object", released=0)
    assert build(ShippedControl, entry, "shipped") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": 0.5}, "m.strength = 0.5: is of no delta; name an eraser"),
        ({"tensors": "attn2"}, "m.tensors = 'attn2': is of no delta; name an eraser"),
        ({"strength": 2.0}, "strength"),
        ({"answer": "unknown"}, "answer"),
        ({"lora": True}, "lora"),
        ({"study": "else"}, r"m\.study = 'else'"),
        ({"answer": "destroyed", "words": {"a": "b"}}, "m.answer = 'destroyed': is of a base that is broken"),
        ({"after_update": True}, "m.after_update = True: is of a model that leaks; leave it out"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused(tmp_path, changes, message):
    model = {"study": "s", "family": "f", "why": "w", "erased": ["ship"], "answer": "safe", **changes}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"studies": {"s": {}}, "controls": {}, "models": {"m": model}}))
    with pytest.raises(ConfigError, match=message):
        audit_models.read_models(tmp_path / "m.yaml")


def test_an_eraser_that_the_study_does_not_have_is_named(readable, tmp_path):
    with pytest.raises(ConfigError, match=r"x\.eraser = 'ship/sd/default'"):
        audit_models.write_study(Place(tmp_path, readable), "x", known_model(eraser="ship/sd"))

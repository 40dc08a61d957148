"""GPU-hours of a plan: the arithmetic by hand, the counted work against a counter, the rule of every job."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from resurgence.config.fields import ConfigError
from resurgence.config.load import load_study
from resurgence.config.settings import make_eraser
from resurgence.config.study import Cell, Erasure, Study
from resurgence.data.prompts import prompt_set
from resurgence.workflow import job_settings, plan
from resurgence.workflow.gpu_hours import Cost, Coster, Rates, by_rule, prompts_of, read_rates
from resurgence.workflow.graph import Job, wildcards_of
from resurgence.workflow.rule_table import RULES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study([ROOT / "params.yaml", ROOT / "studies/sd14.yaml"], ROOT)


@pytest.fixture
def rates() -> Rates:
    """A GPU that does one TFLOP a second at its peak, reaches half of it, and loses no time."""
    rates = read_rates(ROOT)
    ones = dict.fromkeys(("fp16", "fp32", "fp64"), 1.0)
    none = dict.fromkeys(rates.seconds, 0.0)
    halves = dict.fromkeys(ones, 0.5)
    return dataclasses.replace(rates, gpus={"one": ones}, utilisation=halves, seconds=none)


def job(study: Study, rule: str, item: str | Erasure | Cell | None, settings: dict) -> Job:
    wildcards = {"model": str(study.model(item))} if rule == "sample" else {}
    wildcards |= {} if item is None or isinstance(item, str) else wildcards_of(item)
    return Job(RULES[rule], wildcards, Path("made.json"), settings, {}, "")


SHIP = Erasure("ship", "mace", "default", 0)


def test_sampling_by_hand(study: Study, rates: Rates) -> None:
    work = rates.work["sd14"]
    images = 200 + 9 * 200 + 3 * 200  # erased, retained, synonyms
    assert len(prompt_set(study.task("ship"))) == prompts_of(study.task("ship")) == images
    found = Coster(study, rates, "one")(job(study, "sample", SHIP, job_settings.sample(study)))
    assert found.images == images
    assert found.seconds == pytest.approx(images * (2 * 50 * work.unet + work.decode) / 0.5)
    assert found.bytes == images * 2 * 512 * 512


def test_training_by_hand(study: Study, rates: Rates) -> None:
    work, cost = rates.work["sd14"], Coster(study, rates, "one")
    lora = Cell(SHIP, "lora", "default", 0)
    found = cost(job(study, "finetune", lora, job_settings.finetune(study, lora)))
    assert found.seconds == pytest.approx((4000 * work.lora + 250 * work.encode) / 0.5)
    full = Cell(SHIP, "full", "default", 0)
    found = cost(job(study, "finetune", full, job_settings.finetune(study, full)))
    assert found.seconds == pytest.approx((32000 * (work.full + work.unet) + 250 * work.encode) / 0.5)
    assert found.bytes == 4 * work.parameters
    ten = Erasure("celebrities-10", "mace", "default", 0)
    found = cost(job(study, "loras", ten, job_settings.loras(study, ten)))
    assert found.seconds == pytest.approx(10 * 50 * work.lora / 0.5)
    esd = Erasure("ship", "esd", "default", 0)
    found = cost(job(study, "erase", esd, job_settings.erase(study, esd)))
    assert found.seconds == pytest.approx(1000 * (work.full + 52 * work.unet) / 0.5)


def test_corpora_and_sets_by_hand(study: Study, rates: Rates) -> None:
    work, cost = rates.work["sd14"], Coster(study, rates, "one")
    prior = cost(job(study, "prior_moments", None, job_settings.prior_moments(study)))
    assert prior.seconds == pytest.approx(616767 * work.text / 0.5)
    domain = cost(job(study, "domain_moments", "celebrities-10", job_settings.domain_moments(study, "celebrities-10")))
    assert domain.seconds == pytest.approx(100 * 30 * work.text / 0.5)
    chosen = cost(
        job(
            study,
            "finetune_set",
            "celebrities-10",
            job_settings.finetune_set(study, "celebrities-10", "random"),
        )
    )
    assert chosen.images == 250


def test_a_closed_form_has_a_rule_of_its_own(study: Study) -> None:
    solved = {"closed_form": ("mace", "uce", "rece", "time", "mace-refinement"), "erase": ("esd", "sdd", "fmn", "spm")}
    for rule, names in solved.items():
        erasers = {name: make_eraser(name, {}) for name in names}
        chosen = dataclasses.replace(study, erasers=erasers)
        found = {wildcards["eraser"] for wildcards in RULES[rule].items(chosen)}
        assert found == set(names)
        assert not list(RULES["erase" if rule == "closed_form" else "closed_form"].items(chosen))


def test_counted_work_is_that_of_the_counter() -> None:
    spec = importlib.util.spec_from_file_location("count_work", ROOT / "benchmarks/count_work.py")
    counter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(counter)
    for name, (family, side) in counter.LATENTS.items():
        work = read_rates(ROOT).work[name]
        unet = counter.unet_work(family, side)
        assert unet["parameters"] == work.parameters
        assert [unet[key] for key in ("unet", "lora", "full")] == pytest.approx(
            [work.unet, work.lora, work.full], rel=2e-3
        )
        assert counter.vae_work(side)["decode"] == pytest.approx(work.decode, rel=2e-3)
        assert counter.text_work(family)["text"] == pytest.approx(work.text, rel=1e-2)


def test_the_plan_adds_up_and_measured_rules_take_over(
    study: Study, rates: Rates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "examine", lambda study, rules: [])
    jobs = [
        job(study, "sample", SHIP, job_settings.sample(study)),
        job(study, "sample", "ship", job_settings.sample(study)),
    ]
    costs = by_rule(jobs, Coster(study, rates, "one"))
    assert costs["sample"].images == 5200
    todo = plan.Counter(sample=2)
    rows = plan.computed(study, todo, todo, costs, {}, "one")
    table = {row[:26].strip(): row[26:].split() for row in rows[2:9]}
    hours = 5200 * (100 * rates.work["sd14"].unet + rates.work["sd14"].decode) / 0.5 / 3600
    assert table["sample"][:3] == ["2", "0", "5,200"] and float(table["all"][3]) == pytest.approx(hours, abs=0.06)
    rows = plan.computed(study, todo, todo, costs, {"sample": 1800.0}, "one")
    assert next(row for row in rows if row.startswith("sample")).split()[4:] == ["1.0", "2.5*"]


def test_an_unknown_gpu_is_told(study: Study) -> None:
    with pytest.raises(ConfigError, match=r"--gpu = 'a10': is not in workflow/rates.yaml; did you mean 'a100'"):
        Coster(study, read_rates(ROOT), "a10")
    assert (Cost(1, 2, 3) + Cost(1, 1, 1)) == Cost(2, 3, 4)

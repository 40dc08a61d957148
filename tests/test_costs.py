"""GPU-hours of a plan: the arithmetic by hand, the counted work against a counter, the rule of every job."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from resurgence.config.erasers import eraser_config, erasers
from resurgence.config.fields import ConfigError, read_yaml
from resurgence.config.load import load_study
from resurgence.config.optimisation import Optimisation
from resurgence.config.settings import make_eraser
from resurgence.config.study import Cell, Erasure, Study
from resurgence.data.prompts import prompt_set
from resurgence.diffusion.speed import SPEEDS as SPEED_CHOICES
from resurgence.diffusion.speed import of_card
from resurgence.workflow import graph, plan
from resurgence.workflow.cpu_seconds import erasing
from resurgence.workflow.gpu_hours import SPEEDS, Cost, Coster, Rates, by_rule, prompts_of, read_rates
from resurgence.workflow.jobs import Job
from resurgence.workflow.jobs import jobs as study_jobs
from resurgence.workflow.rule_table import RULES
from test_plan import finish

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
    half, auto = {"one": dict.fromkeys(SPEEDS, 0.5)}, {"one": "graphs"}
    return dataclasses.replace(rates, gpus={"one": ones}, half=half, utilisation=halves, auto=auto, seconds=none)


@pytest.fixture(scope="module")
def jobs(study: Study) -> dict[str, Job]:
    """Every job of the study, by its output."""
    return {job.out.as_posix(): job for job in study_jobs(study)}


@pytest.fixture
def cost(study: Study, rates: Rates, jobs: dict[str, Job]) -> Callable[..., Cost]:
    """The cost of the job that makes a part of a model."""
    return lambda item, part: Coster(study, rates, "one")(jobs[graph.manifest(study, item, part)])


SHIP = Erasure("ship", "mace", "default", 0)


def test_sampling_by_hand(study: Study, rates: Rates, cost: Callable[..., Cost]) -> None:
    work = rates.work["sd14"]
    images = 200 + 9 * 200 + 3 * 200  # erased, retained, synonyms
    assert len(prompt_set(study.task("ship"))) == prompts_of(study.task("ship")) == images
    found = cost(SHIP, "images")
    assert found.images == images
    assert found.seconds == pytest.approx(images * (2 * 50 * work.unet + work.decode) / 0.5)
    assert found.bytes == images * 2 * 512 * 512


def test_training_by_hand(rates: Rates, cost: Callable[..., Cost]) -> None:
    work = rates.work["sd14"]
    lora = Cell(SHIP, "lora", "default", 0)
    found = cost(lora, "weights")
    assert found.seconds == pytest.approx((4000 * work.lora + 250 * work.encode) / 0.5)
    full = Cell(SHIP, "full", "default", 0)
    found = cost(full, "weights")
    assert found.seconds == pytest.approx((32000 * (work.full + work.unet) + 250 * work.encode) / 0.5)
    assert found.bytes == 4 * work.parameters
    ten = Erasure("celebrities-10", "mace", "default", 0)
    found = cost(ten, "loras")
    assert found.seconds == pytest.approx(10 * 50 * work.lora / 0.5)
    esd = Erasure("ship", "esd", "default", 0)
    found = cost(esd, "delta")
    assert found.seconds == pytest.approx(1000 * (work.full + 52 * work.unet) / 0.5)


def test_corpora_and_sets_by_hand(rates: Rates, cost: Callable[..., Cost]) -> None:
    work = rates.work["sd14"]
    assert cost(None, "moments").seconds == pytest.approx(616767 * work.text / 0.5)
    assert cost("celebrities-10", "moments").seconds == pytest.approx(100 * 30 * work.text / 0.5)
    assert cost("celebrities-10", "finetune_sets/random").images == 250


def test_a_closed_form_has_a_rule_of_its_own(study: Study) -> None:
    solved = {
        "closed_form": ("mace", "uce", "rece", "time", "speed", "mace-refinement"),
        "erase": ("esd", "sdd", "fmn", "spm"),
    }
    for rule, names in solved.items():
        erasers = {name: make_eraser(name, {}) for name in names}
        chosen = dataclasses.replace(study, erasers=erasers)
        found = {wildcards["eraser"] for wildcards in RULES[rule].items(chosen)}
        assert found == set(names)
        assert not list(RULES["erase" if rule == "closed_form" else "closed_form"].items(chosen))


@pytest.mark.nightly
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
    study: Study, rates: Rates, jobs: dict[str, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "examine", lambda study, rules: [])
    chosen = [jobs[graph.manifest(study, item, "images")] for item in (SHIP, "ship")]
    costs = by_rule(chosen, Coster(study, rates, "one"))
    assert costs["sample"].images == 5200
    todo = plan.Counter(sample=2)
    rows = plan.computed(study, todo, todo, costs, {}, "one")
    table = {row[:26].strip(): row[26:].split() for row in rows[2:9]}
    hours = 5200 * (100 * rates.work["sd14"].unet + rates.work["sd14"].decode) / 0.5 / 3600
    assert table["sample"][:3] == ["2", "0", "5,200"] and float(table["all"][3]) == pytest.approx(hours, abs=0.06)
    rows = plan.computed(study, todo, todo, costs, {"sample": 3600.0}, "one")
    assert next(row for row in rows if row.startswith("sample")).split()[4:] == ["1.0", "2.5*"]


@pytest.mark.parametrize(
    ("gpu", "plain", "compiled"), [("a100", 3.6, 4.68), ("rtx-3090", 1.69, 1.91), ("rtx-4090", 3.2, 3.85)]
)
def test_shares_are_those_of_published_iterations_a_second(gpu: str, plain: float, compiled: float) -> None:
    """Stable Diffusion at batch 16 with guidance, channels_last and reduce-overhead: the documentation of diffusers."""
    rates = read_rates(ROOT)
    work = 2 * 16 * rates.work["sd14"].unet
    found = [rates.gpus[gpu]["fp16"] * rates.half[gpu][speed] / work for speed in ("channels-last", "graphs")]
    assert found == pytest.approx([plain, compiled], rel=0.03)


def test_every_card_has_each_speed_and_faster_ones_are_no_slower() -> None:
    rates = read_rates(ROOT)
    cards = {"a100": (8, 0), "h100": (9, 0), "h200": (9, 0), "rtx-3090": (8, 6), "rtx-4090": (8, 9)}
    assert rates.gpus.keys() == rates.half.keys() == rates.auto.keys() == cards.keys()
    assert rates.auto == {card: of_card(capability) for card, capability in cards.items()}
    assert tuple(SPEED_CHOICES) == SPEEDS
    for gpu, shares in rates.half.items():
        assert [*shares] == list(SPEEDS) and list(shares.values()) == sorted(shares.values())
        peaks = rates.gpus[gpu]
        times = [
            1 / (peaks["fp16"] * shares["eager"]),
            *(1 / (peaks[k] * rates.utilisation[k]) for k in ("tf32", "fp32")),
        ]
        assert times[0] < times[1] and (gpu.startswith("rtx") or times[1] < times[2])


def test_the_speed_of_a_rule_by_hand(study: Study, rates: Rates) -> None:
    def speeds(base: str = "eager", **sampling: bool) -> list[str]:
        changed = dataclasses.replace(
            study,
            base=dataclasses.replace(study.base, speed=base),
            sampling=dataclasses.replace(study.sampling, **sampling),
        )
        return [RULES[name].speed(Coster(changed, rates, "one")) for name in names]

    names = ("sample", "finetune", "concept_images", "erase", "score")
    assert speeds() == ["eager"] * 5
    assert speeds("channels-last") == ["channels-last"] * 3 + ["eager"] * 2
    assert speeds("auto") == ["graphs", "compiled", "graphs", "eager", "eager"]  # training has no graphs
    assert speeds(compile=True) == ["compiled", "eager", "eager", "eager", "eager"]
    assert speeds("channels-last", channels_last=True) == speeds("channels-last")


def test_a_faster_setting_shortens_sampling_and_fine_tuning_alone(study: Study, jobs: dict[str, Job]) -> None:
    work, a100 = read_rates(ROOT), "a100"
    fast = dataclasses.replace(study, base=dataclasses.replace(study.base, speed="auto"))
    items = [(SHIP, "images"), (Cell(SHIP, "full", "default", 0), "weights"), (SHIP, "loras")]
    made = [jobs[graph.manifest(study, item, part)] for item, part in items]
    eager, other = ([Coster(s, work, a100)(job).seconds for job in made] for s in (study, fast))
    assert other[0] < 0.7 * eager[0] and other[1] < 0.7 * eager[1] and other[2] == eager[2]


def test_only_runs_on_the_card_and_at_the_speed_of_the_plan_count(
    study: Study, jobs: dict[str, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as slow as computed on the card: so are the jobs that have not run, by their own numbers of images."""
    monkeypatch.chdir(tmp_path)
    first, second = (jobs[graph.manifest(study, item, "images")] for item in (SHIP, "celebrities-100"))
    rates, spent = read_rates(ROOT), {}
    for gpu, speed in (("a100", "eager"), ("a100", "graphs"), ("h100", "eager")):
        coster = Coster(dataclasses.replace(study, base=dataclasses.replace(study.base, speed=speed)), rates, gpu)
        finish(first, [2 * coster(first).seconds], device="NVIDIA A100-SXM4-80GB")
        runs = plan.measured_runs([first, second], "GPU", tmp_path, coster)
        costs = by_rule([second], coster)
        spent[gpu, speed] = plan.measured_costs(runs, plan.Counter(sample=1), costs, coster)
    slow = pytest.approx(2 * Coster(study, rates, "a100")(second).seconds)
    assert spent == {("a100", "eager"): {"sample": slow}, ("a100", "graphs"): {}, ("h100", "eager"): {}}


def measured_erasures(name: str) -> list[tuple[str, int, int]]:
    """Variant, erased concepts and seconds of one core of each erasure of the tuning on the second miniature."""
    with (ROOT / "docs/tuning.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["eraser"].partition(".")[0] == name]
    tasks = {"tuning-people": 10, "tuning-object": 1, "tuning-character": 1}
    return [(row["eraser"].partition(".")[2] or "default", number, int(row[f"seconds {task}"]))
            for row in rows for task, number in tasks.items()]  # fmt: skip


GRADIENT = [name for name in erasers() if issubclass(eraser_config(name), Optimisation)]


@pytest.mark.parametrize("name", GRADIENT)
def test_the_seconds_of_erasing_on_a_cpu_are_those_that_were_measured(name: str) -> None:
    """Of all settings of an eraser together, within 30 % above and half below: they ran on several machines, with other
    work beside them."""
    block = read_yaml(ROOT / "studies/tuning.yaml")["erasers"][name]
    rates, runs, computed = read_rates(ROOT).cpu["miniature-2"], measured_erasures(name), 0.0
    assert len(runs) == 3 * len({variant for variant, *_ in runs}) >= 15  # settings that have run, on three tasks
    for variant, erased, _ in runs:
        settings = {k: v for k, v in block.items() if k != "variants"} | block["variants"][variant]
        task = {"erase": ["x"] * erased, "retain": ["y"] * 10}
        computed += rates.start + erasing({"method": name, "settings": settings, "task": task}, rates)
    assert 0.5 <= computed / sum(seconds for *_, seconds in runs) <= 1.3


def test_an_unknown_gpu_is_told(study: Study) -> None:
    with pytest.raises(ConfigError, match=r"--gpu = 'a10': is not in workflow/rates.yaml; did you mean 'a100'"):
        Coster(study, read_rates(ROOT), "a10")
    assert (Cost(1, 2, 3) + Cost(1, 1, 1)) == Cost(2, 3, 4)

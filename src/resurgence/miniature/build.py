"""The parts of a miniature world, in order: drawings, starter, autoencoder, base, recogniser, clip, quality.

An interrupted training resumes from its state in `scratch/PART` below the folder of the world, which is removed once
the part is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from resurgence.config.fields import ConfigError, build, read_yaml
from resurgence.config.task import Task, load_task
from resurgence.config.word_sets import check_task_words
from resurgence.miniature.captions import VOCABULARY, CaptionConfig

PARTS = ("drawings", "starter", "autoencoder", "base", "recogniser", "clip", "quality")


def tasks_of(cfg: dict) -> list[Task]:
    """The tasks of a world; raise ConfigError where two sets of one share a word (config/word_sets.py)."""
    world, tasks = read_yaml(Path(cfg["concepts"])), []
    for path in sorted(Path(cfg["tasks"]).glob("*.yaml")):
        tasks.append(load_task(path))
        check_task_words(tasks[-1], world, path.as_posix(), cfg["concepts"])
    return tasks


def emphasised(tasks: list[Task], changes: Mapping[str, bool] | None = None) -> set[str]:
    """Concepts of any of the tasks: those that it erases, retains, maps others to or fine-tunes on.

    Args:
        changes: concept -> whether it is among them, whatever the tasks say.
    """
    names = {name for task in tasks for name in (*task.erase, *task.retain, *task.mapping.values(), *task.finetune)}
    return {name for name in {*names, *(changes or {})} if (changes or {}).get(name, name in names)}


def build_part(part: str, cfg: dict, out: Path, device: str) -> None:
    """Build one part below `out`, with the arithmetic of `exact`; the parts that it needs must exist.

    Raises:
        ConfigError: the world has no settings of the part, or a task whose sets share a word.
    """
    if part != "drawings" and part not in cfg:
        raise ConfigError(part, None, "is not among the settings of this world; add it, as in config/world-2.yaml")
    from resurgence.diffusion.device import exact

    with exact(device):
        build_in_context(part, cfg, out, device)
    shutil.rmtree(out / "scratch" / part, ignore_errors=True)


def build_in_context(part: str, cfg: dict, out: Path, device: str) -> None:
    """Build one part; arguments as of `build_part`."""
    concepts, templates, scratch = Path(cfg["concepts"]), Path(cfg["templates"]), out / "scratch" / part
    drawings, tasks = out / "drawings" / "drawings.parquet", tasks_of(cfg)
    shares, tokens = build(CaptionConfig, cfg.get("captions", {}), "captions"), cfg.get("vocabulary", VOCABULARY)
    if part == "drawings":
        from resurgence.miniature import contact_sheets
        from resurgence.miniature.drawings import SIZE, main

        main(concepts, drawings, out / "scratch" / "packages", cfg["packages"], cfg.get("size", SIZE))
        contact_sheets.main(concepts, drawings, drawings.parent)
    elif part == "starter":
        from resurgence.miniature.starter import main

        main(concepts, templates, drawings, tasks, out / "starter", cfg[part])
    elif part == "autoencoder":
        from resurgence.miniature.autoencoder import main

        main(concepts, drawings, out / "autoencoder", scratch, cfg[part], shares.styled, device)
    elif part == "base":
        from resurgence.miniature.text_to_image import main

        names, vae = emphasised(tasks, cfg[part].get("emphasised")), out / "autoencoder"
        main(concepts, templates, drawings, vae, out / "base", scratch, cfg[part], names, shares, tokens, device)
    elif part == "recogniser":
        from resurgence.miniature.recogniser import main

        main(concepts, drawings, out / "recogniser", scratch, cfg[part], shares.styled, device)
    elif part == "clip":
        from resurgence.miniature.clip import main

        main(concepts, templates, drawings, out / "clip", scratch, cfg[part], shares, tokens, device)
    else:
        from resurgence.miniature.drawings import load_world
        from resurgence.miniature.quality import main

        words, names = load_world(concepts), emphasised(tasks)
        kinds = {c["name"]: c["kind"] for c in words["concepts"] if c["name"] in names}
        main(out, words, tasks, kinds, cfg[part], cfg["clip"].get("drawn_by"), device)

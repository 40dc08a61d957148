"""The parts of the miniature world, in order: drawings, autoencoder, base, recogniser, clip, quality.

An interrupted training resumes from its state in `scratch/PART` below the folder of the world, which is removed once
the part is complete.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from resurgence.config.fields import read_yaml
from resurgence.config.task import load_task

PARTS = ("drawings", "autoencoder", "base", "recogniser", "clip", "quality")


def emphasised(folder: Path) -> set[str]:
    """Concepts that any task of the folder erases, retains or maps others to; they are drawn more often."""
    tasks = [load_task(path) for path in sorted(Path(folder).glob("*.yaml"))]
    return {name for task in tasks for name in (*task.erase, *task.retain, *task.mapping.values())}


def build_part(part: str, cfg: dict, out: Path, device: str) -> None:
    """Build one part below `out`; the parts that it needs must exist."""
    concepts, templates, scratch = Path(cfg["concepts"]), Path(cfg["templates"]), out / "scratch" / part
    drawings = out / "drawings" / "drawings.parquet"
    if part == "drawings":
        from resurgence.miniature.drawings import main

        main(concepts, drawings, out / "scratch" / "packages", cfg["packages"])
    elif part == "autoencoder":
        from resurgence.miniature.autoencoder import main

        main(concepts, drawings, out / "autoencoder", scratch, cfg[part], device)
    elif part == "base":
        from resurgence.miniature.text_to_image import main

        names = emphasised(cfg["tasks"])
        main(concepts, templates, drawings, out / "autoencoder", out / "base", scratch, cfg[part], names, device)
    elif part == "recogniser":
        from resurgence.miniature.recogniser import main

        main(concepts, drawings, out / "recogniser", scratch, cfg[part], device)
    elif part == "clip":
        from resurgence.miniature.clip import main

        main(concepts, templates, drawings, out / "clip", scratch, cfg[part], device)
    else:
        from resurgence.miniature.quality import main

        names = emphasised(cfg["tasks"])
        kinds = {c["name"]: c["kind"] for c in read_yaml(concepts)["concepts"] if c["name"] in names}
        main(out, kinds, cfg[part], device)
    shutil.rmtree(scratch, ignore_errors=True)

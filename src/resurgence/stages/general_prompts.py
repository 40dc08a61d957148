"""General captions, on which the CLIP score and the Fréchet distance of a model are measured (figures 12 and 13)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from resurgence.prompts import COLUMNS, row
from resurgence.seeds import generator
from resurgence.stages.job import Job, main


def make(job: Job, folder: Path) -> dict:
    """Write prompts.csv: `size` captions drawn without replacement, one image each; all where there are fewer."""
    lines = Path(job.block["captions"]).read_text(encoding="utf-8").splitlines()
    captions = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    order = torch.randperm(len(captions), generator=generator("general captions", job.block["seed"])).tolist()
    chosen = [captions[place] for place in sorted(order[: job.block["size"]])]
    rows = pd.DataFrame([row(caption, "", "general", "", 0) for caption in chosen], columns=list(COLUMNS))
    rows.to_csv(folder / "prompts.csv", index=False)
    return {"images": len(rows)}


if __name__ == "__main__":
    main("prompt set", make)

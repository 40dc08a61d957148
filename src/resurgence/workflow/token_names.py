"""Compare the names of a study by the tokens of its base, before the first job: no job has all of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.config.fields import read_yaml
from resurgence.config.names import token_form
from resurgence.config.study_names import check_names_in_files, check_study_names
from resurgence.config.word_sets import check_caption_words, erased_words
from resurgence.diffusion.base_checks import check_folder
from resurgence.pretrained.checksums import locate
from resurgence.workflow import job_items, job_settings
from resurgence.workflow.rule_table import RULES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from resurgence.config.study import Study


def check_tokens(study: Study, rules: Collection[str]) -> None:
    """Raise ConfigError for names that must differ and are one to the base.

    Args:
        rules: of the jobs that are to run. If none of them reads names, nothing is compared; an earlier run did.

    Raises:
        FileNotFoundError, ValueError: the base is no folder of Stable Diffusion; see `check_folder`.
    """
    folder = locate(study.base.path, study.base.revision)
    reads = any(RULES[name].reads_names for name in rules if name in RULES)
    if folder is None or not reads:  # without the base, no job of the run loads it
        return
    check_folder(folder)
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    form = token_form(tokenizer)
    check_names_in_files(study, form)
    check_study_names(study, form)
    if RULES["real_set"].name in rules:
        check_real_sets(study, tokenizer)


def check_real_sets(study: Study, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError for captions of real pictures that hold an erased name, or a word of an erased concept.

    Raises:
        FileNotFoundError, ValueError: pictures that are missing or damaged, or too few; see `real_set`.
    """
    from resurgence.data.real_sets import real_set
    from resurgence.diffusion.text_checks import check_real_captions

    path = study.tasks.concepts
    listed = read_yaml(Path(path)) if path else {}
    for job in job_items.sets(study, ("real",)):
        task, settings = study.task(job["task"]), job_settings.real_set(study, job["task"], job["set"])
        rows = real_set(Path(settings["images"]), settings["concepts"], settings["size"]).rows
        captions = dict(zip(rows["file"], rows["prompt"], strict=True))
        place = f"finetune_sets.{job['set']}.images"
        check_real_captions(tokenizer, place, settings["images"], captions, task)
        check_caption_words(place, settings["images"], captions, erased_words(task, listed, path or ""))

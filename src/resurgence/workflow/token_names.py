"""Compare the names of a study by the tokens of its base, before the first job: no job has all of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from resurgence.config.names import token_form
from resurgence.config.study_names import check_names_in_files, check_study_names
from resurgence.diffusion.base_checks import check_folder
from resurgence.pretrained.checksums import locate

if TYPE_CHECKING:
    from resurgence.config.study import Study

READERS = {"prompts", "terciles", "finetune_set"}  # rules that run first with new names


def check_tokens(study: Study, rules: Collection[str]) -> None:
    """Raise ConfigError for names that must differ and are one to the base.

    Args:
        rules: of the jobs that are to run. If none of them reads names, nothing is compared; an earlier run did.

    Raises:
        FileNotFoundError, ValueError: the base is no folder of Stable Diffusion; see `check_folder`.
    """
    folder = locate(study.base.path, study.base.revision)
    if folder is None or not READERS & set(rules):  # without the base, no job of the run loads it
        return
    check_folder(folder)
    from transformers import CLIPTokenizer

    form = token_form(CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True))
    check_names_in_files(study, form)
    check_study_names(study, form)

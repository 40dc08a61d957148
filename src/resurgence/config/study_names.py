"""Names of a study that must differ: in its tasks, in its fine-tuning sets, and in what its erasers map concepts to.

They are compared as text when the study is read, and by the tokens of the base before its first job
(workflow/token_names.py), since no job has all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from resurgence.config.fields import ConfigError
from resurgence.config.names import TEXT, Form, check_apart, check_distinct, check_mapping, check_names, erased_names
from resurgence.config.spelling import normal_form
from resurgence.files import read_lines

if TYPE_CHECKING:
    from resurgence.config.study import Study


def check_study_names(study: Study, form: Form = TEXT) -> None:
    """Raise ConfigError for names that must differ and are equal, with both keys and both spellings."""
    for name, images in study.finetune_sets.items():
        for key, words in images.lists().items():
            of = filled(form) if key == "templates" else form
            check_distinct([(f"finetune_sets.{name}.{key}", word) for word in words], of)
    for task, eraser, variant in dict.fromkeys((e.task, e.eraser, e.variant) for e in study.erasures()):
        mapped, config = study.task(task, eraser, variant), study.eraser_config(task, eraser, variant)
        if config is not None:
            place = f"erasers.{eraser}.variants.{variant}: destination"
            check_mapping(config.destinations(mapped), mapped, form, place)
    for task, name in sets_of(study):
        shown = [(f"finetune_sets.{name}.concepts", concept) for concept in study.finetune_concepts(name, task)]
        remedy = f"the task {task} erases it, and the set would teach it again; remove it from the set"
        check_apart(shown, erased_names(study.loaded[task]), remedy, form)


def check_names_in_files(study: Study, form: Form) -> None:
    """Raise ConfigError for names of a task, or candidates of a tercile, that must differ and are equal, with the file.

    As text, the names of a task are compared when it is read, and candidates that are erased are left out.
    """
    for name, loaded in study.loaded.items():
        try:
            check_names(loaded, form)
            check_distinct([("templates", template) for template in loaded.templates], filled(form))
        except ConfigError as error:
            raise error.within(f"{study.tasks.folder}/{name}.yaml") from None
    for task, name in sets_of(study):
        if (tercile := study.finetune_sets[name].tercile) is not None:
            names = erased_names(study.loaded[task])
            erased = {normal_form(word) for _, word in names}
            lines = read_lines(Path(tercile.candidates))
            others = [(tercile.candidates, line) for line in lines if normal_form(line) not in erased]
            check_apart(others, names, f"the task {task} erases it; remove it from the file", form)


def filled(form: Form) -> Form:
    """The form of templates, with a word in their place: tokens of {} and of punctuation beside it would be joined."""
    return Form(lambda template: form.of(template.replace("{}", "a")), form.noun)


def sets_of(study: Study) -> list[tuple[str, str]]:
    """Each task with each fine-tuning set that is shown to its models."""
    return list(dict.fromkeys((c.erasure.task, study.set_of(c.finetune, c.variant)) for c in study.cells()))

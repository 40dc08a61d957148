# The study: erase concepts from a base model, fine-tune it on benign images, and measure what comes back.
#
#     snakemake --cores all                                            the default study, params.yaml
#     snakemake --cores all --configfile studies/miniature-full.yaml   another study, laid over it
#     snakemake -n -q rules                                            only say what would be done
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.20")
sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from resurgence.config.fields import read_yaml
from resurgence.config.model_path import WILDCARDS
from resurgence.files import resolve_path

# in a folder without one, with the defaults
PARAMS = resolve_path("params.yaml")
read_yaml(Path(PARAMS))  # whose errors name the file


configfile: PARAMS


report: "workflow/report/study.rst"


# with --software-deployment-method apptainer; envs/resurgence.def builds it
container: "resurgence.sif"


wildcard_constraints:
    **WILDCARDS,


include: "workflow/rules/common.smk"
include: "workflow/rules/coco.smk"
include: "workflow/rules/lists.smk"
include: "workflow/rules/records.smk"
include: "workflow/rules/targets.smk"
include: "workflow/rules/world.smk"


shell.prefix(resources.shell_prefix(ROOT, GPU, STUDY.base))


localrules:
    all,
    data,
    erased,
    finetuned,
    images,
    scores,
    presented,


rule all:
    default_target: True
    input:
        report_settings.whole(STUDY),


onstart:
    jobs = list(workflow.dag.needrun_jobs())
    needed = {job.rule.name for job in jobs}
    # a container has packages of its own
    in_container = workflow.deployment_settings.deployment_method
    check_present(STUDY, rules_loading(STUDY, jobs), kinds_scored(STUDY, jobs), packages=not in_container)
    check_tokens(STUDY, needed)
    check_writable(map(Path, ("results", "logs", "scratch")))
    resume.claim(Path())


onsuccess:
    shell(f"python -m resurgence.stages.run_summary {STUDY.statistics.level}")

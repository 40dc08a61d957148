"""The checked study, and functions of the rules on its records (resurgence.workflow.rule_table). No rules here."""

from pathlib import Path

from snakemake.utils import validate

ROOT = Path(workflow.basedir)

from resurgence.config.lists import LISTS
from resurgence.config.load import check_below, make_study
from resurgence.data import coco
from resurgence.provenance.outputs import check_writable
from resurgence.workflow import graph, job_items, report_settings, resources, resume
from resurgence.workflow.job_settings import text
from resurgence.workflow.rule_table import RULES, check_folders, every_manifest, outputs
from resurgence.workflow.token_names import check_tokens
from resurgence.workflow.weights import check_present, kinds_scored, rules_loading

# Snakemake takes the last of two equal keys, and 010 for 8; here these are errors
check_below({Path(file): read_yaml(Path(file)) for file in workflow.configfiles})
STUDY = make_study(config)
check_folders(STUDY)
MANIFESTS = every_manifest(STUDY)
PICTURES = report_settings.pictures(STUDY)  # of the report, by rule
validate(config, str(ROOT / "workflow/schemas/params.schema.yaml"), set_default=False)

# on a cluster: account, partitions and the request for a GPU, from the file that profiles/slurm names
SITE = resources.site()
# without a GPU the jobs run side by side, one core each
GPU = int(resources.uses_gpu(STUDY.base.device, SITE))
THREADS = 4 if GPU else 1
ON_GPU = resources.gpu_request(GPU, SITE)


COMMAND = (
    "python -m {params.module} {params.options} --settings {params.settings:q} --code {params.code}"
    " --out {output.manifest} --inputs {params.inputs:q} > {log} 2>&1"
)


def inputs(rule):
    """The inputs of a rule's job, by name."""
    return unpack(lambda wildcards: RULES[rule].inputs(STUDY, wildcards))


def job(rule):
    """Parameters of a rule's job: module, settings as one sorted text, version of the code, inputs as NAME=FILE."""
    return {
        "module": f"resurgence.stages.{RULES[rule].stage}",
        "options": RULES[rule].options,
        "settings": lambda wildcards: text(RULES[rule].settings(STUDY, wildcards)),
        "code": lambda wildcards: RULES[rule].version(STUDY, wildcards),
        "inputs": lambda wildcards, input: graph.named(input),
    }


def needs(rule):
    """Resources of a rule's job: GPU, main memory in MB, minutes; more with each attempt. Grouped jobs take turns."""
    weights = sum(Path(file).stat().st_size for file in graph.base(STUDY)["base"]) or None
    return {
        **(ON_GPU if RULES[rule].gpu else {}),
        "mem_mb": lambda wildcards, attempt: resources.memory(weights, GPU, attempt),
        "runtime": lambda wildcards, attempt: RULES[rule].minutes * attempt,
        "turn": 1,
    }


def of_stage(stage):
    """The artefacts in one folder of results/, which is one stage of DVC."""
    return [path for path in MANIFESTS if path.startswith(f"results/{stage}/")]


def pictures(rule):
    """The pictures of a rule, with their place in the report."""
    drawn = PICTURES.get(rule, ())
    return [report(path, category=c, caption=f"../report/{caption}.rst", labels=l) for path, c, caption, l in drawn]

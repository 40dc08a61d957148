# Figures and tables by name: `snakemake --cores all fig7` makes what fig7 shows and nothing else.


rule geometry:
    input:
        sources("geometry"),
        BASE,
        updates,
    output:
        manifest="results/scores/{base}/{task}/{eraser}/s{erase_seed}/{finetune}/f{finetune_seed}/geometry/manifest.json",
    log:
        "logs/{base}/{task}/{eraser}/s{erase_seed}/{finetune}/f{finetune_seed}/geometry.log",
    benchmark:
        "results/benchmarks/geometry/{base}/{task}/{eraser}/s{erase_seed}/{finetune}/f{finetune_seed}.jsonl"
    conda:
        "../../envs/conda.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes("geometry"),
        turn=1,
    params:
        cfg=block(blocks.geometry),
    message:
        "Weights of {wildcards.task} / {wildcards.eraser} with {wildcards.finetune}, seed {wildcards.finetune_seed}"
    shell:
        "python -m resurgence.stages.geometry --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


rule experiment:
    input:
        sources("experiment"),
        experiment_inputs,
    output:
        report(
            "results/experiments/{experiment}/{experiment}.png",
            category="Experiments",
            caption="../report/experiment.rst",
            labels={"experiment": "{experiment}", "file": "figure"},
        ),
        report(
            "results/experiments/{experiment}/{experiment}.csv",
            category="Experiments",
            caption="../report/experiment.rst",
            labels={"experiment": "{experiment}", "file": "table"},
        ),
        text="results/experiments/{experiment}/{experiment}.md",
        made="results/experiments/{experiment}/made.json",
    log:
        "logs/experiments/{experiment}.log",
    benchmark:
        "results/benchmarks/experiment/{experiment}.jsonl"
    wildcard_constraints:
        experiment=r"[a-z][a-z0-9_]*",
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(presentation.experiment, experiment_name),
    message:
        "Experiment {wildcards.experiment}"
    shell:
        "python -m resurgence.stages.experiment --block {params.cfg:q} --out {output.made}"
        " --inputs {input} > {log} 2>&1"


for each in STUDY.experiments:

    rule:
        name:
            each
        input:
            f"results/experiments/{each}/made.json",


rule results:
    input:
        sources("results"),
        [f"results/experiments/{each}/made.json" for each in STUDY.experiments],
        [f"results/experiments/{each}/{each}.md" for each in STUDY.experiments],
    output:
        text="results/experiments/results.md",
        made="results/experiments/made.json",
    log:
        "logs/experiments.log",
    benchmark:
        "results/benchmarks/results/study.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(presentation.results),
    message:
        "Results of all experiments"
    shell:
        "python -m resurgence.stages.results --block {params.cfg:q} --out {output.made} --inputs {input} > {log} 2>&1"

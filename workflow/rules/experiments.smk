# Figures and tables by name: `snakemake --cores all fig7` makes what fig7 shows and nothing else.


rule experiment:
    input:
        inputs("experiment"),
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
        manifest="results/experiments/{experiment}/made.json",
    log:
        RULES["experiment"].log,
    benchmark:
        RULES["experiment"].benchmark
    wildcard_constraints:
        experiment=r"[a-z][a-z0-9_]*",
    params:
        **job("experiment"),
    message:
        "Experiment {wildcards.experiment}"
    shell:
        COMMAND


for each in STUDY.experiments:

    rule:
        name:
            each
        input:
            f"results/experiments/{each}/made.json",


rule results:
    input:
        inputs("results"),
    output:
        text="results/experiments/results.md",
        manifest="results/experiments/made.json",
    log:
        RULES["results"].log,
    benchmark:
        RULES["results"].benchmark
    params:
        **job("results"),
    message:
        "Results of all experiments"
    shell:
        COMMAND

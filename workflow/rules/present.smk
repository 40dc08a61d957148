# Tables, figures and the report.


rule tables:
    input:
        sources("tables"),
        score_manifests(),
    output:
        cells="results/tables/cells.csv",
        resurgence="results/tables/resurgence.csv",
        seeds="results/tables/seeds.csv",
        intervals="results/tables/intervals.csv",
        text="results/tables/resurgence.md",
    log:
        "logs/tables.log",
    benchmark:
        "results/benchmarks/tables/study.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(blocks.tables),
    message:
        "Tables of the study"
    shell:
        "python -m resurgence.stages.tables --block {params.cfg:q} --out {output.text} --inputs {input}" " > {log} 2>&1"


rule figures:
    input:
        sources("figures"),
        rules.tables.output,
        every_manifest(),
    output:
        *FIGURES,
        cost="results/tables/cost.csv",
        compared=expand("results/tables/compare_{metric}.{kind}", metric=STUDY.figures.metrics, kind=("csv", "md")),
        page=report(
            "results/tables/resurgence.html",
            category="Overview",
            caption="../report/resurgence.rst",
            labels={"content": "tables of all metrics"},
        ),
    log:
        "logs/figures.log",
    benchmark:
        "results/benchmarks/figures/study.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(blocks.figures),
    message:
        "Figures and cost of the study"
    shell:
        "python -m resurgence.stages.figures --block {params.cfg:q} --out {output.page} --inputs {input} > {log} 2>&1"


rule grids:
    input:
        sources("grids"),
        shown_manifests(),
    output:
        *GRIDS,
        names="results/grids/names.txt",
    log:
        "logs/grids.log",
    benchmark:
        "results/benchmarks/grids/study.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(blocks.grids),
    message:
        "Grids of images and masks"
    shell:
        "python -m resurgence.stages.grids --block {params.cfg:q} --out {output.names} --inputs {input} > {log} 2>&1"


rule report:
    input:
        sources("report"),
        rules.tables.output,
        rules.figures.output,
        rules.grids.output,
    output:
        html="results/report.html",
    log:
        "logs/report.log",
    benchmark:
        "results/benchmarks/report/study.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=whole_config(),
    message:
        "Report of the study"
    shell:
        "python -m resurgence.stages.report --block {params.cfg:q} --out {output.html} --inputs {input} > {log} 2>&1"

# Tables, figures, grids, cost and the report. Cost and report tell of this run; everything else is the same in each.


rule tables:
    input:
        sources("tables"),
        score_manifests(),
        reference_manifest(),
    output:
        cells="results/tables/cells.csv",
        resurgence="results/tables/resurgence.csv",
        seeds="results/tables/seeds.csv",
        intervals="results/tables/intervals.csv",
        metrics="results/tables/metrics.json",
        text="results/tables/resurgence.md",
        made="results/tables/made.json",
    log:
        "logs/tables.log",
    benchmark:
        "results/benchmarks/tables/study.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(presentation.tables),
    message:
        "Tables of the study"
    shell:
        "python -m resurgence.stages.tables --block {params.cfg:q} --out {output.made} --inputs {input}" " > {log} 2>&1"


rule figures:
    input:
        sources("figures"),
        rules.tables.output,
        drawn_manifests(),
    output:
        *FIGURES,
        made="results/figures/made.json",
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
        cfg=block(presentation.figures),
    message:
        "Figures of the study"
    shell:
        "python -m resurgence.stages.figures --block {params.cfg:q} --out {output.made} --inputs {input} > {log} 2>&1"


rule cost:
    input:
        sources("cost"),
        rules.tables.output,
        every_manifest(),
    output:
        figure("results/cost/cost.png", "Cost", "cost", content="seconds by stage"),
        *COMPARED,
        seconds="results/cost/cost.csv",
        compared=expand("results/cost/compare_{metric}.{kind}", metric=STUDY.figures.metrics, kind=("csv", "md")),
        runs="results/cost/runs.json",
        made="results/cost/made.json",
    log:
        "logs/cost.log",
    benchmark:
        "results/benchmarks/cost/study.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(presentation.cost),
    message:
        "Cost of the study"
    shell:
        "python -m resurgence.stages.cost --block {params.cfg:q} --out {output.made} --inputs {input} > {log} 2>&1"


rule grids:
    input:
        sources("grids"),
        shown_manifests(),
    output:
        *GRIDS,
        made="results/grids/made.json",
    log:
        "logs/grids.log",
    benchmark:
        "results/benchmarks/grids/study.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(presentation.grids),
    message:
        "Grids of images and masks"
    shell:
        "python -m resurgence.stages.grids --block {params.cfg:q} --out {output.made} --inputs {input} > {log} 2>&1"


rule report:
    input:
        sources("report"),
        rules.tables.output,
        rules.figures.output,
        rules.grids.output,
        rules.cost.output,
        rules.results.output if STUDY.experiments else [],
    output:
        html="results/report.html",
        made="results/cost/report.json",
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
        "python -m resurgence.stages.report --block {params.cfg:q} --out {output.made} --inputs {input} > {log} 2>&1"

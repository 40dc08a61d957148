# Tables, figures and the report.


rule tables:
    message:
        "Tables of the study"
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
    shell:
        "python -m resurgence.stages.tables --block {params.cfg:q} --out {output.text} --inputs {input}"
        " > {log} 2>&1"


rule figures:
    message:
        "Figures and cost of the study"
    input:
        sources("figures"),
        rules.tables.output,
        every_manifest(),
    output:
        *FIGURES,
        cost="results/tables/cost.csv",
        page=report(
            "results/tables/resurgence.html",
            category="Overview",
            caption="../report/resurgence.rst",
            labels={"content": "resurgence, all metrics", "metric": "all"},
        ),
    log:
        "logs/figures.log",
    benchmark:
        "results/benchmarks/figures/study.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(blocks.figures),
    shell:
        "python -m resurgence.stages.figures --block {params.cfg:q} --out {output.page} --inputs {input} > {log} 2>&1"


rule grids:
    message:
        "Grids of images and masks"
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
    shell:
        "python -m resurgence.stages.grids --block {params.cfg:q} --out {output.names} --inputs {input} > {log} 2>&1"


rule report:
    message:
        "Report of the study"
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
        cfg=blocks.text(config),
    shell:
        "python -m resurgence.stages.report --block {params.cfg:q} --out {output.html} --inputs {input} > {log} 2>&1"

# Tables, figures, grids, cost and the report. Cost and report tell of this run; everything else is the same in each.


rule tables:
    input:
        inputs("tables"),
    output:
        cells="results/tables/cells.csv",
        resurgence="results/tables/resurgence.csv",
        seeds="results/tables/seeds.csv",
        intervals="results/tables/intervals.csv",
        metrics="results/tables/metrics.json",
        text="results/tables/resurgence.md",
        made="results/tables/made.json",
    log:
        RULES["tables"].log,
    benchmark:
        RULES["tables"].benchmark
    params:
        **job("tables"),
    message:
        "Tables of the study"
    shell:
        RULES["tables"].command


rule figures:
    input:
        inputs("figures"),
    output:
        *pictures("figures"),
        made="results/figures/made.json",
        page=report(
            "results/tables/resurgence.html",
            category="Overview",
            caption="../report/resurgence.rst",
            labels={"content": "tables of all metrics"},
        ),
    log:
        RULES["figures"].log,
    benchmark:
        RULES["figures"].benchmark
    params:
        **job("figures"),
    message:
        "Figures of the study"
    shell:
        RULES["figures"].command


rule cost:
    input:
        inputs("cost"),
    output:
        *pictures("cost"),
        seconds="results/cost/cost.csv",
        compared=expand("results/cost/compare_{metric}.{kind}", metric=STUDY.figures.metrics, kind=("csv", "md")),
        runs="results/cost/runs.json",
        made="results/cost/made.json",
    log:
        RULES["cost"].log,
    benchmark:
        RULES["cost"].benchmark
    params:
        **job("cost"),
    message:
        "Cost of the study"
    shell:
        RULES["cost"].command


rule grids:
    input:
        inputs("grids"),
    output:
        *pictures("grids"),
        made="results/grids/made.json",
    log:
        RULES["grids"].log,
    benchmark:
        RULES["grids"].benchmark
    params:
        **job("grids"),
    message:
        "Grids of images and masks"
    shell:
        RULES["grids"].command


rule report:
    input:
        inputs("report"),
    output:
        html="results/report.html",
        made="results/cost/report.json",
    log:
        RULES["report"].log,
    benchmark:
        RULES["report"].benchmark
    params:
        **job("report"),
    message:
        "Report of the study"
    shell:
        RULES["report"].command

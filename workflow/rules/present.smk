# Tables, figures, grids, cost, the page on which the study opens, and the report. Cost and report tell of this run;
# everything else is the same in each.


rule tables:
    input:
        inputs("tables"),
    output:
        cells="results/tables/cells.csv",
        means="results/tables/means.csv",
        resurgence="results/tables/resurgence.csv",
        seeds="results/tables/seeds.csv",
        intervals="results/tables/intervals.csv",
        metrics="results/tables/metrics.json",
        text="results/tables/resurgence.md",
        manifest="results/tables/made.json",
    log:
        RULES["tables"].log,
    benchmark:
        RULES["tables"].benchmark
    params:
        **job("tables"),
    message:
        "Tables of the study"
    shell:
        COMMAND


rule figures:
    input:
        inputs("figures"),
    output:
        *pictures("figures"),
        manifest="results/figures/made.json",
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
        COMMAND


rule cost:
    input:
        inputs("cost"),
    output:
        *pictures("cost"),
        seconds="results/cost/cost.csv",
        compared=expand("results/cost/compare_{metric}.{kind}", metric=STUDY.figures.metrics, kind=("csv", "md")),
        runs="results/cost/runs.json",
        manifest="results/cost/made.json",
    log:
        RULES["cost"].log,
    benchmark:
        RULES["cost"].benchmark
    params:
        **job("cost"),
    message:
        "Cost of the study"
    shell:
        COMMAND


rule grids:
    input:
        inputs("grids"),
    output:
        *pictures("grids"),
        manifest="results/grids/made.json",
    log:
        RULES["grids"].log,
    benchmark:
        RULES["grids"].benchmark
    params:
        **job("grids"),
    message:
        "Grids of images and masks"
    shell:
        COMMAND


rule index:
    input:
        inputs("index"),
    output:
        html="results/index.html",
        manifest="results/cost/index.json",
    log:
        RULES["index"].log,
    benchmark:
        RULES["index"].benchmark
    params:
        **job("index"),
    message:
        "Page of the study"
    shell:
        COMMAND


rule report:
    input:
        inputs("report"),
    output:
        html="results/report.html",
        manifest="results/cost/report.json",
    log:
        RULES["report"].log,
    benchmark:
        RULES["report"].benchmark
    params:
        **job("report"),
    message:
        "Report of the study"
    shell:
        COMMAND

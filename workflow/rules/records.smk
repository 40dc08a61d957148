# The rules of the study: a record each in src/resurgence/workflow/rule_table.py, in the order of the graph, with stage,
# output, settings, inputs, time limit. Most write one artefact; tables, figures, cost, pages and experiments write files
# into shared folders and list them in a made.json. `snakemake --list-rules` lists them.

for record in RULES.values():

    rule:
        name:
            record.name
        input:
            inputs(record.name),
        output:
            *pictures(record.name),
            *record.files(STUDY),
            manifest=record.output,
        log:
            record.log,
        benchmark:
            record.benchmark
        wildcard_constraints:
            **record.constraints(STUDY),
        localrule: record.local
        threads: THREADS if record.gpu else 1
        resources:
            **(needs(record.name) if record.is_artefact else {}),
        params:
            **job(record.name),
        message:
            record.message
        shell:
            COMMAND


# figures and tables by name: `snakemake --cores all fig7` makes what fig7 shows and nothing else
for each in STUDY.experiments:

    rule:
        name:
            each
        input:
            f"results/experiments/{each}/made.json",

# The rules that write one artefact each: prompts, corpora, images of concepts, masks, fine-tuning sets, LoRAs, erased and
# fine-tuned models, images, scores. Their records, in the order of the graph, are in src/resurgence/workflow/rule_table.py:
# stage, output, settings, inputs, time limit. `snakemake --list-rules` lists them.

for record in RULES.values():
    if record.is_artefact:

        rule:
            name:
                record.name
            input:
                inputs(record.name),
            output:
                manifest=record.output,
            log:
                record.log,
            benchmark:
                record.benchmark
            wildcard_constraints:
                **record.constraints(STUDY),
            threads: THREADS if record.gpu else 1
            resources:
                **needs(record.name),
            params:
                **job(record.name),
            message:
                record.message
            shell:
                COMMAND

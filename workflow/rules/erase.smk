# Erased models: what an eraser changes in the base.


rule loras:
    input:
        inputs("loras"),
    output:
        manifest=RULES["loras"].output,
    log:
        RULES["loras"].log,
    benchmark:
        RULES["loras"].benchmark
    threads: THREADS
    resources:
        **needs("loras"),
        turn=1,
    params:
        **job("loras"),
    message:
        "LoRAs of {wildcards.task} for {wildcards.eraser}, seed {wildcards.erase_seed}"
    shell:
        RULES["loras"].command


rule erase:
    input:
        inputs("erase"),
    output:
        manifest=RULES["erase"].output,
    log:
        RULES["erase"].log,
    benchmark:
        RULES["erase"].benchmark
    wildcard_constraints:
        eraser=job_items.eraser_pattern(STUDY, solved=False),
    threads: THREADS
    resources:
        **needs("erase"),
    params:
        **job("erase"),
    message:
        "Erase {wildcards.task} with {wildcards.eraser}, seed {wildcards.erase_seed}"
    shell:
        RULES["erase"].command


# The same for those that take seconds: closed forms, and the fusion of trained LoRAs. On a cluster many of them are one
# job (profiles/slurm).
use rule erase as closed_form with:
    benchmark:
        RULES["closed_form"].benchmark
    wildcard_constraints:
        eraser=job_items.eraser_pattern(STUDY, solved=True),
    resources:
        **needs("closed_form"),
        turn=1,

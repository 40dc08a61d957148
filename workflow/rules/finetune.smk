# Fine-tuned models: an erased model after training on images of other concepts, at several steps.


rule finetune:
    input:
        inputs("finetune"),
    output:
        manifest=RULES["finetune"].output,
    log:
        RULES["finetune"].log,
    benchmark:
        RULES["finetune"].benchmark
    threads: THREADS
    resources:
        **needs("finetune"),
    params:
        **job("finetune"),
    message:
        "Fine-tune {wildcards.task} / {wildcards.eraser} with {wildcards.finetune}, seed {wildcards.finetune_seed}"
    shell:
        RULES["finetune"].command

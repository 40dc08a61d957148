# Fine-tuned models: an erased model after training on images of other concepts, at several steps.


rule finetune:
    input:
        sources("finetune"),
        BASE,
        finetune_inputs,
    output:
        manifest="results/finetuned/{base}/{task}/{eraser}/s{erase_seed}/{finetune}/f{finetune_seed}/weights/manifest.json",
    log:
        "logs/{base}/{task}/{eraser}/s{erase_seed}/{finetune}/f{finetune_seed}/weights.log",
    benchmark:
        "results/benchmarks/finetune/{base}/{task}/{eraser}/s{erase_seed}/{finetune}/f{finetune_seed}.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("finetune"),
    params:
        cfg=block(blocks.finetune, cell),
    message:
        "Fine-tune {wildcards.task} / {wildcards.eraser} with {wildcards.finetune}, seed {wildcards.finetune_seed}"
    shell:
        "python -m resurgence.stages.finetune --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"

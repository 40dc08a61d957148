# Erased models: what an eraser changes in the base.


rule loras:
    input:
        sources("loras"),
        BASE,
        loras_data,
    output:
        manifest="results/erased/{base}/{task}/{eraser}/s{erase_seed}/loras/manifest.json",
    log:
        "logs/{base}/{task}/{eraser}/s{erase_seed}/loras.log",
    benchmark:
        "results/benchmarks/loras/{base}/{task}/{eraser}/s{erase_seed}.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("loras"),
        turn=1,
    params:
        cfg=block(blocks.loras, erasure),
    message:
        "LoRAs of {wildcards.task} for {wildcards.eraser}, seed {wildcards.erase_seed}"
    shell:
        "python -m resurgence.stages.loras --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


rule erase:
    input:
        eraser_sources,
        BASE,
        eraser_inputs,
    output:
        manifest="results/erased/{base}/{task}/{eraser}/s{erase_seed}/delta/manifest.json",
    log:
        "logs/{base}/{task}/{eraser}/s{erase_seed}/delta.log",
    benchmark:
        "results/benchmarks/erase/{base}/{task}/{eraser}/s{erase_seed}.jsonl"
    wildcard_constraints:
        eraser=erasers_named(solved=False),
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("erase"),
    params:
        cfg=block(blocks.erase, erasure),
    message:
        "Erase {wildcards.task} with {wildcards.eraser}, seed {wildcards.erase_seed}"
    shell:
        "python -m resurgence.stages.erase --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


# The same for those that take seconds: closed forms, and the fusion of trained LoRAs. On a cluster many of them are one
# job (profiles/slurm).
use rule erase as closed_form with:
    benchmark:
        "results/benchmarks/closed_form/{base}/{task}/{eraser}/s{erase_seed}.jsonl"
    wildcard_constraints:
        eraser=erasers_named(solved=True),
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("closed_form"),
        turn=1,

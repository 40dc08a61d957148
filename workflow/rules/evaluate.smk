# Images and scores of every model. A model is a path: <task> is the base itself,
# <task>/<eraser>/s<seed> an erased model, and <task>/<eraser>/s<seed>/<finetune>/f<seed> a fine-tuned one.


rule sample:
    input:
        sources("sample"),
        BASE,
        model_weights,
    output:
        manifest="results/images/{base}/{model}/images/manifest.json",
    log:
        "logs/{base}/{model}/images.log",
    benchmark:
        "results/benchmarks/sample/{base}/{model}.jsonl"
    wildcard_constraints:
        model=MODEL,
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("sample"),
    params:
        cfg=block(blocks.sample),
    message:
        "Sample {wildcards.model}"
    shell:
        "python -m resurgence.stages.sample --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


rule score:
    input:
        sources("score", *SCORERS),
        SCORER_WEIGHTS,
        "results/images/{base}/{model}/images/manifest.json",
    output:
        manifest="results/scores/{base}/{model}/scores/manifest.json",
    log:
        "logs/{base}/{model}/scores.log",
    benchmark:
        "results/benchmarks/score/{base}/{model}.jsonl"
    wildcard_constraints:
        model=MODEL,
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("score"),
    params:
        cfg=block(blocks.score, model_task),
    message:
        "Score the images of {wildcards.model}"
    shell:
        "python -m resurgence.stages.score --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


rule reference_features:
    input:
        sources("reference_features", *reference_scorer()),
        SCORER_WEIGHTS,
        reference_pictures,
    output:
        manifest="results/data/{base}/reference/manifest.json",
    log:
        "logs/{base}/reference.log",
    benchmark:
        "results/benchmarks/reference_features/{base}.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("reference_features"),
    params:
        cfg=block(blocks.reference),
    message:
        "Features of real images"
    shell:
        "python -m resurgence.stages.reference_features --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"

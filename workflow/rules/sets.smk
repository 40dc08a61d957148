# What a task is made of, computed once and shared by all erasers: prompts, corpora, concept images, fine-tuning sets.


rule prompts:
    input:
        sources("prompts"),
        general_prompts,
    output:
        manifest="results/data/{base}/{task}/prompts/manifest.json",
    log:
        "logs/{base}/{task}/prompts.log",
    benchmark:
        "results/benchmarks/prompts/{base}/{task}.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(blocks.prompts, task),
    message:
        "Prompts of {wildcards.task}"
    shell:
        "python -m resurgence.stages.prompts --block {params.cfg:q} --out {output.manifest} --inputs {input}"
        " > {log} 2>&1"


rule prior_moments:
    input:
        sources("moments"),
        BASE,
        STUDY.moments.prior,
    output:
        manifest="results/data/{base}/moments/manifest.json",
    log:
        "logs/{base}/moments.log",
    benchmark:
        "results/benchmarks/prior_moments/{base}.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("prior_moments"),
    params:
        cfg=block(blocks.prior_moments),
    message:
        "Second moment of the general captions under {wildcards.base}"
    shell:
        "python -m resurgence.stages.moments --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


rule domain_moments:
    input:
        sources("moments"),
        BASE,
        domain_templates,
    output:
        manifest="results/data/{base}/{task}/moments/manifest.json",
    log:
        "logs/{base}/{task}/moments.log",
    benchmark:
        "results/benchmarks/domain_moments/{base}/{task}.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("domain_moments"),
        turn=1,
    params:
        cfg=block(blocks.domain_moments, task),
    message:
        "Second moment of the concepts that {wildcards.task} retains"
    shell:
        "python -m resurgence.stages.moments --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


rule concept_images:
    input:
        sources("concept_images"),
        BASE,
    output:
        manifest="results/data/{base}/{task}/concept_images/manifest.json",
    log:
        "logs/{base}/{task}/concept_images.log",
    benchmark:
        "results/benchmarks/concept_images/{base}/{task}.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("concept_images"),
    params:
        cfg=block(blocks.concept_images, task),
    message:
        "Images of the concepts that {wildcards.task} erases, made by {wildcards.base}"
    shell:
        "python -m resurgence.stages.concept_images --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


use rule concept_images as anchor_images with:
    output:
        manifest="results/data/{base}/{task}/anchor_images/manifest.json",
    log:
        "logs/{base}/{task}/anchor_images.log",
    benchmark:
        "results/benchmarks/anchor_images/{base}/{task}.jsonl"
    params:
        cfg=block(blocks.anchor_images, task),
    message:
        "Images of the concepts that {wildcards.task} maps to, made by {wildcards.base}"


use rule concept_images as retained_images with:
    output:
        manifest="results/data/{base}/{task}/retained_images/manifest.json",
    log:
        "logs/{base}/{task}/retained_images.log",
    benchmark:
        "results/benchmarks/retained_images/{base}/{task}.jsonl"
    params:
        cfg=block(blocks.retained_images, task),
    message:
        "Images of the concepts that {wildcards.task} retains, made by {wildcards.base}"


rule masks:
    input:
        sources("masks", segmenter()),
        mask_base(),
        "results/data/{base}/{task}/concept_images/manifest.json",
    output:
        manifest="results/data/{base}/{task}/masks/manifest.json",
    log:
        "logs/{base}/{task}/masks.log",
    benchmark:
        "results/benchmarks/masks/{base}/{task}.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("masks"),
    params:
        cfg=block(blocks.masks, task),
    message:
        "Masks of the concepts that {wildcards.task} erases"
    shell:
        "python -m resurgence.stages.masks --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


rule terciles:
    input:
        sources("terciles"),
        CLIP_WEIGHTS,
        tercile_candidates,
    output:
        manifest="results/data/{base}/{task}/terciles/{set}/manifest.json",
    log:
        "logs/{base}/{task}/terciles/{set}.log",
    benchmark:
        "results/benchmarks/terciles/{base}/{task}/{set}.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=block(blocks.terciles, task, set_name),
    message:
        "Concepts of the fine-tuning set {wildcards.set} of {wildcards.task}, by similarity"
    shell:
        "python -m resurgence.stages.terciles --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"


rule finetune_set:
    input:
        sources("finetune_set"),
        BASE,
        drawn_concepts,
    output:
        manifest="results/data/{base}/{task}/finetune_sets/{set}/manifest.json",
    log:
        "logs/{base}/{task}/finetune_sets/{set}.log",
    benchmark:
        "results/benchmarks/finetune_set/{base}/{task}/{set}.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: THREADS
    resources:
        **ON_GPU,
        mem_mb=memory,
        runtime=minutes("finetune_set"),
    params:
        cfg=block(blocks.finetune_set, task, set_name),
    message:
        "Fine-tuning set {wildcards.set} of {wildcards.task}, made by {wildcards.base}"
    shell:
        "python -m resurgence.stages.finetune_set --block {params.cfg:q} --out {output.manifest}"
        " --inputs {input} > {log} 2>&1"

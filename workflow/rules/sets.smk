# What a task is made of, computed once and shared by all erasers: prompts, corpora, concept images, fine-tuning sets.


rule prompts:
    input:
        inputs("prompts"),
    output:
        manifest=RULES["prompts"].output,
    log:
        RULES["prompts"].log,
    benchmark:
        RULES["prompts"].benchmark
    params:
        **job("prompts"),
    message:
        "Prompts of {wildcards.task}"
    shell:
        RULES["prompts"].command


rule prior_moments:
    input:
        inputs("prior_moments"),
    output:
        manifest=RULES["prior_moments"].output,
    log:
        RULES["prior_moments"].log,
    benchmark:
        RULES["prior_moments"].benchmark
    threads: THREADS
    resources:
        **needs("prior_moments"),
    params:
        **job("prior_moments"),
    message:
        "Second moment of the general captions under {wildcards.base}"
    shell:
        RULES["prior_moments"].command


rule domain_moments:
    input:
        inputs("domain_moments"),
    output:
        manifest=RULES["domain_moments"].output,
    log:
        RULES["domain_moments"].log,
    benchmark:
        RULES["domain_moments"].benchmark
    threads: THREADS
    resources:
        **needs("domain_moments"),
        turn=1,
    params:
        **job("domain_moments"),
    message:
        "Second moment of the concepts that {wildcards.task} retains"
    shell:
        RULES["domain_moments"].command


rule concept_images:
    input:
        inputs("concept_images"),
    output:
        manifest=RULES["concept_images"].output,
    log:
        RULES["concept_images"].log,
    benchmark:
        RULES["concept_images"].benchmark
    threads: THREADS
    resources:
        **needs("concept_images"),
    params:
        **job("concept_images"),
    message:
        "Images of the concepts that {wildcards.task} erases, made by {wildcards.base}"
    shell:
        RULES["concept_images"].command


use rule concept_images as anchor_images with:
    output:
        manifest=RULES["anchor_images"].output,
    log:
        RULES["anchor_images"].log,
    benchmark:
        RULES["anchor_images"].benchmark
    params:
        **job("anchor_images"),
    message:
        "Images of the concepts that {wildcards.task} maps to, made by {wildcards.base}"


use rule concept_images as retained_images with:
    output:
        manifest=RULES["retained_images"].output,
    log:
        RULES["retained_images"].log,
    benchmark:
        RULES["retained_images"].benchmark
    params:
        **job("retained_images"),
    message:
        "Images of the concepts that {wildcards.task} retains, made by {wildcards.base}"


rule masks:
    input:
        inputs("masks"),
    output:
        manifest=RULES["masks"].output,
    log:
        RULES["masks"].log,
    benchmark:
        RULES["masks"].benchmark
    threads: THREADS
    resources:
        **needs("masks"),
    params:
        **job("masks"),
    message:
        "Masks of the concepts that {wildcards.task} erases"
    shell:
        RULES["masks"].command


rule terciles:
    input:
        inputs("terciles"),
    output:
        manifest=RULES["terciles"].output,
    log:
        RULES["terciles"].log,
    benchmark:
        RULES["terciles"].benchmark
    params:
        **job("terciles"),
    message:
        "Concepts of the fine-tuning set {wildcards.set} of {wildcards.task}, by similarity"
    shell:
        RULES["terciles"].command


rule finetune_set:
    input:
        inputs("finetune_set"),
    output:
        manifest=RULES["finetune_set"].output,
    log:
        RULES["finetune_set"].log,
    benchmark:
        RULES["finetune_set"].benchmark
    threads: THREADS
    resources:
        **needs("finetune_set"),
    params:
        **job("finetune_set"),
    message:
        "Fine-tuning set {wildcards.set} of {wildcards.task}, made by {wildcards.base}"
    shell:
        RULES["finetune_set"].command

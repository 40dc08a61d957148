# Images and scores of every model. A model is a path: <task> is the base itself,
# <task>/<eraser>/s<seed> an erased model, and <task>/<eraser>/s<seed>/<finetune>/f<seed> a fine-tuned one.


rule sample:
    input:
        inputs("sample"),
    output:
        manifest=RULES["sample"].output,
    log:
        RULES["sample"].log,
    benchmark:
        RULES["sample"].benchmark
    wildcard_constraints:
        model=MODEL,
    threads: THREADS
    resources:
        **needs("sample"),
    params:
        **job("sample"),
    message:
        "Sample {wildcards.model}"
    shell:
        RULES["sample"].command


rule score:
    input:
        inputs("score"),
    output:
        manifest=RULES["score"].output,
    log:
        RULES["score"].log,
    benchmark:
        RULES["score"].benchmark
    wildcard_constraints:
        model=MODEL,
    threads: THREADS
    resources:
        **needs("score"),
    params:
        **job("score"),
    message:
        "Score the images of {wildcards.model}"
    shell:
        RULES["score"].command


rule reference_features:
    input:
        inputs("reference_features"),
    output:
        manifest=RULES["reference_features"].output,
    log:
        RULES["reference_features"].log,
    benchmark:
        RULES["reference_features"].benchmark
    threads: THREADS
    resources:
        **needs("reference_features"),
    params:
        **job("reference_features"),
    message:
        "Features of real images"
    shell:
        RULES["reference_features"].command

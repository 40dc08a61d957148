# Published lists of prompts and words: fetched once from config/mirrors.yaml, their checksums locked then, never shipped.
# Without network: copy the file to data/lists/ by hand.

for each, place in LISTS.items():

    rule:
        name:
            each
        output:
            place,
        log:
            f"logs/lists/{each}.log",
        benchmark:
            f"results/benchmarks/{each}/list.jsonl"
        localrule: True
        message:
            "Fetch {output}"
        shell:
            "python -m resurgence.pretrained.mirrors {output} > {log} 2>&1"

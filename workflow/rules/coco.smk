# Captions of MS-COCO 2014 (CC BY 4.0), for studies whose prior corpus they are: fetched once, checked, never shipped.
# Without network: copy the archive to data/coco/ by hand.


rule coco_annotations:
    output:
        coco.ARCHIVE,
    log:
        "logs/coco/annotations.log",
    benchmark:
        "results/benchmarks/coco_annotations/coco.jsonl"
    localrule: True
    params:
        url=coco.URL,
        sha256=coco.SHA256,
    message:
        f"Fetch the annotations of MS-COCO 2014 (253 MB, licence {coco.LICENCE})"
    shell:
        "python -m resurgence.data.coco annotations --out {output} > {log} 2>&1"


rule coco_captions:
    input:
        coco.ARCHIVE,
    output:
        coco.CAPTIONS,
    log:
        "logs/coco/captions.log",
    benchmark:
        "results/benchmarks/coco_captions/coco.jsonl"
    localrule: True
    params:
        parts=coco.PARTS,
    message:
        "All captions of MS-COCO 2014"
    shell:
        "python -m resurgence.data.coco captions --archive {input} --out {output} > {log} 2>&1"


rule coco_sample:
    input:
        coco.ARCHIVE,
    output:
        coco.SAMPLE,
    log:
        "logs/coco/sample.log",
    benchmark:
        "results/benchmarks/coco_sample/coco.jsonl"
    localrule: True
    params:
        seed=0,
    message:
        "5,000 captions of MS-COCO 2014 with their seeds"
    shell:
        "python -m resurgence.data.coco sample --archive {input} --seed {params.seed} --out {output} > {log} 2>&1"

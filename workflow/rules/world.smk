# The miniature world and its models, made again from nothing: `snakemake --cores all world`. Hours without a GPU; the
# studies start from the shipped copy in data/miniature, so nothing here is part of the default target.


rule world:
    input:
        "results/world/clip/open_clip_model.safetensors",
        "results/world/quality/base.csv",


rule world_drawings:
    input:
        world_files("drawings"),
        world_sources("drawings"),
    output:
        "results/world/drawings/drawings.parquet",
    log:
        "logs/world/drawings.log",
    benchmark:
        "results/benchmarks/world_drawings/world.jsonl"
    conda:
        "../../envs/conda.yaml"
    params:
        cfg=world_block("drawings"),
        world=STUDY.world,
    message:
        "Render the drawings of the world"
    shell:
        "python -m resurgence.miniature.build drawings --config {params.world} --out results/world > {log} 2>&1"


rule world_autoencoder:
    input:
        world_files("autoencoder"),
        world_sources("autoencoder"),
        "results/world/drawings/drawings.parquet",
    output:
        "results/world/autoencoder/diffusion_pytorch_model.safetensors",
    log:
        "logs/world/autoencoder.log",
    benchmark:
        "results/benchmarks/world_autoencoder/world.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: 16
    resources:
        **ON_GPU,
        mem_mb=world_memory,
        runtime=minutes("world"),
    params:
        cfg=world_block("autoencoder"),
        world=STUDY.world,
    message:
        "Train the autoencoder of the miniature"
    shell:
        "python -m resurgence.miniature.build autoencoder --config {params.world} --out results/world --device $RESURGENCE_DEVICE > {log} 2>&1"


rule world_base:
    input:
        world_files("base"),
        world_sources("base"),
        "results/world/drawings/drawings.parquet",
        "results/world/autoencoder/diffusion_pytorch_model.safetensors",
    output:
        "results/world/base/model_index.json",
    log:
        "logs/world/base.log",
    benchmark:
        "results/benchmarks/world_base/world.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: 16
    resources:
        **ON_GPU,
        mem_mb=world_memory,
        runtime=minutes("world"),
    params:
        cfg=world_block("base"),
        world=STUDY.world,
    message:
        "Train the miniature base"
    shell:
        "python -m resurgence.miniature.build base --config {params.world} --out results/world --device $RESURGENCE_DEVICE > {log} 2>&1"


rule world_recogniser:
    input:
        world_files("recogniser"),
        world_sources("recogniser"),
        "results/world/drawings/drawings.parquet",
    output:
        "results/world/recogniser/model.safetensors",
    log:
        "logs/world/recogniser.log",
    benchmark:
        "results/benchmarks/world_recogniser/world.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: 16
    resources:
        **ON_GPU,
        mem_mb=world_memory,
        runtime=minutes("world"),
    params:
        cfg=world_block("recogniser"),
        world=STUDY.world,
    message:
        "Train the recogniser"
    shell:
        "python -m resurgence.miniature.build recogniser --config {params.world} --out results/world --device $RESURGENCE_DEVICE > {log} 2>&1"


rule world_clip:
    input:
        world_files("clip"),
        world_sources("clip"),
        "results/world/drawings/drawings.parquet",
    output:
        "results/world/clip/open_clip_model.safetensors",
    log:
        "logs/world/clip.log",
    benchmark:
        "results/benchmarks/world_clip/world.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: 16
    resources:
        **ON_GPU,
        mem_mb=world_memory,
        runtime=minutes("world"),
    params:
        cfg=world_block("clip"),
        world=STUDY.world,
    message:
        "Train the small CLIP"
    shell:
        "python -m resurgence.miniature.build clip --config {params.world} --out results/world --device $RESURGENCE_DEVICE > {log} 2>&1"


rule world_quality:
    input:
        world_files("quality"),
        world_sources("quality"),
        "results/world/base/model_index.json",
        "results/world/recogniser/model.safetensors",
    output:
        "results/world/quality/base.csv",
    log:
        "logs/world/quality.log",
    benchmark:
        "results/benchmarks/world_quality/world.jsonl"
    conda:
        "../../envs/conda.yaml"
    threads: 16
    resources:
        **ON_GPU,
        mem_mb=world_memory,
        runtime=minutes("world"),
    params:
        cfg=world_block("quality"),
        world=STUDY.world,
    message:
        "Measure the world"
    shell:
        "python -m resurgence.miniature.build quality --config {params.world} --out results/world --device $RESURGENCE_DEVICE > {log} 2>&1"

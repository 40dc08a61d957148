# The miniature world and its models, made again from nothing: `snakemake --cores all world`. Hours without a GPU; the
# studies start from the shipped copy in data/miniature, so nothing here is part of the default target.


rule world:
    input:
        "results/world/clip/open_clip_model.safetensors",
        "results/world/quality/base.csv",


rule world_drawings:
    input:
        graph.world_files(STUDY, "drawings"),
    output:
        "results/world/drawings/drawings.parquet",
    log:
        "logs/world/drawings.log",
    benchmark:
        "results/benchmarks/world_drawings/world.jsonl"
    params:
        settings=graph.world_settings(STUDY, "drawings"),
        code=graph.world_code("drawings"),
        world=STUDY.world,
    message:
        "Render the drawings of the world"
    shell:
        "python -m resurgence.stages.world drawings --config {params.world} --out results/world > {log} 2>&1"


rule world_autoencoder:
    input:
        graph.world_files(STUDY, "autoencoder"),
        "results/world/drawings/drawings.parquet",
    output:
        "results/world/autoencoder/diffusion_pytorch_model.safetensors",
    log:
        "logs/world/autoencoder.log",
    benchmark:
        "results/benchmarks/world_autoencoder/world.jsonl"
    threads: 16
    resources:
        **WORLD_NEEDS,
    params:
        settings=graph.world_settings(STUDY, "autoencoder"),
        code=graph.world_code("autoencoder"),
        world=STUDY.world,
    message:
        "Train the autoencoder of the miniature"
    shell:
        "python -m resurgence.stages.world autoencoder --gpu --config {params.world} --out results/world > {log} 2>&1"


rule world_base:
    input:
        graph.world_files(STUDY, "base"),
        "results/world/drawings/drawings.parquet",
        "results/world/autoencoder/diffusion_pytorch_model.safetensors",
    output:
        "results/world/base/model_index.json",
    log:
        "logs/world/base.log",
    benchmark:
        "results/benchmarks/world_base/world.jsonl"
    threads: 16
    resources:
        **WORLD_NEEDS,
    params:
        settings=graph.world_settings(STUDY, "base"),
        code=graph.world_code("text_to_image"),
        world=STUDY.world,
    message:
        "Train the miniature base"
    shell:
        "python -m resurgence.stages.world base --gpu --config {params.world} --out results/world > {log} 2>&1"


rule world_recogniser:
    input:
        graph.world_files(STUDY, "recogniser"),
        "results/world/drawings/drawings.parquet",
    output:
        "results/world/recogniser/model.safetensors",
    log:
        "logs/world/recogniser.log",
    benchmark:
        "results/benchmarks/world_recogniser/world.jsonl"
    threads: 16
    resources:
        **WORLD_NEEDS,
    params:
        settings=graph.world_settings(STUDY, "recogniser"),
        code=graph.world_code("recogniser"),
        world=STUDY.world,
    message:
        "Train the recogniser"
    shell:
        "python -m resurgence.stages.world recogniser --gpu --config {params.world} --out results/world > {log} 2>&1"


rule world_clip:
    input:
        graph.world_files(STUDY, "clip"),
        "results/world/drawings/drawings.parquet",
    output:
        "results/world/clip/open_clip_model.safetensors",
    log:
        "logs/world/clip.log",
    benchmark:
        "results/benchmarks/world_clip/world.jsonl"
    threads: 16
    resources:
        **WORLD_NEEDS,
    params:
        settings=graph.world_settings(STUDY, "clip"),
        code=graph.world_code("clip"),
        world=STUDY.world,
    message:
        "Train the small CLIP"
    shell:
        "python -m resurgence.stages.world clip --gpu --config {params.world} --out results/world > {log} 2>&1"


rule world_quality:
    input:
        graph.world_files(STUDY, "quality"),
        "results/world/base/model_index.json",
        "results/world/recogniser/model.safetensors",
    output:
        "results/world/quality/base.csv",
    log:
        "logs/world/quality.log",
    benchmark:
        "results/benchmarks/world_quality/world.jsonl"
    threads: 16
    resources:
        **WORLD_NEEDS,
    params:
        settings=graph.world_settings(STUDY, "quality"),
        code=graph.world_code("quality"),
        world=STUDY.world,
    message:
        "Measure the world"
    shell:
        "python -m resurgence.stages.world quality --gpu --config {params.world} --out results/world > {log} 2>&1"

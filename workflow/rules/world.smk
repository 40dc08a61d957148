# The miniature world and its models, made again from nothing: `snakemake --cores all world`. Hours without a GPU; the
# studies start from the shipped copy in data/miniature-2, so nothing here is part of the default target.

DRAWINGS, AUTOENCODER = "drawings/drawings.parquet", "autoencoder/diffusion_pytorch_model.safetensors"
STARTER = "starter/index.csv"
BASE, RECOGNISER = "base/model_index.json", "recogniser/model.safetensors"
CLIP = "clip/open_clip_model.safetensors"
WORLD = {  # part: its file below results/world, those that it reads, what a job does
    "drawings": (DRAWINGS, [], "Render the drawings of the world"),
    "starter": (STARTER, [DRAWINGS], "Compose pictures for fine-tuning"),
    "autoencoder": (AUTOENCODER, [DRAWINGS], "Train the autoencoder of the miniature"),
    "base": (BASE, [DRAWINGS, AUTOENCODER], "Train the miniature base"),
    "recogniser": (RECOGNISER, [DRAWINGS], "Train the recogniser"),
    "clip": (CLIP, [DRAWINGS], "Train the small CLIP"),
    "quality": ("quality/base.csv", [DRAWINGS, BASE, RECOGNISER, CLIP], "Measure the world"),
}
WORLD = {part: entry for part, entry in WORLD.items() if graph.has_world_part(STUDY, part)}
WORLD_NEEDS = {
    **ON_GPU,
    "mem_mb": lambda wildcards, attempt: 8000 * 2 ** (attempt - 1),  # holds the drawings and their latents
    "runtime": lambda wildcards, attempt: 720 * attempt,  # minutes on one GPU or sixteen cores
}


rule world:
    input:
        expand(
            "results/world/{file}", file=[WORLD[part][0] for part in ("clip", "quality", "starter") if part in WORLD]
        ),


for part, (file, parts, message) in WORLD.items():
    is_trained = part not in ("drawings", "starter")

    rule:
        name:
            f"world_{part}"
        input:
            graph.world_files(STUDY, part),
            expand("results/world/{file}", file=parts),
        output:
            f"results/world/{file}",
        log:
            f"logs/world/{part}.log",
        benchmark:
            f"results/benchmarks/world_{part}/world.jsonl"
        threads: 16 if is_trained else 1
        resources:
            **(WORLD_NEEDS if is_trained else {}),
        params:
            part=part,
            gpu="--gpu " * is_trained,
            settings=graph.world_settings(STUDY, part),
            code=graph.world_code(part),
            world=STUDY.world,
        message:
            message
        shell:
            "python -m resurgence.stages.world {params.part} {params.gpu}--config {params.world} --out results/world"
            " > {log} 2>&1"

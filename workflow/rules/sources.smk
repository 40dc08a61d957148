"""The modules of src/resurgence that each rule runs: its stage and all that this imports. No rules here.

They are inputs of the rule, so a change of a method recomputes that method and its consumers, and nothing else.
tests/workflow/test_sources.py compares this map with the real imports.
"""

JOB = ["bases", "config", "manifest", "stages/job"]
IMAGES = ["progress", "sample"]
DATA = ["captions", "erasers/__init__", "moments", "stages/eraser_data"]
CLOSED_FORM = ["captions", "config", "erasers/__init__", "erasers/attention", "erasers/closed_form"]
MACE = [*CLOSED_FORM, "erasers/fusion", "erasers/lora", "erasers/mace", "erasers/training", "latents", "seeds"]
DRAWINGS = ["config", "world/build", "world/drawings"]
TRAINING = [*DRAWINGS, "world/loop", "world/scenes"]

SOURCES = {
    "prompts": [*JOB, "prompts", "seeds", "stages/prompts"],
    "moments": [*JOB, "captions", "moments", "stages/moments"],
    "concept_images": [*JOB, *IMAGES, "prompts", "seeds", "stages/concept_images"],
    "masks": [*JOB, *IMAGES, *DATA, "masks", "stages/masks"],
    "loras": [*JOB, *IMAGES, *DATA, *MACE, "stages/loras"],
    "erase": [*JOB, *IMAGES, *DATA, "erasers/attention", "erasers/lora", "stages/erase"],
    "finetune_set": [*JOB, *IMAGES, "prompts", "seeds", "stages/finetune_set"],
    "finetune": [*JOB, *IMAGES, "finetune", "resume", "seeds", "stages/finetune", "trainable"],
    "sample": [*JOB, *IMAGES, "stages/sample"],
    "score": [*JOB, *IMAGES, "scorers/__init__", "stages/score"],
    "tables": [
        *JOB,
        "estimates",
        "scorers/__init__",
        "scorers/frechet",
        "seeds",
        "stages/tables",
        "statistics",
        "summary",
        "tables",
    ],
    "figures": [*JOB, "figures", "stages/figures", "summary"],
    "grids": [*JOB, *IMAGES, "grids", "stages/grids"],
    "report": [*JOB, "stages/report"],
    "world_drawings": DRAWINGS,
    "world_autoencoder": [*TRAINING, "world/autoencoder"],
    "world_base": [*TRAINING, "world/captions", "world/text_to_image"],
    "world_recogniser": [*TRAINING, "world/recogniser"],
    "world_clip": [*TRAINING, "world/captions", "world/clip", "world/recogniser"],
    "world_quality": [*TRAINING, *IMAGES, "bases", "seeds", "world/quality", "world/recogniser"],
    # what a setting chooses among
    "erasers/mace": MACE,
    "erasers/uce": [*CLOSED_FORM, "erasers/uce"],
    "segmenters/foreground": ["segmenters/foreground"],
    "segmenters/cross_attention": [
        "captions",
        "erasers/__init__",
        "erasers/attention",
        "latents",
        "seeds",
        "segmenters/cross_attention",
    ],
    "segmenters/grounded_sam": ["segmenters/grounded_sam"],
    "scorers/recogniser": ["scorers/recogniser", "world/drawings", "world/loop", "world/recogniser", "world/scenes"],
    "scorers/clip": ["scorers/clip"],
}

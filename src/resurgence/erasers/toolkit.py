"""What a method is written with, in one place for packages of their own; needs PyTorch.

Each name is documented where it is defined.
"""

from resurgence.diffusion.attention import as_delta, from_delta, projection_weights, swapped
from resurgence.diffusion.latents import add_noise, latents_of
from resurgence.diffusion.text import Encoder, concept_positions, encoder_of, fill, load_captions, token_ids
from resurgence.erasers.closed_form.solver import (
    apply_edit,
    caption_pairs,
    edited_delta,
    paired_rows,
    paired_words,
    relative_change,
    report,
    shared_edit,
    solved,
    system,
)
from resurgence.erasers.gradient.erasure import trained
from resurgence.erasers.gradient.forget_retain import ForgetRetain
from resurgence.erasers.gradient.student import Student
from resurgence.erasers.gradient.trainer import Objective, Sample, gradients, samples, train
from resurgence.erasers.gradient.trajectories import Trajectories
from resurgence.erasers.lora import Lora, TrainedLoras, adapted, in_two_steps, load_loras
from resurgence.seeds import generator

__all__ = [
    "Encoder", "ForgetRetain", "Lora", "Objective", "Sample", "Student", "TrainedLoras", "Trajectories", "adapted",
    "add_noise", "apply_edit", "as_delta", "caption_pairs", "concept_positions", "edited_delta", "encoder_of", "fill",
    "from_delta", "generator", "gradients", "in_two_steps", "latents_of", "load_captions", "load_loras", "paired_rows",
    "paired_words", "projection_weights", "relative_change", "report", "samples", "shared_edit", "solved", "swapped",
    "system", "token_ids", "train", "trained",
]  # fmt: skip

"""The text-to-image pipeline: text, latents, sampling, image sets, and the tensors that a step changed."""

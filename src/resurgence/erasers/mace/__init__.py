"""MACE: refinement in closed form, a LoRA for each concept, and their fusion."""

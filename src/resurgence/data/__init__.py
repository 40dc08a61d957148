"""Data of a task: prompts, corpora, masks, fine-tuning images."""

"""What a task is made of: prompts, corpora, masks, fine-tuning pictures."""

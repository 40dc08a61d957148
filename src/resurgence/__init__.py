"""Resurgence: erase concepts from text-to-image models, fine-tune, and measure what comes back."""

__version__ = "2026.11.0"

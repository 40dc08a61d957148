"""Erasers trained by gradient steps."""

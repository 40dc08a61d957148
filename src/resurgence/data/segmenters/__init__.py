"""Segmenters: one file a way to find a concept in its images."""

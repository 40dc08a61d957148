"""Segmenters: one file for each way to find a concept in its images."""

"""Erasers that solve for the text projections in closed form, in seconds."""

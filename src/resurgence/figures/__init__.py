"""Pictures drawn from tables, curves and image sets."""

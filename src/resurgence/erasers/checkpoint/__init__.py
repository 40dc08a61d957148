"""An erased model from elsewhere, as an eraser: its difference from the base is the delta."""

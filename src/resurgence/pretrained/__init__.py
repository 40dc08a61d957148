"""Published weights: where they are, whether they are whole, and loading them without executing code."""

"""The audit of a released model: its result, and the verdict from the scores of the probes."""

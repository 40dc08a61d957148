"""The graph of the study, for the Snakefile and for the commands that ask about it."""

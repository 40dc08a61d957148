"""The configuration of a study. Nothing here imports torch: the Snakefile reads its configuration through it."""

"""Published lists that studies read, each fetched by a rule (workflow/rules/lists.smk) from config/mirrors.yaml."""

I2P, OXFORD = "data/lists/i2p.csv", "data/lists/oxford-3000.csv"
LISTS = {"list_i2p": I2P, "list_oxford": OXFORD}
"""Name of a rule -> its file."""
PROMPTS = {I2P: 4703}
"""Number of prompts in a list of prompts."""

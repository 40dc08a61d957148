"""What the scores say: estimates with intervals, tables, claims."""

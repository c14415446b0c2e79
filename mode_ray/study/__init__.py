"""Studies: one field of a run against the results, each value a run of its own."""

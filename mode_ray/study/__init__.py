"""Studies: a series of runs that differ in a few fields, repeated over seeds, with one comparison of their results."""

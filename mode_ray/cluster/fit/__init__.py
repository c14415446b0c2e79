"""Balanced k-means over a sample, in one process or distributed over Ray actors."""

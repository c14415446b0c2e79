"""Exact search for the nearest center, pruned by lower bounds."""

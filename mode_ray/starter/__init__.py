"""Writes the first config of a run after a look at its data."""

"""Estimates of the time, bytes and cost of a run, from the rates of a small run."""

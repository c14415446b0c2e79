"""Drift: newly assigned captions against the sample that their clustering was fitted on."""

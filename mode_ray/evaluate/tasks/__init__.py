"""Evaluation tasks: their definitions, classes, texts and samples."""

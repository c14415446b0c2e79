"""Clusters for operators: launch files rendered from one file of values, and jobs submitted to what they start."""

"""Routing weights from a task's texts, and the arithmetic of the ensemble."""

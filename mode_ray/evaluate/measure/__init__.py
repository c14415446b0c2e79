"""Cosines of every model on every task, computed once and stored."""

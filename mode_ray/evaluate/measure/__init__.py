"""Cosines of every model on every task, which are computed once and stored."""

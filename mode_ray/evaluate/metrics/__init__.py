"""Metrics of classification and retrieval, with intervals."""

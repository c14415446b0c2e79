"""Metrics of classification and retrieval, with confidence intervals."""

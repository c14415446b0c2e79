"""Evaluation of dense, expert and ensemble models on zero-shot tasks: scores, metrics and the report."""

"""Zero-shot tasks over dense, expert and ensemble models: scores, metrics, and the report that shows them."""

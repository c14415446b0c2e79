"""What a person or a monitoring system sees of a run: progress, log, metrics, status, watch."""

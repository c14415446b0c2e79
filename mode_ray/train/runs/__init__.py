"""Training runs on Ray Train: scheduler, launcher, worker, checkpoints, lease and status."""

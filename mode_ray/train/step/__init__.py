"""One training step: batches, model, losses, gradients, parallelism, schedule. Nothing here imports Ray."""

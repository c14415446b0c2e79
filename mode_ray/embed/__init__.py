"""Caption encoders, and the stage that writes one file of embeddings per work unit."""

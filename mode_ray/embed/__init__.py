"""Caption encoders and the stage that writes one shard of embeddings per work unit."""

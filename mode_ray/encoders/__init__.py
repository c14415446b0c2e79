"""Frozen language encoders: captions in, unit-norm embeddings out."""

"""An index of images that serves every task: embeddings of all experts side by side, weights on the query side."""

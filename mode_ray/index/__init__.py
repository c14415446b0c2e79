"""An index of images for all tasks: embeddings of all experts side by side; the query carries the weights."""

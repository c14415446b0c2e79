"""CLIP data experts via clustering (MoDE, CVPR 2024) on Ray.

The package reads in the order of the data: captions, embeddings, clusters, assignments, experts, routing weights,
ensemble. See docs/architecture.md.
"""

__version__ = "0.1.0"

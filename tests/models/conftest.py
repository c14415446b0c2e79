"""A tiny CLIP."""

from tiny_clip import architecture, new_clip

__all__ = ["architecture", "new_clip"]

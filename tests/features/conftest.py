"""A tiny CLIP."""

import tiny_clip

architecture, new_clip = tiny_clip.architecture, tiny_clip.new_clip

"""The tiny CLIP of the tests of training."""

import tiny_clip

architecture, new_clip = tiny_clip.architecture, tiny_clip.new_clip

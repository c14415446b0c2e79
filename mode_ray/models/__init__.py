"""The wrapper of open_clip: build, load, save, preprocess and encode."""

"""The ensemble of a trained run as a Python object: classify, encode, route, and open_clip's interface."""

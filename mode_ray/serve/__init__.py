"""The ensemble of a run behind HTTP."""

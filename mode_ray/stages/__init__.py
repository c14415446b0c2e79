"""How the stages of a run execute on Ray."""

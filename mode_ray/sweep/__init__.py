"""Sweeps over training fields: points, trials under Ray Tune's ASHA, and the winner as a config."""

"""The stage `features`: runs the locked trunks over all pairs once, for every training run that shares them."""

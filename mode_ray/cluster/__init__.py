"""Fine k-means with capacity prices, the coarse grouping into experts, and the artefact that stores both."""

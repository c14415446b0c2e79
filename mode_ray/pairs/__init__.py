"""Training samples from assignments: members of an expert, index, reader, order, held-out pairs."""

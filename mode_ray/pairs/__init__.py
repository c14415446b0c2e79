"""From assignments to training samples: members of an expert, index, reader, order, held-out pairs."""

"""The atlas of a clustering: `summary` is the one record of its numbers, terms and captions."""

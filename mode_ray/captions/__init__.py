"""Captions from the user's shards: listing, reading, cleaning; every caption is kept or counted with its reason."""

"""New captions for a finished run: drift, far captions, additional centers."""

"""Lists, reads and cleans captions from the user's files. Every refused caption is counted with its reason."""

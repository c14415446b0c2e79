"""The fine cluster of every caption: the table of assignments and the stage that writes it."""

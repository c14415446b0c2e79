"""The atlas of a clustering: its numbers and the page that shows them."""

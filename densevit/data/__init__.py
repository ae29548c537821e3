"""Images: their sources (folders, archives, the built-in set) and the views made of them."""

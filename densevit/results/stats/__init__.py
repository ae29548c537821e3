"""Statistics over seeds, images and axes."""

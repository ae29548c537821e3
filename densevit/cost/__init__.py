"""Cost estimates for a sweep before it starts."""

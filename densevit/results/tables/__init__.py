"""Tables of a sweep's results."""

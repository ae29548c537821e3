"""A run's configuration: fields, files, flags, identity."""

"""The run directory: its files, status, lock, checkpoint, provenance."""

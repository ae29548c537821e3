"""Figures of a sweep, drawn from the frames of `collect` and `stats`; one subject per module."""

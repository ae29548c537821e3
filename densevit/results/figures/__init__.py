"""Figures of a sweep, each drawn from the frames of `collect` and `stats`: one subject a module."""

"""Sweeps: a sweep file becomes a grid and then a plan of runs. Pure; starts nothing."""

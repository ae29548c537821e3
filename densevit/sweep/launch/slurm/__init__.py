"""Slurm: runs as arrays of jobs, through submitit.

profile (what a cluster wants) and cluster (what it says) -> records (what was submitted) ->
submit (from runs to jobs) -> job (what happens on a node).
"""

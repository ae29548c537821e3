"""Slurm: runs as arrays of jobs, through submitit.

profile (what a cluster needs) and commands (calls of Slurm) -> submissions (records of what was
submitted) -> submit (from runs to jobs) -> job (the work on a node).
"""

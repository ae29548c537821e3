"""MLflow as a mirror of the run directories, which can be made again from them at any time.

A process beside each driver or job (`python -m densevit.tracking`) reads what the runs write and
sends it on. Training knows nothing of it, and a store that is down costs a warning: what is missing
is sent later.
"""

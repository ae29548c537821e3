"""MLflow as a mirror of the run directories; it can be rebuilt from them at any time.

A process beside each driver or job (`python -m densevit.tracking`) reads what the runs write and
sends it to the store. Training does not depend on it. A store that is down costs a warning: what is
missing is sent later.
"""

"""The Ray launcher: planned runs as trials of Ray Tune.

Identity and state stay in the run directories; Ray's own files are deleted when the command ends.
"""

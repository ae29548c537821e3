"""The Ray launcher: planned runs as trials of Ray Tune. Identity and state stay in the run
directories; what Ray keeps of its own is thrown away when the command ends."""

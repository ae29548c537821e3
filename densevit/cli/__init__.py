"""The commands `densevit` and `densevit-sweep`: parse, call, print."""

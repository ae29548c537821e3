"""Compare cells or runs in detail."""

"""Pictures: where they come from (folders, the drawn set) and what a run makes of them (views)."""

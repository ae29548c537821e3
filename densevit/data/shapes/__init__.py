"""The built-in data sets `shapes` and `shapes-many`, drawn without a download."""

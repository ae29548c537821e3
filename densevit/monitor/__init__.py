"""The state of a sweep for its user: status, logs, explanations and progress bars."""

"""Evaluation of a network: predictions, metrics, correspondence, probes."""

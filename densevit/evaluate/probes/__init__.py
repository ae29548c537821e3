"""Probes of frozen features: nearest neighbors, linear classifier, linear segmentation."""

"""Contrastive learning of images and patches: loss, negatives, matching and sampling."""

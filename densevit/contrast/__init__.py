"""Contrastive learning of patches or images: loss, negatives, matching and sampling."""

"""What frozen features can do: nearest neighbours, a linear classifier, a linear segmentation."""

"""Vision Transformers from timm with projection heads."""

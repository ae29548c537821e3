"""Train Vision Transformers with dense, global or no contrastive loss and compare them.

Importing the package imports nothing heavy: torch, timm, mlflow and pandas are imported by the
modules that use them, so that `--help`, `plan` and `status` respond at once.
"""

__version__ = "0.1.0"

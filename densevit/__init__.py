"""Dense, global and no contrastive learning for Vision Transformers, compared by one command.

Importing the package imports nothing heavy: torch, timm, mlflow and pandas are loaded by the
modules that use them, so that `--help`, `plan` and `status` answer at once.
"""

__version__ = "0.1.0"

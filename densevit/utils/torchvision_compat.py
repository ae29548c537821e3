"""Import torchvision (and timm, which needs it) beside a CPU build of torch.

torchvision's wheels on the public registry are built against CUDA. Beside a CPU-only torch their
compiled library cannot be loaded, so the operators `nms` and `qnms` are never defined, and
registering their shape functions fails: `RuntimeError: operator torchvision::nms does not exist`.
DenseViT does not use these operators. Declaring them without an implementation lets the import
succeed; transforms and timm then work, and calling `nms` still fails with a clear error.

Modules that use torchvision or timm call `ensure_torchvision()` above those imports.
"""

from __future__ import annotations

import sys
import warnings

import torch

_declared: list[torch.library.Library] = []  # keeps the declarations alive


def ensure_torchvision() -> None:
    """Make `import torchvision` succeed; does nothing if it already does."""
    if "torchvision" in sys.modules:
        return
    try:
        _import_quietly()
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    name, kind = "torchvision", "FRAGMENT"
    library = torch.library.Library(name, kind)
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)
    _declared.append(library)
    _import_quietly()


def _import_quietly() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        import torchvision  # noqa: F401

"""`import torchvision` (and timm, which needs it) beside a CPU build of torch.

torchvision's wheels on the public registry are built against CUDA. Beside a CPU-only torch their
compiled library cannot be loaded, so the operators `nms` and `qnms` are never defined, and
registering their shape functions fails: `RuntimeError: operator torchvision::nms does not exist`.
Nothing here uses these operators. Declared (not implemented), they let the import succeed;
transforms and timm then work, and a call of `nms` itself still fails with a clear error.

Modules that use torchvision or timm call `ensure_torchvision()` above those imports.
"""

from __future__ import annotations

import sys
import warnings

import torch

_declared: list[torch.library.Library] = []  # the declarations live as long as this reference


def ensure_torchvision() -> None:
    """Make `import torchvision` succeed; does nothing where it does so by itself."""
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
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    _import_quietly()


def _import_quietly() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        import torchvision  # noqa: F401

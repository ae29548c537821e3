"""torchvision with a torch that cannot load torchvision's compiled library."""

import json
import os
import subprocess
import sys

import torch
from PIL import Image

from densevit.utils.torchvision_compat import ensure_torchvision

# A stand-in for a torchvision with a CPU build of torch: importing it registers a shape function
# for operators that no compiled library has defined.
_FAKE = """
import torch
@torch.library.register_fake("torchvision::nms")
def _(dets, scores, iou_threshold):
    return dets
"""

# Run code in forks of a process that has imported torch and not torchvision; print the results.
_EACH = """
import json, os, sys
import torch
from densevit.utils.torchvision_compat import ensure_torchvision
for folder, code in json.loads(sys.argv[1]):
    if os.fork() == 0:
        sys.path.insert(0, folder)
        try:
            exec(code)
            print(json.dumps(sys.modules["torchvision"].__file__), flush=True)
        except Exception as error:
            print(json.dumps(str(error)), flush=True)
        os._exit(0)
    os.wait()
"""


def test_transforms_and_timm_work_after_the_guard():
    ensure_torchvision()
    ensure_torchvision()
    import timm
    from torchvision.transforms import v2

    assert v2.Resize(8)(Image.new("RGB", (16, 16))).size == (8, 8)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_an_import_that_fails_for_missing_operators_is_mended_and_any_other_failure_told(tmp_path):
    other = "raise RuntimeError('another reason')"
    for name, code in {"fake": _FAKE, "other": other}.items():
        (tmp_path / name / "torchvision").mkdir(parents=True)
        (tmp_path / name / "torchvision" / "__init__.py").write_text(code)
    asked = [
        ("fake", "import torchvision"),
        ("fake", "ensure_torchvision(); import torchvision"),
        ("other", "ensure_torchvision()"),
    ]
    words = json.dumps([(str(tmp_path / name), code) for name, code in asked])
    done = subprocess.run(
        [sys.executable, "-c", _EACH, words], capture_output=True, text=True, timeout=600,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    without, mended, told = map(json.loads, done.stdout.splitlines())
    assert "operator torchvision::nms does not exist" in without
    assert mended == str(tmp_path / "fake" / "torchvision" / "__init__.py")
    assert told == "another reason"

"""torchvision beside a torch that cannot load its compiled library."""

import subprocess
import sys
import textwrap

# Stands for torchvision beside a CPU build of torch: importing it registers a shape function for
# operators that no compiled library has defined.
_FAKE = """
import torch
@torch.library.register_fake("torchvision::nms")
def _(dets, scores, iou_threshold):
    return dets
"""


def python(code, *paths):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": ":".join(map(str, paths)), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )  # fmt: skip


def test_transforms_and_timm_work_after_the_guard():
    done = python("""
        from densevit.torchvision_guard import ensure_torchvision
        ensure_torchvision(); ensure_torchvision()
        import timm, torch
        from torchvision.transforms import v2
        from PIL import Image
        assert v2.Resize(8)(Image.new("RGB", (16, 16))).size == (8, 8)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8)
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    """)
    assert done.returncode == 0, done.stderr


def test_an_import_that_fails_for_missing_operators_is_mended(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(_FAKE)
    without = python("import torchvision", tmp_path)
    assert "operator torchvision::nms does not exist" in without.stderr
    done = python(
        """
        from densevit.torchvision_guard import ensure_torchvision
        ensure_torchvision()
        import torchvision
        print(torchvision.__file__)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout


def test_any_other_failure_is_told_as_it_is(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('another reason')")
    done = python("from densevit.torchvision_guard import *; ensure_torchvision()", tmp_path)
    assert "another reason" in done.stderr

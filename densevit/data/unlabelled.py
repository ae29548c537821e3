"""Images without labels: any below a folder, in a tar file or in a Hugging Face data set."""

from __future__ import annotations

from pathlib import Path

from densevit.data.archives import StoredImages, open_tar
from densevit.data.hugging_face import is_hugging_face, open_hugging_face
from densevit.data.image_files import UNLABELLED, check_names, list_images
from densevit.data.image_folder import FolderImages
from densevit.data.tar_files import is_tar, tar_paths
from densevit.utils.errors import UserError


def open_unlabelled(folder: Path, source: str) -> StoredImages:
    """Open `folder/train` (a folder, or a tar file), else the images of `folder` itself.

    All have the label 0 of one class, whatever folders they lie in. Errors: `UserError` beginning
    with `source` if there are none.
    """
    if not folder.exists():
        raise UserError(f"{source}: {folder}: no such folder")
    if is_hugging_face(folder):
        return open_hugging_face(folder, "train", source, labelled=False)
    inner = [folder / "train", *tar_paths(folder, "train")]
    place = next((path for path in inner if path.exists()), folder)
    if is_tar(place):
        return open_tar(place, source, labelled=False)
    ids, skipped = list_images(place, "")
    if not ids:
        raise UserError(f"{source}: {place}: holds no images (.jpg, .png, ...)")
    check_names(ids, place, source)
    return FolderImages(place, UNLABELLED, tuple(ids), (0,) * len(ids), tuple(skipped))

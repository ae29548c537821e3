"""Resumable prediction: finished parts of a test set are stored and reused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from densevit.config.evaluation_names import CLEAN
from densevit.data.check_files import files_stamp
from densevit.data.test_set import TestSet
from densevit.evaluate.predictions import (
    ClassPredictions,
    ImagePredictions,
    check_finite,
    joined,
    read_image_predictions,
    source_of,
    write_predictions,
)
from densevit.runs.directory import RunFolder
from densevit.utils.distributed import World, all_reduce_max

PART = 100_000  # most images lost by an interruption; all sets but ImageNet-C are smaller


def stored(path: Path, source: str, world: World) -> bool:
    """Return True if a file holds predictions of `source`; the same in all processes."""
    return bool(all_reduce_max(int(world.writes and source_of(path) == source), world))


def predict_in_parts(
    predict: Callable[[range], ImagePredictions],
    test_set: TestSet,
    path: Path,
    source: str,
    world: World,
) -> ImagePredictions:
    """Predict a whole test set in parts, each a range of images; write the result.

    Errors: `RunError` if the network's outputs are not finite.
    """
    long, parts, files = len(test_set) > PART, [], []
    # The stamp covers the files: another folder may have the same file names.
    source_of_part = f"{source}, {files_stamp(test_set.images)}" if long else source
    for begin in range(0, len(test_set), PART):
        file = path.parent / "parts" / f"{path.stem}-{begin}.parquet"
        if long and stored(file, source_of_part, world):
            part = read_image_predictions(file)
        else:
            part = predict(range(begin, min(begin + PART, len(test_set))))
            check_finite(part)
            if world.writes and long:
                write_predictions(part, file, source_of_part)
        parts.append(part)
        files.append(file)
    whole = joined(parts)
    if world.writes:
        write_predictions(whole, path, source)
        for file in files:
            file.unlink(missing_ok=True)
    return whole


def clean_predictions(folder: RunFolder) -> ClassPredictions | None:
    """Return a folder's predictions of one class an image on an unshifted test set, or None."""
    for name in CLEAN:
        if folder.predictions_file(name).exists():
            found = read_image_predictions(folder.predictions_file(name))
            return found if isinstance(found, ClassPredictions) else None
    return None

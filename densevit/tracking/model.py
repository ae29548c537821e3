"""The network of a finished run as an MLflow model: in a folder, or sent into a store.

It is saved as a graph (torch.export), without a pickle, so that neither this package nor timm is
needed to load it: `mlflow.pytorch.load_model`, `mlflow.pyfunc.load_model`. On the CPU and with the
same torch it answers as the run's own network does, bit for bit.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.config import identity
from densevit.errors import UserError
from densevit.passwords import without_password
from densevit.rundir import UMASK, RunFolder
from densevit.tracking.shown import RUN

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities import Run as MlflowRun
    from mlflow.models import Model
    from torch import nn

WEIGHTS_TAG = "densevit.checkpoint"  # a checkpoint's name holds its digest, and so says which
_EXAMPLES = 2  # of a batch of one, torch.export would make a network that takes one picture only


def save_model(folder: RunFolder, target: Path) -> None:
    """Write the backbone and classifier of a run as a folder that MLflow loads.

    float32 pictures (B, 3, S, S), normalised as `metadata.pictures` in the file MLmodel says, in;
    logits (B, classes) out. Errors: `UserError` if the run has no checkpoint, if something is at
    the target, or for a network that torch cannot export.
    """
    from mlflow.models import Model

    if target.is_file() or (target.exists() and any(target.iterdir())):
        raise UserError(f"{target}: is there already (wanted a new folder to write)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        made = Path(temporary) / "model"
        _write(folder, made, Model())
        made.chmod(0o777 & ~UMASK)
        made.replace(target)


def log_model(client: MlflowClient, mlflow_run_id: str, folder: RunFolder, uri: str) -> None:
    """Send the network of a finished run into the store, as a model of the run there.

    It is there once, however often this is called and wherever a process before was killed: what
    is half there is completed, and what was made of other weights goes. Two processes at a time
    could make two, of which the next call leaves one. Errors: as in `save_model`, and MLflow's own.
    """
    from mlflow.entities import LoggedModelStatus

    from densevit import checkpoint  # torch: a second

    run = client.get_run(mlflow_run_id)
    newest = checkpoint.newest_first(folder.checkpoint_folder)
    weights = newest[0].name if newest else None
    model, *others = [*_models_of(client, run, folder, weights), None]
    for other in filter(None, others):
        client.delete_logged_model(other.model_id)
    if model is not None and model.status == LoggedModelStatus.READY:
        return
    if weights is None:
        raise UserError(f"{folder.path}: holds no checkpoint for {without_password(uri)}")
    if model is None:
        tags = {RUN: folder.path.name, WEIGHTS_TAG: weights}
        # MLflow takes none of these in a model's name.
        name = re.sub(r"[/:.%\"']", "-", run.info.run_name or folder.path.name)
        params = run.data.params
        model = client.create_logged_model(
            run.info.experiment_id, name, run.info.run_id, tags, params, "classifier"
        )
    _fill(client, run, folder, model)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _models_of(
    client: MlflowClient, run: MlflowRun, folder: RunFolder, weights: str | None
) -> list[LoggedModel]:
    """The models in the store that this made of the run, the one to keep first; those of other
    weights than the run has now are deleted."""
    wanted = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], wanted)
    kept = []
    for model in found:
        if model.tags.get(RUN) != folder.path.name:  # a user's own
            continue
        if weights is None or model.tags.get(WEIGHTS_TAG) == weights:
            kept.append(model)
        else:
            client.delete_logged_model(model.model_id)
    return sorted(kept, key=lambda m: (str(m.status) != "READY", m.creation_timestamp))


def _fill(client: MlflowClient, run: MlflowRun, folder: RunFolder, model: LoggedModel) -> None:
    """Give a model what it lacks: parameters, files, its place in the run, and the run's last
    numbers."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model

    missing = {k: v for k, v in run.data.params.items() if k not in model.params}
    if missing:  # to a server they go in parts
        client.log_model_params(model.model_id, missing)
    described = Model(
        artifact_path=model.artifact_location, model_uuid=model.model_id,
        run_id=run.info.run_id, model_id=model.model_id,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "model"
        step = _write(folder, made, described)
        client.log_model_artifacts(model.model_id, str(made))
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step)])
    # As `mlflow.pytorch.log_model` does: the numbers of that step are the model's. The store knows
    # these points of the run already, and keeps one of each.
    points = [
        Metric(m.key, m.value, m.timestamp, m.step, model.model_id, run_id=run.info.run_id)
        for m in run.data.to_proto().metrics
        if m.step == step
    ]
    if points:
        client.log_batch(run.info.run_id, metrics=points, synchronous=True)


def _write(folder: RunFolder, target: Path, described: Model) -> int:
    """Save a run's network; returns the step that it was trained to."""
    network, about = _network(folder)
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    size, classes = about["pictures"]["size"], about["classes"]
    pictures = TensorSpec(np.dtype(np.float32), (-1, 3, size, size))  # with a name: no pyfunc
    logits = TensorSpec(np.dtype(np.float32), (-1, len(classes)))
    # Halves, which are few characters in JSON.
    drawn = np.random.default_rng(0).integers(-4, 5, (_EXAMPLES, 3, size, size)) / 2
    with _told(folder):
        mlflow.pytorch.save_model(
            network, str(target), mlflow_model=described, serialization_format="pt2",
            input_example=drawn.astype(np.float32), metadata=about,
            signature=ModelSignature(Schema([pictures]), Schema([logits])),
            # Named, since MLflow else starts a process to find them.
            pip_requirements=[f"{name}=={_version(name)}" for name in ("torch", "timm")],
        )  # fmt: skip
    _tidy(target, described)
    return about["step"]


def _network(folder: RunFolder) -> tuple[nn.Module, dict[str, Any]]:
    """A run's backbone and classifier, and what one must know to use it."""
    from densevit import checkpoint
    from densevit.model import DenseViT

    config = folder.config()
    state = checkpoint.load(folder.checkpoint_folder, identity(config).run)
    if state is None:
        raise UserError(f"{folder.path}: holds no checkpoint yet")
    classes = list(state["classes"])
    plain = config.model_copy(update={"gradient_checkpointing": False})  # for training only
    model = DenseViT(plain, len(classes), pretrained=False)
    model.load_state_dict(state["model"])
    wanted = json.loads(json.dumps(model.pictures()))  # lists, where timm has tuples
    return model.backbone.eval(), {
        "run": folder.path.name,
        "step": state["step"],
        "architecture": config.model_name,
        "model_kwargs": config.model_kwargs,
        "classes": classes,
        "pictures": {"size": model.image_size, **wanted},
    }


def _tidy(target: Path, described: Model) -> None:
    """Make what MLflow wrote smaller, and usable where there is a GPU."""
    for file in target.glob("*example.json"):  # a number a line: megabytes
        file.write_text(json.dumps(json.loads(file.read_text()), separators=(",", ":")))
    # The graph is of the CPU; MLflow would try the GPU first, and fail.
    described.flavors["python_function"]["config"]["device"] = "cpu"
    described.model_size_bytes = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    described.save(str(target / "MLmodel"))


@contextmanager
def _told(folder: RunFolder) -> Iterator[None]:
    """What torch has against a network, as one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (OSError, MlflowException):
        raise
    except Exception as error:  # torch.export raises whatever it meets in a network's code
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder.path}: torch cannot export the network: {type(error).__name__}: {reason}"
        ) from None


def _version(package: str) -> str:
    """As a package index knows it: without +cpu, +cu128."""
    return version(package).partition("+")[0]

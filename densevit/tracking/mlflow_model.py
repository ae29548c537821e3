"""The network of a finished run as a model in an MLflow store.

It is saved as a graph (torch.export), without a pickle, so that neither this package nor timm is
needed to load it: `mlflow.pytorch.load_model`, `mlflow.pyfunc.load_model`. On the CPU and with the
same torch, its outputs are those of the run's own network, bit for bit.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from densevit.runs.checkpoint_files import newest_first
from densevit.runs.directory import RunFolder
from densevit.tracking.mlflow_fields import RUN
from densevit.utils.errors import UserError, reason_of
from densevit.utils.redact import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities import Run as MlflowRun
    from mlflow.models import Model
    from torch import nn

WEIGHTS_TAG = "densevit.checkpoint"  # the checkpoint's name, which contains its digest
_EXAMPLES = 2  # with a batch of one, torch.export would fix the batch size to one


def log_model(client: MlflowClient, mlflow_run_id: str, folder: RunFolder, uri: str) -> None:
    """Send the network of a finished run to the store, as a model of its MLflow run.

    Repeated calls leave one model: an incomplete one, of a process that was killed, is completed,
    and models of other weights are deleted. Two processes at the same time could create two, of
    which the next call leaves one. Errors: `UserError` if the run has no checkpoint or torch cannot
    export the network, and MLflow's own.
    """
    from mlflow.entities import LoggedModelStatus

    run = client.get_run(mlflow_run_id)
    newest = newest_first(folder.checkpoint_folder)
    weights = newest[0].name if newest else None
    models = _models_of(client, run, folder, weights)
    model = models[0] if models else None
    for duplicate in models[1:]:
        client.delete_logged_model(duplicate.model_id)
    if model is not None and model.status == LoggedModelStatus.READY:
        return
    if weights is None:
        raise UserError(f"{folder.path}: holds no checkpoint for {without_password(uri)}")
    if model is None:
        tags = {RUN: folder.path.name, WEIGHTS_TAG: weights}
        # MLflow accepts none of these in a model's name.
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
    """Return our models of the run, the one to keep first; delete those of other weights."""
    query = f"source_run_id = '{run.info.run_id}'"
    ours = []
    for model in client.search_logged_models([run.info.experiment_id], query):
        if model.tags.get(RUN) != folder.path.name:  # a user's own
            continue
        if weights is None or model.tags.get(WEIGHTS_TAG) == weights:
            ours.append(model)
        else:
            client.delete_logged_model(model.model_id)
    return sorted(ours, key=lambda m: (str(m.status) != "READY", m.creation_timestamp))


def _fill(client: MlflowClient, run: MlflowRun, folder: RunFolder, model: LoggedModel) -> None:
    """Add what a model lacks: parameters, files, its link to the run, the run's last metrics."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model

    missing = {k: v for k, v in run.data.params.items() if k not in model.params}
    if missing:  # a server gets them in parts
        client.log_model_params(model.model_id, missing)
    described = Model(
        artifact_path=model.artifact_location, model_uuid=model.model_id,
        run_id=run.info.run_id, model_id=model.model_id,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "model"
        step = write_model(folder, written, described)
        client.log_model_artifacts(model.model_id, str(written))
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step)])
    # As `mlflow.pytorch.log_model` does: the metrics of that step are the model's. The store has
    # these points of the run already, and keeps one of each.
    points = [
        Metric(m.key, m.value, m.timestamp, m.step, model.model_id, run_id=run.info.run_id)
        for m in run.data.to_proto().metrics
        if m.step == step
    ]
    if points:
        client.log_batch(run.info.run_id, metrics=points, synchronous=True)


def write_model(folder: RunFolder, target: Path, described: Model) -> int:
    """Write the backbone and classifier of a run as a folder that MLflow loads.

    Input: float32 images (B, 3, S, S), normalized as `metadata.pictures` in the file MLmodel says.
    Output: logits (B, classes). Returns the step that the network was trained to.
    """
    network, metadata = _network(folder)
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    size, classes = metadata["pictures"]["size"], metadata["classes"]
    images = TensorSpec(np.dtype(np.float32), (-1, 3, size, size))  # a name would break pyfunc
    logits = TensorSpec(np.dtype(np.float32), (-1, len(classes)))
    # Multiples of 1/2, which are short in JSON.
    example = np.random.default_rng(0).integers(-4, 5, (_EXAMPLES, 3, size, size)) / 2
    with _export_errors(folder):
        mlflow.pytorch.save_model(
            network, str(target), mlflow_model=described, serialization_format="pt2",
            input_example=example.astype(np.float32), metadata=metadata,
            signature=ModelSignature(Schema([images]), Schema([logits])),
            # Given, since MLflow would start a process to infer them.
            pip_requirements=[f"{name}=={_version(name)}" for name in ("torch", "timm")],
        )  # fmt: skip
    _tidy(target, described)
    return metadata["step"]


class _Metadata(TypedDict):
    """The metadata in the file MLmodel; `pictures`: how images are prepared."""

    run: str
    step: int
    architecture: str
    model_kwargs: dict[str, Any]
    classes: list[str]
    pictures: dict[str, Any]


def _network(folder: RunFolder) -> tuple[nn.Module, _Metadata]:
    """Return a run's backbone and classifier, and the metadata needed to use it."""
    from densevit.models.vit import DenseViT
    from densevit.runs import checkpoint

    config = folder.config()
    state = checkpoint.load(folder.checkpoint_folder, folder.ids()[0])
    if state is None:
        raise UserError(f"{folder.path}: holds no checkpoint yet")
    classes = list(state["classes"])
    plain = config.model_copy(update={"gradient_checkpointing": False})  # for training only
    model = DenseViT(plain, len(classes), pretrained=False)
    model.load_state_dict(state["model"])
    preprocessing = json.loads(json.dumps(model.preprocessing()))  # lists instead of timm's tuples
    return model.backbone.eval(), {
        "run": folder.path.name,
        "step": state["step"],
        "architecture": config.model_name,
        "model_kwargs": config.model_kwargs,
        "classes": classes,
        "pictures": {"size": model.image_size, **preprocessing},
    }


def _tidy(target: Path, described: Model) -> None:
    """Shrink the files that MLflow wrote, and make the model usable on a machine with a GPU."""
    for file in target.glob("*example.json"):  # one number per line: megabytes
        file.write_text(json.dumps(json.loads(file.read_text()), separators=(",", ":")))
    # The graph was exported on the CPU; MLflow would try the GPU first, and fail.
    described.flavors["python_function"]["config"]["device"] = "cpu"
    described.model_size_bytes = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    described.save(str(target / "MLmodel"))


@contextmanager
def _export_errors(folder: RunFolder) -> Iterator[None]:
    """Turn torch's export error into a `UserError` of one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (OSError, MlflowException):
        raise
    except Exception as error:  # torch.export raises whatever it meets in a network's code
        reason = reason_of(error)
        raise UserError(
            f"{folder.path}: torch cannot export the network: {type(error).__name__}: {reason}"
        ) from None


def _version(package: str) -> str:
    """Return a package's version as in a package index: without +cpu, +cu128."""
    return version(package).partition("+")[0]

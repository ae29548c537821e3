"""The network of a run as an MLflow model: equal outputs, and stored only once."""

import json
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext

import mlflow
import numpy as np
import pytest
import servers
import torch
import yaml
from mlflow.entities import Metric
from mlflow.models import Model
from tiny import TINY

from densevit.config.identity import identity
from densevit.config.run_config import RunConfig
from densevit.models.load import load_model
from densevit.models.vit import DenseViT
from densevit.runs.checkpoint_files import newest_first
from densevit.runs.directory import RunFolder, run_folder
from densevit.tracking import mlflow_model
from densevit.tracking.mlflow_model import log_model, write_model
from densevit.tracking.store import open_store
from densevit.train.execute import execute
from densevit.utils.errors import UserError

pytestmark = pytest.mark.tracking

CLASSES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blobs):
    """Return a finished run; do not change it."""
    config = RunConfig(
        **{**TINY, "cl_mode": "joint", "epochs": 1, "data_dir": str(blobs)},
        drop_path=0.1, gradient_checkpointing=True,
    )  # fmt: skip
    folder = run_folder(tmp_path_factory.mktemp("outputs"), identity(config).run)
    folder.create(config)
    assert execute(folder) == 0
    return folder


@pytest.fixture
def store(tmp_path, empty_store):
    """Return the URI of an SQLite store, and its client."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    return uri, open_store(uri)


@pytest.fixture
def user_of(monkeypatch):
    """Return a function that makes a store the user's, as `mlflow.set_tracking_uri` does."""

    def use(uri):
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)

    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    yield use
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def mirrored(client, where):
    """Mirror a finished run to the store, with one step more than the network has trained."""
    experiment = client.create_experiment("tests", artifact_location=where)
    run = client.create_run(experiment, run_name="joint: seed 0.1").info.run_id
    client.log_param(run, "cl_mode", "joint")
    for step in (4, 5):
        points = [Metric("val/top1", 50.0 + step, 1000 + step, step)]
        points += [Metric("health/rank", float("nan"), 1000 + step, step)]
        client.log_batch(run, metrics=points)
    client.set_terminated(run)
    return client.get_run(run)


def models_of(client, run):
    return client.search_logged_models([run.info.experiment_id])


def assert_equal_outputs(uri, folder):
    """Check equal outputs, bit for bit, for any number of images, by both of MLflow's ways to load."""
    network = load_model("", folder, None).model.eval()
    module, function = mlflow.pytorch.load_model(uri), mlflow.pyfunc.load_model(uri)
    for count in (1, 2, 3, 17):
        pictures = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            wanted = network(pictures).logits
        assert torch.equal(module(pictures), wanted)
        assert np.array_equal(function.predict(pictures.numpy()), wanted.numpy())
    return function


def test_a_saved_model_loads_with_equal_outputs_and_says_how_to_use_it(tmp_path, trained):
    target = tmp_path / "new" / "a model"
    write_model(trained, target, Model())
    about = assert_equal_outputs(str(target), trained).metadata.metadata
    assert about["run"] == trained.path.name
    assert about["classes"] == CLASSES
    assert about["architecture"] == "vit_tiny_patch16_224"
    assert about["step"] == 5
    pictures = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert about["pictures"].items() >= pictures.items()
    assert [path.name for path in target.parent.iterdir()] == [target.name]

    described = yaml.safe_load((target / "MLmodel").read_text())
    (given,) = json.loads(described["signature"]["inputs"])
    (got,) = json.loads(described["signature"]["outputs"])
    assert given["tensor-spec"] == {"dtype": "float32", "shape": [-1, 3, 32, 32]}
    assert got["tensor-spec"] == {"dtype": "float32", "shape": [-1, 3]}
    assert described["flavors"]["python_function"]["config"] == {"device": "cpu"}
    required = (target / "requirements.txt").read_text().split()
    torch_version = torch.__version__.partition("+")[0]
    assert required[1:] == [f"torch=={torch_version}", f"timm=={mlflow_model._version('timm')}"]
    assert required[0].startswith("mlflow==")  # which MLflow adds
    assert not [path for path in target.rglob("*") if path.suffix in (".pkl", ".pth", ".py")]
    with zipfile.ZipFile(target / "data" / "model.pt2") as archive:
        kinds = [json.loads(archive.read(n)) for n in archive.namelist() if "weights_config" in n]
    assert {weight["use_pickle"] for weight in kinds[0]["config"].values()} == {False}


def test_it_says_nothing_and_leaves_nothing_where_one_is(tmp_path, trained, store):
    uri, client = store
    run = mirrored(client, (tmp_path / "artifacts").as_uri())
    program = (
        "import sys; from pathlib import Path; from densevit.runs.directory import RunFolder\n"
        "from densevit.tracking.store import open_store\n"
        "from densevit.tracking.mlflow_model import log_model\n"
        "heavy = {'torch', 'mlflow', 'timm', 'numpy'} & set(sys.modules); assert not heavy, heavy\n"
        "uri, run, folder = sys.argv[1:]\n"
        "log_model(open_store(uri), run, RunFolder(Path(folder)), uri)\n"
    )
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, uri, run.info.run_id, trained.path],
        cwd=tmp_path / "empty", capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "empty").iterdir()) == []
    (model,) = models_of(client, run)
    assert model.status == "READY"


def test_a_server_has_it_once_as_a_model_of_the_run(tmp_path, trained, user_of, empty_store):
    file = shutil.copy(empty_store, tmp_path / "mlflow.db")
    with servers.mlflow_server(
        f"sqlite:///{file}", tmp_path / "artifacts", workers=1
    ) as server:  # fmt: skip
        client = open_store(server.uri)
        run = mirrored(client, None)
        for _ in range(2):
            log_model(client, run.info.run_id, trained, server.uri)
        (model,) = models_of(client, run)
        assert model.artifact_location.startswith("mlflow-artifacts:")
        user_of(server.uri)
        assert_equal_outputs(f"models:/{model.model_id}", trained)
        assert_equal_outputs(f"runs:/{run.info.run_id}/{model.name}", trained)


def assert_there_once(client, run, folder):
    """Check that the model is complete, and that nothing of it or of the run is there twice."""
    (model,) = models_of(client, run)
    assert model.status == "READY"
    assert model.source_run_id == run.info.run_id
    assert model.name == "joint- seed 0-1"
    assert model.params == {"cl_mode": "joint"}
    assert model.tags["densevit.run"] == folder.path.name
    now = client.get_run(run.info.run_id)
    assert [(o.model_id, o.step) for o in now.outputs.model_outputs] == [(model.model_id, 5)]
    assert [(m.key, m.value, m.step) for m in model.metrics if m.key == "val/top1"] == [
        ("val/top1", 55.0, 5)
    ]
    for key in ("val/top1", "health/rank"):
        points = client.get_metric_history(run.info.run_id, key)
        assert sorted(point.step for point in points) == [4, 5]
    assert now.info.to_proto() == run.info.to_proto()
    return model


class Killed(BaseException):
    """Raised instead of SIGKILL."""


class Dying:
    """A client that is killed before or after a call that changes the store."""

    CHANGING = ("create", "log", "finalize", "delete", "set")

    def __init__(self, client, calls):
        self.client, self.calls = client, calls

    def __getattr__(self, name):
        method = getattr(self.client, name)
        if not name.startswith(self.CHANGING):
            return method

        def call(*arguments, **options):
            self.calls -= 1
            if self.calls < 0:
                raise Killed
            return method(*arguments, **options)

        return call


# Before the model, its files, its link to the run, the metrics, and the last call; and not at all.
@pytest.mark.parametrize("calls", range(6))
def test_what_a_killed_process_left_is_completed(tmp_path, trained, store, user_of, calls):
    uri, client = store
    run = mirrored(client, (tmp_path / "artifacts").as_uri())
    with pytest.raises(Killed) if calls < 5 else nullcontext():
        log_model(Dying(client, calls), run.info.run_id, trained, uri)
    assert len(models_of(client, run)) == min(calls, 1)
    log_model(client, run.info.run_id, trained, uri)
    model = assert_there_once(client, run, trained)
    log_model(Dying(client, 0), run.info.run_id, trained, uri)  # there is nothing to do
    user_of(uri)
    assert_equal_outputs(f"models:/{model.model_id}", trained)


def test_a_second_one_goes_and_a_users_own_stays(tmp_path, trained, store):
    uri, client = store
    run = mirrored(client, (tmp_path / "artifacts").as_uri())
    make = client.create_logged_model
    experiment, mlflow_id = run.info.experiment_id, run.info.run_id
    weights = newest_first(trained.checkpoint_folder)[0].name
    ours = {"densevit.run": trained.path.name, "densevit.checkpoint": weights}
    theirs = make(experiment, "own", mlflow_id).model_id
    for tags in (
        ours,
        ours,
        {**ours, "densevit.checkpoint": "step-00000004-0123456789abcdef.pt"},
    ):
        make(experiment, "half", mlflow_id, tags)
    log_model(client, mlflow_id, trained, uri)
    found = {model.model_id: str(model.status) for model in models_of(client, run)}
    assert len(found) == 2
    assert found.pop(theirs) == "PENDING"
    assert [*found.values()] == ["READY"]


def test_a_run_without_a_checkpoint(tmp_path, trained, store):
    """A model that is in the store stays: the checkpoint may have been removed to free the disk."""
    uri, client = store
    run = mirrored(client, (tmp_path / "artifacts").as_uri())
    folder = RunFolder(shutil.copytree(trained.path, tmp_path / trained.path.name))
    log_model(client, run.info.run_id, folder, uri)
    before = [m.to_dictionary() for m in models_of(client, run)]
    shutil.rmtree(folder.checkpoint_folder)
    log_model(client, run.info.run_id, folder, uri)
    assert [m.to_dictionary() for m in models_of(client, run)] == before
    client.delete_logged_model(before[0]["model_id"])
    with pytest.raises(UserError, match="holds no checkpoint") as error:
        log_model(client, run.info.run_id, folder, "https://me:secret@host")
    assert "secret" not in str(error.value)
    assert models_of(client, run) == []


def test_a_network_that_torch_cannot_export_is_one_line(tmp_path, trained, monkeypatch):
    class Odd(DenseViT):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.backbone.forward = lambda pictures: len(pictures.numpy())

    monkeypatch.setattr("densevit.models.vit.DenseViT", Odd)
    with pytest.raises(UserError, match="torch cannot export the network: ") as error:
        write_model(trained, tmp_path / "saved", Model())
    assert "\n" not in str(error.value)

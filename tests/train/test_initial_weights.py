"""Initial weights from other sources, and exported weights."""

import json
import shlex

import forked
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import TINY

from densevit.config.identity import identity
from densevit.config.run_config import RunConfig
from densevit.runs.checkpoint import newest_first
from densevit.runs.directory import RunFolder, run_folder
from densevit.runs.metrics_file import read_metrics
from densevit.train.execute import execute
from densevit.train.initial_weights import load_initial
from densevit.train.learner import build_learner
from densevit.utils.errors import EXIT_MISTAKE, UserError
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402

CPU = torch.device("cpu")


def densevit(*arguments, **options):
    return forked.done(arguments, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blobs):
    """Return a finished run under its own id in an outputs folder."""
    config = RunConfig(**{**TINY, "cl_mode": "joint", "data_dir": str(blobs)})
    folder = run_folder(tmp_path_factory.mktemp("outputs"), identity(config).run)
    folder.create(config)
    assert execute(folder) == 0
    return folder


def network(folder):
    """Return the run's final network, in evaluation mode."""
    state = torch.load(newest_first(folder.checkpoint_folder)[0], weights_only=True)
    model = build_learner(folder.config(), 3, CPU).model.eval()
    model.load_state_dict(state["model"])
    return model


@pytest.mark.parametrize("by", ["id", "folder"])
def test_an_exported_run_is_loaded_by_timm_with_equal_outputs(tmp_path, trained, by):
    outputs = trained.path.parent.parent
    run = trained.path.name if by == "id" else trained.path
    file = tmp_path / "out" / "net.safetensors"
    done = densevit("export", run, "--format", "timm", "--to", file, "--outputs", outputs)
    assert done.returncode == 0, done.stderr
    path, expression = done.stdout.splitlines()
    assert path == str(file)
    model = eval(expression, {"timm": timm}).eval()
    pictures = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(pictures), network(trained)(pictures).logits)
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert about["architecture"] == "vit_tiny_patch16_224"
    assert json.loads(about["classes"]) == ["blue", "green", "red"]
    assert about["run"] == trained.path.name


def test_export_goes_where_the_user_is_and_mistakes_are_one_line(tmp_path, trained):
    outputs = trained.path.parent.parent
    done = densevit("export", trained.path.name, "--outputs", outputs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{trained.path.name}.safetensors").exists()
    for run in ("000000000000", trained.path.name[:-1]):
        done = densevit("export", run, "--outputs", outputs)
        assert done.returncode == EXIT_MISTAKE
        assert done.stderr.count("\n") == 1
        assert f"{run}: no such run in {outputs / 'runs'}" in done.stderr
    assert f"did you mean '{trained.path.name}'?" in done.stderr


def learner_for(trained, **fields):
    settings = {**trained.config().model_dump(), **fields}
    return build_learner(RunConfig(**settings), 3, CPU)


@pytest.mark.parametrize("form", ["run", "checkpoint", "safetensors", "pth"])
def test_a_run_begins_with_the_weights_of(tmp_path, trained, form, caplog):
    caplog.set_level("INFO", "densevit")
    source = trained.path
    wanted = network(trained).state_dict()
    if form == "checkpoint":
        source = newest_first(trained.checkpoint_folder)[0]
    elif form != "run":
        source = tmp_path / f"w.{form}"
        inside = {n.removeprefix("backbone."): v for n, v in wanted.items() if "backbone" in n}
        if form == "pth":
            torch.save({"state_dict": inside}, source)
        else:
            save_file(inside, source)
    learner = learner_for(trained, key_encoder="momentum")
    load_initial(learner, str(source))
    whole = form in ("run", "checkpoint")
    for name, value in learner.model.state_dict().items():
        if whole or name.startswith("backbone."):
            assert torch.equal(value, wanted[name]), name
        assert torch.equal(learner.averaged.state_dict()[name], value)
    assert ("missing, so random: heads." in caplog.text) is not whole


def test_other_classes_another_grid_and_strange_names_are_told(tmp_path, trained, caplog):
    caplog.set_level("INFO", "densevit")
    torch.manual_seed(0)
    kwargs = {**trained.config().model_kwargs, "img_size": 48}
    config = RunConfig(**{**trained.config().model_dump(), "model_kwargs": kwargs})
    learner = build_learner(config, 7, CPU)
    file = tmp_path / "w.safetensors"
    inside = {
        n.removeprefix("backbone."): v
        for n, v in network(trained).state_dict().items() if n.startswith("backbone.")
    }  # fmt: skip
    del inside["blocks.1.mlp.fc2.bias"]
    save_file({**inside, "decoder.weight": torch.ones(2)}, file)
    load_initial(learner, str(file))
    assert "of another shape, so random: backbone.head.weight, backbone.head.bias" in caplog.text
    assert "backbone.blocks.1.mlp.fc2.bias" in caplog.text.split("missing")[1]
    assert "unexpected, so ignored: backbone.decoder.weight" in caplog.text
    got = learner.model.state_dict()
    assert torch.equal(got["backbone.patch_embed.proj.weight"], inside["patch_embed.proj.weight"])
    assert got["backbone.pos_embed"].shape == (1, 1 + 36, 32)  # resized from a grid of 4 x 4
    assert torch.equal(got["backbone.pos_embed"][:, 0], inside["pos_embed"][:, 0])


def test_what_cannot_be_begun_with_is_one_line(tmp_path, trained):
    learner = learner_for(trained)
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    save_file({"conv.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    for name, told in (
        ("gone.pth", "no such file or run directory"),
        ("empty", "the folder holds no checkpoint of a run"),
        ("torn.safetensors", "cannot be read"),
        ("other.safetensors", "none of its 1 tensors fits the network"),
    ):
        with pytest.raises(UserError) as error:
            load_initial(learner, str(tmp_path / name))
        assert str(error.value).startswith(f"init_checkpoint: {tmp_path / name}: {told}")
        assert "\n" not in str(error.value)


def test_a_whole_run_begins_with_another_and_refuses_a_changed_one(tmp_path, trained, tiny):
    file = tmp_path / "w.safetensors"
    expression = densevit("export", trained.path, "--to", file)
    assert expression.returncode == 0
    flags = ["train", "--no-tracking", "--outputs", tmp_path / "out", "--init-checkpoint", file]
    for name, value in {**tiny, "epochs": 1, "learning_rate": 1e-9, "cl_mode": "none"}.items():
        flags += [
            f"--{name.replace('_', '-')}",
            value if isinstance(value, str) else json.dumps(value),
        ]
    done = densevit(*flags)
    assert done.returncode == 0, shlex.join(map(str, flags)) + done.stderr
    (folder,) = [RunFolder(p) for p in (tmp_path / "out" / "runs").iterdir()]
    count = len(load_file(file))
    assert f"init_checkpoint: {count} of {count} tensors from" in folder.log_file.read_text()
    # It starts with what the other run has learned.
    last = read_metrics(folder.metrics_file)[0][-1]["val/nll"]
    assert last == pytest.approx(read_metrics(trained.metrics_file)[0][-1]["val/nll"], rel=1e-3)
    changed = load_file(file)
    save_file({**changed, "norm.bias": changed["norm.bias"] + 1}, file)
    folder.results_file.unlink()
    # Its checkpoint has everything. Only a run without one reads the file again.
    again = densevit(*flags)
    assert again.returncode == 0, again.stderr
    for path in (folder.results_file, *newest_first(folder.checkpoint_folder)):
        path.unlink()
    again = densevit(*flags)
    assert again.returncode == EXIT_MISTAKE
    assert "init_checkpoint have changed since this run saw them" in again.stderr


def test_pretrained_without_a_network_says_what_to_do(tmp_path, tiny, monkeypatch):
    # HF_HUB_OFFLINE and HF_HOME are read only once.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = RunFolder(tmp_path / "run")
    kwargs = {"img_size": 32, "patch_size": 16}
    folder.create(RunConfig(**{**tiny, "model_kwargs": kwargs, "pretrained": True}))
    assert execute(folder) == EXIT_MISTAKE
    message = folder.status().message
    assert message.startswith("pretrained: timm cannot load the weights of vit_tiny_patch16_224: ")
    assert message.endswith("download them elsewhere and set init_checkpoint to the file")

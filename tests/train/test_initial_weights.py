"""Initial weights from other sources, and exported weights."""

import argparse
import datetime
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
from densevit.runs.checkpoint_files import newest_first
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
    deeper = {f"blocks.{n}.norm1.bias": torch.ones(32) for n in (2, 3)}
    save_file({**inside, **deeper, "decoder.weight": torch.ones(2)}, file)
    load_initial(learner, str(file))
    assert "of another shape, so random: backbone.head.weight, backbone.head.bias" in caplog.text
    assert "backbone.blocks.1.mlp.fc2.bias" in caplog.text.split("missing")[1]
    assert "unexpected, so ignored: backbone.blocks.2.norm1.bias, " in caplog.text
    assert "backbone.decoder.weight" in caplog.text
    (told,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert told == "init_checkpoint: its network has 4 blocks, and this one the first 2 of them"
    got = learner.model.state_dict()
    assert torch.equal(got["backbone.patch_embed.proj.weight"], inside["patch_embed.proj.weight"])
    assert got["backbone.pos_embed"].shape == (1, 1 + 36, 32)  # resized from a grid of 4 x 4
    assert torch.equal(got["backbone.pos_embed"][:, 0], inside["pos_embed"][:, 0])


def inside_of(folder):
    """Return the tensors of the run's backbone under timm's names."""
    state = network(folder).state_dict()
    return {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}


def prefixed(prefix, tensors):
    return {f"{prefix}{name}": value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("prefix", "layout"),
    [
        ("teacher.backbone.", lambda net: {  # DINO, DINOv2
            "student": prefixed("module.backbone.", net),
            "teacher": prefixed("backbone.", net) | {"head.mlp.0.weight": torch.ones(2)},
            "args": argparse.Namespace(arch="vit_tiny"), "epoch": 3,
        }),
        ("state_dict.module.base_encoder.", lambda net: {  # MoCo v3
            "state_dict": prefixed("module.base_encoder.", net)
            | prefixed("module.momentum_encoder.", net),
        }),
        ("state_dict.model.backbone.", lambda net: {  # Lightning
            "state_dict": prefixed("model.backbone.", net), "hyper_parameters": {"lr": 1},
        }),
        ("module.", lambda net: prefixed("module.", net)),
        ("", lambda net: net | prefixed("teacher.", net)),
    ],
)  # fmt: skip
def test_a_known_prefix_is_stripped_and_told(tmp_path, trained, prefix, layout, caplog):
    caplog.set_level("INFO", "densevit")
    torch.save(layout(inside_of(trained)), tmp_path / "w.pth")
    learner = learner_for(trained)
    load_initial(learner, str(tmp_path / "w.pth"))
    for name, value in inside_of(trained).items():
        assert torch.equal(learner.model.state_dict()[f"backbone.{name}"], value), name
    assert (f"its tensors are those named {prefix}..." in caplog.text) == bool(prefix)


def test_what_cannot_be_begun_with_is_one_line(tmp_path, trained):
    net = inside_of(trained)
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "nothing.pth").touch()
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")
    (tmp_path / "page.pth").write_text("\n<!DOCTYPE html>")
    (tmp_path / "noise.pth").write_bytes(b"\x01\x02" * 50)
    torch.save({"model": net, "when": datetime.date(2026, 1, 1)}, tmp_path / "objects.pth")
    save_file({"conv.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    torch.save({"teacher": net, "module": net}, tmp_path / "two.pth")
    save_file({n: v for n, v in net.items() if n != "pos_embed"}, tmp_path / "half.safetensors")
    wide = timm.create_model("vit_tiny_patch16_224", embed_dim=64, depth=2, num_heads=2,
                             img_size=32, patch_size=8, num_classes=3)  # fmt: skip
    torch.save(prefixed("backbone.", wide.state_dict()), tmp_path / "wide.pth")
    learner = learner_for(trained, init_share=0.5)
    before = learner.model.state_dict()["backbone.head.bias"].clone()
    for name, told in (
        ("gone.pth", "no such file or run directory"),
        ("empty", "the folder holds no checkpoint of a run"),
        ("torn.safetensors", "cannot be read"),
        ("nothing.pth", "is empty; was its download interrupted?"),
        ("lfs.safetensors", "is a pointer of Git LFS, not the weights; get them with: git lfs pull"),
        ("page.pth", "is a web page, not weights"),
        ("noise.pth", "is no file of weights: neither safetensors nor what torch.save writes"),
        ("objects.pth", "holds more than weights (datetime.date), which could run any code; save "),
        ("other.safetensors", "none of its 1 tensors fits the network: in the network "
         "cls_token, pos_embed, "),
        ("two.pth", "holds several networks that fit: teacher., module.; save the one"),
        ("half.safetensors", "lacks pos_embed of the network: in the network pos_embed; in the "),
        ("wide.pth", "fits 0.0% of the backbone's weights, at least 0.5 of them are needed "
         "(init_share), and lacks patch_embed.proj.weight and pos_embed: cls_token is (1, 1, 64) in "
         "the file, (1, 1, 32) in the network; do model_name and model_kwargs fit the file?"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            load_initial(learner, str(tmp_path / name))
        assert str(error.value).startswith(f"init_checkpoint: {tmp_path / name}: {told}")
        assert "\n" not in str(error.value)
    assert torch.equal(before, learner.model.state_dict()["backbone.head.bias"])


@pytest.mark.parametrize("share", [0.99, 0.4, 0])
def test_a_share_of_the_weights_is_enough_if_the_run_says_so(tmp_path, trained, share):
    net = inside_of(trained)
    del net["pos_embed"]
    save_file({n: v for n, v in net.items() if "blocks.1" not in n}, tmp_path / "w.safetensors")
    learner = learner_for(trained, init_share=share)
    if share:
        with pytest.raises(UserError, match=r"fits 58\.\d%.* 0\.99|lacks pos_embed"):
            load_initial(learner, str(tmp_path / "w.safetensors"))
        return
    load_initial(learner, str(tmp_path / "w.safetensors"))
    got = learner.model.state_dict()
    assert torch.equal(got["backbone.blocks.0.attn.qkv.weight"], net["blocks.0.attn.qkv.weight"])


def test_a_whole_run_begins_with_another_and_other_weights_are_another_run(tmp_path, trained, tiny):
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
    # It is resumed from its checkpoint, also where the file has gone.
    folder.results_file.unlink()
    content = file.read_bytes()
    file.unlink()
    again = densevit(*flags)
    assert again.returncode == 0, again.stderr
    # Other weights are another run, and a run that was planned with these does not begin with them.
    file.write_bytes(content)
    changed = load_file(file)
    save_file({**changed, "norm.bias": changed["norm.bias"] + 1}, file)
    begun = RunFolder(tmp_path / "begun")
    begun.create(folder.config())
    assert execute(begun) == EXIT_MISTAKE
    assert "its content has changed since this run was planned" in begun.status().message
    assert densevit(*flags).returncode == 0
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2


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

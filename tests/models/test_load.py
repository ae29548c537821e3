"""Weights are data: neither a sweep file nor the metadata of a file makes timm open another one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from densevit.cli.main import main, main_sweep
from densevit.config.run_config import RunConfig
from densevit.models.backbone import build_backbone
from densevit.models.load import load_model
from densevit.utils.errors import UserError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


class Program:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def attack(tmp_path, monkeypatch):
    """Return the path of a pickle, and its mark; timm reads it as it did before 1.0.26."""
    mark, file = tmp_path / "mark", tmp_path / "weights.pt"
    torch.save(Program(mark), file)

    def unpickle(_, path):
        torch.load(path, weights_only=False)

    monkeypatch.setattr("timm.models._factory.load_checkpoint", unpickle)
    monkeypatch.setattr("timm.models._builder.load_pretrained", unpickle)
    return file, mark


def exported(path, weights, **about):
    save_file(weights, path, {"classes": '["a", "b"]', **about})
    return path


@pytest.fixture
def weights():
    return build_backbone(RunConfig(model_kwargs=SMALL), 2).state_dict()


def test_a_pickle_that_a_sweep_file_names_is_not_read(tmp_path, attack, capsys):
    file, mark = attack
    sweep = tmp_path / "s.yaml"
    kwargs = {**SMALL, "checkpoint_path": str(file)}
    fixed = {"model_kwargs": kwargs, "sampled_patches": 4}
    sweep.write_text(json.dumps({"name": "s", "fixed": fixed, "seeds": 1}))
    wanted = "s.yaml: fixed: model_kwargs: checkpoint_path is the field init_checkpoint; set that"
    for words in (["plan", str(sweep)], [str(sweep), "--outputs", str(tmp_path / "out")]):
        assert main_sweep(words) == 2
        assert wanted in capsys.readouterr().err
    # A run directory that somebody else made is checked as well.
    with pytest.raises(UserError, match="checkpoint_path is the field init_checkpoint"):
        build_backbone(RunConfig(model_kwargs=kwargs), 2)
    assert not mark.exists()


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_a_pickle_that_metadata_name_is_not_read(tmp_path, attack, weights, capsys, key):
    file, mark = attack
    value = str(file) if key == "checkpoint_path" else {"file": str(file)}
    kwargs = json.dumps({**SMALL, key: value})
    made = exported(
        tmp_path / "w.safetensors", weights, architecture="vit_tiny_patch16_224",
        model_kwargs=kwargs,
    )  # fmt: skip
    assert main(["eval", str(made), f"val={tmp_path}", "--to", str(tmp_path / "to")]) == 2
    assert not mark.exists()
    said = capsys.readouterr().err.strip()
    assert f"w.safetensors: its metadata: model_kwargs: {key} " in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("about", "wanted"),
    [
        ({"architecture": "hf-hub:me/net"}, "if you trust it, give --model-name hf-hub:me/net"),
        ({"architecture": "local-dir:net"}, "timm has no such model"),
        ({"architecture": "local-dir:/net"}, "timm has no such model"),
        ({"model_kwargs": "[1]"}, "its metadata: model_kwargs must be a mapping"),
        ({"model_kwargs": "{"}, "its metadata: model_kwargs: Expecting property name"),
        ({"model_kwargs": '{"depth": "x"}'}, "cannot be read as weights of vit_tiny_patch16_224"),
        ({"classes": '{"a": 1}'}, "its metadata: classes must be a list of names"),
        ({"classes": "[" * 9000}, "its metadata: classes: "),
    ],
    ids=lambda value: str(value)[:40],
)
def test_metadata_that_cannot_be_followed_are_refused_in_a_line(tmp_path, weights, about, wanted):
    about = {"architecture": "vit_tiny_patch16_224", "model_kwargs": json.dumps(SMALL), **about}
    made = exported(tmp_path / "w.safetensors", weights, **about)
    with pytest.raises(UserError) as error:
        load_model(str(made), None, None)
    assert str(error.value).startswith(f"{made}: ")
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_weights_is_read_as_data(attack):
    file, mark = attack
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_model(str(file), None, "vit_tiny_patch16_224")
    assert not mark.exists()

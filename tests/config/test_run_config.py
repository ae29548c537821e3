"""The fields of a run, error messages and identity."""

import hashlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from densevit.config import yaml_file
from densevit.config.identity import identity
from densevit.config.resolve import _REMOVES, Layer, build, read_layers
from densevit.config.run_config import FIELDS, RunConfig
from densevit.utils.errors import UserError


def config(**settings):
    return build([Layer("test", settings)])


def said(call, *arguments, **settings):
    with pytest.raises(UserError) as error:
        call(*arguments, **settings)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_defaults_are_those_of_the_design():
    wanted = {
        "cl_mode": "dense", "model_name": "vit_tiny_patch16_224", "batch_size": 256,
        "epochs": 100, "lambda_weight": 0.5, "contrastive_weight_adaptive": False,
        "queue_size": 65536, "temperature": 0.2, "learnable_temp": False,
        "sampling_strategy": "random", "sampled_patches": 50, "query_patches": "all",
        "correspondence_features": "backbone", "dense_negatives": "patches",
        "key_encoder": "momentum", "momentum": 0.999, "dense_dim": 128, "learning_rate": 2.5e-4,
        "warmup_epochs": 5, "grad_clip": 5.0, "seed": 0,
    }  # fmt: skip
    assert wanted.items() <= RunConfig().model_dump().items()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"tempratur": 1}, "tempratur: unknown key; did you mean 'temperature'?"),
        (
            {"depth": 3},
            "depth: unknown key; it is an argument of the network: model_kwargs: {depth: ",
        ),
        ({"cl_mode": "dens"}, "cl_mode: 'dens' is not valid; did you mean 'dense'?"),
        ({"lambda_weight": 2}, "lambda_weight: 2 is out of range; it must be at most 1"),
        ({"lambda_weight": -0.1}, "lambda_weight: -0.1 is out of range; it must be at least 0"),
        ({"temperature": 0}, "temperature: 0 is out of range; it must be greater than 0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"temperature": "0.2"}, "temperature: '0.2' must be a number"),
        ({"temperature": True}, "temperature: true must be a number"),
        ({"batch_size": 2.5}, "batch_size: 2.5 must be a whole number"),
        ({"batch_size": True}, "batch_size: true must be a whole number"),
        ({"batch_size": None}, "batch_size: null must be a whole number"),
        ({"learnable_temp": 1}, "learnable_temp: 1 must be true or false"),
        ({"query_patches": "some"}, "query_patches: 'some' is not valid or a whole number"),
        ({"query_patches": 0.5}, "query_patches: 0.5"),
        ({"query_patches": 0}, "query_patches: 0 is out of range; it must be at least 1"),
        ({"query_patches": -3}, "query_patches: -3 is out of range; it must be at least 1"),
        (
            {"learnable_temp": True, "temperature": 5.0},
            "temperature: 5.0 is out of range; with learnable_temp it must be at least 0.01 and at "
            "most 1.0",
        ),
        ({"model_kwargs": [1]}, "model_kwargs: [1] must be a mapping"),
        ({"dataset": "../x"}, "dataset: '../x' must be a name"),
        ({"benchmarks": {"a/b": "x"}}, "must be a name"),
        ({"benchmarks": {"a": 1}}, "benchmarks.a: 1 must be text"),
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs: 3 must be less than epochs: 3"),
        ({"seed": -1}, "seed: -1 is out of range"),
    ],
)
def test_a_mistake_is_one_line_with_place_key_and_way_out(settings, wanted):
    text = said(config, **settings)
    assert text.startswith("test: ")
    assert wanted in text


@pytest.mark.parametrize(
    ("names", "allowed", "refused"),
    [
        ("lambda_weight joint_dense_weight", (0, 1), (-0.1, 1.1)),
        ("momentum drop_path label_smoothing", (0, 0.999), (-0.1, 1)),
        ("layer_decay", (0.01, 1), (0, 1.1)),
        ("weight_decay grad_clip mixup", (0,), (-0.1, math.inf)),
        ("learning_rate temperature checkpoint_minutes", (1e-9,), (0, math.inf)),
        ("batch_size epochs queue_size sampled_patches query_patches dense_dim", (1,), (0,)),
        ("projection_hidden_dim watch_every watch_samples log_every health_every", (1,), (0,)),
        ("grad_accumulation", (1,), (0,)),
        ("warmup_epochs workers", (0,), (-1,)),
        ("seed", (0, 2**31 - 1), (-1, 2**31)),
    ],
)
def test_a_number_has_the_range_in_which_it_means_something(names, allowed, refused):
    for name in names.split():
        for value in allowed:
            assert getattr(RunConfig(**{name: value}), name) == value
        for value in refused:
            with pytest.raises(ValidationError):
                RunConfig(**{name: value})


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 2.5e-4),
        ({"batch_size": 1024}, 1e-3),
        ({"batch_size": 1024, "pretrained": True}, 1e-5),
        ({"init_checkpoint": "weights.pt"}, 1e-5),
        ({"learning_rate": 0.5, "pretrained": True}, 0.5),
    ],
)
def test_an_automatic_learning_rate_is_that_of_deit_or_small_for_trained_weights(settings, rate):
    found = RunConfig(**settings)
    assert found.learning_rate == pytest.approx(rate)
    written = RunConfig(**found.model_dump())
    assert written.learning_rate == found.learning_rate, "a stored value stays"
    assert identity(written) == identity(found)
    assert identity(RunConfig(**settings | {"learning_rate": found.learning_rate})) == identity(
        found
    )


def test_an_unknown_key_is_told_before_what_follows_from_it():
    assert "unknown key" in said(config, aaa=1, temperature=-1, lambda_weigth=1)


def test_one_and_one_point_zero_are_the_same_run():
    for name in ("learning_rate", "batch_size", "grad_clip", "queue_size"):
        assert identity(config(**{name: 1})) == identity(config(**{name: 1.0}))
    nested = [config(model_kwargs={"img_size": size}) for size in (32, 32.0)]
    assert identity(nested[0]) == identity(nested[1])
    assert type(nested[1].model_kwargs["img_size"]) is int, "and what timm is given is one"


def test_the_id_is_the_hash_of_the_stored_preimage():
    ids = identity(config(cl_mode="global", temperature=0.1, seed=3))
    assert ids.preimage == {
        "schema_version": 3, "seed": 3,
        "config": {"cl_mode": "global", "temperature": 0.1, "learning_rate": 0.00025},
    }  # fmt: skip
    text = json.dumps(ids.preimage, sort_keys=True, separators=(",", ":"))
    assert ids.run == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_ids_are_pinned():
    """A changed id orphans everybody's results: bump SCHEMA_VERSION if the change is intended."""
    assert identity(config()).run == "02d343eb4274"
    assert identity(config(cl_mode="none", batch_size=64, seed=1)).run == "b5584de8c633"


# Two valid values of every field, written from docs/design.md and not from the lists in the code.
# Execution fields are not part of an id.
EXECUTION = {
    "data_dir": ("a", "b"), "benchmarks": ({}, {"x": "y"}), "watched": ([], ["x"]),
    "watch_every": (5, 2), "watch_samples": (9, 8), "probes": ([], ["knn"]), "masks": ("a", "b"),
    "void": ([255], [0, 255]), "experiment_name": ("a", "b"), "log_model": (False, True),
    "device": ("auto", "cpu"), "threads": (1, 2), "init_share": (0.99, 0.5), "workers": (4, 0),
    "log_every": (50, 7), "health_every": (1000, 9),
    "on_collapse": ("warn", "stop"), "checkpoint_minutes": (10.0, 2.5),
    "grad_accumulation": (1, 2), "gradient_checkpointing": (False, True), "compile": (False, True),
    "git_diff": (True, False),
}  # fmt: skip
# These always are.
ALWAYS = {
    "cl_mode": ("global", "joint"), "model_name": ("a", "b"), "model_kwargs": ({}, {"a": 1}),
    "dataset": ("a", "b"), "label_column": (None, "a"), "batch_size": (8, 16), "epochs": (30, 40), "learning_rate": (0.1, 0.2),
    "warmup_epochs": (1, 2), "weight_decay": (0.1, 0.2), "grad_clip": (1.0, 2.0),
    "layer_decay": (0.8, 0.9), "drop_path": (0.1, 0.2), "label_smoothing": (0.1, 0.2),
    "mixup": (0.1, 0.2), "pretrained": (False, True), "init_checkpoint": (None, "w.pt"),
    "init_sha256": ("a" * 16, "b" * 16),
    "precision": ("bf16", "fp16"), "tf32": (False, True),
}  # fmt: skip
# The others are, if they apply: with one of these choices.
CHOICES = {
    "none": {"cl_mode": "none"},
    "none, shared": {"cl_mode": "none", "key_encoder": "shared"},
    "weight 0": {"lambda_weight": 0},
    "global": {"cl_mode": "global"},
    "global, shared": {"cl_mode": "global", "key_encoder": "shared"},
    "dense": {"cl_mode": "dense"},
    "dense, shared": {"cl_mode": "dense", "key_encoder": "shared"},
    "pooled": {"cl_mode": "dense", "dense_negatives": "pooled"},
    "joint": {"cl_mode": "joint"},
    "joint, weight 0": {"cl_mode": "joint", "lambda_weight": 0},
    "joint as global": {"cl_mode": "joint", "joint_dense_weight": 0},
    "joint as dense": {"cl_mode": "joint", "joint_dense_weight": 1},
}
CONTRAST = CHOICES.keys() - {"none", "none, shared", "weight 0", "joint, weight 0"}
PATCHES = CONTRAST - {"global", "global, shared", "joint as global"}
SOMETIMES = {
    "lambda_weight": ((0.6, 0.7), CHOICES.keys() - {"none", "none, shared"}),
    "joint_dense_weight": ((0.6, 0.7), {"joint", "joint as global", "joint as dense"}),
    "contrastive_weight_adaptive": ((False, True), CONTRAST),
    "queue_size": ((7, 8), CONTRAST),
    "temperature": ((0.3, 0.4), CONTRAST),
    "learnable_temp": ((False, True), CONTRAST),
    "exclude_same_image": ((False, True), CONTRAST),
    "key_encoder": (("shared", "momentum"), CONTRAST),
    "momentum": ((0.8, 0.9), CONTRAST - {"global, shared", "dense, shared"}),
    "dense_dim": ((64, 32), CONTRAST),
    "projection_hidden_dim": ((64, 32), CONTRAST),
    "query_patches": (("all", 4), PATCHES),
    "correspondence_features": (("backbone", "geometry"), PATCHES),
    "dense_negatives": (("patches", "pooled"), PATCHES),
    "sampling_strategy": (("random", "diverse"), PATCHES - {"pooled"}),
    "sampled_patches": ((7, 8), PATCHES - {"pooled"}),
}


def test_the_lists_of_this_test_hold_every_field():
    lists = [EXECUTION, ALWAYS, SOMETIMES, {"seed", "unlabelled"}]  # tests of their own
    assert sorted(name for names in lists for name in names) == sorted(FIELDS)


@pytest.mark.parametrize("name", [*EXECUTION, *ALWAYS, *SOMETIMES])
def test_a_field_makes_another_run_where_it_applies_and_nowhere_else(name):
    values, where = EXECUTION.get(name), set()
    if name in ALWAYS:
        values, where = ALWAYS[name], CHOICES.keys()
    elif name in SOMETIMES:
        values, where = SOMETIMES[name]
    for choice, settings in CHOICES.items():
        extra = {"init_checkpoint": "w.pt"} if name == "init_sha256" else {}
        one, other = (identity(config(**{**settings, **extra, name: value})) for value in values)
        assert (one.run != other.run) == (one.cell != other.cell) == (choice in where), choice


def test_the_seed_makes_another_run_of_the_same_cell():
    one, other = identity(config()), identity(config(seed=5))
    assert one.cell == other.cell
    assert one.run != other.run


@given(st.permutations(["cl_mode", "temperature", "epochs", "model_kwargs"]))
def test_the_order_of_keys_makes_no_other_run(order):
    values = {"cl_mode": "global", "temperature": 0.3, "epochs": 7, "model_kwargs": {"a": 1}}
    assert identity(config(**{k: values[k] for k in order})) == identity(config(**values))


def test_a_config_survives_its_yaml_file():
    made = config(model_kwargs={"img_size": 32, "x": 1e-7}, learning_rate=1e-5, query_patches=4)
    assert config(**yaml_file.parse(yaml_file.dump(made.model_dump()), "x")) == made


def test_base_files_are_followed_and_later_ones_win(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "deep.yaml").write_text("epochs: 7\nbatch_size: 3\ndata_dir: ../data\n")
    (tmp_path / "top.yaml").write_text("base: a/deep.yaml\nbatch_size: 4\nbenchmarks: {x: b/x}\n")
    made = build(read_layers(tmp_path / "top.yaml"))
    assert (made.epochs, made.batch_size) == (7, 4)
    assert made.data_dir == str(tmp_path / "data")
    assert made.benchmarks == {"x": str(tmp_path / "b" / "x")}


def test_relative_paths_count_from_the_file_that_names_them(tmp_path):
    (tmp_path / "a.yaml").write_text("""
        data_dir: d
        init_checkpoint: w.pt
        masks: m
        benchmarks:
          own: b
          mapped: {path: c, classes: names.txt}
          known: {path: /e, classes: imagenet}
          plain: {classes: folder}
          table: {path: t, label_column: names}
        """)
    made = build(read_layers(tmp_path / "a.yaml"))
    wanted = [str(tmp_path / name) for name in ("d", "w.pt", "m")]
    assert [made.data_dir, made.init_checkpoint, made.masks] == wanted
    given = made.model_dump(exclude_unset=True)["benchmarks"]
    assert given == {
        "own": str(tmp_path / "b"),
        "mapped": {"path": str(tmp_path / "c"), "classes": str(tmp_path / "names.txt")},
        "known": {"path": "/e", "classes": "imagenet"},
        "plain": {"classes": "folder"},
        "table": {"path": str(tmp_path / "t"), "label_column": "names"},
    }
    (tmp_path / "b.yaml").write_text("masks: shapes\n")
    assert build(read_layers(tmp_path / "b.yaml")).masks == "shapes", "the drawn set has its own"


def test_an_error_names_the_file_that_holds_the_mistake(tmp_path):
    (tmp_path / "deep.yaml").write_text("temperature: -1\n")
    (tmp_path / "top.yaml").write_text("base: deep.yaml\nbatch_size: 4\n")
    text = said(lambda: build(read_layers(tmp_path / "top.yaml")))
    assert text.startswith(f"{tmp_path / 'deep.yaml'}: temperature: ")


def test_void_is_a_value_or_several():
    assert RunConfig().void == [255]
    assert config(void=0).void == [0]
    assert config(void=[]).void == []
    assert config(void=[0, 255]).void == [0, 255]
    assert ": 256 is out of range" in said(config, void=256)


def test_mappings_are_merged_key_by_key():
    def made(*layers, field="model_kwargs"):
        named = [Layer(f"{n}.yaml", {field: value}) for n, value in enumerate(layers)]
        return getattr(build(named), field)

    assert set(_REMOVES) == {n for n, f in FIELDS.items() if isinstance(f.default, dict)}
    base = {"img_size": 32, "patch_size": 8, "depth": 4}
    assert made(base, {"depth": 2}) == {"img_size": 32, "patch_size": 8, "depth": 2}
    assert made(base, {"depth": None}, {}) == {"img_size": 32, "patch_size": 8}
    assert made(None) == {}, "its lines have been commented out"
    # A benchmark's null is its default folder; false removes it.
    sets = made({"a": "/a", "b": None}, {"b": False, "c": None}, field="benchmarks")
    assert sets == {"a": "/a", "c": None}
    assert said(made, base, {"dept": None}) == (
        "1.yaml: model_kwargs: dept: null removes a key, and none of this name was set before; did "
        "you mean 'depth'?"
    )
    assert "benchmarks: b: false removes a key" in said(made, {"b": False}, field="benchmarks")
    assert made(["knn"], None, field="probes") == []
    assert said(made, base, None) == (
        "1.yaml: model_kwargs: has no value, and 0.yaml sets img_size, patch_size, depth; leave it "
        "out to keep them, or remove them with {img_size: null, patch_size: null, depth: null}"
    )


def test_a_file_may_extend_several(tmp_path):
    (tmp_path / "root.yaml").write_text("epochs: 7\nbatch_size: 3\n")
    (tmp_path / "a.yaml").write_text("base: root.yaml\nepochs: 8\ntemperature: 0.3\n")
    (tmp_path / "b.yaml").write_text(
        "base: [root.yaml]\ntemperature: 0.4\nmodel_kwargs: {depth: 2}\n"
    )
    (tmp_path / "top.yaml").write_text("base: [a.yaml, b.yaml]\nmodel_kwargs: {drop: 1}\n")
    made = build(read_layers(tmp_path / "top.yaml"))
    # What both extend comes first: b.yaml does not bring its epochs back.
    assert (made.epochs, made.batch_size, made.temperature) == (8, 3, 0.4)
    assert made.model_kwargs == {"depth": 2, "drop": 1}


def test_a_base_may_begin_with_a_variable_or_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETTINGS", str(tmp_path))
    (tmp_path / "root.yaml").write_text("epochs: 7\n")
    (tmp_path / "sub").mkdir()
    for base in ("~/root.yaml", "$SETTINGS/root.yaml", "${SETTINGS}/root.yaml"):
        (tmp_path / "sub" / "a.yaml").write_text(f"base: {base}\n")
        assert build(read_layers(tmp_path / "sub" / "a.yaml")).epochs == 7
    (tmp_path / "a.yaml").write_text("base: $UNSET_HERE/root.yaml\n")
    assert "the variable $UNSET_HERE is not set" in said(read_layers, tmp_path / "a.yaml")


def test_a_circular_or_missing_base_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    assert "in a circle: a.yaml -> b.yaml -> a.yaml" in said(read_layers, tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("base: gone.yaml\n")
    assert "c.yaml: base: gone.yaml: no such file" in said(read_layers, tmp_path / "c.yaml")
    (tmp_path / "d.yaml").write_text("base: [3]\n")
    assert "d.yaml: base: must be the path" in said(read_layers, tmp_path / "d.yaml")


def test_variables_in_paths_are_replaced_when_they_are_set(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("data_dir: $PICTURES/x\nbenchmarks: {b: $PICTURES/b}\n")
    monkeypatch.delenv("PICTURES", raising=False)
    assert build(read_layers(tmp_path / "a.yaml")).data_dir == "$PICTURES/x"
    monkeypatch.setenv("PICTURES", "/pictures")
    made = build(read_layers(tmp_path / "a.yaml"))
    assert (made.data_dir, made.benchmarks) == ("/pictures/x", {"b": "/pictures/b"})


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("experiments/*.yaml")))
def test_the_experiments_are_valid(file):
    build(read_layers(file))

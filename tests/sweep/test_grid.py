"""From a sweep file to runs: a pure function, compared with counting by hand."""

import hashlib
import itertools
import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevit.config.identity import identity
from densevit.config.loss_modes import applies
from densevit.config.resolve import Layer, build
from densevit.config.run_config import FIELDS, RunConfig, is_execution
from densevit.runs.directory import RunFolder
from densevit.sweep.cells import cell_label, short_texts, value_text
from densevit.sweep.grid import expand
from densevit.sweep.plan import make_plan
from densevit.sweep.plan_record import plan_record
from densevit.sweep.read_spec import read_spec
from densevit.sweep.spec import matches
from densevit.utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent


def spec_of(tmp_path, text, name="sweep.yaml"):
    (tmp_path / name).write_text(text)
    return read_spec(tmp_path / name)


def grid_of(tmp_path, text):
    return expand(spec_of(tmp_path, text))


def said(tmp_path, text):
    with pytest.raises(UserError) as error:
        grid_of(tmp_path, text)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(tmp_path / "sweep.yaml"))
    return message


def test_values_of_an_axis_have_short_texts_that_tell_them_apart():
    base = {"img_size": 32, "patch_size": 8}
    paths = ["/x/runs/0a", "/y/w.pt", "/z/w.pt", "/z/runs/0b", "null", None]
    assert list(short_texts(paths).values()) == ["0a", "y/w.pt", "z/w.pt", "0b", "null", "–"]
    kwargs = [{**base, "depth": 6}, {**base, "depth": 12}, {"img_size": 32, "depth": 6}]
    assert list(short_texts(kwargs).values()) == [
        "patch_size=8 depth=6",
        "patch_size=8 depth=12",
        "depth=6",
    ]
    assert list(short_texts([base, {}]).values()) == ["img_size=32 patch_size=8", "{}"]
    assert list(short_texts(["/a/w", "w", 1, True]).values()) == ["/a/w", "w", "1", "true"]
    assert short_texts(["/only/one.pt"]) == {"/only/one.pt": "one.pt"}


def test_the_design_file_expands_as_counted_by_hand(tmp_path):
    grid = grid_of(
        tmp_path,
        """
        name: ablation_sampling
        fixed: {epochs: 100}
        grid:
          cl_mode: [none, global, dense]
          sampling_strategy: [random, diverse, hardest]
          temperature: [0.07, 0.2, 0.5]
        zip: [{model_name: [vit_tiny_patch16_224, vit_small_patch16_224], batch_size: [512, 256]}]
        exclude: [{where: {cl_mode: dense, temperature: 0.07}, because: unstable}]
        include: [{cl_mode: joint}]
        seeds: [0, 1, 2]
        baseline: {cl_mode: none}
        launcher: slurm
        resources: {gpus: 1, cpus: 8, hours: 12,
                    when: [{where: {model_name: "*small*"}, gpus: 4, hours: 24}]}
        """,
    )
    # Per model: 1 none, 3 global (one per temperature), 9 - 3 dense; then the included joint.
    assert len(grid.cells) == 2 * (1 + 3 + 6) + 1
    assert len(grid.runs) == 3 * 21
    assert [count for _, count in grid.excluded] == [2 * 3]
    assert grid.merged == 2 * (27 - 1 - 3 - 9)
    assert grid.axes == (
        "cl_mode", "sampling_strategy", "temperature", "model_name", "batch_size",
    )  # fmt: skip
    small = [r for r in grid.runs if "small" in r.config.model_name]
    assert 0 < len(small) < len(grid.runs)
    assert all(r.resources == {"gpus": 4, "cpus": 8, "hours": 24} for r in small)
    assert grid.runs[0].resources == {"gpus": 1, "cpus": 8, "hours": 12}


def test_runs_are_seed_major_so_that_half_a_sweep_is_a_fair_table(tmp_path):
    grid = grid_of(tmp_path, "name: a\ngrid: {cl_mode: [none, dense]}\nseeds: [4, 2]\n")
    assert [(r.seed, r.config.cl_mode) for r in grid.runs] == [
        (4, "none"), (4, "dense"), (2, "none"), (2, "dense"),
    ]  # fmt: skip
    first = [(r.seed, r.config.cl_mode) for r in grid.cells]
    assert first == [(4, "none"), (4, "dense")], "a cell stands for its first run"


_axes = {
    "cl_mode": ["none", "global", "dense", "joint"],
    "temperature": [0.1, 0.2, 0.3],
    "queue_size": [10, 20],
    "sampling_strategy": ["random", "diverse"],
    "batch_size": [8, 16],
}


@given(st.data())
def test_a_grid_is_the_product_with_meaningless_differences_merged(tmp_path_factory, data):
    chosen = {
        name: data.draw(st.lists(st.sampled_from(values), min_size=1, unique=True))
        for name, values in _axes.items()
        if data.draw(st.booleans())
    }
    seeds = data.draw(st.integers(1, 3))
    text = f"name: a\ngrid: {json.dumps(chosen)}\nseeds: {seeds}\n"
    grid = grid_of(tmp_path_factory.mktemp("g"), text)
    wanted = set()
    for values in itertools.product(*chosen.values()):
        config = RunConfig(**dict(zip(chosen, values, strict=True)))
        wanted.add(tuple((n, getattr(config, n)) for n in _axes if applies(n, config)))
    assert len(grid.cells) == len(wanted)
    assert len(grid.runs) == seeds * len(wanted) == len({r.id for r in grid.runs})
    assert all(r.id == identity(r.config).run for r in grid.runs)
    assert grid.merged == len(list(itertools.product(*chosen.values()))) - len(wanted)


def test_an_id_depends_on_the_run_and_not_on_the_sweep_that_holds_it(tmp_path):
    one = grid_of(tmp_path, "name: a\ngrid: {temperature: [0.1, 0.3], epochs: [50]}\n")
    two = grid_of(
        tmp_path, "name: b\nfixed: {epochs: 50, workers: 1}\ninclude: [{temperature: 0.3}]\n"
    )
    assert [r.id for r in two.runs] == [one.runs[1].id]


def test_a_new_axis_value_adds_cells_and_moves_none(tmp_path):
    text = "name: a\ngrid: {cl_mode: [none, dense], temperature: [0.1, 0.2%s]}\n"
    few, more = grid_of(tmp_path, text % ""), grid_of(tmp_path, text % ", 0.5")
    assert {r.id for r in few.runs} < {r.id for r in more.runs}
    assert len(more.runs) == len(few.runs) + 1


def test_included_cells_are_added_even_where_a_rule_excludes(tmp_path):
    grid = grid_of(
        tmp_path,
        "name: a\ngrid: {temperature: [0.1, 0.2]}\n"
        "exclude: [{where: {temperature: 0.1}, because: x}]\n"
        "include: [{temperature: 0.1, epochs: 50}]\n",
    )
    assert [(r.config.temperature, r.config.epochs) for r in grid.runs] == [(0.2, 100), (0.1, 50)]
    assert grid.axes == ("temperature", "epochs")


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("{model_name: '*base*'}", 2),
        ("{model_name: [vit_tiny_patch16_224, '*base*']}", 1),
        ("{batch_size: 256.0, model_name: '*tiny*'}", 2),
        ("{learnable_temp: false, model_name: '*tiny*'}", 2),
        ("{model_name: nothing}", 3),
    ],
)
def test_where_takes_patterns_lists_and_values_of_base_and_default(tmp_path, where, kept):
    models = "vit_tiny_patch16_224, vit_small_patch16_224, vit_base_patch16_224"
    text = f"name: a\ngrid: {{model_name: [{models}]}}\nexclude: [{{where: {where}, because: x}}]\n"
    assert len(grid_of(tmp_path, text).cells) == kept


def test_an_exclusion_counts_and_matches_only_where_its_fields_apply(tmp_path):
    text = "name: a\ngrid: {cl_mode: [none, dense], temperature: [0.07, 0.2]}\n"
    grid = grid_of(tmp_path, text + "exclude: [{where: {temperature: 0.07}, because: x}]\n")
    assert [count for _, count in grid.excluded] == [1]
    assert [cell_label(r.config, grid.axes) for r in grid.cells] == ["none", "dense"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("grid: {}", "name: is missing"),
        ("name: a/b", "name: 'a/b' must be a name"),
        ("name: a\ngird: {}", "gird: unknown key; did you mean 'grid'?"),
        ("name: a\nlayers: []", "layers: unknown key"),
        ("name: a\ngrid: {tempratur: [1]}", "grid.tempratur: unknown key; did you mean 'temperature'?"),
        ("name: a\nfixed: {depth: 1}", "fixed.depth: unknown key; it is an argument of the network: model_kwargs: {depth: ...}"),
        ("name: a\nfixed: {tempratur: 1}", "fixed.tempratur: unknown key; did you mean 'temperature'?"),
        ("name: a\nexclude: [{where: {modelname: x}, because: y}]", "exclude.where.modelname: unknown"),
        ("name: a\nexclude: [{where: {cl_mode: x}}]", "exclude.0.because: is missing"),
        ("name: a\nexclude: [{where: {}, because: x}]", "exclude.0.where: must not be empty"),
        ("name: a\nexclude: [{wher: {}, because: x}]", "unknown key; did you mean 'where'?"),
        ("name: a\ngrid: {temperature: []}", "grid.temperature: the axis is empty"),
        ("name: a\ngrid: {temperature: 0.2}", "grid.temperature: 0.2 must be a list"),
        ("name: a\ngrid: {temperature: [0.2, -1]}", "grid: temperature: -1 is out of range"),
        ("name: a\ngrid: {temperature: [1e-3, 'x']}", "grid: temperature: 'x' must be a number"),
        ("name: a\nfixed: {lambda_weight: 2}", "fixed: lambda_weight: 2 is out of range"),
        ("name: a\ngrid: {temperature: [1, 1], temperature: [2]}", "'temperature' is given twice"),
        ("name: a\ngrid: {seed: [0, 1]}", "grid.seed: list the seeds under `seeds:`"),
        ("name: a\ngrid: {workers: [0, 1]}", "grid.workers: is an execution field"),
        ("name: a\nseeds: []", "seeds: must not be empty"),
        ("name: a\nseeds: 0", "seeds: 0 must be a number of seeds from 1 to 10000, or a list of seeds"),
        ("name: a\nseeds: -1", "seeds: -1 must be a number of seeds from 1"),
        ("name: a\nseeds: [1, 1]", "names a seed twice"),
        ("name: a\nseeds: [-1]", "seeds.0: -1 is out of range"),
        ("name: a\nseeds: many", "seeds: 'many' must be a list"),
        ("name: a\nzip: [{epochs: [1, 2], batch_size: [1]}]", "epochs has 2, batch_size has 1"),
        ("name: a\ngrid: {epochs: [9]}\nzip: [{epochs: [8]}]", "epochs: is already an axis of grid"),
        ("name: a\nbaseline: {cl_mode: global}", "matches no cell of this sweep"),
        ("name: a\nbaseline: {clmode: none}", "baseline.clmode: unknown key"),
        ("name: a\nresources: {gpu: 1}", "gpu: unknown key; did you mean 'gpus'?"),
        ("name: a\nresources: {gpus: -1}", "resources.gpus: -1 is out of range"),
        ("name: a\nresources: {when: [{where: {x: 1}}]}", "resources.when.where.x: unknown key"),
        ("name: a\nbase: gone.yaml", "base: gone.yaml: no such file"),
        ("name: a\nbase: $NO_SUCH/x.yaml", "base: $NO_SUCH/x.yaml: the variable $NO_SUCH is not set"),
        ("name: a\nbase: 3", "base: must be the path of a YAML file, or a list of them, not 3"),
        ("name: a\ngrid: {temperature: {linspce: [1, 2, 3]}}", "grid.temperature: must be a list or one rule: range, linspace, logspace; did you mean 'linspace'?"),
        ("name: a\ngrid: {temperature: {linspace: [1, 2]}}", "grid.temperature.linspace: [1, 2] must be [FIRST, LAST, COUNT]"),
        ("name: a\ngrid: {temperature: {logspace: [-4, -2, 3]}}", "[-4, -2, 3] must be [FIRST, LAST, COUNT], both above 0"),
        ("name: a\ngrid: {temperature: {range: [0, 1, 0]}}", "must be [START, STOP] or [START, STOP, STEP]"),
        ("name: a\ngrid: {temperature: {range: [1, 0]}}", "has 0 different values"),
        ("name: a\ngrid: {epochs: {linspace: [10, 12, 9]}}", "has 3 different values; wanted are from 1 to 10000, each once"),
        ("name: a\ngrid: {cl_mode: {range: [1, 3]}}", "grid.cl_mode.range: is for numbers, and cl_mode is none"),
        ("name: a\nfixed: {seed: 3}", "fixed.seed: list the seeds under `seeds:`"),
        ("name: a\nseeds: 100000000000", "seeds: 100000000000 must be a number of"),
        ("name: a\nexclude: [{where: {cl_mode: dens}, because: x}]", "did you mean 'dense'?"),
        ("name: a\nexclude: [{where: {temperature: hot}, because: x}]", "exclude.where.temperature: 'hot' must be a number"),
        ("name: a\nbaseline: {cl_mode: nome}", "baseline.cl_mode: 'nome' is not valid; did you mean 'none'?"),
        ("name: a\nresources: {when: [{where: {epochs: x}}]}", "resources.when.where.epochs: 'x' must be"),
        (
            "name: a\ngrid: {cl_mode: [none, dense]}\n"
            "exclude: [{where: {cl_mode: none}, because: x}, {where: {cl_mode: dense}, because: y}]",
            "exclude: the rules leave out every cell",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_key_and_way_out(tmp_path, text, wanted):
    assert wanted in said(tmp_path, text)


def test_an_unknown_model_and_an_indivisible_size_are_told_by_the_plan(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("name: a\nfixed: {model_name: vit_tinny_patch16_224}\n")
    with pytest.raises(
        UserError, match=r"no model 'vit_tinny.*did you mean 'vit_tiny_patch16_224'"
    ):
        make_plan(file, tmp_path)
    (tmp_path / "base.yaml").write_text("model_name: vit_tinny_patch16_224\n")
    file.write_text("name: a\nbase: base.yaml\n")
    with pytest.raises(UserError, match=r"base\.yaml: model_name: "):
        make_plan(file, tmp_path)
    (tmp_path / "base.yaml").unlink()
    file.write_text("name: a\nfixed: {model_kwargs: {img_size: 100}}\n")
    with pytest.raises(UserError, match="img_size 100 is not divisible by the patch size 16"):
        make_plan(file, tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_more_sampled_patches_than_an_image_has_are_told_by_the_plan(tmp_path):
    file = tmp_path / "sweep.yaml"
    small = "model_kwargs: {img_size: 32, patch_size: 8}"
    file.write_text(f"name: a\nfixed: {{{small}}}\ngrid: {{sampled_patches: [16, 17]}}\n")
    wanted = "sampled_patches: 17 is more than the 16 patches of an image: 4 x 4"
    with pytest.raises(UserError, match=wanted):
        make_plan(file, tmp_path)
    # Where the field has no effect, its value does not matter.
    file.write_text(f"name: a\nfixed: {{{small}, cl_mode: global}}\n")
    assert len(make_plan(file, tmp_path).runs) == 1


def test_the_base_of_a_sweep_counts_from_the_sweep_and_is_named_in_errors(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "sweeps").mkdir()
    base = tmp_path / "experiments" / "base.yaml"
    base.write_text("epochs: 30\ntemperature: 0\n")
    sweep = tmp_path / "sweeps" / "a.yaml"
    sweep.write_text("name: a\nbase: ../experiments/base.yaml\ngrid: {cl_mode: [none, dense]}\n")
    with pytest.raises(UserError) as error:
        expand(read_spec(sweep))
    assert "base.yaml: temperature: 0 is out of range" in str(error.value)
    base.write_text("epochs: 30\n")
    assert {r.config.epochs for r in expand(read_spec(sweep)).runs} == {30}


def test_a_mapping_on_an_axis_and_in_a_rule_is_merged_with_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("model_kwargs: {img_size: 32, patch_size: 4}\n")
    grid = grid_of(
        tmp_path,
        """
        name: a
        base: base.yaml
        grid: {model_kwargs: [{}, {depth: 2}, {depth: 3, patch_size: null}]}
        exclude: [{where: {model_kwargs: [{depth: 3, patch_size: null}]}, because: x}]
        baseline: {model_kwargs: {}}
        """,
    )
    whole = {"img_size": 32, "patch_size": 4}
    assert [run.config.model_kwargs for run in grid.cells] == [whole, {**whole, "depth": 2}]
    assert [count for _, count in grid.excluded] == [1]
    # So the plan shows what a cell gets.
    assert cell_label(grid.cells[1].config, grid.axes) == "img_size=32 patch_size=4 depth=2"


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("temperature: {range: [0.1, 0.5, 0.1]}", [0.1, 0.2, 0.3, 0.4]),
        ("epochs: {range: [8, 11]}", [8, 9, 10]),
        ("epochs: {range: [11, 6, -2]}", [11, 9, 7]),
        ("temperature: {linspace: [0.1, 0.2, 4]}", [0.1, 0.1333, 0.1667, 0.2]),
        ("temperature: {linspace: [1, 1.001, 3]}", [1, 1.0005, 1.001]),
        ("epochs: {linspace: [10, 30, 3]}", [10, 20, 30]),
        ("learning_rate: {logspace: [1e-4, 1e-2, 5]}", [1e-4, 3.162e-4, 1e-3, 3.162e-3, 1e-2]),
        ("queue_size: {logspace: [256, 65536, 3]}", [256, 4096, 65536]),
        ("learning_rate: {logspace: [1, 1.003, 4]}", [1, 1.000999, 1.001999, 1.003]),
    ],
)
def test_the_values_of_an_axis_may_follow_a_rule(tmp_path, axis, values):
    name = axis.partition(":")[0]
    for text in (f"grid: {{{axis}}}", f"zip: [{{{axis}}}]"):
        grid = grid_of(tmp_path, f"name: a\n{text}\n")
        found = [getattr(run.config, name) for run in grid.cells]
        assert found == values
        assert [type(value) for value in found] == [FIELDS[name].annotation] * len(values)


def test_a_section_whose_lines_are_commented_out_is_empty(tmp_path):
    def content(text):
        return spec_of(tmp_path, text).model_copy(update={"text": ""})

    empty = content("name: a\n")
    sections = "base description fixed grid zip include exclude seeds baseline launcher profile"
    for name in (*sections.split(), "resources", "ray", "early_stop", "search"):
        assert content(f"name: a\n{name}:\n#  - x\n") == empty, name
    for text in ("exclude:\n- # {where: x}\n", "resources: {when: }", "zip: [null]"):
        assert content(f"name: a\n{text}\n") == empty, text
    assert said(tmp_path, "name:\n").endswith("name: null must be text")
    assert "grid.epochs: the axis is empty" in said(tmp_path, "name: a\ngrid: {epochs: }\n")


def test_a_pipe_is_refused_since_later_commands_could_not_read_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no file but a pipe"):
        make_plan(tmp_path / "pipe", tmp_path)


def test_labels_name_only_what_applies(tmp_path):
    grid = grid_of(tmp_path, "name: a\ngrid: {cl_mode: [none, dense], temperature: [0.1, 0.2]}\n")
    labels = [cell_label(r.config, grid.axes) for r in grid.cells]
    assert labels == ["none", "dense · 0.1", "dense · 0.2"]


def test_the_sweep_file_of_the_docs_is_valid(tmp_path):
    lines = (ROOT / "docs" / "sweeps.md").read_text().splitlines()[2:]
    example = itertools.takewhile(lambda line: line.startswith("    "), lines)
    text = "\n".join(line[4:] for line in example).replace("..", str(ROOT))
    grid = grid_of(tmp_path, text)
    # For each of two models: none, global without one of three temperatures, dense; and joint.
    assert len(grid.cells) == 2 * (1 + 2 + 3) + 1
    assert {run.config.temperature for run in grid.cells} == {0.1, 0.2, 0.3}


@pytest.mark.parametrize(
    ("name", "cells", "runs"),
    [
        ("quickstart", 3, 6),
        ("pacs", 3, 9),
        ("ablation_sampling", 13, 39),
        ("ablation_queue", 12, 36),
        ("ablation_temperature", 17, 51),
        ("ablation_model_size", 9, 27),
        ("ablation_cl_mode", 7, 21),
        ("ablation_compute", 4, 12),
    ],
)
def test_the_sweeps_have_the_size_that_their_headers_say(tmp_path, name, cells, runs):
    file = ROOT / "sweeps" / f"{name}.yaml"
    plan = make_plan(file, tmp_path)
    assert (len(plan.grid.cells), len(plan.runs)) == (cells, runs)
    seeds = runs // cells
    header = file.read_text()
    assert "# Question: " in header
    assert f"Size: {cells} cells x {seeds} seeds = {runs} runs" in header
    assert f"densevit-sweep sweeps/{name}.yaml" in header
    # Planning creates nothing.
    assert {r["state"] for r in plan_record(plan, plan.statuses())["runs"]} == {"pending"}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_run_is_never_reused(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "x")
    folder.create(RunConfig(temperature=0.1))
    folder.create(RunConfig(temperature=0.1, workers=1))
    with pytest.raises(UserError, match="holds another run"):
        folder.create(RunConfig(temperature=0.2))


_configs = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from(values)
        for name, values in {
            "cl_mode": ["none", "global", "dense", "joint"],
            "lambda_weight": [0, 0.5, 0.25, 1],
            "joint_dense_weight": [0, 0.5, 0.75, 1.0],
            "dense_negatives": ["patches", "pooled"],
            "key_encoder": ["shared", "momentum"],
            "momentum": [0, 0.9, 0.999],
            "temperature": [0.2, 0.1 + 0.2, 1e-7, 1],
            "queue_size": [65536, 65536.0, 7],
            "query_patches": ["all", 4, 4.0],
            "sampled_patches": [50, 9],
            "correspondence_features": ["backbone", "geometry"],
            "exclude_same_image": [True, False],
            "learning_rate": [1e-5, 1, 1e16],
            "batch_size": [256, 64.0],
            "init_checkpoint": [None, 'weights/größe "x".pt'],
            "model_kwargs": [{}, {"img_size": 32.0, "b": [1.0, -0.0, None, {"z": 1e-7, "a": "é"}]}],
            "workers": [0, 4],
            "benchmarks": [{}, {"x": "y"}],
            "seed": [0, 3],
        }.items()
    },
)


def hashed(preimage):
    text = json.dumps(preimage, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def canonical(value):
    if isinstance(value, dict):
        return {k: canonical(v) for k, v in value.items()}
    if isinstance(value, list):
        return [canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value == int(value) else value


def means_something(name, config):
    """Apply the rules of docs/design.md again, one by one."""
    contrast = config["cl_mode"] != "none" and config["lambda_weight"] > 0
    mixed = config["joint_dense_weight"] if config["cl_mode"] == "joint" else 1
    dense = contrast and config["cl_mode"] != "global" and mixed > 0
    if name == "lambda_weight":
        return config["cl_mode"] != "none"
    if name == "joint_dense_weight":
        return contrast and config["cl_mode"] == "joint"
    if name == "momentum":
        return contrast and config["key_encoder"] == "momentum"
    if name in ("query_patches", "correspondence_features", "dense_negatives"):
        return dense
    if name in ("sampling_strategy", "sampled_patches"):
        return dense and config["dense_negatives"] == "patches"
    only_with_contrast = ("queue_size", "temperature", "exclude_same_image", "key_encoder")
    return contrast or name not in only_with_contrast


@given(_configs)
def test_an_id_is_the_hash_of_what_the_design_says(settings):
    config = RunConfig(**settings)
    values = config.model_dump()
    science = {
        name: canonical(values[name])
        for name, field in FIELDS.items()
        if name != "seed"
        and not is_execution(name)
        and values[name] != field.default
        and means_something(name, values)
    }
    cell = {"schema_version": 3, "config": science}
    ids = identity(config)
    assert ids.preimage == {**cell, "seed": config.seed}
    assert (ids.cell, ids.run) == (hashed(cell), hashed({**cell, "seed": config.seed}))


@pytest.mark.parametrize(
    ("settings", "run", "cell"),
    [
        (
            {"cl_mode": "joint", "joint_dense_weight": 0.25, "key_encoder": "momentum",
             "momentum": 0.99, "temperature": 0.07, "query_patches": 49, "epochs": 30,
             "warmup_epochs": 3, "seed": 7,
             "model_kwargs": {"img_size": 32, "patch_size": 8.0, "x": [1.0, -0.0, {"b": 1e-7}]}},
            "1fab15e446d7", "2a350a008867",
        ),
        (
            {"cl_mode": "global", "queue_size": 4096, "sampling_strategy": "diverse",
             "init_checkpoint": "/weights/größe.safetensors",
             "init_sha256": "0123456789abcdef", "learning_rate": 1.0,
             "precision": "bf16", "workers": 0, "seed": 12345},
            "bd79b594eaaf", "37d3a37a7ae2",
        ),
        (
            {"dense_negatives": "pooled", "sampled_patches": 7, "lambda_weight": 1.0,
             "contrastive_weight_adaptive": True, "correspondence_features": "geometry",
             "exclude_same_image": False, "dataset": "shapes", "drop_path": 0.1},
            "97323c8155d4", "cbdded60b3a9",
        ),
    ],
)  # fmt: skip
def test_the_ids_of_a_sweep_are_pinned(tmp_path, settings, run, cell):
    """A changed id orphans everybody's results, in a sweep as in a single run."""
    assert identity(RunConfig(**settings))[:2] == (run, cell)
    sweep = {"name": "a", "seeds": [settings.get("seed", 0)], "fixed": {}, "grid": {}}
    for name, value in settings.items():
        if is_execution(name):
            sweep["fixed"][name] = value
        elif name != "seed":
            sweep["grid"][name] = [value]
    grid = grid_of(tmp_path, json.dumps(sweep))
    assert [(r.id, r.cell) for r in grid.runs] == [(run, cell)]


# Values that fields reject, and values that do not fit together, among valid ones.
_values = {
    "cl_mode": ["none", "global", "dense", "joint"],
    "temperature": [0.2, 0.3, 1, 1.0, 5, -1],
    "learnable_temp": [False, True],
    "epochs": [100, 50, 5, 2.5],
    "warmup_epochs": [5, 0, 50],
    "batch_size": [8, 8.0, 6],
    "pretrained": [False, True],
    "init_checkpoint": [None, "w.pt"],
    "joint_dense_weight": [0, 0.5, 1],
    "key_encoder": ["shared", "momentum"],
    "model_kwargs": [{}, {"img_size": 32}, {"img_size": 32.0}],
}


@st.composite
def _sweeps(draw):
    """Generate the content of a valid sweep file, whatever its cells are."""
    others = [name for name in _values if name != "cl_mode"]
    names = ["cl_mode", *draw(st.lists(st.sampled_from(others), unique=True, max_size=4))]

    def some(name, **limits):
        # Mistakes are last in their lists, and drawn rarely so that most sweeps have none.
        usual = _values[name] if draw(st.integers(0, 9)) == 0 else _values[name][:3]
        return draw(st.lists(st.sampled_from(usual), **limits))

    cut = draw(st.integers(0, len(names)))
    zipped = [{n: some(n, min_size=2, max_size=2) for n in names[cut : cut + 2]}]
    where = st.fixed_dictionaries(
        {"cl_mode": st.sampled_from(["none", "*o*", ["dense", "joint"]])},
        optional={"temperature": st.sampled_from([0.2, 1])},
    )
    return {
        "name": "a",
        "fixed": draw(st.sampled_from([{}, {"grad_accumulation": 4}, {"warmup_epochs": 60}])),
        "grid": {n: some(n, min_size=1, max_size=3) for n in names[:cut]},
        "zip": zipped if zipped[0] else [],
        "include": draw(st.sampled_from([[], [{"cl_mode": "none"}, {"epochs": 7}]])),
        "exclude": [{"where": w, "because": "x"} for w in draw(st.lists(where, max_size=2))],
        "seeds": draw(st.integers(1, 2)),
        **draw(st.sampled_from([{}, {}, {"baseline": {"cl_mode": "none"}}])),
        "resources": {"gpus": 1, "when": [{"where": {"cl_mode": "dense"}, "gpus": 2}]},
    }


def expanded_one_by_one(spec):
    """Return the runs of a sweep and its size, each combination built and hashed separately."""
    parts = [[{n: v} for v in values] for n, values in spec.grid.items()]
    parts += [
        [dict(zip(g, row, strict=True)) for row in zip(*g.values(), strict=True)] for g in spec.zip
    ]
    word = "grid" if parts else "base"
    named = [(word, {k: v for p in row for k, v in p.items()}) for row in itertools.product(*parts)]
    named = [] if spec.include and not parts else named
    named += [("include", extra) for extra in spec.include]
    kept, dropped = {}, [set() for _ in spec.exclude]
    merged = 0
    for section, settings in named:
        config = build([*spec.layers, Layer(f"{spec.file}: {section}", settings)])
        if config.init_checkpoint:
            config = config.model_copy(update={"init_sha256": sha256(b"weights").hexdigest()[:16]})
        cell = identity(config).cell
        rules = [i for i, rule in enumerate(spec.exclude) if matches(rule.where, config)]
        if rules and section != "include":
            dropped[rules[0]].add(cell)
        else:
            merged += cell in kept
            kept.setdefault(cell, config)
    if not kept:
        raise UserError(f"{spec.file}: exclude: the rules leave out every cell")
    if spec.baseline and not any(matches(spec.baseline, c) for c in kept.values()):
        raise UserError(f"{spec.file}: baseline: {spec.baseline} matches no cell of this sweep")
    configs = [c.model_copy(update={"seed": seed}) for seed in spec.seeds for c in kept.values()]
    runs = [
        (*identity(c)[:2], c.model_dump(), {"gpus": 2 if c.cl_mode == "dense" else 1})
        for c in configs
    ]
    excluded = tuple(zip(spec.exclude, map(len, dropped), strict=True))
    return runs, merged, excluded


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except UserError as error:
        return str(error)


@given(_sweeps())
def test_a_sweep_is_what_its_combinations_are_one_by_one_mistakes_too(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("g")
    (folder / "w.pt").write_bytes(b"weights")
    spec = spec_of(folder, json.dumps(content))
    wanted = outcome(expanded_one_by_one, spec)
    grid = outcome(expand, spec)
    if isinstance(wanted, str):
        assert grid == wanted
        return
    runs, merged, excluded = wanted
    assert [(r.id, r.cell, r.config.model_dump(), r.resources) for r in grid.runs] == runs
    assert (grid.merged, grid.excluded) == (merged, excluded)
    varied = [
        name for name in spec.axes()
        if len({repr(getattr(r.config, name)) for r in grid.runs if applies(name, r.config)}) > 1
    ]  # fmt: skip
    assert list(grid.axes) == varied


@pytest.mark.parametrize(
    ("axes", "wanted"),
    [
        ("epochs: [90, 30], cl_mode: [none, dense], warmup_epochs: [5, 40]",
         "grid: warmup_epochs: 40 must be less than epochs: 30"),
        ("pretrained: [false, true], cl_mode: [none, dense], init_checkpoint: [null, w.pt]",
         "grid: init_checkpoint: set either this or pretrained"),
        ("learnable_temp: [false, true], cl_mode: [none, dense], temperature: [0.2, 5]",
         "grid: temperature: 5.0 is out of range"),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together_are_found_where_they_meet(tmp_path, axes, wanted):
    (tmp_path / "w.pt").touch()
    text = f"name: a\ngrid: {{{axes}}}\n"
    assert wanted in said(tmp_path, text)
    text += "exclude: [{where: {cl_mode: [none, dense]}, because: x}]\n"
    assert wanted in said(tmp_path, text), "what is excluded has to be valid too"


def test_values_that_differ_read_differently(tmp_path):
    grid = grid_of(
        tmp_path, "name: x\ngrid: {learning_rate: [0.001, 0.0010000004, 1.0e-5, 1000000]}"
    )
    labels = [cell_label(run.config, grid.axes) for run in grid.cells]
    assert labels == ["0.001", "0.0010000004", "1e-05", "1e+06"]
    values = [1, "1", None, "null", True, "true", 0.1, 0.10000001, [1], "[1]", "1 b=2"]
    texts = [value_text({"a": value}) for value in values]
    assert len(set(texts)) == len(values)
    assert value_text({"img_size": 32, "weight_init": "moco"}) == "img_size=32 weight_init=moco"

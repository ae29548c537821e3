"""From a sweep file to runs: a pure function, checked against counting by hand."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevit.config import RunConfig, applies, identity
from densevit.errors import UserError
from densevit.rundir import RunFolder
from densevit.sweep.grid import cell_label, expand
from densevit.sweep.plan import make_plan, plan_record
from densevit.sweep.spec import read_spec

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
    # Per model: 1 none, 3 global (a temperature each), 9 - 3 dense; then the included joint.
    assert len(grid.cells) == 2 * (1 + 3 + 6) + 1
    assert len(grid.runs) == 3 * 21
    assert [count for _, count in grid.excluded] == [2 * 3]
    assert grid.merged == 2 * (27 - 1 - 3 - 9)
    assert grid.axes == (
        "cl_mode", "sampling_strategy", "temperature", "model_name", "batch_size",
    )  # fmt: skip
    small = [r for r in grid.runs if "small" in r.config.model_name]
    assert all(r.resources == {"gpus": 4, "cpus": 8, "hours": 24} for r in small)
    assert grid.runs[0].resources == {"gpus": 1, "cpus": 8, "hours": 12}


def test_runs_are_seed_major_so_that_half_a_sweep_is_a_fair_table(tmp_path):
    grid = grid_of(tmp_path, "name: a\ngrid: {cl_mode: [none, dense]}\nseeds: [4, 2]\n")
    assert [(r.seed, r.config.cl_mode) for r in grid.runs] == [
        (4, "none"), (4, "dense"), (2, "none"), (2, "dense"),
    ]  # fmt: skip


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
        ("name: a\ngrid: {seed: [0, 1]}", "grid.seed: replicates are given by `seeds:`"),
        ("name: a\ngrid: {workers: [0, 1]}", "grid.workers: says how a run is executed"),
        ("name: a\nseeds: []", "seeds: must not be empty"),
        ("name: a\nseeds: 0", "seeds: must not be empty"),
        ("name: a\nseeds: [1, 1]", "names a seed twice"),
        ("name: a\nseeds: [-1]", "seeds.0: -1 is out of range"),
        ("name: a\nseeds: many", "seeds: 'many' must be a list"),
        ("name: a\nzip: [{epochs: [1, 2], batch_size: [1]}]", "epochs has 2, batch_size has 1"),
        ("name: a\ngrid: {epochs: [9]}\nzip: [{epochs: [8]}]", "epochs: is an axis of grid already"),
        ("name: a\nbaseline: {cl_mode: global}", "is no cell of this sweep"),
        ("name: a\nbaseline: {clmode: none}", "baseline.clmode: unknown key"),
        ("name: a\nlauncher: slrum", "launcher: 'slrum' is not valid; did you mean 'slurm'?"),
        ("name: a\nresources: {gpu: 1}", "gpu: unknown key; did you mean 'gpus'?"),
        ("name: a\nresources: {gpus: -1}", "resources.gpus: -1 is out of range"),
        ("name: a\nresources: {when: [{where: {x: 1}}]}", "resources.when.where.x: unknown key"),
        ("name: a\nbase: gone.yaml", "base: gone.yaml: no such file"),
        ("name: a\nfixed: {seed: 3}", "fixed.seed: replicates are given by `seeds:`"),
        ("name: a\nseeds: 100000000000", "seeds: 100000000000: "),
        ("name: a\nexclude: [{where: {cl_mode: dens}, because: x}]", "did you mean 'dense'?"),
        ("name: a\nexclude: [{where: {temperature: hot}, because: x}]", "exclude.where.temperature: 'hot' must be a number"),
        ("name: a\nbaseline: {cl_mode: nome}", "baseline.cl_mode: 'nome' is not valid; did you mean 'none'?"),
        ("name: a\nresources: {when: [{where: {epochs: x}}]}", "resources.when.where.epochs: 'x' must be"),
        (
            "name: a\ngrid: {cl_mode: [none, dense]}\n"
            "exclude: [{where: {cl_mode: none}, because: x}, {where: {cl_mode: dense}, because: y}]",
            "exclude: every cell is left out",
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


def test_labels_name_only_what_applies(tmp_path):
    grid = grid_of(tmp_path, "name: a\ngrid: {cl_mode: [none, dense], temperature: [0.1, 0.2]}\n")
    labels = [cell_label(r.config, grid.axes) for r in grid.cells]
    assert labels == ["none", "dense · 0.1", "dense · 0.2"]


@pytest.mark.parametrize(
    ("name", "cells", "runs"),
    [
        ("quickstart", 3, 6),
        ("pacs", 3, 6),
        ("ablation_sampling", 13, 39),
        ("ablation_queue", 12, 36),
        ("ablation_temperature", 17, 51),
        ("ablation_model_size", 9, 27),
        ("ablation_cl_mode", 7, 21),
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
    # A state of its own: nothing has been made by planning.
    assert {r["state"] for r in plan_record(plan, plan.statuses())["runs"]} == {"pending"}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_run_is_never_reused(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "x")
    folder.create(RunConfig(temperature=0.1))
    folder.create(RunConfig(temperature=0.1, workers=1))
    with pytest.raises(UserError, match="holds another run"):
        folder.create(RunConfig(temperature=0.2))

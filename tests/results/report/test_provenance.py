"""Commands that reproduce a run, and the provenance of its numbers."""

import shlex

import pytest

from densevit.cli import main, train
from densevit.config.identity import identity
from densevit.config.resolve import Layer, build
from densevit.results.report import provenance
from densevit.results.report.runs import provenance_warnings
from densevit.utils.errors import UserError
from densevit.utils.files import write_json


@pytest.fixture
def parsed(monkeypatch):
    """Return a function that returns the configuration of a command line, without starting a run."""
    seen = []

    def stop(config, layers, folder):
        seen.append(config)
        raise UserError("seen enough")

    monkeypatch.setattr(train, "_check_run", stop)

    def parse(command, outputs):
        words = shlex.split(command)
        assert words[0] == "densevit"
        assert main.main([*words[1:], "--outputs", str(outputs)]) == 2
        return seen.pop()

    return parse


SETTINGS = [
    {},
    {"cl_mode": "none", "seed": 3},
    {"learning_rate": 1e-05 * 3, "weight_decay": 0.0, "epochs": 7, "warmup_epochs": 2},
    {"model_kwargs": {"img_size": 32, "no_embed_class": True, "pos_embed": "it's none"}},
    {"learnable_temp": True, "query_patches": 20, "key_encoder": "momentum", "momentum": 0.99},
    {"cl_mode": "joint", "joint_dense_weight": 0.25, "lambda_weight": 1.0},
    {
        "init_checkpoint": "/a folder/weights $X 'q'.safetensors",
        "init_sha256": "0" * 16,
        "exclude_same_image": False,
    },
    {"benchmarks": {"mine": "/data/my set", "b": {"path": "/b", "classes": "imagenet"}, "c": None}},
    {"probes": ["knn", "linear-probe"], "masks": "/m", "data_dir": "/d e"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_command_is_the_run(settings, parsed, tmp_path):
    config = build([Layer("here", settings)])
    again = parsed(provenance.train_command(config), tmp_path)
    assert identity(again) == identity(config)
    for name in provenance.MEASURED_ON:
        assert getattr(again, name) == getattr(config, name)


def test_every_cell_of_a_sweep_has_a_command(sweep, parsed, tmp_path):
    plan = sweep("grid: {cl_mode: [none, dense], temperature: [0.07, 0.2]}", "seeds: [4]")
    for run in plan.runs:
        command = provenance.train_command(run.config)
        assert identity(parsed(command, tmp_path)).run == run.id
    assert "--temperature" not in provenance.train_command(plan.runs[0].config)


def start(sha="abc", diff="", torch="2.8", host="node1", **more):
    versions = {"python": "3.11", "densevit": "0.1.0", "torch": torch}
    return {"host": host, "versions": versions, "git_sha": sha, "git_diff": diff, **more}


def test_where_numbers_come_from(sweep):
    plan = sweep("seeds: 5")
    starts = [start(), start(host="node2"), start(diff="+x"), start(torch="2.9"), None]
    for run, last in zip(plan.runs, starts, strict=True):
        folder = plan.run_folder(run)
        folder.create(run.config)
        if last:
            write_json(folder.provenance_file, {"starts": [start("old"), last]})
        images = {"train": {"images": 10}, "val": {"images": 3 + run.seed // 4}}
        weights = {"init_checkpoint": {"sha256": str(run.seed)}}  # no part of the data
        write_json(folder.fingerprint_file, images | weights)
    record = provenance.provenance(plan, [run.id for run in plan.runs])
    assert [o.runs for o in record.origins] == [2, 1, 1]
    assert record.origins[0].hosts == ("node1", "node2")
    assert {o.changed for o in record.origins[1:]} == {True, False}
    assert "old" not in {o.code for o in record.origins}
    assert record.began == 4
    assert list(record.data.values()) == ["train 10, val 3"]


def test_cells_whose_runs_differ_in_their_number_of_threads_are_named(sweep):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 2")
    for run in plan.runs:
        folder = plan.run_folder(run)
        folder.create(run.config)
        threads = 2 if (run.config.cl_mode, run.seed) == ("dense", 1) else 1
        write_json(folder.provenance_file, {"starts": [start(threads=threads)]})
    record = provenance.provenance(plan, [run.id for run in plan.runs])
    (warning,) = provenance_warnings(record)
    assert "different numbers of threads (1; 2), also within dense; " in warning


def test_a_damaged_file_says_nothing(sweep):
    plan = sweep("seeds: 2")
    for run in plan.runs:
        plan.run_folder(run).create(run.config)
    plan.run_folder(plan.runs[0]).provenance_file.write_text("{")
    plan.run_folder(plan.runs[1]).provenance_file.write_text('{"starts": []}')
    assert provenance.provenance(plan, [run.id for run in plan.runs]).origins == []


def test_of_another_users_run_the_images_are_known(sweep, monkeypatch):
    plan = sweep("seeds: 1")
    folder = plan.run_folder(plan.runs[0])
    folder.create(plan.runs[0].config)
    write_json(folder.provenance_file, {"starts": [start()]})
    write_json(folder.fingerprint_file, {"train": {"images": 10}})
    monkeypatch.setattr(provenance.os, "access", lambda *_: False)  # root may read all files
    record = provenance.provenance(plan, [plan.runs[0].id])
    assert list(record.data.values()) == ["train 10"]
    assert record.origins[0].code == "unknown"

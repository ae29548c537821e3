"""The table from a store, compared with the table from the mirrored directories."""

import io
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from densevit.cli.sweep import main_sweep
from densevit.results.collect.mlflow import from_mlflow
from densevit.results.collect.numbers import MEASURED, collect
from densevit.tracking.mirror_process import mirror_once, store_uri
from densevit.tracking.store import open_store
from densevit.utils.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
from madeup import make_sweep


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory, empty_store):
    """Return a plan of ten runs, one failed and one not started, and the store that mirrors them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        plan = make_sweep(tmp_path_factory.mktemp("sweep"), 5, 2, epochs=2, failed=1, pending=1)
        shutil.copy(empty_store, plan.outputs)
        assert mirror_once(plan.outputs, [run.id for run in plan.runs], plan.name) == ([], [])
        return plan, store_uri(plan.outputs)


def test_it_equals_the_table_from_the_directories(mirrored):
    plan, uri = mirrored
    found = from_mlflow(uri, plan.name)
    wanted = collect(plan)
    wanted = wanted[wanted["metric"] != "ways"].assign(n=float("nan"))
    wanted = wanted.sort_values(["seed", "cell", "benchmark", "metric"], ignore_index=True)
    assert list(found.columns) == MEASURED
    assert found["run"].nunique() == 8  # neither the failed run nor the one that has not started
    pd.testing.assert_frame_equal(found, wanted)


def test_the_command_prints_the_same_table_of_both(mirrored, capsys):
    plan, uri = mirrored
    told = ["report", str(plan.spec.file), "--outputs", str(plan.outputs), "--format", "csv"]
    tables = []
    for more in ([], ["--tracking-uri", uri]):
        assert main_sweep([*told, *more]) == 0
        tables.append(pd.read_csv(io.StringIO(capsys.readouterr().out)))
    pd.testing.assert_frame_equal(*tables, check_like=True)  # benchmarks in the order of the store
    assert main_sweep([*told[:2], "--tracking-uri", uri]) == 0
    assert "over seeds" in capsys.readouterr().out
    for more in (["--freeze", "x"], ["--references", "x"]):
        assert main_sweep([*told, "--tracking-uri", uri, *more]) == 2
        assert f"{more[0]}: cannot be used with" in capsys.readouterr().err


def test_unknown_sweeps_and_stores_are_one_line(mirrored, tmp_path):
    _, uri = mirrored
    with pytest.raises(UserError, match="no runs of a sweep 'made-upp'; did you mean 'made-up'"):
        from_mlflow(uri, "made-upp")
    nowhere = tmp_path / "mlflow.db"
    with pytest.raises(UserError, match="there is no MLflow store"):
        from_mlflow(f"sqlite:///{nowhere}", "made-up")
    assert not nowhere.exists()


def test_a_server_that_does_not_answer_is_one_line_without_its_password():
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9: MLflow does not answer") as error:
        from_mlflow("http://me:secret@127.0.0.1:9", "made-up")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_deleted_runs_do_not_count(mirrored):
    plan, uri = mirrored
    client = open_store(uri)
    experiment = client.search_experiments()
    runs = client.search_runs(
        [each.experiment_id for each in experiment], "tags.`densevit.run` LIKE '%'"
    )
    before = set(from_mlflow(uri, plan.name)["run"])
    one = next(run for run in runs if run.data.tags["densevit.run"] in before)
    client.delete_run(one.info.run_id)
    try:
        found = set(from_mlflow(uri, plan.name)["run"])
        assert before - found == {one.data.tags["densevit.run"]}
        for run in runs:
            client.delete_run(run.info.run_id)
        with pytest.raises(UserError, match="were deleted there"):
            from_mlflow(uri, plan.name)
    finally:
        for run in runs:
            client.restore_run(run.info.run_id)

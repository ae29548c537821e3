"""Run directories that look like those of runs, made by hand; and what a store has of them."""

import json
import time as clock

from densevit.config import RunConfig, identity
from densevit.rundir import run_folder, write_json
from densevit.tracking.beside import mirror_once
from densevit.tracking.mirror import Mirroring
from densevit.tracking.store import store_uri

CONFIG = {
    "dataset": "shapes",
    "model_kwargs": {"img_size": 32, "patch_size": 4},
    "epochs": 10,
    "device": "cpu",
    "experiment_name": "tests",
}
START = 1_700_000_000.0


def make_run(outputs, lines, state="finished", time=START, **changes):
    """A run directory with a metrics file, of a run that was started at some time; returns its id."""
    config = RunConfig(**{**CONFIG, **changes})
    run_id = identity(config).run
    folder = run_folder(outputs, run_id)
    folder.create(config)
    write_lines(folder, lines)
    begin(folder, time=time)
    folder.write_status(state, started=time)
    return run_id


def begin(folder, **facts):
    """Note another start in the run's provenance."""
    held = json.loads(folder.provenance_file.read_text()) if folder.provenance_file.exists() else {}
    start = {"time": START, "host": "here", "command": "densevit train", "git_sha": "abc", **facts}
    write_json(folder.provenance_file, {"starts": [*held.get("starts", []), start]})


def write_lines(folder, lines, mode="w"):
    with folder.metrics_file.open(mode) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def train_lines(first, last, offset=0.0):
    return [
        {
            "step": step, "epoch": step / 10, "time": START + step + offset,
            "train/loss": 1 / step, "train/top1": float(step),
        }
        for step in range(first, last + 1)
    ]  # fmt: skip


def make_plan(outputs, name, runs, **facts):
    """A sweep's plan.json that has some runs."""
    entries = [
        {"id": run, "label": f"cell of {run[:4]}", "axes": {}, "differs": ""} for run in runs
    ]
    entries = [{**entry, **facts.get(entry["id"], {})} for entry in entries]
    about = {k: v for k, v in facts.items() if k not in runs}
    write_json(outputs / "sweeps" / name / "plan.json", {"name": name, **about, "runs": entries})


def looking(outputs, *run_ids, sweep=None):
    """What a mirror process has, to look when the test wants it."""
    return Mirroring(outputs, store_uri(outputs), run_ids, sweep)


def send_all(outputs, runs, sweep):
    """Send runs to their end, and look once more: then each is known to be the only one."""
    for _ in range(2):
        assert mirror_once(outputs, runs, sweep) == ([], [])


def client_of(outputs):
    from mlflow import MlflowClient

    return MlflowClient(store_uri(outputs))


def runs_of(outputs, tag="densevit.run"):
    """Tag value to run, for every run of the store that has the tag; each value once."""
    client = client_of(outputs)
    found = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    found = [run for run in found if tag in run.data.tags]
    by_tag = {run.data.tags[tag]: run for run in found}
    assert len(by_tag) == len(found)
    return by_tag


def history(outputs, run_id, key):
    """(step, value, timestamp) of every stored point, in the order of steps."""
    mlflow_id = runs_of(outputs)[run_id].info.run_id
    points = client_of(outputs).get_metric_history(mlflow_id, key)
    return sorted((p.step, p.value, p.timestamp) for p in points)


def artifacts_of(outputs, mlflow_id, path=None):
    """The names of all artifacts of a run."""
    found = set()
    for item in client_of(outputs).list_artifacts(mlflow_id, path):
        found |= artifacts_of(outputs, mlflow_id, item.path) if item.is_dir else {item.path}
    return found


def wait_for(condition, seconds=120):
    deadline = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < deadline, "it took too long"
        clock.sleep(0.1)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""Run directories written by hand that look like those of runs, and their content in a store."""

import json
import time as clock

from densevit.config.identity import identity
from densevit.config.run_config import RunConfig
from densevit.runs.directory import run_folder
from densevit.tracking.mirror import Mirror
from densevit.tracking.mirror_process import mirror_once
from densevit.tracking.store_uri import store_uri
from densevit.utils.files import write_json

CONFIG = {
    "dataset": "shapes",
    "model_kwargs": {"img_size": 32, "patch_size": 4},
    "epochs": 10,
    "device": "cpu",
    "experiment_name": "tests",
}
START = 1_700_000_000.0


def make_run(outputs, lines, state="finished", time=START, **changes):
    """Write a run directory with a metrics file and a start at some time; return its id."""
    config = RunConfig(**{**CONFIG, **changes})
    run_id = identity(config).run
    folder = run_folder(outputs, run_id)
    folder.create(config)
    write_lines(folder, lines)
    begin(folder, time=time)
    folder.write_status(state, started=time)
    return run_id


def begin(folder, **facts):
    """Add a start to the run's provenance."""
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
    """Write the plan.json of a sweep with these runs."""
    entries = [
        {"id": run, "label": f"cell of {run[:4]}", "axes": {}, "differs": ""} for run in runs
    ]
    entries = [{**entry, **facts.get(entry["id"], {})} for entry in entries]
    about = {k: v for k, v in facts.items() if k not in runs}
    write_json(outputs / "sweeps" / name / "plan.json", {"name": name, **about, "runs": entries})


def looking(outputs, *run_ids, sweep=None):
    """What a mirror process has, to look when the test wants it."""
    return Mirror(outputs, store_uri(outputs), run_ids, sweep)


def send_all(outputs, runs, sweep):
    """Send runs to their end, and update once more: then each is known to be the only one."""
    for _ in range(2):
        assert mirror_once(outputs, runs, sweep) == ([], [])


def client_of(outputs):
    from mlflow import MlflowClient

    return MlflowClient(store_uri(outputs))


def runs_of(outputs, tag="densevit.run"):
    """Map tag value to run, for every run of the store that has the tag; each value once."""
    client = client_of(outputs)
    found = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    found = [run for run in found if tag in run.data.tags]
    by_tag = {run.data.tags[tag]: run for run in found}
    assert len(by_tag) == len(found)
    return by_tag


def history(outputs, run_id, key):
    """Return (step, value, timestamp) of every stored point, ordered by step."""
    mlflow_id = runs_of(outputs)[run_id].info.run_id
    points = client_of(outputs).get_metric_history(mlflow_id, key)
    return sorted((p.step, p.value, p.timestamp) for p in points)


def artifacts_of(outputs, mlflow_id, path=None):
    """Return the names of all artifacts of a run."""
    found = set()
    for item in client_of(outputs).list_artifacts(mlflow_id, path):
        found |= artifacts_of(outputs, mlflow_id, item.path) if item.is_dir else {item.path}
    return found


def wait_for(condition, seconds=600):
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

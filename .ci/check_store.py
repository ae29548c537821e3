"""Check that an MLflow store holds everything of the run directories, and each step once.

python .ci/check_store.py OUTPUTS LAUNCHER
"""

import json
import sqlite3
import sys
from pathlib import Path

# Groups of metrics that each run logs; a run of a few seconds may end before `system` is sampled.
GROUPS = {"train", "val", "health", "time", "knn", "dense-probe", "shapes-a"}


def main(outputs: Path, launcher: str) -> None:
    store = sqlite3.connect(f"file:{outputs / 'mlflow.db'}?mode=ro", uri=True)
    tagged = "select value, run_uuid from tags where key = ?"
    shown = dict(store.execute(tagged, ("densevit.run",)))
    folders = sorted((outputs / "runs").iterdir())
    assert folders, f"{outputs}: no runs"
    assert set(shown) == {folder.name for folder in folders}, shown
    parents = dict(store.execute(tagged, ("densevit.sweep",)))
    assert len(parents) == 1, parents
    states = store.execute("select status, count(*) from runs group by status").fetchall()
    assert states == [("FINISHED", len(folders) + 1)], f"MLflow shows {states}"
    groups = set()
    for folder in folders:
        groups |= _check_run(store, folder, shown[folder.name], *parents.values(), launcher)
    assert "system" in groups, f"no run logged any of system/: {groups}"
    print(f"MLflow: {len(folders)} runs under {', '.join(parents)}, each step once")


def _check_run(
    store: sqlite3.Connection, folder: Path, mlflow_id: str, parent: str, launcher: str
) -> set[str]:
    """Check one run, and return the groups of metrics that it logged."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    written = sorted(
        (key, line["step"], float(value))
        for line in lines
        for key, value in line.items()
        if key not in ("step", "epoch", "time")
    )
    of_run = "select key, step, value from metrics where run_uuid = ? order by key, step"
    assert store.execute(of_run, (mlflow_id,)).fetchall() == written, folder
    groups = {key.partition("/")[0] for key, _, _ in written}
    assert groups >= GROUPS, f"{folder}: no metrics of {GROUPS - groups} were logged"
    tags = dict(store.execute("select key, value from tags where run_uuid = ?", (mlflow_id,)))
    assert tags["mlflow.parentRunId"] == parent, tags
    assert tags["densevit.launcher"] == launcher, tags
    assert "from the baseline" in tags["mlflow.note.content"], tags
    artifacts = folder.parents[1] / "mlartifacts" / mlflow_id / "artifacts"
    held = {str(file.relative_to(artifacts)) for file in artifacts.rglob("*") if file.is_file()}
    assert {"config.yaml", "results.json", "predictions/val.parquet"} <= held, held
    return groups


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""Train twelve runs on Slurm and compare three of them with those of the local launcher.

python .ci/check_slurm.py QUICKSTART_OUTPUTS FOLDER

Train the three runs of the quickstart's first seed, and nine runs of one epoch, on the local
cluster, two at a time, and make the report. A second call must submit nothing. The runs of the
quickstart must have the same metrics to the last digit.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Four settings for each cl_mode of the quickstart; the first one is that of the quickstart.
SETTINGS = """zip:
  - epochs: [8, 1, 1, 1]
    warmup_epochs: [1, 0, 0, 0]
    learning_rate: [1.5e-3, 5e-4, 1e-3, 2e-3]
"""


def main(quickstart: Path, folder: Path) -> None:
    folder.mkdir()
    file, outputs = folder / "twelve.yaml", folder / "outputs"
    text = (ROOT / "sweeps" / "quickstart.yaml").read_text()
    text = text.replace("base: ..", f"base: {ROOT}")
    text = text.replace("seeds: 2", "seeds: 1")
    file.write_text(text + SETTINGS + "launcher: slurm\nprofile: local\n")

    def sweep(*words: str) -> str:
        command = [ROOT / ".venv/bin/densevit-sweep", *words, "--outputs", outputs]
        print("+", *words, flush=True)
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ).stdout

    print(sweep("run", str(file), "--watch", "--every", "5")[-3000:])
    runs = json.loads(sweep("status", str(file), "--json"))["runs"]
    assert [run["state"] for run in runs] == ["finished"] * 12, runs
    with next(outputs.glob("sweeps/*/report/table.csv")).open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["val_n"] for row in rows] == ["1"] * 12, rows
    submissions = len(list(outputs.glob("sweeps/*/submissions/*")))
    assert submissions > 0, "no submission is recorded"
    assert "12 finished before, 0 to run" in sweep("run", str(file))
    assert len(list(outputs.glob("sweeps/*/submissions/*"))) == submissions
    both = [run["id"] for run in runs if (quickstart / "runs" / run["id"]).exists()]
    assert len(both) == 3, both
    for run in both:
        here, there = (
            json.loads((place / "runs" / run / "results.json").read_text())["benchmarks"]
            for place in (quickstart, outputs)
        )
        assert here == there, (run, here, there)
    print("slurm: twelve runs, each once, with the same metrics as without Slurm")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

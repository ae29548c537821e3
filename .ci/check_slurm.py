"""Run twelve runs on Slurm and compare them with those that this machine has trained itself.

python .ci/check_slurm.py QUICKSTART_OUTPUTS FOLDER

Trains the six runs of the quickstart and six of two epochs on the local cluster, two at a time.
A second call submits nothing. The quickstart's runs have the same numbers to the last digit.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main(quickstart: Path, folder: Path) -> None:
    folder.mkdir()
    file, outputs = folder / "twelve.yaml", folder / "outputs"
    text = (ROOT / "sweeps" / "quickstart.yaml").read_text()
    text = text.replace("base: ..", f"base: {ROOT}")
    text = text.replace("grid:\n", "grid:\n  epochs: [8, 2]\n")
    file.write_text(text + "launcher: slurm\nprofile: local\n")

    def sweep(*words: str) -> str:
        command = [ROOT / ".venv/bin/densevit-sweep", *words, "--outputs", outputs]
        print("+", *words, flush=True)
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ).stdout

    print(sweep("run", str(file), "--watch", "--every", "5")[-3000:])
    runs = json.loads(sweep("status", str(file), "--json"))["runs"]
    assert [run["state"] for run in runs] == ["finished"] * 12, runs
    submissions = len(list(outputs.glob("sweeps/*/submissions/*")))
    assert submissions > 0, "there is no record of what was submitted"
    assert "12 finished before, 0 to run" in sweep("run", str(file))
    assert len(list(outputs.glob("sweeps/*/submissions/*"))) == submissions
    both = [run["id"] for run in runs if (quickstart / "runs" / run["id"]).exists()]
    assert len(both) == 6, both
    for run in both:
        here, there = (
            json.loads((place / "runs" / run / "results.json").read_text())["benchmarks"]
            for place in (quickstart, outputs)
        )
        assert here == there, (run, here, there)
    print("slurm: twelve runs, each once, with the numbers that they have without Slurm")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

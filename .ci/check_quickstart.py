"""Check that a finished quickstart has all its metrics, tables and figures.

python .ci/check_quickstart.py OUTPUTS
"""

import csv
import json
import os
import re
import sys
from pathlib import Path

import torch

BENCHMARKS = ("val", "shapes-a", "shapes-r", "shapes-v2", "shapes-stylized", "shapes-sketch", "knn")
SEEDS = 2
FIGURES = [f"{name}.{kind}" for name in ("accuracy", "differences") for kind in ("png", "pdf")]
CHANCE = 10.0  # percent; ten classes of equal size


def main(outputs: Path) -> None:
    report = outputs / "sweeps" / "quickstart" / "report"
    with (report / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["cl_mode"] for row in rows] == ["none", "global", "dense"], rows
    for row in rows:
        for benchmark in BENCHMARKS:
            assert float(row[f"{benchmark}_mean"]) > 0, (row, benchmark)
            assert int(float(row[f"{benchmark}_n"])) == SEEDS, (row, benchmark)
        assert float(row["val_mean"]) > 3 * CHANCE, f"{row['cl_mode']} has not learned: {row}"
    check_table((report / "table.md").read_text().split("\n\n")[0])
    for name in ("table.md", "report.md", "differences.csv", *FIGURES):
        assert (report / name).stat().st_size > 0, name
    page = (report / "report.html").read_text(encoding="utf-8")
    loading = [mark for mark in ('src="http', "url(http", "<script ", "<link") if mark in page]
    assert not loading, f"the page loads from the network: {loading}"
    sections = [f'id="{name}"' for name in ("answer", "coverage", "differences", "reproduce")]
    assert all(section in page for section in sections), "the page lacks a section"
    text = (report / "report.md").read_text()
    assert "## Probes" in text, "the dense probe is missing in the report"
    assert len(list(report.glob("matches-*.png"))) == text.count("![Matched patches") == len(rows)
    print("quickstart: passed")


def check_table(text: str) -> None:
    """Compare the table with the recorded one; processors of one kind give the same digits."""
    recorded = json.loads(Path("tests/results/quickstart.json").read_text())
    if processor() != recorded["processor"]:
        print(f"quickstart: no table is recorded for {processor()}")
        return
    assert text.splitlines() == recorded["table"], f"the numbers have changed:\n{text}"
    print("quickstart: the table is the recorded one, to the last digit")


def processor() -> str:
    """Return all that the last digits depend on: the processors and the version of torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(re.split(r"\s*: ?", line, maxsplit=1) for line in lines if ":" in line)
    named = [facts.get(key, "?") for key in ("model name", "cpu family", "model")]
    return " / ".join(
        [*named, torch.backends.cpu.get_cpu_capability(), str(os.cpu_count()), torch.__version__]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Whether a finished quickstart has every number that it promises.

python .ci/check_quickstart.py OUTPUTS
"""

import csv
import sys
from pathlib import Path

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
    for name in ("table.md", "report.md", "differences.csv", *FIGURES):
        assert (report / name).stat().st_size > 0, name
    page = (report / "report.html").read_text(encoding="utf-8")
    loading = [mark for mark in ('src="http', "url(http", "<script", "<link") if mark in page]
    assert not loading, f"the page asks the network: {loading}"
    sections = [f'id="{name}"' for name in ("answer", "coverage", "differences", "reproduce")]
    assert all(section in page for section in sections), "the page is not whole"
    text = (report / "report.md").read_text()
    assert "## Dense probe" in text, "the dense probe is missing in the report"
    assert len(list(report.glob("matches-*.png"))) == text.count("![Matched patches") == len(rows)
    print("quickstart: every cell is there")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

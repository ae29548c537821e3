"""Check that every notebook runs on a finished quickstart and shows its results.

python .ci/check_notebooks.py OUTPUTS
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from notebooks import ANALYSIS, NOTEBOOKS, NotebookFailed, pictures, rows, run_notebook, texts

SWEEP = ANALYSIS.parent / "sweeps" / "quickstart.yaml"
# By notebook and cell: the number of tables (at least) and of figures (exactly) of the quickstart.
SHOWN = {
    "robustness_tables": {
        "accuracy": (1, 1),
        "differences": (1, 1),
        "shift": (0, 1),
        "beyond": (1, 0),
    },
    "health_and_matches": {
        "health": (0, 1),
        "learning": (0, 1),
        "numbers": (2, 0),
        "probe": (1, 0),
        "matches": (0, 3),
    },
}
# The quickstart varies none of the axes of these notebooks; they must say so.
ABSENT = ("sampling_ablation", "queue_and_temperature", "model_size")


def main(outputs: Path) -> None:
    assert sorted(file.stem for file in NOTEBOOKS) == sorted([*SHOWN, *ABSENT]), NOTEBOOKS
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(check, NOTEBOOKS, [outputs] * len(NOTEBOOKS)))


def check(file: Path, outputs: Path) -> None:
    """Run a notebook and count the tables and figures of its cells. Errors: `NotebookFailed`."""
    shown = run_notebook(file, sweep=SWEEP, outputs=outputs)
    for cell, (tables, figures) in SHOWN.get(file.stem, {}).items():
        found_tables = sum(len(rows(text)) > 1 for text in texts(shown, cell))
        found_figures = len(pictures(shown, cell))
        if found_tables < tables or found_figures != figures:
            raise NotebookFailed(
                f"{file.name}: cell {cell}: expected {tables} tables and {figures} figures, "
                f"found {found_tables} and {found_figures}"
            )
    last = texts(shown, "open")[-1]
    if file.stem in ABSENT and "does not vary" not in last:
        raise NotebookFailed(f"{file.name}: cell open: does not name the missing axis: {last}")
    print(f"{file.name}: passed", flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).absolute())
    except NotebookFailed as error:
        sys.exit(str(error))

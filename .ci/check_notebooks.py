"""Whether every notebook runs on a finished quickstart and shows what that has.

python .ci/check_notebooks.py OUTPUTS
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from notebooks import ANALYSIS, NOTEBOOKS, NotebookFailed, pictures, rows, run_notebook, texts

SWEEP = ANALYSIS.parent / "sweeps" / "quickstart.yaml"
# By notebook and cell: how many tables (at least) and figures (just so) the quickstart has there.
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
# It varies none of what these ask about, which they have to say.
ABSENT = ("sampling_ablation", "queue_and_temperature", "model_size")


def main(outputs: Path) -> None:
    assert sorted(file.stem for file in NOTEBOOKS) == sorted([*SHOWN, *ABSENT]), NOTEBOOKS
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(check, NOTEBOOKS, [outputs] * len(NOTEBOOKS)))


def check(file: Path, outputs: Path) -> None:
    """Run a notebook and count what its cells show. Errors: `NotebookFailed`."""
    shown = run_notebook(file, sweep=SWEEP, outputs=outputs)
    for cell, (tables, figures) in SHOWN.get(file.stem, {}).items():
        held = sum(len(rows(text)) > 1 for text in texts(shown, cell))
        drawn = len(pictures(shown, cell))
        if held < tables or drawn != figures:
            raise NotebookFailed(
                f"{file.name}: cell {cell}: shows {held} tables and {drawn} figures, "
                f"not {tables} and {figures}"
            )
    last = texts(shown, "open")[-1]
    if file.stem in ABSENT and "does not vary" not in last:
        raise NotebookFailed(f"{file.name}: cell open: does not say what is absent: {last}")
    print(f"{file.name}: as it should be", flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).absolute())
    except NotebookFailed as error:
        sys.exit(str(error))

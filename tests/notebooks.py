"""Execute notebooks in a fresh kernel of this Python, and read their outputs."""

import os
import re
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

ANALYSIS = Path(__file__).resolve().parents[1] / "analysis"
NOTEBOOKS = sorted(ANALYSIS.glob("*.ipynb"))
TIMEOUT = 300  # seconds per cell
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colors in a traceback


class NotebookFailed(Exception):
    """An error in one line: the notebook, the cell by its id, and the reason."""


def run_notebook(
    file: Path, *, sweep: Path, outputs: Path, folder: Path = ANALYSIS
) -> NotebookNode:
    """Execute a notebook in `folder` and return it with its outputs; the file does not change.

    The kernel uses this Python; the user's Jupyter settings are neither read nor written. Errors:
    `NotebookFailed`.
    """
    notebook = nbformat.read(file, as_version=4)
    settings = {"DENSEVIT_SWEEP": str(sweep), "DENSEVIT_OUTPUTS": str(outputs)}
    with tempfile.TemporaryDirectory(prefix="nb") as scratch:  # short: it holds sockets
        kept = dict.fromkeys(("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"), scratch)
        client = NotebookClient(
            notebook, km=_manager(scratch), timeout=TIMEOUT, shutdown_kernel="immediate",
            resources={"metadata": {"path": str(folder)}},
        )  # fmt: skip
        _execute(client, file.name, os.environ | settings | kept)
    return notebook


def _manager(scratch: str) -> AsyncKernelManager:
    """Return the manager of a kernel that uses sockets in a folder: ports could be taken by others."""
    specs = KernelSpecManager()
    specs.kernel_dirs = []  # no installed kernel: ipykernel's own, with sys.executable
    manager = AsyncKernelManager(kernel_spec_manager=specs, kernel_name="python3", transport="ipc")
    manager.connection_file = f"{scratch}/kernel.json"
    manager.ip = f"{scratch}/socket"
    return manager


def _execute(client: NotebookClient, name: str, environment: dict[str, str]) -> None:
    try:
        client.execute(env=environment, cleanup_kc=True)
    except CellExecutionError as error:
        where = next(cell["id"] for cell in client.nb.cells if _failed(cell))
        last = ESCAPES.sub("", f"{error.ename}: {error.evalue}")
        raise NotebookFailed(f"{name}: cell {where}: {last}") from error
    except (DeadKernelError, TimeoutError) as error:
        raise NotebookFailed(f"{name}: {error}") from error


def texts(notebook: NotebookNode, cell: str) -> list[str]:
    """Return the Markdown outputs of a cell, in order."""
    return [data["text/markdown"] for data in _shown(notebook, cell) if "text/markdown" in data]


def pictures(notebook: NotebookNode, cell: str) -> list[str]:
    """Return the PNG outputs of a cell, as base64."""
    return [data["image/png"] for data in _shown(notebook, cell) if "image/png" in data]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table by row, the header first."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    found = [[part.strip() for part in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in found if not set("".join(row)) <= set("-: |")]


def _shown(notebook: NotebookNode, cell: str) -> list[NotebookNode]:
    outputs = next(each for each in notebook.cells if each["id"] == cell)["outputs"]
    return [output["data"] for output in outputs if output["output_type"] == "display_data"]


def _failed(cell: NotebookNode) -> bool:
    return any(output["output_type"] == "error" for output in cell.get("outputs", ()))

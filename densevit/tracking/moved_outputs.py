"""Outputs that were moved: their MLflow database still names the former place of its artifacts."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

# MLflow's tables and columns that hold the address of an artifact folder.
_ADDRESSES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
}


def artifact_location(outputs: Path) -> str:
    """Return the address of the folder in which a database in `outputs` keeps its artifacts."""
    return (outputs.absolute() / "mlartifacts").as_uri()


def repoint(database: Path, outputs: Path) -> None:
    """Let the database of an outputs folder name the artifacts in this folder.

    MLflow would make the former folder again, and write there. Addresses below a folder that still
    holds runs are left alone: it is another outputs folder that uses the same database.
    """
    if database.parent != outputs.absolute():
        return
    here = artifact_location(outputs)
    with closing(sqlite3.connect(database)) as connection, connection:
        query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
        for (there,) in connection.execute(query, ["file://%/mlartifacts"]).fetchall():
            former = Path(unquote(urlsplit(there).path)).parent
            if there == here or (former / "runs").is_dir():
                continue
            for table, column in _ADDRESSES.items():
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608
                    f"WHERE substr({column}, 1, ?) = ?",
                    [here, len(there) + 1, len(there), there],
                )

"""The run ids and cell ids of the project's sweeps never change: results on disk depend on them."""

import json
from pathlib import Path

import pytest

from densevit.sweep.plan import make_plan

SWEEPS = Path(__file__).parents[2] / "sweeps"
# File -> cell id -> run ids by seed; rewrite it for a sweep that is added or changed on purpose.
IDENTITIES = json.loads(Path(__file__).with_name("identities.json").read_text())


@pytest.mark.parametrize("file", sorted(file.name for file in SWEEPS.glob("*.yaml")))
def test_ids_of_the_sweeps_are_as_written_down(file, tmp_path):
    found = {}
    for run in make_plan(SWEEPS / file, tmp_path).runs:
        found.setdefault(run.cell, []).append(run.id)
    assert found == IDENTITIES[file]

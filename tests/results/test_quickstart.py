"""The quickstart's table stays the same to the last digit for the same results of its runs."""

import json
from pathlib import Path

import pytest

from densevit.results.report.write import write
from densevit.sweep.plan import make_plan
from densevit.utils.files import write_json

# results.json of each run by its id, and the table, as a quickstart on `processor` left them.
RECORDED = json.loads(Path(__file__).with_name("quickstart.json").read_text())


@pytest.mark.usefixtures("no_figures")
def test_the_table_of_recorded_results(tmp_path):
    plan = make_plan(Path(__file__).parents[2] / "sweeps" / "quickstart.yaml", tmp_path)
    assert {run.id for run in plan.runs} == RECORDED["results"].keys()
    for run in plan.runs:
        folder = plan.run_folder(run)
        folder.create(run.config)
        write_json(folder.results_file, RECORDED["results"][run.id])
        folder.write_status("finished")
    written = (write(plan).folder / "table.md").read_text()
    assert written.split("\n\n")[0].splitlines() == RECORDED["table"]

"""The report's sections about its runs: plan, coverage, failures, reproduction, provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from densevit.config.identity import SCHEMA_VERSION
from densevit.launch.run_state import STATE_NAMES, RunState
from densevit.monitor.failures import grouped
from densevit.results.analysis import Findings
from densevit.results.report import phrases
from densevit.results.report.document import Block, Code, Fold, Items, Paragraph
from densevit.results.report.provenance import Provenance, train_command
from densevit.results.report.summary import settings
from densevit.results.tables.table import TextTable
from densevit.sweep.cells import value_text
from densevit.sweep.texts import typed
from densevit.utils.console import count
from densevit.utils.files import last_lines

LOG_LINES = 12
MOST_LOGS = 10  # a mistake in a large sweep fails every run in the same way
MOST_ROWS = 40
MOST_COMMANDS = 60
MOST_VALUES = 12  # of an axis


def plan(found: Findings) -> list[Block]:
    plan, spec = found.plan, found.plan.spec
    items = [f"{axis}: {_values(found.cells[axis])}" for axis in plan.axes]
    seeds = ", ".join(str(seed) for seed in spec.seeds[:MOST_VALUES])
    seeds += f", ... ({len(spec.seeds)})" if len(spec.seeds) > MOST_VALUES else ""
    items.append(f"{count(len(plan.grid.cells), 'cell')}, seeds {seeds}")
    if spec.baseline is not None:
        items.append(f"baseline: {settings(spec.baseline)}")
    if plan.grid.merged:
        items.append(f"{plan.grid.merged} combinations give the same cell as another")
    return [Items([*items, *_left_out(found)])]


def _values(column: pd.Series) -> str:
    counted = Counter(value_text(value) for value in column)
    text = ", ".join(list(counted)[:MOST_VALUES])
    return text + (f", and {len(counted) - MOST_VALUES} more" if len(counted) > MOST_VALUES else "")


def _left_out(found: Findings) -> list[str]:
    return [
        f"Left out: {count(number, 'cell')} with {settings(rule.where)}: {rule.because}"
        for rule, number in found.plan.grid.excluded
        if number
    ]


def coverage(found: Findings) -> list[Block]:
    """Return run counts by state, finished runs without results, and cells left out on purpose."""
    plan, coverage = found.plan, found.coverage
    counts = Counter(coverage["state"])
    states = [name for name in dict.fromkeys([*STATE_NAMES, *counts]) if counts[name]]
    by_state = ", ".join(f"{counts[name]} {name}" for name in states)
    first = (
        f"{count(len(coverage), 'run')} planned "
        f"({count(len(plan.grid.cells), 'cell')}, "
        f"{count(len(plan.spec.seeds), 'seed')} each): {by_state}."
    )
    broken = coverage[(coverage["state"] == "finished") & ~coverage["measured"]]
    lines = [
        f"{row.run} is finished but has no results: {row.message}"
        for row in broken.head(MOST_LOGS).itertuples()
    ]
    if len(broken) > MOST_LOGS:
        lines.append(f"And {len(broken) - MOST_LOGS} more without results.")
    lines += _left_out(found)
    blocks: list[Block] = [Paragraph(first), *([Items(lines)] if lines else [])]
    lacking = coverage[coverage["cell"].isin(coverage.loc[~coverage["measured"], "cell"])]
    return blocks if lacking.empty else [*blocks, _lacking_table(lacking)]


def _lacking_table(rows: pd.DataFrame) -> TextTable:
    """Return a table of the cells that lack runs, with run counts by state."""
    present = set(rows["state"])
    states = [name for name in dict.fromkeys([*STATE_NAMES, *rows["state"]]) if name in present]
    counted = rows.groupby(["cell", "label", "state"], sort=False).size().unstack(fill_value=0)
    chosen = counted.head(MOST_ROWS)
    more = f"And {len(counted) - len(chosen)} more cells." if len(counted) > len(chosen) else ""
    body = [[label, *(str(row[s]) for s in states)] for (_, label), row in chosen.iterrows()]
    return TextTable("Cells with missing runs, by run state", ["cell", *states], body, more)


def failures(found: Findings, states: Mapping[str, RunState]) -> list[Block]:
    """Return failures grouped by cause, most common first, each with the end of one log."""
    plan = found.plan
    runs = {run.id: run for run in plan.runs}
    groups = grouped(states)
    blocks: list[Block] = []
    for group in groups[:MOST_LOGS]:
        run = runs[group.runs[0]]
        cause = f" ({group.cause})" if group.cause else ""
        also = (
            [f"The same failure: {phrases.listed(group.runs[1:], 12)}."]
            if len(group.runs) > 1
            else []
        )
        tail = last_lines(states[run.id].log_file(plan.run_folder(run)), LOG_LINES)
        blocks.append(
            Fold(
                run.id,
                f"({plan.label(run)}, seed {run.seed}): {group.message}{cause}",
                [*([Code(tail)] if tail else []), *map(Paragraph, also)],
                open=True,
            )
        )
    if groups[MOST_LOGS:]:
        blocks.append(Paragraph(f"And {len(groups) - MOST_LOGS} other kinds of failure."))
    return blocks


def reproduction(found: Findings) -> list[Block]:
    plan, coverage = found.plan, found.coverage
    first = {run.cell: run for run in reversed(plan.runs)}
    cells = found.shown[:MOST_COMMANDS]
    by_cell = dict(list(coverage[coverage["cell"].isin(cells)].groupby("cell", sort=False)))
    folds = []
    for cell in cells:
        runs = ", ".join(
            f"{r.run} (seed {r.seed}, {r.state})" for r in by_cell[cell].itertuples(index=False)
        )
        commands = Code([train_command(first[cell].config)])
        folds.append(Fold(found.labels[cell], f"(cell {cell})", [commands, Paragraph(runs)]))
    more = len(found.cells) - len(cells)
    text = (
        "Finished runs are not trained again. Each run is in runs/ID of the outputs folder (schema "
        f"version {SCHEMA_VERSION}). The command of a cell trains its first seed; --seed selects "
        "another."
    )
    last = [Paragraph(f"And {more} more cells: see densevit-sweep plan --json.")] if more else []
    return [Code([typed(plan, "")]), Paragraph(text), *folds, *last]


def provenance_warnings(record: Provenance) -> list[str]:
    """Return warnings if the runs differ in code, versions, data or number of threads."""
    versions = {(o.code, o.changed, o.versions) for o in record.origins}
    warnings = []
    if len(versions) > 1:
        warnings.append(
            f"Warning: the runs used {len(versions)} different versions of the code or of its "
            "dependencies."
        )
    if len(record.data) > 1:
        warnings.append(f"Warning: the runs used {len(record.data)} different states of the data.")
    threads = sorted({o.threads for o in record.origins} - {0})
    if len(threads) > 1:
        within = f", also within {phrases.listed(record.mixed, 3)}" if record.mixed else ""
        warnings.append(
            f"Warning: the runs computed with different numbers of threads "
            f"({phrases.listed([str(n) for n in threads], 4)}){within}; on CPUs the last digits of "
            f"a run depend on it."
        )
    return warnings


def provenance(record: Provenance) -> list[Block]:
    """Return a table of the code, machines and data behind the numbers, with warnings."""
    if not record.origins:
        return []
    body = [
        [
            str(o.runs), o.code + (" + changes" if o.changed else ""), o.versions,
            str(o.threads or "?"), phrases.listed(o.hosts, 3).replace(";", ","), o.data,
        ]
        for o in record.origins
    ]  # fmt: skip
    first = f"Code, machines and data of the last start of {count(record.began, 'run')}."
    head = ["runs", "code", "versions", "threads", "hosts", "data"]
    table = TextTable("Code, machines and data", head, body, numeric_from=len(head))
    images = [f"data {name}: images: {text}" for name, text in record.data.items() if text]
    blocks: list[Block] = [Paragraph(" ".join([first, *provenance_warnings(record)])), table]
    return [*blocks, Items(images)] if images else blocks

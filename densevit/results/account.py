"""The parts of a report that account for its runs: the plan, what there is of it, what failed, how
it is made again and what made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from densevit.config import SCHEMA_VERSION
from densevit.results import words
from densevit.results.answer import settings
from densevit.results.document import Block, Code, Fold, Items, Paragraph
from densevit.results.findings import Findings
from densevit.results.reproduce import Provenance, train_command
from densevit.results.sheet import Sheet
from densevit.rundir import last_lines
from densevit.sweep.failures import grouped
from densevit.sweep.grid import value_word
from densevit.sweep.logs import log_file
from densevit.sweep.show import typed
from densevit.sweep.state import WORDS, Standing

LOG_LINES = 12
LOGS_SHOWN = 10  # a mistake in a large sweep fails every run in the same way
ROWS_SHOWN = 40
MOST_COMMANDS = 60
MOST_VALUES = 12  # of an axis


def plan(found: Findings) -> list[Block]:
    plan, spec = found.plan, found.plan.spec
    items = [f"{axis}: {_values(found.cells[axis])}" for axis in plan.axes]
    seeds = ", ".join(str(seed) for seed in spec.seeds[:MOST_VALUES])
    seeds += f", ... ({len(spec.seeds)})" if len(spec.seeds) > MOST_VALUES else ""
    items.append(f"{words.count(len(plan.grid.cells), 'cell')}, seeds {seeds}")
    if spec.baseline is not None:
        items.append(f"baseline: {settings(spec.baseline)}")
    if plan.grid.merged:
        items.append(f"{plan.grid.merged} combinations are the same cell as another one")
    return [Items([*items, *_left_out(found)])]


def _values(column: pd.Series) -> str:
    counted = Counter(value_word(value) for value in column)
    told = ", ".join(list(counted)[:MOST_VALUES])
    return told + (f", and {len(counted) - MOST_VALUES} more" if len(counted) > MOST_VALUES else "")


def _left_out(found: Findings) -> list[str]:
    return [
        f"Left out: {words.count(number, 'cell')} with {settings(rule.where)}: {rule.because}"
        for rule, number in found.plan.grid.excluded
        if number
    ]


def coverage(found: Findings) -> list[Block]:
    """How many runs are in which state, what has no numbers, and what was left out on purpose."""
    plan, coverage = found.plan, found.coverage
    counts = Counter(coverage["state"])
    told = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
    others = [f"{n} {word}" for word, n in counts.items() if word not in WORDS]
    told = ", ".join([told, *others])
    first = (
        f"{words.count(len(coverage), 'run')} planned ({words.count(len(plan.grid.cells), 'cell')},"
        f" {words.count(len(plan.spec.seeds), 'seed')} each): {told}."
    )
    broken = coverage[(coverage["state"] == "finished") & ~coverage["measured"]]
    lines = [
        f"{row.run} is finished but has no numbers: {row.message}"
        for row in broken.head(LOGS_SHOWN).itertuples()
    ]
    if len(broken) > LOGS_SHOWN:
        lines.append(f"And {len(broken) - LOGS_SHOWN} more without numbers.")
    lines += _left_out(found)
    return [Paragraph(first), *([Items(lines)] if lines else []), _unfinished(found)]


def _unfinished(found: Findings) -> Sheet | None:
    """The cells that lack runs, with how many are in which state."""
    coverage = found.coverage
    lacking = set(coverage.loc[~coverage["measured"], "cell"])
    rows = coverage[coverage["cell"].isin(lacking)]
    if rows.empty:
        return None
    states = [
        word for word in dict.fromkeys([*WORDS, *rows["state"]]) if (rows["state"] == word).any()
    ]
    counted = rows.groupby(["cell", "label", "state"], sort=False).size().unstack(fill_value=0)
    chosen = counted.head(ROWS_SHOWN)
    more = f"And {len(counted) - len(chosen)} cells more." if len(counted) > len(chosen) else ""
    body = [[label, *(str(row[s]) for s in states)] for (_, label), row in chosen.iterrows()]
    return Sheet("Cells that lack runs, by the runs' states", ["cell", *states], body, more)


def failures(found: Findings, standings: Mapping[str, Standing]) -> list[Block]:
    """Failures by what went wrong, the commonest first, each with the end of one log."""
    plan = found.plan
    runs = {run.id: run for run in plan.runs}
    groups = grouped(standings)
    blocks: list[Block] = []
    for group in groups[:LOGS_SHOWN]:
        run = runs[group.runs[0]]
        cause = f" ({group.cause})" if group.cause else ""
        also = [f"Also {words.listed(group.runs[1:], 12)}."] if len(group.runs) > 1 else []
        tail = last_lines(log_file(plan, run, standings[run.id]), LOG_LINES)
        blocks.append(
            Fold(
                run.id,
                f"({plan.label(run)}, seed {run.seed}): {group.message}{cause}",
                [*([Code(tail)] if tail else []), *map(Paragraph, also)],
                open=True,
            )
        )
    if groups[LOGS_SHOWN:]:
        blocks.append(Paragraph(f"And {len(groups) - LOGS_SHOWN} other kinds of failure."))
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
    told = (
        "Finished runs are not trained again. Each lies under runs/ in the output folder by its id "
        f"(schema version {SCHEMA_VERSION}). A cell's command is that of its first seed; --seed "
        "makes it another."
    )
    last = (
        [Paragraph(f"And {more} cells more: densevit-sweep plan --json has them.")] if more else []
    )
    return [Code([typed(plan, "")]), Paragraph(told), *folds, *last]


def beware(seen: Provenance) -> list[str]:
    """What makes runs less alike than their settings say."""
    alike = {(o.code, o.changed, o.versions) for o in seen.origins}
    told = []
    if len(alike) > 1:
        told.append(f"Beware: the runs were made by {len(alike)} different versions of the code or "
                    "of what it builds on.")  # fmt: skip
    if len(seen.data) > 1:
        told.append(f"Beware: the runs saw {len(seen.data)} different states of the data.")
    return told


def provenance(seen: Provenance) -> list[Block]:
    """Which code, machines and data the numbers come from, and whether they are all the same."""
    if not seen.origins:
        return []
    body = [
        [
            str(o.runs), o.code + (" + changes" if o.changed else ""), o.versions,
            words.listed(o.hosts, 3).replace(";", ","), o.data,
        ]
        for o in seen.origins
    ]  # fmt: skip
    told = " ".join([f"The last start of {words.count(seen.began, 'run')}.", *beware(seen)])
    head = ["runs", "code", "versions", "hosts", "data"]
    sheet = Sheet("Code, machines and data", head, body, numeric_from=len(head))
    pictures = [f"data {name}: pictures: {text}" for name, text in seen.data.items() if text]
    return [Paragraph(told), sheet, Items(pictures)]

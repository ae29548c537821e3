"""The report of a sweep: coverage, table, figure and how to make it again, in one folder."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from densevit.config import SCHEMA_VERSION
from densevit.data.names import CLEAN
from densevit.errors import UserError
from densevit.results.collect import gather
from densevit.results.figures import save_accuracy
from densevit.results.robustness import comparable, effective, read_references
from densevit.results.tables import METRICS, CellTable, cell_table, to_csv, to_markdown
from densevit.rundir import last_lines, run_folder, write_atomic
from densevit.sweep.grid import value_word
from densevit.sweep.plan import Plan
from densevit.sweep.state import WORDS

LOG_LINES = 12
MATCHES_SHOWN = 6
LEAST_SHOWN = 0.05  # points: less would not be seen
LOGS_SHOWN = 10  # a mistake in a large sweep fails every run in the same way


@dataclass(frozen=True)
class Report:
    """Where the parts of a report lie, and the table itself for showing it."""

    report_md: Path
    table_md: Path
    table_csv: Path
    figure_png: Path
    figure_pdf: Path
    table: CellTable


def write(plan: Plan, references: Path | None = None) -> Report:
    """Write the report of what is there now into `plan.folder`/report.

    It may be called while the sweep runs and before anything is finished: what is missing is
    told as missing. The same results give the same table bytes. `references`: see
    `robustness.read_references`.
    """
    models = read_references(references)
    frame, coverage = gather(plan)
    folder = plan.folder / "report"
    table = cell_table(plan, frame)
    report = Report(
        report_md=folder / "report.md",
        table_md=folder / "table.md",
        table_csv=folder / "table.csv",
        figure_png=folder / "accuracy.png",
        figure_pdf=folder / "accuracy.pdf",
        table=table,
    )
    write_atomic(report.table_md, to_markdown(table))
    write_atomic(report.table_csv, to_csv(table))
    save_accuracy(table, frame, report.figure_png, report.figure_pdf)
    write_atomic(report.report_md, _text(plan, frame, coverage, models, report))
    return report


def _text(
    plan: Plan, frame: pd.DataFrame, coverage: pd.DataFrame, models: pd.DataFrame, report: Report
) -> str:
    sections = [
        f"# {plan.name}",
        plan.spec.description.strip(),
        _coverage(plan, coverage),
        f"## {METRICS[report.table.metric][0].capitalize()}",
        "Mean ± standard deviation over the seeds (n−1 in the denominator). `seeds` counts the "
        "finished runs of a cell among those planned; – marks an axis that does not apply.",
        to_markdown(report.table).strip(),
        f"![Accuracy of each cell on each benchmark]({report.figure_png.name})",
        f"Marker: mean; bar: ± standard deviation; small dots: single seeds. The axis need not "
        f"start at zero. Also as [PDF]({report.figure_pdf.name}), the numbers as "
        f"[CSV]({report.table_csv.name}).",
        _matched_clean(plan, frame),
        _probes(plan, frame),
        _robustness(plan, frame, models),
        _matches(plan, coverage),
        _failures(plan, coverage),
        _reproduction(plan, coverage),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _coverage(plan: Plan, coverage: pd.DataFrame) -> str:
    """How many runs are in which state, what has no numbers, and what was left out on purpose."""
    counts = Counter(coverage["state"])
    told = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
    cells = len(plan.grid.cells)
    lines = [
        f"{_count(len(coverage), 'run')} planned ({_count(cells, 'cell')}, "
        f"{_count(len(plan.spec.seeds), 'seed')} each): {told}."
    ]
    broken = coverage[(coverage["state"] == "finished") & ~coverage["measured"]]
    lines += [f"- {row.run} is finished but has no numbers: {row.message}" for row in _rows(broken)]
    lines += [
        f"- Left out: {_count(count, 'cell')} with {_settings(rule.where)}: {rule.because}"
        for rule, count in plan.grid.excluded
        if count
    ]
    return "\n".join([lines[0], *([""] if lines[1:] else []), *lines[1:]])


def _matched_clean(plan: Plan, frame: pd.DataFrame) -> str:
    """Clean accuracy to compare a benchmark with, where it has other classes or another mix."""
    matched = frame[frame["metric"] == "matched_clean"]
    if matched.empty:
        return ""
    chosen = frame[(frame["metric"] == "top1") & frame["benchmark"].isin(CLEAN)]
    by_run = chosen.sort_values("benchmark").drop_duplicates("run").set_index("run")["value"]
    other = (matched["value"] - matched["run"].map(by_run)).abs() >= LEAST_SHOWN
    shown = matched[matched["benchmark"].isin(set(matched.loc[other, "benchmark"]))]
    if shown.empty:  # the same classes in the same mix
        return ""
    return (
        "## Clean accuracy to compare with\n\nOn clean pictures of each benchmark's own classes, "
        "among these, and weighted to its mix of them: what the accuracy under shift is to be "
        "compared with.\n\n" + to_markdown(cell_table(plan, shown, "matched_clean")).strip()
    )


def _probes(plan: Plan, frame: pd.DataFrame) -> str:
    """What the patch tokens know: the linear segmentation, where runs have one."""
    if not (frame["metric"] == "miou").any():
        return ""
    return (
        "## Dense probe\n\nMean intersection over union (%) of a linear segmentation on frozen "
        "patch tokens.\n\n" + to_markdown(cell_table(plan, frame, "miou")).strip()
    )


def _robustness(plan: Plan, frame: pd.DataFrame, models: pd.DataFrame) -> str:
    """Accuracy beyond what clean accuracy predicts, where reference models were measured."""
    try:
        found = effective(comparable(frame), models)
    except UserError as error:  # too few references: the rest of the report is none the worse
        return f"## Effective robustness\n\nNot computed: {error}."
    if found.empty:
        return ""
    labels = {run.id: plan.label(run) for run in plan.runs}
    found = found.assign(cell=found["run"].map(labels))
    means = found.pivot_table("effective", "cell", "benchmark", "mean", sort=False)
    shifted = [*means.columns]
    lines = ["| cell | " + " | ".join(shifted) + " |", "| --- |" + " ---: |" * len(shifted)]
    for cell, row in means.iterrows():
        lines.append(f"| {cell} | " + " | ".join(f"{row[each]:+.1f}" for each in shifted) + " |")
    note = " Runs whose clean accuracy lies outside that of the references are among them."
    return (
        "## Effective robustness\n\nPoints of accuracy beyond what a line through reference models "
        "predicts from clean accuracy, on the logit scale; mean over seeds."
        + (note if found["extrapolated"].any() else "")
        + "\n\n"
        + "\n".join(lines)
    )


def _matches(plan: Plan, coverage: pd.DataFrame) -> str:
    """Before and after training, of the first finished run of each cell that kept them."""
    parts = []
    finished = coverage[coverage["state"] == "finished"]
    for row in _rows(finished.drop_duplicates("cell"))[:MATCHES_SHOWN]:
        folder = run_folder(plan.outputs, row.run)
        files = [folder.matches_file(when) for when in ("before", "after")]
        if all(file.exists() for file in files):
            target = plan.folder / "report" / f"matches-{row.run}.png"
            _draw_matches(files, target)
            parts.append(f"**{row.label}**, seed {row.seed}\n\n![Matches]({target.name})")
    head = (
        "## Correspondences\n\nWhich patch of view 2 is most similar to a patch of view 1, by the "
        "backbone's features, on val pictures; right by the geometry of the two views."
    )
    return "\n\n".join([head, *parts]) if parts else ""


def _draw_matches(files: list[Path], target: Path) -> None:
    """Drawn once: what a run keeps does not change."""
    if target.exists() and all(target.stat().st_mtime >= f.stat().st_mtime for f in files):
        return
    from densevit.matchfile import read_matches
    from densevit.results.matches import draw_before_after

    draw_before_after(*(read_matches(file) for file in files), target)


def _failures(plan: Plan, coverage: pd.DataFrame) -> str:
    failed = _rows(coverage[coverage["state"] == "failed"])
    if not failed:
        return ""
    parts = ["## Failed runs"]
    for row in failed[:LOGS_SHOWN]:
        parts.append(f"**{row.run}** ({row.label}, seed {row.seed}): {row.message}")
        tail = last_lines(run_folder(plan.outputs, row.run).log_file, LOG_LINES)
        parts += ["\n".join(f"    {line}" for line in tail)] if tail else []
    if failed[LOGS_SHOWN:]:
        parts.append("And " + ", ".join(row.run for row in failed[LOGS_SHOWN:]) + ".")
    return "\n\n".join(parts)


def _reproduction(plan: Plan, coverage: pd.DataFrame) -> str:
    command = f"densevit-sweep {shlex.quote(str(plan.spec.file))}"
    lines = [
        "## How to make it again",
        f"    {command}",
        "Finished runs are not trained again. Each lies under `runs/` in the output folder by its "
        f"id (schema version {SCHEMA_VERSION}):",
    ]
    cells = [
        f"- {label} (cell {cell}): "
        + ", ".join(f"{row.run} (seed {row.seed}, {row.state})" for row in _rows(group))
        for (cell, label), group in coverage.groupby(["cell", "label"], sort=False)
    ]
    return "\n\n".join([*lines, "\n".join(cells)])


def _rows(frame: pd.DataFrame) -> list:
    return list(frame.itertuples(index=False))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _settings(where: dict) -> str:
    return ", ".join(f"{name}: {value_word(value)}" for name, value in where.items())

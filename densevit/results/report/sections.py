"""The sections of a report, shared by the page and the short form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from densevit.launch.run_state import RunState
from densevit.results.analysis import Findings
from densevit.results.report import numbers, runs
from densevit.results.report.document import Block, Document, FigureBlock, Section
from densevit.results.report.provenance import Provenance
from densevit.results.report.summary import answer, question
from densevit.results.tables.format import metric_title
from densevit.results.tables.table import TextTable


@dataclass(frozen=True)
class Extras:
    """The parts of a report besides the findings.

    `conclusions` and `doubts` are the sentences of the first section; `table` is the main table;
    `figures` holds figures by section id; `changes` holds, by name, the changes since numbers were
    frozen; `states` holds the state of each run; `requested` is a table that the user asked for.
    """

    conclusions: Sequence[str]
    doubts: Sequence[str]
    table: TextTable
    states: Mapping[str, RunState]
    provenance: Provenance
    figures: Mapping[str, Sequence[FigureBlock]]
    matches: Sequence[tuple[str, FigureBlock]]
    changes: Mapping[str, Sequence[Block]]
    requested: TextTable | None


def document(found: Findings, extras: Extras) -> Document:
    """Return the whole report; empty sections are left out."""

    def drawn(section: str) -> Sequence[FigureBlock]:
        return extras.figures.get(section, ())

    requested = [extras.requested] if extras.requested else []
    sections = [
        Section("answer", "The answer",
                answer(found, extras.conclusions, extras.doubts, extras.changes)),
        Section("asked", "The requested table", requested),
        Section("accuracy", _title(found.metric),
                numbers.accuracy(found, extras.table, drawn("accuracy"))),
        Section("differences", "Differences from the baseline", numbers.differences(found)),
        Section("effects", "The effect of each axis", numbers.effects(found, drawn("effects"))),
        Section("robustness",
                "Effective robustness" if found.lined else "Accuracy under shift",
                numbers.robustness(found, drawn("robustness"))),
        Section("matched-clean", "Clean accuracy for comparison", numbers.matched_clean(found)),
        Section("probes", "Probes", numbers.probes(found, drawn("probes"))),
        Section("matches", "Correspondences", numbers.matches(extras.matches)),
        Section("learning", "Learning and health", list(drawn("learning")), brief=False),
        Section("cost", "Cost", numbers.cost(found, drawn("cost")), brief=False),
        Section("coverage", "Coverage", runs.coverage(found)),
        Section("failures", "Failed runs", runs.failures(found, extras.states)),
        Section("plan", "The plan", runs.plan(found), brief=False),
        Section("reproduce", "How to reproduce it", runs.reproduction(found)),
        Section("provenance", "Provenance", runs.provenance(extras.provenance), brief=False),
    ]  # fmt: skip
    spec = found.plan.spec
    lead = [text for text in (question(spec.file), spec.description.strip()) if text]
    return Document(found.plan.name, lead, [section for section in sections if section.blocks])


def _title(metric: str) -> str:
    title = metric_title(metric)
    return title if metric == "map" else title[:1].upper() + title[1:]

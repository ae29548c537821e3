"""The sections of a report, from what was found: the same for the page and for the short form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from densevit.results import account, measures, tables
from densevit.results.answer import answer, question
from densevit.results.document import Block, Document, Picture, Section
from densevit.results.findings import Findings
from densevit.results.reproduce import Provenance
from densevit.results.sheet import Sheet
from densevit.sweep.state import Standing


@dataclass(frozen=True)
class Extras:
    """What stands in a report beside the findings.

    `answers` are `answer.answers`; `shown` is the main table; `pictures` are figures by the id of
    their section; `moved` what has changed since numbers were frozen, by name; `standings` where
    each run stands; `asked` is a table that the user asked for.
    """

    answers: Sequence[str]
    shown: Sheet
    standings: Mapping[str, Standing]
    provenance: Provenance
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    matches: Sequence[tuple[str, Picture]] = ()
    moved: Mapping[str, Sequence[Block]] = field(default_factory=dict)
    asked: Sheet | None = None


def document(found: Findings, extras: Extras) -> Document:
    """The whole report; sections with nothing to tell are left out."""

    def drawn(section: str) -> Sequence[Picture]:
        return extras.pictures.get(section, ())

    accuracy, clean = "accuracy", "Clean accuracy to compare with"
    parts = [
        Section("answer", "The answer", answer(found, extras.answers, extras.moved)),
        Section("asked", "The table that was asked for", [extras.asked] if extras.asked else []),
        Section("plan", "The plan", account.plan(found), brief=False),
        Section("coverage", "Coverage", account.coverage(found)),
        Section("failures", "Failed runs", account.failures(found, extras.standings)),
        Section(accuracy, _title(), measures.accuracy(found, extras.shown, drawn(accuracy))),
        Section("differences", "Differences to the baseline",
                measures.differences(found, drawn("differences"))),
        Section("effects", "The effect of each axis", measures.effects(found, drawn("effects"))),
        Section("matched-clean", clean, measures.matched_clean(found)),
        Section("robustness", "Effective robustness" if found.lined else "Under shift",
                measures.robustness(found, drawn("robustness"))),
        Section("probes", "Dense probe", measures.probes(found, drawn("probes"))),
        Section("learning", "Learning and health", list(drawn("learning")), brief=False),
        Section("matches", "Correspondences", measures.matches(extras.matches)),
        Section("cost", "Cost", measures.cost(found, drawn("cost")), brief=False),
        Section("reproduce", "How to make it again", account.reproduction(found)),
        Section("provenance", "Where the numbers come from",
                account.provenance(extras.provenance), brief=False),
    ]  # fmt: skip
    kept = [replace(part, blocks=[b for b in part.blocks if b]) for part in parts]
    spec = found.plan.spec
    lead = [text for text in (question(spec.file), spec.description.strip()) if text]
    return Document(found.plan.name, lead, [part for part in kept if part.blocks])


def _title() -> str:
    title = tables.metric_title("top1")
    return title[0].upper() + title[1:]

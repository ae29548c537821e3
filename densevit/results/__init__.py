"""From finished runs to answers: collect, stats, tables, figures, compare, report.

`differences` and `best_marks` are the public names of the verdicts, imported when used.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "differences":
        from densevit.results.stats.seeds import differences

        return differences
    if name == "best_marks":
        from densevit.results.tables.best_cells import best_marks

        return best_marks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

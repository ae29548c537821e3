"""What a sweep's numbers say, in sentences for people who do not read statistics.

Pure: frames in, text out. A sentence is never stronger than its row: what is not decided is called
open, with what it would take, and one seed says nothing about seeds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from densevit.results.tables import METRICS
from densevit.sweep.grid import value_word

MINUS = "−"
NAMED = 4  # cells or runs that a sentence names before it counts the rest
SETS = 3  # test sets of each of these, likewise
SMALLEST_P = 0.001
# The same order as they are told in.
VERDICTS = ("different", "alike", "open", "single", "undefined")
MOST_MORE = 200  # seeds: no sweep has more, so that "needs 5000 more seeds" helps nobody


class Said(NamedTuple):
    """A comparison in words; `text` is the whole sentence, `verdict` as in `stats.differences`."""

    cell: str
    benchmark: str
    verdict: str
    text: str


def contrasts(
    cells: pd.DataFrame, baselines: Mapping[str, str], axes: Sequence[str]
) -> dict[str, str]:
    """Cell id to its comparison in words: `dense − none (temperature 0.1)`.

    Only the axes in which the two differ stand on both sides; what else the cell is stands behind.
    `cells` is `baseline.cells_frame`, `baselines` is `baseline.baselines`.
    """
    rows = cells.set_index("cell").to_dict("index")
    return {cell: _contrast(rows[cell], rows[base], axes) for cell, base in baselines.items()}


def _contrast(ours: Mapping[str, Any], theirs: Mapping[str, Any], axes: Sequence[str]) -> str:
    both = [axis for axis in axes if None not in (ours[axis], theirs[axis])]
    apart = [axis for axis in both if ours[axis] != theirs[axis]]
    if not apart:
        return f"{ours['label']} {MINUS} {theirs['label']}"
    left, right = (" · ".join(value_word(side[axis]) for axis in apart) for side in (ours, theirs))
    rest = [f"{a} {value_word(ours[a])}" for a in axes if a not in apart and ours[a] is not None]
    return f"{left} {MINUS} {right}" + (f" ({', '.join(rest)})" if rest else "")


def sentences(
    differences: pd.DataFrame,
    names: Mapping[str, str],
    wanted: float = 1.0,
    pictures: Mapping[tuple[str, str], tuple[float, float, float]] | None = None,
    most: int | None = None,
) -> list[Said]:
    """A sentence a row of `stats.differences`, the decided ones first, then by size; the first
    `most` of them.

    `names` are `contrasts`, `wanted` is the difference (in the metric's unit) with which verdicts
    were made, and `pictures` has, for a (cell, benchmark) of one common seed, difference, low and
    high over pictures alone (`samples.difference`).
    """
    return [
        Said(row.cell, row.benchmark, row.verdict, _sentence(row, names, wanted, pictures or {}))
        for row in ranked(differences).head(most or len(differences)).itertuples(index=False)
    ]


def ranked(differences: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order in which they are worth telling: by verdict, then by size."""
    order = {verdict: place for place, verdict in enumerate(VERDICTS)}
    place = differences["verdict"].map(order)
    size = -differences["difference"].abs().fillna(0.0)
    keys = differences.assign(_place=place, _size=size)
    ordered = keys.sort_values(["_place", "_size"], kind="stable", na_position="last")
    return ordered.drop(columns=["_place", "_size"])


def _sentence(
    row: Any,
    names: Mapping[str, str],
    wanted: float,
    pictures: Mapping[tuple[str, str], tuple[float, float, float]],
) -> str:
    name = names.get(row.cell, row.cell)
    begin = f"{name} on {row.benchmark}: "
    if row.n == 0:
        return begin + "no seed is finished in both yet."
    if math.isnan(row.difference):
        return begin + f"not a number in at least one of {row.n} common seeds; nothing is said."
    decimals = _decimals(row.metric, row.difference, row.low, row.high)
    size = signed(row.difference, decimals) + _unit(row.metric)
    if row.n < 2 or row.verdict == "single":
        return begin + size + _alone(row, pictures)
    interval = f"95 % CI {bracket(row.low, row.high, decimals)}"
    return f"{begin}{size}, {interval}, {row.n} seeds, paired: {_verdict(row, wanted)}."


def _alone(row: Any, pictures: Mapping[tuple[str, str], tuple[float, float, float]]) -> str:
    """What can be said of one seed: the pictures are many, the seeds are not."""
    told = "; one seed only: nothing is said about seeds"
    found = pictures.get((row.cell, row.benchmark))
    if found is None:
        return told + "."
    _, low, high = found
    return f"{told}; over pictures alone {bracket(low, high, _decimals(row.metric, low, high))}."


def _verdict(row: Any, wanted: float) -> str:
    if row.std == 0 and row.difference == 0:
        return "equal in every seed"
    if row.verdict == "different":
        return f"decided (Holm-corrected {p_word(row.p_holm)})"
    # A row whose own interval leaves out zero, as some do among many by chance alone.
    beside = row.low > 0 or row.high < 0
    if row.verdict == "alike":
        bound = _bound(row)
        if beside:
            return f"at most a small difference: 95 % sure that it is under {bound}, and too " \
                   "uncertain once all comparisons are counted"  # fmt: skip
        return f"cannot be told apart: 95 % sure that the difference is under {bound}"
    if beside:
        return "not decided: the interval leaves out zero, but not once all comparisons are counted"
    return _open(row, wanted)


def _bound(row: Any) -> str:
    """The larger end of the interval, rounded up: the sentence must not claim more than it."""
    decimals = _decimals(row.metric, row.low, row.high)
    scale = 10**decimals
    largest = math.ceil(max(abs(row.low), abs(row.high)) * scale - 1e-9) / scale
    return f"{largest:.{decimals}f}{_unit(row.metric)}"


def _open(row: Any, wanted: float) -> str:
    target = f"{_short(wanted)}{_unit(row.metric)}"
    needed = row.seeds_needed
    if needed is None or math.isnan(needed):
        return "not decided"
    more = int(needed) - int(row.n)
    if more > MOST_MORE:
        return f"not decided: the seeds vary too much to see a difference of {target} with fewer " \
               f"than {MOST_MORE} of them"  # fmt: skip
    if more > 0:
        return f"not decided: needs {count(more, 'more seed')} to see a difference of {target} " \
               "at 80 % power"  # fmt: skip
    return f"not decided: neither zero nor a difference of {target} is ruled out"


def headline(differences: pd.DataFrame, wanted: float, baseline: str) -> str:
    """How many comparisons are decided, alike, open, or of one seed, in one sentence."""
    if differences.empty:
        return "No comparison with the baseline can be made yet."
    found = differences["verdict"].value_counts()
    metric = str(differences["metric"].iloc[0])
    words = {
        "different": "decided",
        "alike": f"cannot be told apart (under {_short(wanted)}{_unit(metric)})",
        "open": "open: these seeds cannot tell",
        "single": "with one seed only, of which nothing is said about seeds",
        "undefined": "not a number in at least one seed",
    }
    told = "; ".join(f"{found[v]} {words[v]}" for v in VERDICTS if found.get(v, 0))
    return f"{count(len(differences), 'comparison')} with the baseline {baseline}: {told}."


def decided(differences: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """One sentence for what is higher than its baseline, one for what is lower."""
    rows = ranked(differences[differences["verdict"] == "different"])
    lines = []
    for word, chosen in (
        ("Higher than the baseline", rows[rows["difference"] > 0]),
        ("Lower than the baseline", rows[rows["difference"] < 0]),
    ):
        if len(chosen):
            lines.append(f"{word}: {_by_cell(chosen, names)}.")
    return lines


def undecided(differences: pd.DataFrame, names: Mapping[str, str], wanted: float) -> str:
    """What is open, and how many more seeds the easiest and the hardest of it need."""
    rows = differences[(differences["verdict"] == "open") & differences["difference"].notna()]
    if rows.empty:
        return ""
    across = (rows["low"] <= 0) & (rows["high"] >= 0)  # what else is open for other comparisons
    more = (rows["seeds_needed"] - rows["n"]).clip(lower=0)
    needy = more[across & (more > 0)]
    line = f"Not decided: {_by_cell(ranked(rows), names)}."
    if needy.empty:
        return line
    few, many = int(needy.min()), int(needy.max())
    span = count(few, "more seed") if few == many else f"{few} to {count(many, 'more seed')}"
    if many > MOST_MORE:
        span = f"{few} or more seeds"
    target = f"{_short(wanted)}{_unit(str(rows['metric'].iloc[0]))}"
    return f"{line} To see a difference of {target} at 80 % power they need {span} each."


def _by_cell(rows: pd.DataFrame, names: Mapping[str, str]) -> str:
    """`dense − none on a (+1.8 [0.9, 2.7]), b (...)`, for the first cells in the order of the rows,
    and how many more there are."""
    order = list(dict.fromkeys(rows["cell"]))
    told: dict[str, list[str]] = {cell: [] for cell in order[:NAMED]}
    for row in rows[rows["cell"].isin(order[:NAMED])].itertuples(index=False):
        told[row.cell].append(f"{row.benchmark} ({_size(row)})")
    named = [f"{names.get(cell, cell)} on {_sets(sets)}" for cell, sets in told.items()]
    return "; ".join(named) + _more(len(order) - NAMED)


def _sets(told: Sequence[str]) -> str:
    more = f" and {count(len(told) - SETS, 'other set')}" if len(told) > SETS else ""
    return ", ".join(told[:SETS]) + more


def averaged(marginals: pd.DataFrame) -> list[str]:
    """The decided effects of each axis, averaged over all other settings: a sentence an axis.

    `marginals` are those of `stats.marginals` with the column benchmark, p_holm over all rows.
    """
    if marginals.empty:
        return []
    lines = []
    rows = marginals[marginals["p_holm"] < 0.05]
    rows = rows.assign(metric="top1", size=-rows["difference"].abs()).sort_values("size")
    for axis in dict.fromkeys(marginals["axis"]):
        told: dict[str, list[str]] = {}
        for row in rows[rows["axis"] == axis].itertuples(index=False):
            name = f"{value_word(row.level)} {MINUS} {value_word(row.reference)}"
            told.setdefault(name, []).append(f"{row.benchmark} ({_size(row)})")
        found = listed(f"{name} on {_sets(sets)}" for name, sets in told.items())
        lines.append(f"{axis}, averaged over all else: {found or 'no level is decided'}.")
    return lines


def missing(coverage: pd.DataFrame) -> list[str]:
    """What has no numbers yet, by state, and the cells that it concerns."""
    lacks = coverage[~coverage["measured"]]
    if lacks.empty:
        return [f"Every planned run ({len(coverage)}) is finished and has numbers."]
    states = lacks["state"].value_counts()
    unread = {"finished": "finished without numbers that can be read"}
    told = ", ".join(f"{n} {unread.get(state, state)}" for state, n in states.items())
    lines = [f"{len(coverage) - len(lacks)} of {len(coverage)} planned runs have numbers; {told}."]
    by_cell = coverage.groupby(["cell", "label"], sort=False)["measured"].agg(["sum", "size"])
    counted = [
        (label, row.sum_, row.size_)
        for (_, label), row in zip(
            by_cell.index, by_cell.set_axis(["sum_", "size_"], axis=1).itertuples(), strict=True
        )
    ]
    bare = [label for label, there, _ in counted if there == 0]
    short = [f"{label} ({there} of {all_})" for label, there, all_ in counted if 0 < there < all_]
    if bare:
        lines.append(f"No numbers at all yet: {listed(bare)}.")
    if short:
        lines.append(f"Fewer seeds than planned: {listed(short)}.")
    return lines


def beyond_clean(
    gains: pd.DataFrame, beyond: pd.DataFrame, names: Mapping[str, str], by_line: bool
) -> list[str]:
    """Whether decided differences under shift are more than clean accuracy brings with it, in up to
    three sentences.

    `gains` are decided rows on shifted test sets; `beyond` are `stats.differences` of effective
    robustness (`by_line`), or else of accuracy less clean accuracy.
    """
    rows = beyond[(beyond["n"] > 1) & beyond["difference"].notna()]
    both = ranked(gains).merge(rows, on=["cell", "benchmark"], suffixes=("", "_over"))
    same_way = both["difference"] * both["difference_over"] > 0
    decided = both["verdict_over"] == "different"
    told = {"more": both[decided & same_way], "unclear": both[~decided],
            "less": both[decided & ~same_way]}  # fmt: skip
    # What "of which" counts from.
    over = "beyond what clean accuracy predicts" if by_line else "beyond the change on clean data"
    return [
        f"{_BEYOND[kind]} (in brackets the difference, and how much of it is {over}): "
        f"{'; '.join(_of_which(row, names) for row in chosen.head(NAMED).itertuples(index=False))}"
        f"{_more(len(chosen) - NAMED)}."
        for kind, chosen in told.items()
        if len(chosen)
    ]


def _of_which(row: Any, names: Mapping[str, str]) -> str:
    values = row.difference_over, row.low_over, row.high_over
    decimals = _decimals(row.metric_over, *values)
    part = f"{signed(values[0], decimals)} {bracket(*values[1:], decimals)}"
    return f"{names.get(row.cell, row.cell)} on {row.benchmark} ({_size(row)}, of which {part})"


_BEYOND = {
    "more": "More than clean accuracy brings with it",
    "unclear": "Not shown, all comparisons counted, to be more than a change in clean accuracy",
    "less": "Less than the change in clean accuracy lets expect",
}


def collapsed(last: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Cells whose contrastive features had collapsed when they were last looked at.

    `last` has cell, seed and value: `health/collapsed` at the last look of each run.
    """
    lines = []
    for cell, rows in last.groupby("cell", sort=False):
        fallen = rows[rows["value"] == 1]
        if len(fallen):
            seeds = ", ".join(str(seed) for seed in sorted(fallen["seed"])[:NAMED])
            more = ", ..." if len(fallen) > NAMED else ""
            lines.append(
                f"The contrastive features of {labels.get(str(cell), str(cell))} have collapsed in "
                f"{len(fallen)} of {count(len(rows), 'seed')} ({seeds}{more}): what these "
                "runs reach says little about the setting."
            )
    return lines


def p_word(p: float) -> str:
    """`p = 0.004`, `p < 0.001`; never rounded to zero."""
    if math.isnan(p):
        return "p unknown"
    if p < SMALLEST_P:
        return f"p < {SMALLEST_P}"
    decimals = 3 if p < 0.0995 else 2
    return f"p = {p:.{decimals}f}"


def signed(value: float, decimals: int = 1) -> str:
    """`+1.8`, `−0.4`, `0.0`; a minus sign and no hyphen."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def bracket(low: float, high: float, decimals: int = 1) -> str:
    """`[−0.2, 0.9]`"""
    return "[" + ", ".join(signed(v, decimals).removeprefix("+") for v in (low, high)) + "]"


def count(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`"""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def listed(words: Iterable[str], most: int = NAMED) -> str:
    """The first few, and how many more there are."""
    found = list(words)
    return "; ".join(found[:most]) + _more(len(found) - most)


def _more(number: int) -> str:
    return f"; and {number} more" if number > 0 else ""


def _size(row: Any) -> str:
    decimals = _decimals(row.metric, row.difference, row.low, row.high)
    return f"{signed(row.difference, decimals)} {bracket(row.low, row.high, decimals)}"


def _decimals(metric: str, *values: float) -> int:
    """As many as the metric is shown with, and more where one of the numbers would read as zero."""
    decimals = METRICS[metric][1] if metric in METRICS else 1
    small = [abs(v) for v in values if math.isfinite(v) and v != 0]
    if small and min(small) < 0.5 * 10**-decimals:
        return decimals + 1
    return decimals


def _unit(metric: str) -> str:
    """Percentages differ by points; other metrics have no unit."""
    return "" if metric == "nll" else " points"


def _short(value: float) -> str:
    return f"{value:.1f}" if round(value, 1) == value else f"{value:g}"


def shifted_only(benchmarks: Iterable[str], others: Collection[str]) -> list[str]:
    """The test sets that are neither clean ones nor probes (`others`)."""
    return [name for name in dict.fromkeys(benchmarks) if name not in others]

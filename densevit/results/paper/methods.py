"""The methods of a sweep as a paragraph for a paper, with citations."""

from __future__ import annotations

from collections.abc import Sequence

from densevit.config.evaluation_names import CLEAN
from densevit.results.analysis import Findings
from densevit.results.paper.sources import DATA
from densevit.results.tables.latex import escaped
from densevit.sweep.cells import cell_values, value_text
from densevit.utils.console import count

_VARIED = "as in the table of settings"
_LOSSES = {
    "global": r"global: that of MoCo v2~\cite{he2020moco,chen2020mocov2}",
    "dense": r"dense: that of DenseCL between patches~\cite{wang2021densecl}",
    "joint": r"joint: global and dense, as in DenseCL~\cite{wang2021densecl}",
}


def methods(found: Findings, benchmarks: Sequence[str]) -> str:
    """Return what was trained, how, and by which statistics cells are compared, as LaTeX."""
    return "\n".join(
        [*_training(found), *_contrast(found), *_evaluation(benchmarks), *_statistics(found), ""]
    )


def _value(found: Findings, name: str) -> str:
    """Return a setting's value if all cells to which it applies share it."""
    cells = [cell_values(run.config, (name,))[name] for run in found.plan.grid.cells]
    texts = {value_text(value) for value in cells if value is not None}
    return escaped(texts.pop()) if len(texts) == 1 else _VARIED


def _training(found: Findings) -> list[str]:
    configs = [run.config for run in found.plan.grid.cells]
    trained = {bool(c.pretrained or c.init_checkpoint) for c in configs}
    start = {True: "from pretrained weights", False: "from scratch"}
    begun = start[trained.pop()] if len(trained) == 1 else "from pretrained weights or from scratch"
    data = sorted({config.dataset for config in configs})
    name = ", ".join(escaped(each) + _cite(DATA.get(each)) for each in data)
    return [
        r"We train Vision Transformers~\cite{dosovitskiy2021vit} as implemented in "
        r"timm~\cite{wightman2019timm}",
        f"(model: {_value(found, 'model_name')}) {begun} on {name}, with "
        r"AdamW~\cite{loshchilov2019adamw}",
        f"(learning rate {_value(found, 'learning_rate')}, weight decay "
        f"{_value(found, 'weight_decay')}, batch size {_value(found, 'batch_size')}) for "
        f"{_value(found, 'epochs')} epochs,",
        f"of which {_value(found, 'warmup_epochs')} warm the rate up before it decays to zero as "
        "a cosine.",
    ]


def _contrast(found: Findings) -> list[str]:
    modes = {run.config.cl_mode for run in found.plan.grid.cells} - {"none"}
    if not modes:
        return ["The loss is the cross-entropy of the labels."]
    kinds = [_LOSSES.get(mode, escaped(mode)) for mode in sorted(modes)]
    return [
        f"The loss is $(1 - w)$ times the cross-entropy of the labels plus $w$ times a contrastive "
        f"loss ({', '.join(kinds)}), with $w$: {_value(found, 'lambda_weight')};",
        f"its queue holds {_value(found, 'queue_size')} features, its temperature is "
        f"{_value(found, 'temperature')}, and its keys come from the "
        f"{_value(found, 'key_encoder')} encoder.",
    ]


def _evaluation(benchmarks: Sequence[str]) -> list[str]:
    shifted = [escaped(n) + _cite(DATA.get(n)) for n in benchmarks if n not in CLEAN]
    more = f" and on {', '.join(shifted)}" if shifted else ""
    return [f"We report the last epoch's accuracy on held-out images{more}."]


def _statistics(found: Findings) -> list[str]:
    seeds = count(len(found.plan.spec.seeds), "seed")
    lines = [
        f"Each setting is trained with {seeds}; values are means $\\pm$ standard deviation over "
        "seeds.",
    ]
    if found.differences.empty:
        return lines
    return [
        *lines,
        r"Settings are compared seed by seed with paired $t$ tests~\cite{student1908}, with Holm's "
        r"correction~\cite{holm1979}",
        f"over all {len(found.differences)} comparisons with the baseline; a difference is called "
        "established if $p < 0.05$ after the correction,",
        f"and equivalent if its 95\\,\\% interval lies within $\\pm{found.smallest_effect:g}$.",
    ]


def _cite(key: str | None) -> str:
    return f"~\\cite{{{key}}}" if key else ""

"""Check that a sweep's early-stopping rule can be applied and does not bias its tables."""

from __future__ import annotations

from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError, nearest

VALIDATED = ("val/top1", "val/top5", "val/nll")  # logged by every run after each epoch


def check_early(plan: Plan) -> None:
    """Check that the sweep's early-stopping rule suits its runs.

    Errors: `UserError` for a metric that a run does not log, and for axes whose means the rule
    would bias.
    """
    rule, file = plan.spec.early_stop, plan.spec.file
    if rule is None:
        return
    for run in plan.runs:
        validated = () if run.config.unlabelled else VALIDATED
        names = [*validated, *(f"watch/{name}/top1" for name in run.config.watched)]
        if rule.metric not in names:
            raise UserError(f"{file}: early_stop.metric: {plan.label(run)} has no {rule.metric}; "
                            f"{nearest(rule.metric, names)}")  # fmt: skip
    searched = plan.spec.search.space if plan.spec.search else {}
    compared = [axis for axis in plan.axes if axis not in searched]
    if compared and not rule.allow_biased:
        raise UserError(
            f"{file}: early_stop: {', '.join(compared)}: is compared in the report, and early "
            f"stopping biases it: only the surviving seeds would be averaged; put settings to "
            f"choose from under `search:`, or insist with `allow_biased: true`"
        )

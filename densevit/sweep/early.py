"""Whether a sweep's rule for early stopping can be followed, and whether its tables stay honest."""

from __future__ import annotations

from densevit.errors import UserError, nearest
from densevit.sweep.plan import Plan

VALIDATED = ("val/top1", "val/top5", "val/nll")  # by every run, after each epoch


def check_early(plan: Plan, launcher: str) -> None:
    """Errors: `UserError` for a launcher that ends no run early, for a metric that a run does not
    have, and for axes whose means the rule would bias.
    """
    rule, file = plan.spec.early_stop, plan.spec.file
    if rule is None:
        return
    if launcher != "ray":
        raise UserError(f"{file}: early_stop: only the launcher ray ends runs early, and this one "
                        f"is {launcher}; --launcher ray chooses it")  # fmt: skip
    for run in plan.runs:
        names = [*VALIDATED, *(f"watch/{name}/top1" for name in run.config.watched)]
        if rule.metric not in names:
            raise UserError(f"{file}: early_stop.metric: {plan.label(run)} has no {rule.metric}; "
                            f"{nearest(rule.metric, names)}")  # fmt: skip
    searched = plan.spec.search.space if plan.spec.search else {}
    compared = [axis for axis in plan.axes if axis not in searched]
    if compared and not rule.allow_biased:
        raise UserError(
            f"{file}: early_stop: {', '.join(compared)}: is compared in the report, and of a "
            f"setting with stopped runs only the lucky seeds count; `search:` is for settings "
            f"to choose from, `allow_biased: true` insists"
        )

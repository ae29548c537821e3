"""The cost of a sweep, measured where its launcher will execute its runs."""

from __future__ import annotations

from densevit.cost.estimate import Estimate, estimate
from densevit.cost.speeds import measure, speeds_file, wanted_probes
from densevit.launch.decide import decide
from densevit.launch.launcher import Launcher, LaunchOptions
from densevit.launch.launchers import observe
from densevit.sweep.plan import Plan


def cost(plan: Plan, launcher: Launcher, options: LaunchOptions, *, again: bool) -> Estimate:
    """Measure the missing speeds (all with `again`) and estimate the remaining runs.

    Errors: `UserError` for a run that fails, and for a job that the launcher's cluster rejects.
    """
    setting = launcher.cost_setting(plan, options)
    if again:
        speeds_file(plan).unlink(missing_ok=True)
    speeds = measure(setting.plan, wanted_probes(setting.plan), speeds_file(plan), setting.place)
    to_run = decide(setting.plan, observe(plan), foreground=launcher.foreground).to_run
    return estimate(setting.plan, speeds, setting.at_once, to_run)

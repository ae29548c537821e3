"""The command of `notify:`."""

import pytest
import yaml

from densevit.launch.foreground import Interrupted
from densevit.monitor.notify import notification, notify, notifying_errors
from densevit.sweep.plan import make_plan
from densevit.utils.errors import UserError


@pytest.fixture
def plan_of(tmp_path):
    def make(command):
        file = tmp_path / "s.yaml"
        file.write_text(yaml.dump({"name": "little", "seeds": 2, "notify": command}))
        return make_plan(file, tmp_path / "out")

    return make


def test_the_command_gets_the_name_and_state_of_the_sweep(plan_of, tmp_path, capsys):
    told = tmp_path / "told"
    plan = plan_of(f"echo {{sweep}} {{state}} {{finished}}/{{runs}} {{failed}} ${{HOME}} >> {told}")
    run = plan.runs[0]
    plan.run_folder(run).create(run.config)
    plan.run_folder(run).write_status("failed")
    notify(plan, "failed")
    with pytest.raises(UserError), notifying_errors(plan):
        raise UserError
    with pytest.raises(Interrupted), notifying_errors(plan):
        raise Interrupted
    lines = told.read_text().splitlines()
    assert [line.split()[:4] for line in lines] == [["little", "failed", "0/2", "1"]] * 2
    assert capsys.readouterr().err == ""


def test_values_are_quoted_for_the_shell(plan_of):
    plan = plan_of("mail -s '[{sweep}]' me")
    assert notification(plan, "cmd {sweep}", "finished") == "cmd little"
    object.__setattr__(plan.spec, "name", "a; rm -r b")
    assert notification(plan, "cmd {sweep}", "finished") == "cmd 'a; rm -r b'"


def test_a_command_that_fails_is_a_warning(plan_of, capsys):
    notify(plan_of("echo no such channel >&2; exit 3"), "finished")
    assert capsys.readouterr().err == "warning: notify: exit code 3: no such channel\n"
    notify(plan_of(None), "finished")
    assert capsys.readouterr().err == ""


def test_an_unknown_placeholder_is_told_by_the_plan(plan_of):
    with pytest.raises(
        UserError, match=r"notify: 'cmd {swep}': {swep} is unknown; did you mean 'sweep'"
    ):
        plan_of("cmd {swep}")

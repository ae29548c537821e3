"""The starts of a run: how they are recorded, and when there are too many."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densevit.launch.slurm import attempts
from densevit.launch.slurm.attempts import Attempt, End, Limits, verdict
from densevit.runs.directory import RunFolder


def start(end="timeout", first=0, last=0, job="7", node="n1"):
    return Attempt(job, 0, node, 1.0, first, last, 2.0, end)


_starts = st.lists(
    st.builds(
        start,
        end=st.sampled_from(get_args(End)) | st.just("timeout"),
        first=st.integers(0, 5),
        last=st.integers(0, 5),
        job=st.sampled_from(["7", "7", "7", "8_1"]),
        node=st.sampled_from(["n1", "n2"]),
    ),
    max_size=12,
)
_limits = st.builds(Limits, st.integers(1, 4), st.integers(1, 4))


def time_outs_in_a_row(mine):
    """Return the time-outs since the last start that made more progress than all before it."""
    after = 0
    for number, one in enumerate(mine):
        before = [mine[0].first_step, *(other.last_step for other in mine[:number])]
        if one.last_step > max(before):
            after = number + 1
    return len([one for one in mine[after:] if one.end == "timeout"])


@given(_starts, _limits)
def test_a_run_has_failed_when_it_runs_out_of_time_in_place_or_its_nodes_fail(held, limits):
    mine = [one for one in held if one.job == "7"]
    stuck, nodes = time_outs_in_a_row(mine), [one.node for one in mine if one.end == "node"]
    cause, message = verdict(held, "7", limits)
    if stuck >= limits.timeouts:
        furthest = max([mine[0].first_step, *(one.last_step for one in mine)])
        assert cause == "timeout"
        assert f"{stuck} times in a row at step {furthest};" in message
    elif len(nodes) >= limits.node_failures:
        assert cause == "node"
        assert f"{len(nodes)} times" in message
        assert all(node in message for node in nodes)
    else:
        assert (cause, message) == ("", "")


@given(_starts, _limits, st.data())
def test_preemption_is_free(held, limits, data):
    place = data.draw(st.integers(0, len(held)))
    furthest = max((one.last_step for one in held[:place] if one.job == "7"), default=None)
    if furthest is None:  # the first start of all finds the current step of the run
        first = next((one.first_step for one in held if one.job == "7"), 0)
        free = start("preempted", first, first)
    else:
        free = start("preempted", 0, furthest)
    assert verdict([*held[:place], *[free] * 9, *held[place:]], "7", limits) == verdict(
        held, "7", limits
    )


@given(_starts, _limits)
def test_a_new_submission_counts_anew(held, limits):
    assert verdict(held, "9", limits) == ("", "")
    renamed = [replace(one, job="other" if one.job == "8_1" else one.job) for one in held]
    assert verdict(renamed, "7", limits) == verdict(held, "7", limits)


@pytest.mark.parametrize(
    ("held", "cause"),
    [
        ([], ""),
        ([start(last=9), start(first=9, last=9), start(first=9, last=9)], ""),
        ([start(last=9), start(first=8, last=9), start(first=8, last=9), start(last=5)], "timeout"),
        ([start(first=9, last=9)] * 3, "timeout"),  # from an earlier submission's checkpoint
        ([start(), start(), start("preempted"), start()], "timeout"),
        ([start(), start(), start("preempted", last=1), start(first=1, last=1)], ""),
        ([start(last=n) for n in range(1, 99)], ""),
        ([start("node", last=n, node=f"n{n}") for n in (1, 2)], "node"),  # however far it gets
        ([start("node"), start("preempted"), start("timeout", last=4), start("node")], "node"),
        ([start("node"), start("node", job="8")], ""),
        ([start("killed")] * 9 + [start("requeued")] * 9 + [start("lost")] * 9, ""),
    ],
)
def test_the_verdict_by_hand(held, cause):
    assert verdict(held, "7", Limits(3, 2))[0] == cause


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def at(folder, step):
    folder.write_status("running", step=step, steps=100)


def test_starts_are_noted_with_the_steps_between_them(folder):
    assert attempts.read(folder) == []
    first = attempts.begin(folder, "7_0", 0, "n1", "lost")
    assert (first.first_step, first.end, first.ended) == (0, "", 0.0)
    at(folder, 5)
    attempts.end(folder, "timeout")
    second = attempts.begin(folder, "7_0", 1, "n2", "requeued")
    at(folder, 8)
    attempts.end(folder, "finished")
    held = attempts.read(folder)
    told = [(a.job, a.restart, a.node, a.first_step, a.last_step, a.end) for a in held]
    assert told == [("7_0", 0, "n1", 0, 5, "timeout"), ("7_0", 1, "n2", 5, 8, "finished")]
    assert second.started >= held[0].ended >= first.started > 0


def test_a_record_without_starts_has_none(folder):
    folder.attempts_file.write_text("{}")
    assert attempts.read(folder) == []
    attempts.begin(folder, "7", 0, "n1", "lost")
    assert len(attempts.read(folder)) == 1


@pytest.mark.parametrize("before", ["node", "preempted", "timeout", "requeued"])
@pytest.mark.parametrize("job", ["7", "8"])
def test_a_start_without_an_end_gets_it_from_the_next_one(folder, before, job):
    attempts.begin(folder, "7", 0, "n1", "lost")
    at(folder, 4)
    attempts.begin(folder, job, 1, "n2", before)
    open_one, new = attempts.read(folder)
    # Slurm reports how an earlier start of the same job ended, and nothing of another job's.
    assert open_one.end == (before if job == "7" else "lost")
    assert (open_one.last_step, open_one.ended > 0) == (4, True)
    assert (new.job, new.first_step, new.end) == (job, 4, "")


@pytest.mark.parametrize(
    ("noted", "job", "stays"),
    [
        ("timeout", "7", "timeout"),
        ("failed", "7", "failed"),
        # It was requested to stop and runs again under the same job: nobody has cancelled it.
        ("cancelled", "7", "preempted"),
        ("cancelled", "8", "cancelled"),
    ],
)
def test_an_end_that_was_noted_stays_unless_the_job_is_here_again(folder, noted, job, stays):
    attempts.begin(folder, "7", 0, "n1", "lost")
    at(folder, 4)
    attempts.end(folder, noted)
    attempts.begin(folder, job, 1, "n1", "preempted")
    assert [a.end for a in attempts.read(folder)] == [stays, ""]
    assert attempts.read(folder)[0].last_step == 4


_tale = st.lists(
    st.tuples(
        st.sampled_from(["7", "8"]),
        st.integers(0, 3),
        st.sampled_from(["", "timeout", "cancelled"]),
    ),
    max_size=6,
)


@settings(max_examples=40)  # each of them writes files
@given(_tale)
def test_what_is_noted_is_what_happened(tmp_path_factory, tale):
    folder, step, wanted = RunFolder(tmp_path_factory.mktemp("run")), 0, []
    for job, steps, how in tale:
        attempts.begin(folder, job, 0, "n1", "preempted")
        if wanted and wanted[-1][3] in ("", "cancelled") and wanted[-1][0] == job:
            wanted[-1][3] = "preempted"
        elif wanted and not wanted[-1][3]:
            wanted[-1][3] = "lost"
        wanted.append([job, step, step + steps, how])
        step += steps
        at(folder, step)
        if how:
            attempts.end(folder, how)
    held = attempts.read(folder)
    if held and not held[-1].end:
        held[-1] = replace(held[-1], last_step=step)  # it is still running
    assert [[a.job, a.first_step, a.last_step, a.end] for a in held] == wanted

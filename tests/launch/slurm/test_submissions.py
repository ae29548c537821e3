"""Submissions: their records, how they are taken over when a command died, and the canary."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from submitit.core.utils import DelayedSubmission

from densevit.config.run_config import RunConfig
from densevit.launch.slurm import canary, commands, limits, submissions, submit
from densevit.launch.slurm.attempts import Limits
from densevit.launch.slurm.commands import Job
from densevit.launch.slurm.profile import Profile
from densevit.launch.slurm.submissions import Chunk, Submission, newest_jobs
from densevit.sweep.grid import Run
from densevit.utils.errors import Unreachable, UserError
from densevit.utils.files import read_json


def submission(outputs, *chunks, name="s1", tasks=None, **facts):
    """Return a submission with a run r0, r1, ... for each task of its chunks."""
    count = sum(chunk.count for chunk in chunks)
    given = {
        "folder": outputs / "sweeps" / "little" / "submissions" / name, "sweep": "little",
        "user": commands.user(), "resources": {"hours": 1.5},
        "tasks": tasks or [[f"r{n}"] for n in range(count)], "chunks": chunks, "canary": True,
        "code": "", "limits": Limits(3, 5), "signal_seconds": 120, "created": 5.0,
    }  # fmt: skip
    return Submission(**(given | facts))


THREE = Chunk("c0", 0, 3, "7")
TWO = Chunk("c1", 3, 2, "8")
ONE = Chunk("c2", 5, 1, "9")


def test_records_come_back_as_they_were(tmp_path):
    made = submission(
        tmp_path, THREE, replace(TWO, job="", void=True), ONE, resources={"gpus": 1.0, "mem": "1G"},
        code=str(tmp_path / "code"),
    )  # fmt: skip
    submissions.write(made)
    assert submissions.read(made.folder) == made
    assert submissions.read_all(tmp_path) == [made]
    newer = submission(tmp_path, Chunk("c3", 0, 1, "9"), name="s0", tasks=[["x"]], created=9.0)
    submissions.write(newer)
    assert submissions.read_all(tmp_path) == [made, newer], "by time, whatever they are called"
    assert submissions.read_all(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"tasks"', '"taks"'),
        lambda text: text.replace('"count"', '"size"'),
        lambda text: text.replace('"limits": {', '"limits": {"more": 1,'),
        lambda text: "\x00" * 99,
    ],
)
def test_a_damaged_record_is_named(tmp_path, damage):
    made = submission(tmp_path, ONE)
    submissions.write(made)
    file = made.folder / "submission.json"
    file.write_text(damage(file.read_text()))
    for call in (lambda: submissions.read(made.folder), lambda: submissions.read_all(tmp_path)):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value).startswith(f"{file}: ")
        assert str(error.value).isprintable()


CHUNK = {"name": "c", "first": 0, "count": 1, "job": "7", "void": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"created": "now"},
        {"created": None},
        {"tasks": 3},
        {"tasks": []},
        {"chunks": []},
        {"chunks": 3},
        {"chunks": [CHUNK | {"count": 9}]},
        {"chunks": [CHUNK | {"count": "1"}]},
        {"limits": 3},
        {"limits": {"timeouts": 1}},
        pytest.param(
            {"chunks": [CHUNK | {"first": 1}]},
        ),
    ],
)
def test_a_record_of_other_kinds_of_values_is_named(tmp_path, changes):
    for name in ("s1", "s2"):
        made = submission(tmp_path, Chunk(**CHUNK), name=name)
        submissions.write(made)
    assert newest_jobs(submissions.read_all(tmp_path)).keys() == {"r0"}
    file = made.folder / "submission.json"
    file.write_text(json.dumps(read_json(file) | changes))
    with pytest.raises(UserError, match=rf"^{file}: is damaged: "):
        newest_jobs(submissions.read_all(tmp_path))


def test_a_run_may_be_in_a_plain_job_or_an_array(tmp_path):
    made = submission(tmp_path, THREE, TWO, ONE)
    assert list(made.elements()) == ["7_0", "7_1", "7_2", "8_0", "8_1", "9"], (
        "an array of one is none"
    )
    assert made.elements()["8_1"] == ["r4"]
    assert made.with_chunk(1, job="", void=True).elements().keys() == {"7_0", "7_1", "7_2", "9"}
    assert submission(tmp_path, replace(ONE, job="")).elements() == {}


def test_the_newest_submission_has_a_run(tmp_path):
    first = submission(tmp_path, Chunk("a", 0, 3, "7"), tasks=[["x"], ["y", "z"], ["w"]])
    again = submission(tmp_path, Chunk("b", 0, 1, "8"), tasks=[["y"]])
    never = submission(tmp_path, Chunk("c", 0, 2, void=True), tasks=[["x"], ["w"]])
    unknown = submission(tmp_path, Chunk("d", 0, 1), tasks=[["w"]])
    jobs = {run: job for run, (_, job) in newest_jobs([first, again, never, unknown]).items()}
    assert jobs == {"x": "7_0", "y": "8", "z": "7_1", "w": "7_2"}
    assert newest_jobs([first, again])["y"][0] is again
    assert newest_jobs([]) == {}


def test_folders_of_submissions_sort_by_time_and_differ(tmp_path):
    names = {submissions.new_folder(tmp_path).name for _ in range(50)}
    assert len(names) == 50
    assert all(len(name) == 22 for name in names)


def test_one_command_submits_at_a_time(tmp_path, monkeypatch):
    outputs, entered = tmp_path / "out", []
    monkeypatch.setattr(submissions, "PATIENCE", -1.0)

    def submit_too():
        with submissions.submitting(outputs):
            entered.append(True)

    with (
        submissions.submitting(outputs),
        pytest.raises(UserError, match="another command has been"),
    ):
        submit_too()
    assert entered == []
    submit_too()
    assert entered == [True]


# ---- which jobs are released and which are cancelled


@pytest.fixture
def asked(monkeypatch):
    """Record the requests to Slurm, in order."""
    calls = []
    monkeypatch.setattr(commands, "release", lambda ids: calls.append(("release", list(ids))))
    monkeypatch.setattr(commands, "cancel", lambda ids: calls.append(("cancel", list(ids))))
    return calls


def jobs_of(made, held="", **states):
    """Return the queue: elements whose place is in `held` are on hold, others as given or unknown."""
    jobs = {}
    for place, element in enumerate(made.elements()):
        if str(place) in held:
            jobs[element] = Job(element, "PENDING", "JobHeldUser")
        elif f"e{place}" in states:
            jobs[element] = Job(element, states[f"e{place}"])
    return jobs


PASSED, FAILED = {"passed": True}, {"passed": False, "run": "r0", "message": "no module timm"}


@pytest.mark.parametrize(
    ("held", "states", "word", "with_canary", "wanted"),
    [
        # New: only the canary is released.
        ("012345", {}, None, True, ("release", ["7_0"])),
        ("012345", {}, None, False, ("release", ["7", "8", "9"])),
        # It is waiting or in its first steps: nothing to do.
        ("12345", {"e0": "PENDING"}, None, True, None),
        ("12345", {"e0": "RUNNING"}, None, True, None),
        ("12345", {"e0": "REQUEUED"}, None, True, None),
        # It has passed: held jobs are released, whole arrays by their own id.
        ("12345", {"e0": "RUNNING"}, PASSED, True, ("release", ["7_1", "7_2", "8", "9"])),
        ("35", {"e0": "COMPLETED", "e1": "RUNNING"}, PASSED, True, ("release", ["8_0", "9"])),
        ("012345", {}, PASSED, True, ("release", ["7", "8", "9"])),
        # It has failed: held jobs are cancelled, and only these.
        ("12345", {"e0": "FAILED"}, FAILED, True, ("cancel", ["7_1", "7_2", "8", "9"])),
        ("34", {"e0": "COMPLETING", "e1": "RUNNING"}, FAILED, True, ("cancel", ["8"])),
        # It disappeared without a record.
        ("12345", {}, None, True, ("cancel", ["7_1", "7_2", "8", "9"])),
        ("12345", {"e0": "CANCELLED"}, None, True, ("cancel", ["7_1", "7_2", "8", "9"])),
        # Nothing is held.
        ("", {"e0": "RUNNING"}, None, True, None),
        ("", {}, PASSED, True, None),
        ("", {}, FAILED, True, None),
    ],
)  # fmt: skip
def test_the_canary_decides_what_is_let_go(
    tmp_path, asked, held, states, word, with_canary, wanted
):
    made = submission(tmp_path, THREE, TWO, ONE, canary=with_canary)
    if word:
        made.write_canary_result(**word)
        assert made.canary_result() == {"run": "", "message": "", **word}
    assert canary.advance(made, jobs_of(made, held, **states)) == (wanted is not None)
    assert asked == ([wanted] if wanted else [])


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        (None, ("release", ["7_0"])),
        (PASSED, ("release", ["7", "8"])),
        (FAILED, ("cancel", ["7", "8"])),
    ],
)
def test_without_a_look_at_the_queue_all_is_taken_to_be_held(tmp_path, asked, word, wanted):
    made = submission(tmp_path, THREE, TWO)
    if word:
        made.write_canary_result(**word)
    assert canary.advance(made)
    assert asked == [wanted]
    assert not canary.advance(submission(tmp_path, Chunk("c", 0, 2, void=True)))


def test_a_canary_that_its_user_holds_stays_on_hold(tmp_path, asked):
    made = submission(tmp_path, THREE)
    assert canary.advance(made)
    assert asked.pop() == ("release", ["7_0"])
    assert not canary.advance(made, jobs_of(made, "012")), "scontrol hold 7_0"
    assert asked == []


def test_the_ids_are_as_few_as_can_be(tmp_path):
    made = submission(tmp_path, THREE, TWO, ONE)
    every = list(made.elements())
    assert canary._shortest(made, every) == ["7", "8", "9"]
    assert canary._shortest(made, every[::-1]) == ["7", "8", "9"]
    assert canary._shortest(made, ["7_2", "8_0", "8_1"]) == ["7_2", "8"]
    assert canary._shortest(made, ["9", "77_1"]) == ["9"]
    assert canary._shortest(made, []) == []


# ---- after a command that died in the middle


def pickled(made, element):
    """Return what the job of an element finds of its task."""
    file = made.jobs_folder / f"{element}_submitted.pkl"
    return DelayedSubmission.load(file) if file.exists() else None


def test_a_job_without_an_id_is_found_by_its_name_and_gets_its_tasks(tmp_path, asked):
    lost = submission(
        tmp_path, replace(THREE, job=""), TWO, tasks=[["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    )
    submissions.write(lost)
    whole = lost.with_chunk(0, job="7")
    lost.jobs_folder.mkdir()
    (lost.jobs_folder / "7_1_submitted.pkl").write_bytes(b"as submitit wrote it")
    jobs = {
        e: Job(e, "PENDING", "JobHeldUser", "", "c0" if e[0] == "7" else "c1")
        for e in whole.elements()
    }
    jobs["99_0"] = Job("99_0", "RUNNING", "", "", "c00")
    assert submit.settle([lost], jobs)
    assert submissions.read(lost.folder) == whole
    runs = tmp_path / "runs"
    assert pickled(lost, "7_0").function.folders == (str(runs / "a"), str(runs / "b"))
    assert pickled(lost, "7_2").function.folders == (str(runs / "d"),)
    assert (pickled(lost, "7_0")._timeout_min, pickled(lost, "7_0")._timeout_countdown) == (
        90,
        1_000_000,
    )
    assert (lost.jobs_folder / "7_1_submitted.pkl").read_bytes() == b"as submitit wrote it"
    assert not list(lost.jobs_folder.glob("8_*")), "that chunk was whole"
    assert asked == [("release", ["7_0"])]


def test_a_plain_job_without_an_id_is_found_as_well(tmp_path, asked):
    lost = submission(tmp_path, Chunk("c0", 0, 1), canary=False)
    submissions.write(lost)
    assert submit.settle([lost], {"7": Job("7", "PENDING", "JobHeldUser", "", "c0")})
    assert pickled(lost, "7").function.folders == (str(tmp_path / "runs" / "r0"),)
    assert asked == [("release", ["7"])]


def test_tasks_of_a_later_chunk_are_its_own(tmp_path, asked):
    lost = submission(tmp_path, THREE, replace(TWO, job=""))
    submissions.write(lost)
    submit.settle([lost], {"8_0": Job("8_0", "RUNNING", "", "n1", "c1")})
    assert pickled(lost, "8_0").function.folders == (str(tmp_path / "runs" / "r3"),)
    assert pickled(lost, "8_1").function.folders == (str(tmp_path / "runs" / "r4"),)
    assert asked == []


def test_a_name_that_slurm_does_not_know_was_never_taken(tmp_path, asked):
    lost = submission(tmp_path, THREE, replace(TWO, job=""))
    submissions.write(lost)
    assert submit.settle([lost], jobs_of(lost, e0="RUNNING", e1="RUNNING", e2="RUNNING"))
    again = submissions.read(lost.folder)
    assert [(chunk.job, chunk.void) for chunk in again.chunks] == [("7", False), ("", True)]
    assert list(again.elements()) == ["7_0", "7_1", "7_2"]
    assert asked == []
    assert not submit.settle([again], jobs_of(again, e0="RUNNING")), "once is enough"


def test_a_submission_that_is_on_its_way_is_left_alone(tmp_path, asked):
    made = submission(tmp_path, THREE)
    submissions.write(made)
    before = (made.folder / "submission.json").stat().st_ino
    assert not submit.settle([made], jobs_of(made, held="12", e0="RUNNING"))
    assert (made.folder / "submission.json").stat().st_ino == before
    assert asked == []


# ---- all or nothing


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Provide a cluster of small programs: sbatch follows a list of results, one per submission.

    It stores the content of the records at each call, and --test-only runs the code in `test`.
    """
    folder = tmp_path / "programs"
    folder.mkdir()
    lines = {
        "srun": "exit 3",
        "sbatch": """
            if [ "$1" = --test-only ]; then cat > script; . ./test; exit; fi
            cat "$(dirname "$1")/../submission.json" > held
            answer=$(head -n 1 answers); sed -i 1d answers; eval "$answer"
            """,
    }
    for name, text in lines.items():
        (folder / name).write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "test").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(limits, "largest_array", lambda: 2)
    monkeypatch.setattr(limits, "submit_limit", lambda qos: None)
    monkeypatch.setattr(commands, "queue", lambda users: {})

    def answer(*jobs):
        told = [job if "echo" in job else f"echo Submitted batch job {job}" for job in jobs]
        (folder / "answers").write_text("".join(f"{line}\n" for line in told))
        return folder

    return answer


REFUSED = "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1"
SILENT = "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


@pytest.fixture
def plan(tmp_path):
    outputs = tmp_path / "out"
    return SimpleNamespace(name="little", outputs=outputs, folder=outputs / "sweeps" / "little")


def runs_of(count, big=0):
    small = [Run(f"r{n}", f"c{n}", RunConfig(), {}) for n in range(count)]
    return [*small, *(Run(f"big{n}", f"b{n}", RunConfig(), {"gpus": 2.0}) for n in range(big))]


def test_runs_are_submitted_in_arrays_and_only_the_canary_is_let_go(plan, slurm, asked):
    programs = slurm("7", "8", "9")
    made, left = submit.submit(plan, runs_of(3, big=1), Profile(), None, canary=True)
    assert left == []
    assert [list(one.elements().items()) for one in made] == [
        [("7_0", ["r0"]), ("7_1", ["r1"]), ("8", ["r2"])], [("9", ["big0"])],
    ]  # fmt: skip
    by_task = {str(one.tasks): one for one in submissions.read_all(plan.outputs)}
    assert by_task == {str(one.tasks): one for one in made}
    # A single job needs no canary.
    assert [one.canary for one in made] == [True, False]
    assert asked == [("release", ["7_0"]), ("release", ["9"])]
    names = [chunk.name for one in made for chunk in one.chunks]
    assert len(set(names)) == 3
    assert all(name.startswith("little-") for name in names)
    held = json.loads((programs / "held").read_text())
    assert (held["tasks"], held["chunks"][0]["job"]) == ([["big0"]], ""), (
        "on the disk before it is asked"
    )
    assert pickled(made[0], "7_1").function.folders == (str(plan.outputs / "runs" / "r1"),)
    assert pickled(made[0], "8").function.folders == (str(plan.outputs / "runs" / "r2"),)


def test_what_slurm_would_not_take_is_told_before_anything_is_there(plan, slurm, asked):
    programs = slurm()
    (programs / "test").write_text(f"grep -q gpus-per-node script || exit 0; {REFUSED}")
    with pytest.raises(UserError) as error:
        submit.submit(plan, runs_of(2, big=1), Profile(file="/there/a.yaml"), None, canary=True)
    assert str(error.value).startswith(
        "/there/a.yaml: Batch job submission failed: Invalid account"
    )
    assert "gpus: 2" in str(error.value)
    assert not plan.outputs.exists()
    assert asked == []


UNAVAILABLE = "echo 'sbatch: error: Requested node configuration is not available' >&2; exit 1"


def test_jobs_wait_for_nodes_that_are_away_and_too_large_ones_are_refused(plan, slurm, asked):
    """Slurm gives the same message for both; if nodes are away, it also gives it for the smallest
    job."""
    programs = slurm("7")
    (programs / "test").write_text(f"grep -q gpus-per-node=2 script || exit 0; {UNAVAILABLE}")
    with pytest.raises(UserError, match=r"is not available \(gpus: 2\.0\)$"):
        submit.submit(plan, runs_of(0, big=1), Profile(), None, canary=True)
    assert not plan.outputs.exists()
    (programs / "test").write_text(UNAVAILABLE)
    submit.submit(plan, runs_of(0, big=1), Profile(), None, canary=True)
    assert asked == [("release", ["7"])]


def test_when_slurm_refuses_a_part_all_is_taken_back(plan, slurm, asked):
    slurm("7", "8", REFUSED)
    with pytest.raises(UserError, match=r"^/there/a\.yaml: .*: Invalid account$"):
        submit.submit(plan, runs_of(3, big=1), Profile(file="/there/a.yaml"), None, canary=True)
    assert [call for call in asked if call[1]] == [("cancel", ["7", "8"])]
    held = submissions.read_all(plan.outputs)
    assert len(held) == 2
    assert all(chunk.void and not chunk.job for one in held for chunk in one.chunks)
    assert not submit.settle(held, {}), "nothing is left to be found"


def test_when_slurm_is_silent_the_next_command_finds_what_it_took(plan, slurm, asked):
    slurm("7", SILENT)
    with pytest.raises(
        Unreachable, match=r"Unable to contact slurm controller \(connect failure\)"
    ):
        submit.submit(plan, runs_of(3), Profile(), None, canary=True)
    assert asked == [], "nothing was let go, and nothing given up"
    (held,) = submissions.read_all(plan.outputs)
    assert [chunk.job for chunk in held.chunks] == ["7", ""]
    jobs = {e: Job(e, "PENDING", "JobHeldUser", "", held.chunks[0].name) for e in ("7_0", "7_1")}
    jobs["8"] = Job("8", "PENDING", "JobHeldUser", "", held.chunks[1].name)
    assert submit.settle([held], jobs)
    assert list(submissions.read(held.folder).elements()) == ["7_0", "7_1", "8"]
    assert asked == [("release", ["7_0"])]


@pytest.mark.parametrize(
    ("limit", "most", "waiting", "taken"),
    [(None, None, 9, 5), (4, None, 0, 4), (None, 3, 1, 2), (9, 6, 4, 2), (3, None, 4, 0)],
)
def test_what_finds_no_room_is_left_for_later(
    plan, slurm, asked, monkeypatch, limit, most, waiting, taken
):
    monkeypatch.setattr(limits, "submit_limit", lambda qos: limit)
    queue = {str(n): Job(str(n), "RUNNING") for n in range(waiting)} | {"x": Job("x", "COMPLETED")}
    monkeypatch.setattr(commands, "queue", lambda users: queue)
    slurm("7", "8", "9")
    made, left = submit.submit(
        plan, runs_of(3, big=2), Profile(max_submitted=most), None, canary=False
    )
    names = [run for one in made for task in one.tasks for run in task]
    assert names == ["r0", "r1", "r2", "big0", "big1"][:taken]
    assert left == ["r0", "r1", "r2", "big0", "big1"][taken:]

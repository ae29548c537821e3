"""The state of a run: every record of the run, combined with every state of its job in Slurm."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from unittest import mock

import pytest

from densevit.launch.launchers import observe
from densevit.launch.run_state import MISSING, STARTABLE, STATE_NAMES
from densevit.launch.slurm import attempts, commands, submissions
from densevit.launch.slurm.attempts import Attempt, Limits
from densevit.launch.slurm.commands import Job, NoAnswer
from densevit.launch.slurm.state import AT_WORK
from densevit.launch.slurm.submissions import Chunk, Submission
from densevit.monitor import failures
from densevit.runs.directory import RunFolder
from densevit.sweep.plan import make_plan
from densevit.train import execute
from densevit.utils.errors import EXIT_CARRY_ON
from densevit.utils.files import read_json, write_json

JOB, OTHER_JOB = "7_1", "5"
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED")
SLURM = ("no job", "pending", "held", "running", *ENDS, "unknown to sacct", "no accounts", "silent")
NAME = "little-a-0"
LIVING = {
    "pending": Job(JOB, "PENDING", "Priority"),
    "held": Job(JOB, "PENDING", "JobHeldUser"),
    "running": Job(JOB, "RUNNING", "None", "node1"),
}
# What the run has recorded, and whether its lock is held; some recorded it on another machine.
OWN = ("none", "locked", "died here", "elsewhere, just now", "elsewhere, long ago", "finished",
       "failed", "cancelled")  # fmt: skip
# The newest start in attempts.json: of this job and how it ended, or of another job.
STARTS = {
    "no start": [],
    "open": [Attempt(JOB, 0, "node1", 1.0, 0)],
    "ended": [Attempt(JOB, 0, "node1", 1.0, 0, 3, 2.0, "failed")],
    "another job's": [Attempt(OTHER_JOB, 0, "node1", 1.0, 0, 3, 2.0, "failed")],
}


@dataclass
class World:
    """A plan of one run, the content of its folder, and the output of Slurm's commands."""

    plan: object
    folder: RunFolder
    submission: Submission
    answer: str = "silent"
    user: str = "me"
    name: str = NAME  # of all jobs in the queue

    def tell(self, own, start="no start"):
        """Write the run's own record and its starts into its folder."""
        for file in (self.folder.status_file, self.folder.results_file):
            file.unlink(missing_ok=True)
        attempts._write(self.folder, STARTS[start])
        facts = {"epoch": 1, "step": 3, "steps": 9}
        if own == "failed":
            facts |= {"message": "its own words", "cause": "nan"}
        if own == "finished":
            write_json(self.folder.results_file, {"benchmarks": {"val": {}, "dark": {}}})
        if own != "none":
            state = own if own in ("finished", "failed", "cancelled") else "running"
            self.folder.write_status(state, **facts)
        if own.startswith("elsewhere"):
            ago = 0 if own.endswith("now") else 7200
            record = read_json(self.folder.status_file)
            write_json(
                self.folder.status_file, record | {"host": "far", "updated": time.time() - ago}
            )

    def stands(self, own, slurm):
        """Return the state of the run for this output of Slurm."""
        self.answer = slurm
        with ExitStack() as stack:
            if own == "locked":
                assert stack.enter_context(self.folder.lock())
            made = [] if slurm == "no job" else [self.submission]
            stack.enter_context(
                mock.patch.object(submissions, "read_readable", return_value=(made, []))
            )
            observed = observe(self.plan)
        assert bool(observed.silent) == (slurm == "silent" and own != "finished")
        return observed.runs[self.plan.runs[0].id]


@pytest.fixture
def world(tmp_path, monkeypatch):
    (tmp_path / "sweep.yaml").write_text(
        "name: little\nfixed: {dataset: blobs, benchmarks: {dark: a}}\n"
    )
    plan = make_plan(tmp_path / "sweep.yaml", tmp_path / "out")
    (run,) = plan.runs
    folder = plan.run_folder(run)
    folder.create(run.config)
    folder.metrics_file.touch()
    submission = Submission(
        folder=plan.folder / "submissions" / "a", sweep="little", user="me", resources={},
        tasks=[["first"], [run.id]], chunks=(Chunk(NAME, 0, 2, "7"),), canary=False, code="",
        limits=Limits(3, 5), signal_seconds=120,
        created=time.time() + 86400,  # later than everything that the run records
    )  # fmt: skip
    made = World(plan, folder, submission)

    def queue(users):
        assert set(users) == {"me"}
        if made.answer == "silent":
            raise NoAnswer("squeue did not answer within 30 s")
        noise = {"7_0": Job("7_0", "RUNNING"), "99": Job("99", "FAILED")}
        found = noise | ({JOB: LIVING[made.answer]} if made.answer in LIVING else {})
        return {id: replace(job, name=made.name) for id, job in found.items()}

    def accounts(ids):
        assert list(ids) == [JOB]
        if made.answer == "no accounts":
            raise NoAnswer("Slurm accounting storage is disabled")
        return {JOB: Job(JOB, made.answer, "", "node1")} if made.answer in ENDS else {}

    monkeypatch.setattr(commands, "user", lambda: made.user)
    monkeypatch.setattr(commands, "queue", queue)
    monkeypatch.setattr(commands, "accounts", accounts)
    return made


# By Slurm's record: no job, pending, held, running; the seven ends; forgotten, no accounting,
# silent.
TABLE = """
none                no start      pending   queued    queued    running   lost      failed    cancelled lost      lost      lost      lost      lost      lost      unknown
locked              open          running   queued    queued    running   running   running   running   running   running   running   running   running   running   running
died here           open          failed    queued    queued    running   lost      failed    cancelled failed    failed    failed    lost      lost      lost      unknown
died here           another job's failed    queued    queued    running   lost      failed    cancelled lost      lost      lost      lost      lost      lost      unknown
elsewhere, just now open          unknown   queued    queued    running   lost      failed    cancelled failed    failed    failed    lost      lost      lost      unknown
elsewhere, long ago open          lost      queued    queued    running   lost      failed    cancelled failed    failed    failed    lost      lost      lost      unknown
finished            ended         finished  finished  finished  finished  finished  finished  finished  finished  finished  finished  finished  finished  finished  finished
failed              ended         failed    queued    queued    failed    failed    failed    failed    failed    failed    failed    failed    failed    failed    failed
failed              open          failed    queued    queued    running   failed    failed    failed    failed    failed    failed    failed    failed    failed    unknown
cancelled           ended         cancelled queued    queued    running   cancelled lost      cancelled lost      lost      lost      lost      cancelled cancelled unknown
""".strip().splitlines()


@pytest.mark.parametrize("line", TABLE, ids=lambda line: line[:25].strip())
def test_every_word_of_the_run_with_every_word_of_slurm(world, line):
    own = next(own for own in OWN if line.startswith(own))
    start = next(start for start in STARTS if line[len(own) :].strip().startswith(start))
    wanted = line.partition(start)[2].split()
    world.tell(own, start)
    found = {slurm: world.stands(own, slurm).state for slurm in SLURM}
    assert found == dict(zip(SLURM, wanted, strict=True))


def test_what_nobody_knows_is_never_told_as_a_failure(world):
    assert not {"queued", "running", "finished", "unknown"} & set(STARTABLE)
    for own, start in product(OWN, STARTS):
        world.tell(own, start)
        for slurm in SLURM:
            found, case = world.stands(own, slurm), (own, start, slurm)
            assert found.state in STATE_NAMES, case
            assert (found.state == "finished") == (own == "finished"), case
            if slurm == "silent" and own not in ("finished", "failed", "locked"):
                assert found.state == "unknown", case
                assert "squeue did not answer" in found.why, case
            if slurm in ("pending", "held") and own != "finished":
                assert found.state == "queued", case
                assert found.state not in STARTABLE, case
            if own == "locked" and slurm not in ("pending", "held"):
                assert found.state == "running", case
            if found.state == "failed":
                assert found.why, case
            else:
                assert found.cause == "", case
                assert failures.grouped({"a": found}) == []
            if found.state != "finished" and slurm != "no job":
                assert (found.job, found.submission) == (JOB, world.submission), case


@pytest.mark.parametrize(
    ("slurm", "cause"),
    [("TIMEOUT", "timeout"), ("OUT_OF_MEMORY", "oom"), ("NODE_FAIL", "node"), ("FAILED", "killed")],
)
def test_slurms_word_sorts_the_failure_of_a_run_that_could_not_speak(world, slurm, cause):
    world.tell("died here", "open")
    found = world.stands("died here", slurm)
    assert (found.cause, found.why) == (cause, f"Slurm says {slurm} on node1")
    world.tell("failed", "ended")
    found = world.stands("failed", slurm)
    assert (found.cause, found.why) == ("nan", "its own words"), "its own words are better ones"


@pytest.mark.parametrize("start", ["no start", "another job's"])
def test_a_job_that_failed_before_its_run_could_start_is_a_failure(world, start):
    own = "none" if start == "no start" else "died here"
    world.tell(own, start)
    found = world.stands(own, "FAILED")
    assert (found.state, found.cause) == ("failed", "code")
    assert found.why == "its job failed before the run could start: Slurm says FAILED on node1"
    assert world.stands(own, "NODE_FAIL").state == "lost", "that is no mistake of anybody's"
    world.submission = replace(world.submission, canary=True)
    world.submission.write_canary_result(False, "first", "no module timm")
    assert world.stands(own, "FAILED").state == "pending", "one mistake is told once"


def test_reasons_are_slurms_and_name_the_canary(world):
    world.tell("none")
    assert world.stands("none", "pending").why == "Priority"
    assert world.stands("none", "held").why == "JobHeldUser"
    assert world.stands("none", "running").why == "on node1"
    world.submission = replace(world.submission, canary=True)
    assert world.stands("none", "held").why == "waits for the first steps of first"
    world.submission.write_canary_result(False, "first", "no module timm")
    held_back = world.stands("none", "CANCELLED")
    assert held_back.state == "pending"
    assert held_back.why == "held back: the first steps of first failed: no module timm"
    world.tell("died here", "open")
    assert world.stands("died here", "FAILED").state == "failed", "it was started all the same"


def test_in_a_job_of_several_runs_one_may_have_failed_and_is_started_anew_with_the_job(world):
    world.tell("failed", "ended")
    assert world.stands("failed", "running").state == "failed"
    world.tell("failed", "another job's")
    assert world.stands("failed", "running").state == "running"


def test_a_finished_run_needs_no_slurm(world, monkeypatch):
    world.tell("finished", "ended")
    monkeypatch.setattr(commands, "queue", lambda users: pytest.fail("it was asked"))
    assert world.stands("finished", "silent").state == "finished"
    assert world.stands("finished", "no job").state == "finished"


def test_a_run_that_ends_while_slurm_is_asked_is_finished(world, monkeypatch):
    def queue(users):
        world.tell("finished", "ended")
        return {}

    monkeypatch.setattr(commands, "queue", queue)
    world.tell("died here", "open")
    assert world.stands("died here", "COMPLETED").state == "finished"


def test_the_queue_knows_for_minutes_how_a_job_ended(world, monkeypatch):
    world.tell("died here", "open")
    told = {JOB: Job(JOB, "OUT_OF_MEMORY", "", "node1", NAME)}
    monkeypatch.setattr(commands, "queue", lambda users: told)
    assert world.stands("died here", "no accounts").cause == "oom"
    assert world.stands("died here", "unknown to sacct").cause == "oom"
    assert world.stands("died here", "NODE_FAIL").cause == "node", "accounts know the last start"


@pytest.mark.parametrize("word", ["RUNNING", "PENDING", "REQUEUED", "COMPLETING"])
def test_accounts_that_lag_behind_say_nothing(world, monkeypatch, word):
    late = {JOB: Job(JOB, word, "", "node1", NAME)}
    monkeypatch.setattr(commands, "accounts", lambda ids: late)
    world.tell("died here", "open")
    states = [world.stands("died here", "unknown to sacct").state]
    monkeypatch.setattr(
        commands, "queue", lambda users: {JOB: Job(JOB, "OUT_OF_MEMORY", name=NAME)}
    )
    states.append(world.stands("died here", "unknown to sacct").cause)
    assert states[0] != "failed"
    assert states[1] == "oom"


def test_a_run_that_lacks_a_benchmark_is_pending(world):
    world.tell("finished", "ended")
    write_json(world.folder.results_file, {"benchmarks": {"val": {}}})
    found = world.stands("finished", "no job")
    assert (found.state, found.why) == ("pending", MISSING)
    assert world.stands("finished", "pending").state == "queued"


@pytest.mark.parametrize("slurm", ["COMPLETED", "FAILED", "unknown to sacct"])
def test_a_run_that_lacks_a_benchmark_is_pending_whatever_became_of_its_job(world, slurm):
    world.tell("finished", "ended")
    write_json(world.folder.results_file, {"benchmarks": {"val": {}}})
    assert world.stands("finished", slurm).state == "pending"


@pytest.mark.parametrize("slurm", ["pending", "running", "silent"])
def test_a_run_that_cannot_be_read_is_not_started_beside_its_job(world, slurm):
    # A stale handle of a network file system looks like a damaged file.
    world.folder.status_file.write_text("{")
    found = world.stands("none", slurm)
    wanted = {"pending": "queued", "running": "running", "silent": "unknown"}[slurm]
    assert found.state == wanted
    assert found.state not in STARTABLE
    assert (found.job, found.submission) == (JOB, world.submission)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("status", "{"),
        ("results", "{"),
        ("status", '{"step": 3}'),
        ("results", "{}"),
        ("status", "[]"),
    ],
)
def test_a_damaged_file_is_a_failure_of_its_run_where_no_job_has_it(world, name, text):
    world.tell("finished")
    file = getattr(world.folder, f"{name}_file")
    file.write_text(text)
    found = world.stands("none", "no job")
    assert (found.state, found.cause) == ("failed", "code")
    assert found.why.startswith(str(world.folder.path))
    assert f"{name}.json" in found.why


def test_starts_that_cannot_be_read_are_the_matter_of_one_run(world):
    world.tell("died here", "open")
    world.folder.attempts_file.write_text("{")
    assert world.stands("died here", "COMPLETED").state == "unknown"


@pytest.mark.parametrize("word", sorted(commands.ACTIVE))
def test_a_job_has_a_machine_or_waits_for_one(world, monkeypatch, word):
    assert AT_WORK <= commands.ACTIVE
    monkeypatch.setattr(
        commands, "queue", lambda users: {JOB: Job(JOB, word, "JobHeldUser", name=NAME)}
    )
    world.tell("died here", "open")
    waits = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
    assert world.stands("died here", "running").state == ("queued" if word in waits else "running")


@pytest.mark.parametrize("slurm", ["no job", "COMPLETED"])
def test_a_run_that_died_between_its_results_and_its_last_word_is_finished(world, slurm):
    world.tell("finished", "ended")
    world.folder.write_status("running", step=9, steps=9)
    assert world.stands("finished", slurm).state == "finished"


def killed_in_between(world):
    """Return a run that has its results and died before it recorded that it is finished."""
    world.tell("finished", "open")
    world.folder.write_status("running", epoch=3, epochs=3, step=9, steps=9, spent=60.0)


def test_a_run_that_was_killed_before_its_last_word_says_it_at_its_next_start(world):
    killed_in_between(world)
    world.folder.checkpoint_folder.mkdir()
    assert execute.execute(world.folder) == 0
    told = world.folder.status()
    assert (told.state, told.message, told.cause, told.step) == ("finished", "", "", 9)
    assert told.spent == 60
    assert world.stands("finished", "no job").state == "finished"
    before = world.folder.status_file.stat().st_ino
    assert execute.execute(world.folder) == 0
    assert world.folder.status_file.stat().st_ino == before, "it has said so"


def test_another_process_may_be_about_to_say_it(world):
    killed_in_between(world)
    with world.folder.lock() as mine:
        assert mine
        assert execute.execute(world.folder) == EXIT_CARRY_ON
    assert read_json(world.folder.status_file)["state"] == "running"


@pytest.mark.parametrize("told", [True, False])
def test_the_time_for_which_a_run_was_dead_is_not_spent(world, told):
    killed_in_between(world)
    if told:
        record = read_json(world.folder.status_file)
        long_ago = time.time() - 3 * 86400
        write_json(world.folder.status_file, record | {"updated": long_ago})
    else:
        world.folder.status_file.unlink()
    assert execute.execute(world.folder) == 0
    assert world.folder.status().state == "finished"
    assert world.folder.status().spent == (60 if told else 0)


def test_a_lock_that_is_held_tells_more_than_a_silent_slurm(world):
    for start in STARTS:
        world.tell("locked", start)
        found = world.stands("locked", "silent")
        assert (found.state, found.cause) == ("running", ""), start
        assert found.why == f"on {found.status.host}"
        assert (found.job, found.submission) == (JOB, world.submission)


@pytest.mark.parametrize("start", ["no start", "another job's"])
def test_an_old_failure_says_nothing_of_a_newer_job_while_slurm_is_silent(world, start):
    world.tell("failed", start)  # before the submission was made
    found = world.stands("failed", "silent")
    assert found.state == "unknown"
    assert found.state not in STARTABLE


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ("failed", "failed"),
        ("died here", "failed"),
        ("locked", "running"),
        ("elsewhere, just now", "unknown"),
        ("cancelled", "cancelled"),  # as `densevit-sweep cancel` has it
    ],
)
@pytest.mark.parametrize("start", ["no start", "another job's"])
def test_a_run_that_was_started_by_hand_after_its_job_is_told_by_its_own_word(
    world, own, wanted, start
):
    world.submission = replace(world.submission, created=time.time() - 3600)
    world.tell(own, start)
    for slurm in ("CANCELLED", "FAILED", "NODE_FAIL", "unknown to sacct", "no accounts"):
        found = world.stands(own, slurm)
        assert found.state == wanted, slurm
        assert (found.job, found.submission) == (JOB, world.submission)
    alone, found = world.stands(own, "no job"), world.stands(own, "CANCELLED")
    if own != "locked":
        assert (found.why, found.cause) == (alone.why, alone.cause)
    assert world.stands(own, "pending").state == "queued", "its job may still come to it"


def test_a_run_that_lacks_a_benchmark_after_a_start_by_hand_is_pending(world):
    world.submission = replace(world.submission, created=time.time() - 3600)
    world.tell("finished", "no start")
    write_json(world.folder.results_file, {"benchmarks": {"val": {}}})
    assert world.stands("finished", "CANCELLED").state == "pending"


def test_a_word_from_before_the_submission_is_none_about_its_job(world):
    world.submission = replace(world.submission, created=time.time() + 3600)
    world.tell("failed", "no start")
    assert world.stands("failed", "CANCELLED").state == "cancelled"
    assert world.stands("failed", "unknown to sacct").state == "lost"


def test_all_of_a_plan_is_asked_for_in_one_call_each(tmp_path, monkeypatch):
    (tmp_path / "sweep.yaml").write_text("name: a\nfixed: {dataset: blobs}\nseeds: 4\n")
    plan = make_plan(tmp_path / "sweep.yaml", tmp_path / "out")
    calls = []
    monkeypatch.setattr(commands, "queue", lambda users: calls.append(("queue", set(users))) or {})
    monkeypatch.setattr(
        commands, "accounts", lambda ids: calls.append(("accounts", set(ids))) or {}
    )
    monkeypatch.setattr(commands, "user", lambda: "zoe")
    assert {s.state for s in observe(plan).runs.values()} == {"pending"}
    assert calls == [], "no run has a job"
    names = [run.id for run in plan.runs]
    common = {"sweep": "a", "resources": {}, "canary": False, "code": "", "limits": Limits(3, 5),
              "signal_seconds": 1}  # fmt: skip
    made = [
        Submission(
            tmp_path / user, user=user, tasks=[[name]], chunks=(Chunk("x", 0, 1, job),), **common
        )
        for user, name, job in (
            ("ann", names[0], "7"),
            ("zoe", names[1], "8"),
            ("zoe", names[0], "9"),
        )
    ]
    monkeypatch.setattr(submissions, "read_readable", lambda outputs: (made, []))
    found = observe(plan)
    assert calls == [("queue", {"zoe"}), ("accounts", {"8", "9"})]
    assert [found.runs[name].state for name in names] == ["lost", "lost", "pending", "pending"]
    assert found.runs[names[0]].job == "9", "the newest submission has it"


def test_a_number_of_another_cluster_is_not_our_job(world):
    """Slurm counts from 1 again after its state is lost; the name shows whose a number is."""
    world.tell("died here", "open")
    world.name = "somebody-elses"
    assert world.stands("died here", "running").state == "lost"


def test_the_hidden_job_of_somebody_else_is_unknown(world):
    """With PrivateData=jobs, squeue shows no jobs of other users and does not mention it."""
    world.tell("none")
    world.user = "you"
    for slurm in ("unknown to sacct", "no accounts"):
        found = world.stands("none", slurm)
        assert (found.state, found.why) == ("unknown", "the job of me cannot be seen")
    assert world.stands("none", "running").state == "running"
    assert world.stands("none", "CANCELLED").state == "cancelled"

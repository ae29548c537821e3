"""How a job interprets Slurm's signals and the ends of its runs, and what it gives to each run."""

import signal
from types import SimpleNamespace

import pytest

from densevit.launch.slurm import attempts, commands, job, job_environment
from densevit.launch.slurm.attempts import Limits
from densevit.launch.slurm.submissions import Chunk, Submission
from densevit.runs.directory import RunFolder
from densevit.utils import threads
from densevit.utils.errors import EXIT_CARRY_ON, EXIT_FAILED, EXIT_MISTAKE


@pytest.fixture
def place(tmp_path):
    submission = Submission(
        folder=tmp_path, sweep="little", user="me", resources={"hours": 2}, tasks=[["a"], ["b"]],
        chunks=(Chunk("little-0", 0, 2, "7"),), canary=True, code="", limits=Limits(3, 5),
        signal_seconds=120,
    )  # fmt: skip
    return job_environment.Place("7_0", "7", 0, "node1", 0, 1, submission)


@pytest.mark.parametrize(
    ("after", "means"),
    # Two hours, the signal two minutes before, and Slurm may be a minute early.
    [(60, "preempted"), (7200 - 181, "preempted"), (7200 - 179, "timeout"), (7100, "timeout")],
)
def test_sigusr2_is_a_time_out_near_the_end_and_a_preemption_before(place, after, means):
    heard = job.ReceivedSignal(started=1000.0, number=signal.SIGUSR2, at=1000.0 + after)
    assert job._reason_of_signal(place, heard) == means


@pytest.mark.parametrize(
    ("said", "means"),
    [
        # As scontrol shows a job in the grace time before a preemption.
        ({"JobState": "RUNNING", "PreemptTime": "2026-01-02T03:04:05"}, "preempted"),
        ({"JobState": "RUNNING", "PreemptTime": "None"}, "cancelled"),
        ({"JobState": "CANCELLED", "PreemptTime": "None"}, "cancelled"),
        ({"JobState": "PENDING", "PreemptTime": "2026-01-02T03:04:05"}, "cancelled"),
        (None, "cancelled"),
    ],
    ids=str,
)
def test_sigterm_is_a_preemption_where_slurm_says_so(place, monkeypatch, said, means):
    def described(number):
        assert number == "7"
        if said is None:
            raise commands.NoAnswer("scontrol did not answer within 10 s")
        return said

    monkeypatch.setattr(commands, "described", described)
    heard = job.ReceivedSignal(number=signal.SIGTERM, at=1.0)
    assert job._reason_of_signal(place, heard) == means


def test_runs_of_one_job_share_its_processors_and_gpus(place, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)))
    given = [job_environment.run_environment(place, number, 4) for number in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given] == ["2", "5", "2", "5"]
    assert {one["OMP_NUM_THREADS"] for one in given} == {"2"}
    alone = job_environment.run_environment(place, 0, 1)
    assert (alone["CUDA_VISIBLE_DEVICES"], alone["OMP_NUM_THREADS"]) == ("2,5", "8")
    # The run is one process: it must not use submitit's environment.
    assert "SUBMITIT_EXECUTOR" not in alone


def test_a_job_without_cpus_takes_what_slurm_gave_and_not_all_that_it_sees(place, monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(64)))
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_NTASKS_PER_NODE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    given = job_environment.run_environment(place, 0, 1)
    assert (given["OMP_NUM_THREADS"], given["OMP_WAIT_POLICY"]) == ("4", "passive")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert job_environment.run_environment(place, 0, 1)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a user may want fewer
    assert job_environment.run_environment(place, 0, 1)["OMP_NUM_THREADS"] == "1"


def test_only_the_first_job_of_a_submission_is_the_canary(place):
    assert place.is_canary
    assert not job_environment.Place("7_1", "8", 0, "node1", 0, 1, place.submission).is_canary


@pytest.fixture
def folder(tmp_path):
    """Return a run at step 30 of 99, in a start that began at step 10."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_status("running", step=10, steps=99)
    attempts.begin(folder, "7_0", 0, "node1", "lost")
    folder.write_status("running", step=30, steps=99)
    return folder


def ended(folder, place, code, heard=None):
    """Return a run whose process ended with this code, after the end was recorded."""
    child = job.Child(folder, SimpleNamespace(returncode=code), first_step=10)
    job._note_end(child, place, heard or job.ReceivedSignal())
    assert attempts.read(folder)[-1].end == child.end
    return child


@pytest.mark.parametrize(
    ("code", "end"),
    [
        (0, "finished"),
        (EXIT_FAILED, "failed"),
        (EXIT_MISTAKE, "failed"),
        (EXIT_CARRY_ON, "elsewhere"),  # no stop request: another process has the run
        (-signal.SIGTERM, "killed"),
    ],
)
def test_without_a_signal_a_code_says_how_a_run_ended(folder, place, code, end):
    child = ended(folder, place, code)
    assert (child.end, child.needs_requeue) == (end, False)


@pytest.mark.parametrize("code", [EXIT_CARRY_ON, -signal.SIGUSR2])
@pytest.mark.parametrize("means", ["timeout", "preempted", "cancelled"])
def test_a_run_that_a_signal_stops_carries_on_unless_it_was_cancelled(folder, place, code, means):
    heard = job.ReceivedSignal(number=signal.SIGUSR2, at=1.0, means=means)
    child = ended(folder, place, code, heard)
    assert (child.end, child.needs_requeue) == (means, means != "cancelled")
    assert folder.recorded_status().state == "running", "the run has its own word"


def test_a_run_that_runs_out_of_time_in_place_does_not_carry_on(folder, place):
    heard = job.ReceivedSignal(number=signal.SIGUSR2, at=1.0, means="timeout")
    # The first start moves; the three that the limits allow after it do not.
    found = [ended(folder, place, EXIT_CARRY_ON, heard).needs_requeue]
    for restart in (1, 2, 3):
        attempts.begin(folder, "7_0", restart, "node1", "lost")
        found.append(ended(folder, place, EXIT_CARRY_ON, heard).needs_requeue)
    assert found == [True, True, True, False]
    assert (folder.recorded_status().state, folder.recorded_status().cause) == ("failed", "timeout")


@pytest.mark.parametrize(
    ("number", "kills", "cause"),
    [
        (signal.SIGKILL, 1, "oom"),
        (signal.SIGKILL, 0, "killed"),
        (signal.SIGTERM, 0, "killed"),
        (signal.SIGSEGV, 0, "code"),
    ],
)
def test_the_kernels_count_tells_a_run_that_was_out_of_memory(
    folder, place, monkeypatch, number, kills, cause
):
    monkeypatch.setattr(job.oom, "oom_kills", lambda: 5 + kills)
    ended(folder, place, -number, job.ReceivedSignal(oom_kills=5))
    assert (
        folder.recorded_status().state,
        folder.recorded_status().cause,
        folder.recorded_status().step,
    ) == ("failed", cause, 30)


@pytest.mark.parametrize(
    ("state", "step", "steps", "works"),
    [
        ("running", 29, 99, False),
        ("running", 30, 99, True),  # twenty steps in this start
        ("running", 14, 15, False),
        ("running", 15, 15, True),  # all that was left
        ("running", 10, 10, False),
        ("failed", 40, 99, False),
        ("finished", 10, 10, True),
    ],
)
def test_a_canary_works_when_this_start_has_trained_its_first_steps(
    folder, state, step, steps, works
):
    folder.write_status(state, step=step, steps=steps)
    with folder.lock():
        assert job._trains(job.Child(folder, None, first_step=10)) == works


@pytest.mark.parametrize("end", ["finished", "failed", "killed", "timeout", "cancelled"])
@pytest.mark.parametrize("beside", [True, False])
def test_what_is_over_is_not_started_again_beside_others(
    folder, place, tmp_path, monkeypatch, end, beside
):
    """A job restarts only those of its runs that resume; alone, a failed run is tried again."""
    started = []
    monkeypatch.setattr(job, "start_training", lambda run, _: started.append(run))
    attempts.end(folder, end)
    other = RunFolder(tmp_path / "other")
    other.path.mkdir()
    job._start([folder, other] if beside else [folder], place)
    over = ("finished", "failed", "killed") if beside else ("finished",)
    assert (folder in started) == (end not in over)
    assert (other in started) == beside

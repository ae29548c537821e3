"""What a job makes of Slurm's signals, and what it gives to each of its runs."""

import signal

import pytest

from densevit.sweep.launch.slurm import cluster, job
from densevit.sweep.launch.slurm.attempts import Limits
from densevit.sweep.launch.slurm.records import Chunk, Submission


@pytest.fixture
def place(tmp_path):
    submission = Submission(
        folder=tmp_path, sweep="little", user="me", resources={"hours": 2}, tasks=[["a"], ["b"]],
        chunks=(Chunk("little-0", 0, 2, "7"),), canary=True, code="", limits=Limits(3, 5),
        signal_seconds=120,
    )  # fmt: skip
    return job.Place("7_0", "7", 0, "node1", 0, 1, submission)


@pytest.mark.parametrize(
    ("after", "means"),
    # Two hours, the signal two minutes before, and Slurm may be a minute early.
    [(60, "preempted"), (7200 - 181, "preempted"), (7200 - 179, "timeout"), (7100, "timeout")],
)
def test_sigusr2_is_a_time_out_near_the_end_and_a_preemption_before(place, after, means):
    heard = job.Heard(started=1000.0, number=signal.SIGUSR2, at=1000.0 + after)
    assert job._why_stopped(place, heard) == means


@pytest.mark.parametrize(
    ("said", "means"),
    [
        # As scontrol shows a job in the time of grace before it is preempted.
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
            raise cluster.NoAnswer("scontrol did not answer within 10 s")
        return said

    monkeypatch.setattr(cluster, "described", described)
    heard = job.Heard(number=signal.SIGTERM, at=1.0)
    assert job._why_stopped(place, heard) == means


def test_runs_of_one_job_share_its_processors_and_gpus(place, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(job.os, "sched_getaffinity", lambda _: set(range(8)))
    given = [job._environment(place, number, 4) for number in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given] == ["2", "5", "2", "5"]
    assert {one["OMP_NUM_THREADS"] for one in given} == {"2"}
    alone = job._environment(place, 0, 1)
    assert (alone["CUDA_VISIBLE_DEVICES"], alone["OMP_NUM_THREADS"]) == ("2,5", "8")
    # The run is one process: it must not ask submitit who it is.
    assert "SUBMITIT_EXECUTOR" not in alone


def test_only_the_first_job_of_a_submission_is_the_canary(place):
    assert place.is_canary
    assert not job.Place("7_1", "8", 0, "node1", 0, 1, place.submission).is_canary

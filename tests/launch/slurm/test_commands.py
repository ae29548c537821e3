"""Reading the output of Slurm's commands; small programs on the PATH replace them."""

import getpass
import os
from contextlib import suppress

import pytest

from densevit.launch.slurm import commands, limits
from densevit.launch.slurm.commands import ACTIVE, Job, NoAnswer
from densevit.utils.errors import UserError


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a function that makes a shell program; only these and the shell's builtins are on the
    PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name, *lines):
        (tmp_path / name).write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
        (tmp_path / name).chmod(0o755)

    return make


def prints(*lines):
    return "\n".join(["/bin/cat <<'END'", *lines, "END"])


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[2-4,7%5]", ["12_2", "12_3", "12_4", "12_7"]),
        ("12_[0]", ["12_0"]),
        ("12_[5%1]", ["12_5"]),
        ("12_[0-1]", ["12_0", "12_1"]),
        ("12_[]", []),
        # Unknown forms give one id, or none; no output of Slurm may cause a traceback.
        ("4%1", ["4%1"]),
        ("12+1", ["12+1"]),
        ("12.batch", ["12.batch"]),
        ("12_3.0", ["12_3.0"]),
        ("", [""]),
        ("12_[x]", []),
        ("12_[3-1]", []),
        ("12_[0-6:2]", ["12_0", "12_2", "12_4", "12_6"]),
        ("12_[0-6:3%2]", ["12_0", "12_3", "12_6"]),
        # A truncated list, where SLURM_BITSTR_LEN=0 does not request all of it.
        ("12_[1,3,5...]", ["12_1", "12_3"]),
        ("12_[1,3,5-...", ["12_1", "12_3"]),
        ("12_[1,3-4...]", ["12_1"]),
        ("12_[2-x]", []),
    ],
)
def test_ids_are_expanded(text, ids):
    assert commands.expand_ids(text) == ids


@pytest.mark.parametrize(
    ("line", "job"),
    [
        ("12|3|15|RUNNING|None|node1|sweep-0", Job("12_3", "RUNNING", "None", "node1", "sweep-0")),
        ("12|N/A|12|PENDING|Priority||x", Job("12", "PENDING", "Priority", "", "x")),
        ("12||12|PENDING|(Resources)||x", Job("12", "PENDING", "(Resources)", "", "x")),
        ("12|N/A|12|FAILED|NonZeroExitCode|n[1-2]|a|b|", Job("12", "FAILED", "NonZeroExitCode", "n[1-2]", "a|b|")),
        ("12|[0-3%2]|12|PENDING|JobHeldUser||x", Job("12", "PENDING", "JobHeldUser", "", "x")),
        ("slurm_load_jobs error: Unable to contact", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_line_of_the_queue_is_a_job(line, job):
    assert commands._queue_line(line) == job


def test_the_queue_is_asked_once_for_all_users(fake, tmp_path):
    fake("squeue", 'printf %s "$*" > "$0.args"', prints("7|0|8|RUNNING|None|n1|a", "7|1|7|PENDING|JobHeldUser||a", "noise"))  # fmt: skip
    jobs = commands.queue(["zoe", "ann"])
    assert sorted(jobs) == ["7_0", "7_1"]
    assert [job.held for job in jobs.values()] == [False, True]
    told = (tmp_path / "squeue.args").read_text()
    assert "--user=ann,zoe" in told
    assert "--array --states=all" in told
    fake("squeue", "true")
    assert commands.queue(["ann"]) == {}


@pytest.mark.parametrize(
    ("job", "active", "held"),
    [
        (Job("1", "PENDING", "JobHeldUser"), True, True),
        (Job("1", "PENDING", "JobHeldAdmin"), True, True),
        (Job("1", "PENDING", "Priority"), True, False),
        (Job("1", "RUNNING", "JobHeldUser"), True, False),
        (Job("1", "REQUEUED"), True, False),
        (Job("1", "COMPLETED"), False, False),
        (Job("1", "NODE_FAIL"), False, False),
        (Job("1", ""), False, False),
    ],
)
def test_a_job_waits_runs_or_has_ended(job, active, held):
    assert (job.active, job.held) == (active, held)
    assert not ACTIVE & {
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "PREEMPTED",
        "OUT_OF_MEMORY",
    }


def test_nothing_of_a_job_around_is_passed_on(monkeypatch, fake):
    for name in ("SLURM_CPU_BIND", "SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_DEBUG", "PMI_RANK",
                 "PMIX_RANK", "SUBMITIT_EXECUTOR", "SLURM_CONFIG"):  # fmt: skip
        monkeypatch.setenv(name, "evil")
    monkeypatch.setenv("SLURM_CONF", "/etc/other.conf")
    monkeypatch.setenv("SLURM_CLUSTERS", "one")
    monkeypatch.setenv("MY_SLURM_NOTE", "mine")
    kept = commands.clean()
    assert "evil" not in kept.values()
    assert (kept["SLURM_CONF"], kept["SLURM_CLUSTERS"]) == ("/etc/other.conf", "one")
    assert kept["MY_SLURM_NOTE"] == "mine"
    fake("squeue", "/usr/bin/env")
    told = commands.call(["squeue"])
    assert "evil" not in told
    assert "SLURM_CONF=/etc/other.conf" in told
    assert "SLURM_BITSTR_LEN=0" in told, "lists of array indices in full"

    before = dict(os.environ)
    with suppress(KeyError), commands.clean_environment():
        assert dict(os.environ) == kept
        os.environ["LEFT"] = "behind"
        raise KeyError
    assert dict(os.environ) == before


def test_no_answer_has_slurms_own_words_in_one_line(fake):
    with pytest.raises(NoAnswer, match=r"^squeue is not on the PATH$"):
        commands.call(["squeue"])
    fake("squeue", "echo some; echo 'squeue: error: a' >&2; echo '  b' >&2; exit 1")
    with pytest.raises(NoAnswer, match=r"^a; b$"):
        commands.call(["squeue"])
    fake("squeue", "echo on stdout; exit 1")
    with pytest.raises(NoAnswer, match=r"^on stdout$"):
        commands.call(["squeue"])
    fake("squeue", "exit 4")
    with pytest.raises(NoAnswer, match=r"^squeue ended with code 4$"):
        commands.call(["squeue"])
    fake("squeue", "exec /bin/sleep 600")
    with pytest.raises(NoAnswer, match=r"^squeue did not answer within 0 s$"):
        commands.call(["squeue"], patience=0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sbatch: error: Batch job submission failed: Invalid qos\n", "Batch job submission failed: Invalid qos"),
        ("sbatch: error: a\n\n  sbatch: error: a\nsbatch: b\n", "a; b"),
        ("Could not make\nsense of it", "Could not make; sense of it"),
        ("", ""),
    ],
)  # fmt: skip
def test_slurms_own_words_are_told_in_one_line(text, said):
    assert commands.error_text(text) == said


# `submit` then gives up a job that Slurm may have accepted: its chunk is void, and nobody looks for
# it.


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination", True),
        ("invalid partition specified: gpu", True),
        ("Slurm accounting storage is disabled", True),
        ("Unable to contact slurm controller (connect failure)", False),
        ("Batch job submission failed: Socket timed out on send/recv operation", False),
        ("slurm_load_jobs error: Zero Bytes were transmitted: Communication connection failure", False),
        ("Unable to contact slurm controller (receive failure)", False),
        ("Batch job submission failed: Protocol authentication error", False),
        ("slurm_persist_conn_open: failed to open connection to host:db:6819: Connection refused", False),
        # Names are not keywords of Slurm.
        ("invalid partition specified: interconnect", True),
        ("invalid partition specified: dual-socket", True),
        ("Invalid generic resource (gres) specification: communication", True),
        *(
            pytest.param(f"Batch job submission failed: {lost}", False)
            for lost in (
                "Connection timed out", "Connection timed out reading", "Unexpected message received",
            )
        ),
    ],
)  # fmt: skip
def test_a_refusal_is_no_silence(said, refused):
    assert isinstance(commands.failure_of(said), commands.Refused) == refused
    assert isinstance(commands.failure_of(said), NoAnswer)


def test_a_script_is_tried(fake, tmp_path):
    fake("sbatch", f"echo $* > {tmp_path}/args; /bin/cat > {tmp_path}/script; exit 0")
    commands.test("#!/bin/bash\n# é\n")
    assert (tmp_path / "args").read_text() == "--test-only\n"
    assert (tmp_path / "script").read_text("utf-8") == "#!/bin/bash\n# é\n"
    fake("sbatch", "echo 'sbatch: error: Invalid qos' >&2; exit 1")
    with pytest.raises(commands.Refused, match=r"^Invalid qos$"):
        commands.test("")
    fake("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(NoAnswer) as silent:
        commands.test("")
    assert not isinstance(silent.value, commands.Refused)


def test_a_program_that_cannot_be_started_is_no_answer(fake, tmp_path):
    fake("squeue")
    (tmp_path / "squeue").chmod(0o644)
    with pytest.raises(NoAnswer, match=r"^squeue: Permission denied$") as silent:
        commands.queue(["ann"])
    assert not isinstance(silent.value, commands.Refused)


def test_names_that_are_no_utf_8_are_read_all_the_same(fake):
    fake("squeue", r"printf '7|0|8|RUNNING|None|n1|caf\351\n'")
    assert commands.queue(["ann"]) == {"7_0": Job("7_0", "RUNNING", "None", "n1", "caf\ufffd")}
    fake("squeue", r"printf 'caf\351\n' >&2; exit 1")
    with pytest.raises(NoAnswer, match="caf\ufffd"):
        commands.queue(["ann"])


def test_a_machine_without_slurm_is_told(fake):
    with pytest.raises(UserError, match=r"there is no sbatch on the PATH; .*--launcher local$"):
        commands.require()
    for name in ("sbatch", "squeue", "scontrol"):
        fake(name)
    with pytest.raises(UserError, match="there is no srun on the PATH"):
        commands.require()
    fake("srun")
    commands.require()


def test_accounts_tell_how_jobs_ended_and_by_whom(fake, tmp_path):
    fake("sacct", 'printf %s "$*" > "$0.args"', prints(
        "12_0|CANCELLED by 0|node1", "12_[1-2%5]|CANCELLED by 1000|None assigned",
        "13|OUT_OF_MEMORY|node[1-2]", "14_0|NODE_FAIL|n1", "14_0|COMPLETED|n2", "15||", "16",
    ))  # fmt: skip
    ended = commands.accounts(["12_0", "12_1", "13"])
    assert ended["12_0"] == Job("12_0", "CANCELLED", "by 0", "node1")
    assert ended["12_2"] == Job("12_2", "CANCELLED", "by 1000", "None assigned")
    assert ended["13"] == Job("13", "OUT_OF_MEMORY", "", "node[1-2]")
    assert ended["14_0"].state == "COMPLETED", "the last start counts"
    assert (ended["15"].state, ended["16"].state) == ("", "")
    assert " -j 12,13 " in (tmp_path / "sacct.args").read_text(), "each array once"
    fake("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    with pytest.raises(NoAnswer, match="accounting storage is disabled"):
        commands.accounts(["12"])


@pytest.mark.parametrize(
    ("states", "end"),
    [
        (["NODE_FAIL", "RUNNING"], "NODE_FAIL"),
        (["CANCELLED by 0", "PENDING"], "CANCELLED"),
        (["PREEMPTED", "NODE_FAIL", "", "RUNNING"], "NODE_FAIL"),
        (["REQUEUED", "RUNNING"], "REQUEUED"),
        (["RUNNING"], ""),
        ([], ""),
    ],
)
def test_how_the_start_before_ended(fake, states, end):
    fake("sacct", prints(*states))
    assert commands.last_end("12") == end
    fake("sacct", "exit 1")
    assert commands.last_end("12") == ""


def sacctmgr(fake, associations, **qos):
    """Associations are printed as `MaxSubmitJobs|DefaultQOS`."""
    mine = f"assoc user={getpass.getuser()} format=MaxSubmitJobs,DefaultQOS"
    cases = [f"*' {mine} '*) {prints(*associations)}\n;;"]
    cases += [
        f"*' qos {name} format=MaxSubmitPU '*) echo '{limit}';;" for name, limit in qos.items()
    ]
    fake("sacctmgr", 'case " $* " in', *cases, "*) exit 1;;", "esac")


@pytest.mark.parametrize(
    ("associations", "of_qos", "qos", "limit"),
    [
        (["100|normal"], {"normal": ""}, None, 100),
        (["|normal"], {"normal": "40"}, None, 40),
        (["100|normal"], {"normal": "40"}, None, 40),
        (["100|normal"], {"normal": "40", "long": "7"}, "long", 7),
        (["|normal"], {"normal": "", "debug": "2"}, None, None),  # nobody uses it
        (["|"], {"debug": "2", "normal": "3"}, None, None),
        (["|a", "|b"], {"a": "9", "b": "4"}, None, 4),
        (["100|a", "50|a"], {"a": ""}, None, 50),
        (["|"], {}, None, None),
        ([], {}, None, None),
        (["|normal"], {"normal": ""}, None, None),
        (["noise"], {}, None, None),
    ],
)
def test_the_limit_of_jobs_is_the_least_of_association_and_qos(
    fake, associations, of_qos, qos, limit
):
    sacctmgr(fake, associations, **of_qos)
    assert limits.submit_limit(qos) == limit


def test_without_accounts_there_is_no_limit(fake):
    assert limits.submit_limit(None) is None
    fake("sacctmgr", "echo 'You are not running a supported accounting_storage plugin'; exit 1")
    assert limits.submit_limit("normal") is None


PARTITIONS = """PartitionName=short AllowGroups=ALL Default=NO MaxTime=04:00:00 State=UP
PartitionName=gpu Default=YES MaxTime=2-12:30:00 State=UP
PartitionName=long Default=NO MaxTime=UNLIMITED State=UP"""


@pytest.mark.parametrize(
    ("partitions", "hours"),
    [("short", 4), ("gpu", 60.5), (None, 60.5), ("short,gpu", 60.5), ("short,long", None), ("gone", None)],
)  # fmt: skip
def test_the_longest_job_is_that_of_the_longest_partition(fake, partitions, hours):
    fake("scontrol", prints(*PARTITIONS.splitlines()))
    assert limits.longest_hours(partitions) == hours


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (["Foo = 1", "MaxArraySize            = 4001"], 4001),
        (["MaxArraySize = 0"], 1),  # without arrays, jobs are submitted one by one
        (["Foo = 1"], 1001),
        ([], 1001),
    ],
)
def test_the_size_of_arrays_is_the_clusters(fake, config, size):
    fake("scontrol", prints(*config))
    assert limits.largest_array() == size


def test_many_ids_are_few_calls(fake, tmp_path):
    for name in ("scontrol", "scancel"):
        fake(name, f"echo $# $1 $2 >> {tmp_path}/{name}.calls")
    commands.release([])
    commands.cancel([])
    commands.release(["7", "8_1"])
    commands.cancel([f"7_{n}" for n in range(501)])
    commands.requeue("9")
    assert (tmp_path / "scontrol.calls").read_text() == "2 release 7,8_1\n2 requeue 9\n"
    assert (tmp_path / "scancel.calls").read_text() == "501 --quiet 7_0\n2 --quiet 7_500\n"


def test_a_job_is_described_by_its_fields(fake):
    fake("scontrol", prints("JobId=12 JobState=RUNNING Reason=None PreemptTime=2026-01-01T00:00:00 Command=(null) Features="))  # fmt: skip
    facts = commands.described("12")
    assert (facts["JobState"], facts["PreemptTime"]) == ("RUNNING", "2026-01-01T00:00:00")
    assert facts["Features"] == ""

"""From runs to Slurm jobs and their batch scripts."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from submitit import SlurmExecutor

from densevit.config.run_config import RunConfig
from densevit.launch.slurm import groups, limits, sbatch, submit
from densevit.launch.slurm.attempts import Limits
from densevit.launch.slurm.profile import Profile, read_profile
from densevit.launch.slurm.submissions import Chunk, Submission
from densevit.sweep.grid import Run, expand
from densevit.sweep.read_spec import read_spec
from densevit.sweep.spec import Resources
from densevit.utils.errors import UserError

GOLDEN = Path(__file__).with_name("array.sh")
CONFIG = RunConfig()
RICH = """
partition: [gpu, spot]
account: proj@lab
qos: normal
constraint: "a100&nvlink"
exclude: node[01-03]
gpu_request: gres
gpu_type: a100
setup: [module load cuda/12.4, export DATA="$HOME/my data"]
python: srun-env python -s
throttle: 3
signal_seconds: 300
options: {reservation: maintenance, exclusive: true, contiguous: false, nice: 5, comment: "a; b # é"}
"""
WANTED = {"gpus": 2.0, "cpus": 13, "hours": 1.51, "mem": "1.5G", "nodes": 2}


def run(number, **resources):
    return Run(f"run{number}", f"cell{number}", CONFIG, resources)


def ids(group):
    return [[run.id for run in task] for task in group.tasks]


def test_runs_are_grouped_by_what_they_ask_for_and_stay_seed_major(tmp_path):
    (tmp_path / "sweep.yaml").write_text("""
        name: a
        grid: {cl_mode: [none, dense, global]}
        seeds: 2
        resources: {hours: 2, when: [{where: {cl_mode: dense}, gpus: 2, hours: 9}]}
        """)
    runs = expand(read_spec(tmp_path / "sweep.yaml")).runs
    profile = Profile(resources={"gpus": 1, "cpus": 4, "hours": 24.0})
    few, many = groups.groups(runs, profile)
    # A run's own resources override those of the profile.
    assert few.resources == {"gpus": 1, "cpus": 4, "hours": 2}
    assert many.resources == {"gpus": 2, "cpus": 4, "hours": 9}
    told = [[(run.seed, run.config.cl_mode) for (run,) in group.tasks] for group in (few, many)]
    assert told == [
        [(0, "none"), (0, "global"), (1, "none"), (1, "global")], [(0, "dense"), (1, "dense")],
    ]  # fmt: skip


def test_runs_that_ask_for_the_same_in_other_words_are_one_group():
    words = [{}, {"gpus": 1}, {"gpus": 1.0, "cpus": 2}, {"cpus": 2.0}]
    given = [
        run(n, **Resources(**one).model_dump(exclude_none=True)) for n, one in enumerate(words)
    ]
    (group,) = groups.groups(given, Profile(resources={"gpus": 1, "cpus": 2}))
    assert ids(group) == [["run0"], ["run1"], ["run2"], ["run3"]]
    assert groups.groups([], Profile()) == []


@given(
    st.lists(st.tuples(st.sampled_from([1.0, 2.0]), st.sampled_from([None, 1, 2, 3])), max_size=9)
)
def test_every_run_is_in_one_job_and_jobs_are_full_but_for_the_last(wanted):
    runs = [
        run(n, gpus=gpus, **({"pack": pack * int(gpus)} if pack else {}))
        for n, (gpus, pack) in enumerate(wanted)
    ]
    made = groups.groups(runs, Profile(resources={"cpus": 3}))
    assert len(made) == len({repr(run.resources) for run in runs})
    for group in made:
        members = [run for task in group.tasks for run in task]
        assert members == [run for run in runs if {"cpus": 3, **run.resources} == group.resources]
        sizes = [len(task) for task in group.tasks]
        size = group.resources.get("pack", 1)
        assert sizes[:-1] == [size] * (len(sizes) - 1)
        assert 1 <= sizes[-1] <= size
    assert sorted(r.id for g in made for t in g.tasks for r in t) == sorted(r.id for r in runs)


def test_packed_runs_share_a_job():
    runs = [run(n, pack=2) for n in range(5)]
    assert ids(groups.groups(runs, Profile())[0]) == [["run0", "run1"], ["run2", "run3"], ["run4"]]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"gpus": 0.5}, "resources.gpus: 0.5: Slurm gives whole GPUs; gpus: 1 and pack: 2 lets"),
        ({"gpus": 0.25}, "resources.gpus: 0.25: Slurm gives whole GPUs; gpus: 1 and pack: 4 lets"),
        ({"gpus": 1.5}, "resources.gpus: 1.5: Slurm gives whole GPUs; gpus: 1 and pack: 2 lets"),
        (
            {"pack": 2, "nodes": 2},
            "resources.pack: 2 runs share one node, but nodes is 2; set one of them to 1",
        ),
        ({"pack": 3, "gpus": 2.0}, "resources.pack: 3 runs cannot share 2 GPUs evenly"),
        ({"pack": 2, "gpus": 4.0}, "resources.pack: 2 runs cannot share 4 GPUs evenly"),
    ],
)
def test_what_slurm_cannot_be_asked_for_is_told(wanted, told):
    with pytest.raises(UserError) as error:
        groups.groups([run(0), run(1, **wanted)], Profile())
    assert str(error.value).startswith(told)
    assert groups.groups([run(0, pack=4, gpus=2.0), run(1, pack=1, nodes=2, gpus=3.0)], Profile())


@pytest.mark.parametrize(
    ("wanted", "processes", "cpus", "srun"),
    [
        ({}, 1, None, []),
        ({"cpus": 8}, 1, 8, ["--cpus-per-task=8"]),
        ({"gpus": 1.0, "cpus": 8}, 1, 8, ["--cpus-per-task=8"]),
        ({"gpus": 4.0}, 4, None, ["--kill-on-bad-exit=1"]),
        ({"gpus": 4.0, "cpus": 6}, 4, 1, ["--kill-on-bad-exit=1", "--cpus-per-task=1"]),
        ({"gpus": 4.0, "cpus": 3}, 4, 1, ["--kill-on-bad-exit=1", "--cpus-per-task=1"]),
        ({"nodes": 2}, 1, None, ["--kill-on-bad-exit=1"]),
        ({"gpus": 2.0, "cpus": 8, "pack": 4}, 1, 8, ["--cpus-per-task=8"]),  # one job, four runs
    ],
)
def test_a_run_has_a_process_for_each_gpu_and_a_packed_job_one(wanted, processes, cpus, srun):
    made = sbatch.parameters(wanted, Profile(), "n", "")
    assert (made["ntasks_per_node"], made.get("cpus_per_task")) == (processes, cpus)
    assert made["srun_args"] == srun


def test_gpus_are_asked_for_as_the_profile_says():
    def asked(gpus, **profile):
        more = sbatch.parameters({"gpus": gpus}, Profile(**profile), "n", "")[
            "additional_parameters"
        ]
        return {k: v for k, v in more.items() if k in ("gres", "gpus-per-node")}

    assert asked(0.0) == {}
    assert asked(2.0) == {"gpus-per-node": "2"}
    assert asked(2.0, gpu_type="a100") == {"gpus-per-node": "a100:2"}
    assert asked(1.0, gpu_request="gres") == {"gres": "gpu:1"}
    assert asked(1.0, gpu_request="gres", gpu_type="h100") == {"gres": "gpu:h100:1"}


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("64", "64"), ("64G", "64G"), ("8M", "8M"), ("1.5G", "1536M"), ("0.5T", "524288M"),
        ("0.1G", "103M"), ("2.5M", "3M"), ("1.5K", "1M"), ("1.5", "2M"), ("1.0G", "1024M"),
    ],
)  # fmt: skip
def test_a_fraction_of_memory_is_rounded_up_to_megabytes(given, asked):
    made = sbatch.parameters({"mem": given}, Profile(), "n", "")
    assert made["additional_parameters"]["mem"] == asked


@pytest.mark.parametrize(("hours", "minutes"), [(24, 1440), (0.5, 30), (0.001, 1), (1.51, 91)])
def test_a_part_of_a_minute_counts_as_one(hours, minutes):
    assert sbatch.parameters({"hours": hours}, Profile(), "n", "")["time"] == minutes


# ---- the script


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Provide a folder on the PATH with an srun that does nothing and an sbatch that keeps the
    script."""
    folder = tmp_path_factory.mktemp("programs")
    kept = f'cp "$1" {folder}/script; env > {folder}/env; echo Submitted batch job 77'
    for name, line in (("srun", "exit 3"), ("sbatch", kept)):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        patch.setenv("SBATCH_PARTITION", "elsewhere")
        yield folder


def submission_of(outputs, wanted, tasks, code=""):
    folder = outputs / "sweeps" / "little" / "submissions" / "20260101-000000-abcdef"
    return Submission(
        folder=folder, sweep="little", user="me", resources=wanted, tasks=tasks,
        chunks=(Chunk("little-abcdef-0", 0, len(tasks)),), canary=False, code=code,
        limits=Limits(3, 5), signal_seconds=120,
    )  # fmt: skip


def script_of(outputs, wanted, profile, count, code=""):
    """Return the text of the batch script of submitit's executor, configured by the launcher."""
    submission = submission_of(outputs, wanted, [[f"run{n}"] for n in range(count)], code)
    executor = sbatch.make_executor(
        submission, submission.resources, submission.chunks[0].name, profile
    )
    assert isinstance(executor, SlurmExecutor)
    if count > 1:
        executor.parameters["map_count"] = count
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def rich(tmp_path):
    (tmp_path / "rich.yaml").write_text(RICH)
    return read_profile(tmp_path / "rich.yaml")


def test_the_script_of_an_array_is_the_golden_one(programs, tmp_path):
    """After an intended change, save the printed text as array.sh."""
    outputs = tmp_path / "my outputs"
    tasks = [["run0"], ["run1"], ["run2"], ["run3"], ["run4"]]
    submission = submission_of(outputs, WANTED, tasks, code=str(outputs / "code" / "0123"))
    assert submit._sbatch(submission, submission.chunks[0], rich(tmp_path)) == "77"
    text = (programs / "script").read_text("utf-8").replace(str(tmp_path), "/TMP")
    assert text == GOLDEN.read_text("utf-8")
    assert "SBATCH_PARTITION" not in (programs / "env").read_text()
    pickles = sorted(file.name for file in submission.jobs_folder.glob("*_submitted.pkl"))
    assert pickles == [f"77_{n}_submitted.pkl" for n in range(5)]
    again = script_of(outputs, WANTED, rich(tmp_path), 5, code=str(outputs / "code" / "0123"))
    assert again.replace(str(tmp_path), "/TMP") == text


def test_the_default_script_asks_for_little_and_runs_this_python(programs, tmp_path):
    text = script_of(tmp_path, {}, Profile(), 1)
    flags = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    assert flags == ["hold", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "requeue",
                     "signal", "time"]  # fmt: skip
    assert f" {sys.executable} -u -m submitit.core._submit {tmp_path}" in text
    assert "PYTHONPATH" not in text
    assert "export PYTHONSAFEPATH=1" in text


def test_bash_accepts_the_golden_script():
    done = subprocess.run(["bash", "-n", str(GOLDEN)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_launcher_writes_itself_cannot_be_given_as_an_option(tmp_path):
    flags = set(re.findall(r"^#SBATCH --([a-z-]+)", GOLDEN.read_text("utf-8"), re.MULTILINE))
    for name in flags - set(rich(tmp_path).options):
        (tmp_path / "a.yaml").write_text(f"options: {{{name}: x}}")
        with pytest.raises(UserError, match=rf"options\.{name}: is set by the launcher"):
            read_profile(tmp_path / "a.yaml")


NASTY = [
    "a b",
    "it's",
    '"',
    "$HOME",
    "$(exit)",
    "`x`",
    "a;b",
    "a#b",
    "#",
    "~",
    "-rf",
    "é\u2028",
    "*",
    "&",
    "'\"'",
    "\x7f\x85",
]


@pytest.mark.parametrize("name", NASTY)
def test_the_code_is_found_whatever_its_folder_is_called(programs, tmp_path, name):
    code = str(tmp_path / name / "code" / "0123")
    script = script_of(tmp_path / name, {}, Profile(), 2, code)
    lines = "\n".join(line for line in script.split("\n") if line.startswith("export PYTHON"))
    show = f'{lines}\nprintf %s "$PYTHONPATH"'
    for before, wanted in (({}, code), ({"PYTHONPATH": "/other"}, f"{code}:/other")):
        done = subprocess.run(["bash", "-c", show], capture_output=True, env=before, check=True)
        assert done.stdout.decode() == wanted
    done = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_words_of_a_container_reach_it_as_they_are(programs, tmp_path, runtime):
    hostile = "\"'$(exit)`x`;#|&><*\u202e"
    image, mount, outputs = f"/a/{hostile}.sif", f"/b c/{hostile}", tmp_path / hostile
    profile = Profile(container={"image": image, "runtime": runtime, "mounts": [mount]})
    script = script_of(outputs, {}, profile, 2, str(outputs / "code"))
    done = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    (srun,) = [line for line in script.split("\n") if line.startswith("srun ")]
    words = shlex.split(srun)
    if runtime == "apptainer":
        start = words.index("apptainer")
        bind = f"{outputs},{mount}"
        assert words[start : start + 7] == [
            "apptainer", "exec", "--nv", "--bind", bind, image, "python3",
        ]  # fmt: skip
    else:
        assert f"--container-image={image}" in words
        assert f"--container-mounts={outputs}:{outputs},{mount}:{mount}" in words


# `submit` rejects what sbatch reads in another way than a shell (see below).
_folders = st.text(
    st.sampled_from(" '\"$`;#&~-*") | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=20,
).filter(lambda name: not re.search(r"[%:/\\\x00-\x1f]", name) and name not in (".", ".."))
_word = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
_option = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda text: not set(text) & set("'\"`$\\")
)
_profiles = st.fixed_dictionaries(
    {},
    optional={
        "partition": st.lists(_word, min_size=1, max_size=3),
        "account": _word,
        "qos": _word,
        "constraint": st.from_regex(
            r"[A-Za-z0-9_(\[][A-Za-z0-9_|&*()\[\]:+-]{0,9}", fullmatch=True
        ),
        "exclude": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_,\[\]-]{0,9}", fullmatch=True),
        "gpu_request": st.sampled_from(["gres", "gpus-per-node"]),
        "gpu_type": _word,
        "setup": st.sampled_from([[], ["module load x"], ["X='a b'", 'echo "$X"']]),
        "throttle": st.integers(1, 999),
        "signal_seconds": st.integers(1, 3600),
        "options": st.dictionaries(
            st.sampled_from(["comment", "licenses", "nice", "exclusive", "begin", "mail-user"]),
            st.booleans() | st.integers(-9, 9) | _option,
        ),
    },
)
_wanted = st.fixed_dictionaries(
    {},
    optional={
        "gpus": st.sampled_from([0.0, 1.0, 4.0]), "cpus": st.integers(1, 64),
        "mem": st.sampled_from(["8", "1.5G", "64G"]), "nodes": st.integers(1, 3),
    },
)  # fmt: skip


@given(_folders, _profiles, _wanted, st.integers(1, 3))
def test_paths_and_values_reach_slurm_and_srun_as_they_are(programs, folder, data, wanted, count):
    profile, outputs = Profile(**data), Path("/TMP") / folder
    script = script_of(outputs, wanted, profile, count)
    lines = script.split("\n")
    flags = {}
    for line in lines:
        if line.startswith("#SBATCH"):
            _, flag = shlex.split(line)  # raises for an unclosed quote
            name, sign, value = flag.removeprefix("--").partition("=")
            flags[name] = value if sign else True
    jobs = outputs / "sweeps/little/submissions/20260101-000000-abcdef/jobs"
    log = f"{jobs}/%A_%a_%t_log.out" if count > 1 else f"{jobs}/%j_%t_log.out"
    assert flags["output"] == log.replace("%t", "0")
    for name in ("partition", "account", "qos", "constraint", "exclude"):
        assert flags.get(name) == getattr(profile, name)
    for name, value in profile.options.items():
        assert flags.get(name) == (
            None if value is False else True if value is True else str(value)
        )
    assert flags.get("array") == (
        f"0-{count - 1}%{min(count, profile.throttle)}" if count > 1 else None
    )
    (srun,) = [line for line in lines if line.startswith("srun ")]
    words = shlex.split(srun)
    assert words[:4] == ["srun", "--unbuffered", "--output", log]
    assert words[-5:] == [sys.executable, "-u", "-m", "submitit.core._submit", str(jobs)]
    assert words[-9:-5] == ["sh", "-c", 'trap "" USR2; exec "$@"', "-"]
    assert {word.partition("=")[0] for word in words[4:-9]} <= {
        "--kill-on-bad-exit",
        "--cpus-per-task",
    }


@pytest.mark.parametrize(
    ("name", "misread"),
    [
        ("50%", "'%'"),
        # A #SBATCH line ends there, with an unclosed quote.
        ("a\nb", r"'\n'"),
        # sbatch also drops a \ within quotes, and in a file name it has a special meaning.
        ("a\\b", r"'\\'"),
        # It separates entries of the PYTHONPATH: the jobs would run other code than the copy.
        ("a:b", "':'"),
        ("a\rb", r"'\r'"),
        ("\x1b[1m", r"'\x1b'"),
        # It separates the folders that a container mounts.
        ("a,b", "','"),
    ],
)
def test_outputs_whose_name_slurm_reads_otherwise_are_refused(monkeypatch, tmp_path, name, misread):
    monkeypatch.setattr(limits, "largest_array", lambda: pytest.fail("Slurm was asked"))
    plan = SimpleNamespace(outputs=tmp_path / name, folder=tmp_path / name / "sweeps/a", name="a")
    profile = Profile(container={"image": "/a.sif"})
    with pytest.raises(UserError) as error:
        submit.submit(plan, [run(0)], profile, tmp_path / name / "code/0123", canary=True)
    told = f"outputs: {str(tmp_path / name)!r}: Slurm and Python misread {misread} in a path; choose another folder"
    assert str(error.value) == told
    assert told.isprintable()
    assert not (tmp_path / name).exists()

"""Cluster profiles: what is valid, what is rejected with which message, and where they are found."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from densevit.config import yaml_file
from densevit.launch.slurm.profile import Profile, find_profile, read_profile
from densevit.utils.errors import UserError

NAMES = ("partition", "account", "qos", "constraint", "exclude", "gpu_type")
HOSTILE = [
    "", " ", "a b", " a", "a ", "a\nb", "a\n", "\na", "a\n#SBATCH --wrap=x", "a\rb", "a\tb", "a'b",
    'a"b', "'", "$(touch x)", "$HOME", "${x}", "`touch x`", "a;b", "a>b", "a<b", "a!b", "a#b", "a\\b",
    "a%b", "a~b", "a{b}", "-a", "--wrap=x", "ä", "a\u00a0b", "a\u2028b", "a\x85b", "a\x00b", "a\x7fb",
]  # fmt: skip


def read(tmp_path, text):
    (tmp_path / "alpha.yaml").write_text(text)
    return read_profile(tmp_path / "alpha.yaml")


def said(tmp_path, text):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert message.isprintable(), "one line"
    file, _, rest = message.partition(": ")
    assert file == str(tmp_path / "alpha.yaml")
    return rest


def test_every_key_takes_what_clusters_have(tmp_path):
    data = {
        "partition": "gpu-long", "account": "proj_1.2@x", "qos": "normal+", "gpu_request": "gres",
        "constraint": "(a100|h100)&nvlink", "exclude": "node[01-03,7],login2", "gpu_type": "a100_80.gb",
        "resources": {"gpus": 2, "cpus": 8.0, "hours": 1.5, "mem": "1.5G", "nodes": 2, "pack": 1},
        "setup": ["module load cuda\t# 12", 'export X="$(hostname); é"'], "python": "srun-env python -s",
        "container": {"image": "docker://host/name:1.2", "runtime": "pyxis", "mounts": ["/my data"]},
        "throttle": 8, "max_submitted": 100, "signal_seconds": 300,
        "requeue": {"timeouts": 1, "node_failures": 2},
        "options": {"exclusive": True, "nice": -5, "mail-type": "END,FAIL", "comment": "two words; é"},
    }  # fmt: skip
    profile = read(tmp_path, yaml_file.dump(data))
    assert data.keys() == Profile.model_fields.keys() - {"file"}, "a new key needs a test"
    assert profile.model_dump() == data
    assert profile.file == str(tmp_path / "alpha.yaml")


def test_an_image_file_is_looked_for_beside_the_profile(tmp_path):
    (tmp_path / "vit.sif").touch()
    profile = read(tmp_path, "container: {image: vit.sif}")
    assert profile.container.image == str(tmp_path / "vit.sif")
    assert "container.image: " in said(tmp_path, "container: {image: gone.sif}")
    assert said(tmp_path, "container: {image: 'a b'}").startswith(
        "container.image: 'a b' must be an image"
    )
    assert "'mounts'" in said(tmp_path, "container: {image: vit.sif, mount: [/a]}")


def test_defaults_suffice(tmp_path):
    assert find_profile(None, tmp_path / "sweep.yaml") == Profile()
    profile = read(tmp_path, "throttle: 256")
    assert (profile.requeue.timeouts, profile.requeue.node_failures) == (3, 5)
    assert (profile.gpu_request, profile.signal_seconds) == ("gpus-per-node", 120)


def test_partitions_of_a_list_are_joined(tmp_path):
    assert read(tmp_path, "partition: [gpu, spot-1]").partition == "gpu,spot-1"
    assert read(tmp_path, "partition: 'gpu,spot'").partition == "gpu,spot"


@pytest.mark.parametrize("key", NAMES)
def test_nothing_that_means_something_to_a_shell_is_a_name(tmp_path, key):
    for value in HOSTILE:
        assert said(tmp_path, yaml_file.dump({key: value})).startswith(f"{key}: ")
    for value in HOSTILE[1:] if key == "partition" else ():
        assert said(tmp_path, yaml_file.dump({key: [value, "a"]})).startswith(f"{key}: ")


_SPICED = st.text(st.sampled_from("aB3_.:+=@/,|&*()[]-") | st.characters(), max_size=12)


@given(st.sampled_from(NAMES), _SPICED)
def test_whatever_is_taken_for_a_name_is_one(key, value):
    try:
        Profile(**{key: value})
    except ValidationError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_(\[][A-Za-z0-9_.:+=@/,|&*()\[\]-]*", value)


def test_options_take_no_quotes_and_no_second_line(tmp_path):
    refused = [value for value in HOSTILE if set(value) & set("\n\r\t'\"$`\\\x00\x7f")]
    assert len(refused) > 15
    for value in refused:
        told = said(tmp_path, yaml_file.dump({"options": {"comment": value}}))
        assert told.startswith("options.comment: ")


@pytest.mark.parametrize(
    "name", ["Comment", "job_name", "-x", "--hold", "a b", "a=b", "", "é", "q1"]
)
def test_options_are_long_options(tmp_path, name):
    told = said(tmp_path, yaml_file.dump({"options": {name: True}}))
    assert told == f"options: {name!r} is not a long option of sbatch"


@pytest.mark.parametrize(
    "name",
    [
        "array", "chdir", "error", "export", "hold", "job-name", "no-requeue", "open-mode", "output",
        "parsable", "requeue", "signal", "test-only", "wait", "wrap", "account", "constraint",
        "cpus-per-task", "exclude", "gpus-per-node", "gres", "mem", "nodes", "ntasks-per-node",
        "partition", "qos", "time", "clusters", "quiet", "tasks-per-node", "ntasks", "input",
        *(
            pytest.param(name)
            for name in ("cluster", "tasks")  # of clusters and ntasks
        ),
    ],
)  # fmt: skip
def test_what_the_launcher_says_itself_is_no_option(tmp_path, name):
    told = said(tmp_path, f"options: {{reservation: r, {name}: x}}")
    assert told == f"options.{name}: is set by the launcher, or by a key of its own in the profile"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("partitoin: a", "partitoin: unknown key; did you mean 'partition'?"),
        ("file: x", "file: unknown key; valid: account, "),
        ("throttle: 0\npartitoin: a", "partitoin: unknown key; "),  # reported first
        ("resources: {gpu: 1}", "resources.gpu: unknown key; did you mean 'gpus'?"),
        ("resources: {when: []}", "resources.when: unknown key; valid: cpus, "),
        ("requeue: {timeout: 3}", "requeue.timeout: unknown key; did you mean 'timeouts'?"),
        ("gpu_request: gre", "gpu_request: 'gre' is not valid; did you mean 'gres'?"),
        ("partition: []", "partition: [] must be text"),
        ("partition: [a, 3]", "partition: ['a', 3] must be text"),
        ("account: 3", "account: 3 must be text"),
        ("throttle: 0", "throttle: 0 is out of range; it must be at least 1"),
        ("throttle: many", "throttle: 'many' must be a whole number"),
        ("throttle: true", "throttle: true must be a whole number"),
        ("max_submitted: 0", "max_submitted: 0 is out of range; it must be at least 1"),
        ("signal_seconds: 0", "signal_seconds: 0 is out of range; it must be at least 1"),
        ("signal_seconds: 4000", "signal_seconds: 4000 is out of range; it must be at most 3600"),
        ("requeue: {timeouts: 0}", "requeue.timeouts: 0 is out of range; it must be at least 1"),
        ("requeue: {node_failures: 1.5}", "requeue.node_failures: 1.5 must be a whole number"),
        ("requeue: 3", "requeue: 3: "),
        ("resources: {cpus: 0}", "resources.cpus: 0 is out of range; it must be at least 1"),
        ("resources: {gpus: -1}", "resources.gpus: -1 is out of range; it must be at least 0"),
        ("resources: {gpus: .nan}", "resources.gpus: nan must be a finite number"),
        # Infinite hours or GPUs would raise an OverflowError when runs are grouped.
        ("resources: {gpus: .inf}", "resources.gpus: inf must be a finite number"),
        ("resources: {hours: .inf}", "resources.hours: inf must be a finite number"),
        ("resources: {hours: 0}", "resources.hours: 0 is out of range; it must be greater than 0"),
        ("resources: {mem: 64 GB}", "resources.mem: '64 GB' must be a number with K, M, G or T"),
        ("resources: {mem: 64}", "resources.mem: 64 must be text"),
        ("resources: {nodes: 0}", "resources.nodes: 0 is out of range; "),
        ("resources: {pack: two}", "resources.pack: 'two' must be a whole number"),
        ("setup: module load x", "setup: 'module load x' must be a list"),
        ("setup: [a, '']", "setup.1: '' must be a line of shell"),
        ('setup: ["a\\nb"]', "setup.0: 'a\\nb' must be a line of shell"),
        ('python: "a\\nb"', "python: 'a\\nb' must be a line of shell"),
        ("python: ''", "python: '' must be a line of shell"),
        ("options: []", "options: [] must be a mapping"),
        ("options: {licenses: [1]}", "options.licenses: [1] must be text"),
        ("options: {exclusive: }", "options.exclusive: null must be text"),
        ("options: {comment: ''}", "options.comment: '' is empty, or holds a quote, "),
        # A newline in a key makes no second line of the message.
        ('options: {"a\\nb": 1}', r"options: 'a\nb' is not a long option of sbatch"),
        ('"qos\\n": a', ""),
        ("", "is empty"),
        ("- a", "must be a mapping of keys to values"),
        ("qos: a\nqos: b", "line 2 the key 'qos' is given twice"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_file_key_and_what_is_valid(tmp_path, text, told):
    assert said(tmp_path, text).strip().startswith(told)


@pytest.mark.parametrize(
    "line",
    [
        "#SBATCH --wrap=x", "#SBATCH", "#SBATCHx", "\t #SBATCH --partition=x",
        *(
            pytest.param(f"{other} -q x")
            for other in ("#PBS", "#BSUB")  # sbatch obeys these too, without --ignore-pbs
        ),
    ],
)  # fmt: skip
def test_no_line_of_setup_is_an_option_of_sbatch(tmp_path, line):
    told = said(tmp_path, yaml_file.dump({"setup": ["module load x", line]}))
    assert told.startswith(f"setup.1: {line!r}: ")
    assert told.endswith("#SBATCH lines are not allowed here; use options")
    assert said(tmp_path, yaml_file.dump({"python": line})).startswith(f"python: {line!r}: ")


def test_a_remark_in_setup_is_none(tmp_path):
    lines = [
        "# SBATCH",
        "##SBATCH --wrap=x",
        "echo '#SBATCH'",
        "true #SBATCH --wrap=x",
        "#sbatch x",
    ]
    assert read(tmp_path, yaml_file.dump({"setup": lines})).setup == lines


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Make a/slurm and a/b (the folder of the sweep) on one side, c/slurm and c/d (the current one)
    on another."""
    for name, account in (("a/slurm/near", "near"), ("a/slurm/both", "sweep"),
                          ("c/slurm/both", "cwd"), ("c/slurm/here", "here"), ("a/b/own", "own")):  # fmt: skip
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"account: {account}\n")
    (tmp_path / "c/d").mkdir()
    monkeypatch.chdir(tmp_path / "c/d")
    return tmp_path / "a/b/sweep.yaml"


@pytest.mark.parametrize(
    ("name", "account"),
    [
        ("near", "near"), ("both", "sweep"), ("here", "here"),
        ("./own.yaml", "own"), ("own.yaml", "own"), ("../slurm/near.yaml", "near"),
    ],
)  # fmt: skip
def test_a_profile_is_found_by_name_and_by_path(tree, name, account):
    assert find_profile(name, tree).account == account


def test_a_profile_is_found_by_absolute_path_and_home_and_from_a_relative_sweep(tree, monkeypatch):
    assert find_profile(str(tree.parent / "own.yaml"), tree).account == "own"
    monkeypatch.setenv("HOME", str(tree.parent))
    assert find_profile("~/own.yaml", tree).account == "own"
    assert find_profile("$HOME/own.yaml", tree).account == "own"
    monkeypatch.chdir(tree.parent)
    assert find_profile("near", tree.relative_to(tree.parent)).account == "near"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two users")
def test_a_profile_that_a_third_user_put_above_is_taken_by_its_path_alone(tree):
    """Its setup would run as whoever types the command: in /tmp, say, anybody can put one."""
    theirs = tree.parent.parent / "slurm" / "near.yaml"
    os.chown(theirs, 65534, 65534)
    with pytest.raises(UserError, match=rf"profile: {theirs} belongs to another user, and its set"):
        find_profile("near", tree)
    assert find_profile(str(theirs), tree).account == "near"
    tree.touch()
    os.chown(tree, 65534, 65534)  # whose sweep file it is
    assert find_profile("near", tree).account == "near"


def test_a_profile_that_is_not_there_is_told_with_the_nearest(tree):
    for name in ("neer", "hera"):
        with pytest.raises(UserError) as error:
            find_profile(name, tree)
        hint = {"neer": "near", "hera": "here"}[name]
        assert str(error.value) == (
            f"{tree}: profile: {name}: there is no slurm/{name}.yaml; did you mean {hint!r}?"
        )
    with pytest.raises(UserError, match=r"a/b/none\.yaml: no such file$"):
        find_profile("./none.yaml", tree)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\nb", r"'a\nb' is neither a name nor a path"),
        ("~no-such-user-of-ours/x", "'~no-such-user-of-ours/x': is no path: "),
        ("a/\0", r"'a/\x00' is neither a name nor a path"),
    ],
)
def test_hostile_names_of_profiles_are_told_in_one_line(tree, name, told):
    with pytest.raises(UserError) as error:
        find_profile(name, tree)
    assert str(error.value).startswith(f"{tree}: profile: {told}")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["a\nb/x", "a\nb.yaml", "a" * 300])
def test_more_hostile_names_of_profiles_are_told_in_one_line(tree, name):
    with pytest.raises(UserError) as error:
        find_profile(name, tree)
    assert str(error.value).isprintable()

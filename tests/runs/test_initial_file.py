"""Initial weights are identified by their content: in ids, on an axis, and when a run begins."""

import os
from hashlib import sha256

import pytest

from densevit.config.identity import identity
from densevit.config.run_config import RunConfig
from densevit.runs import initial_file
from densevit.runs.checkpoint_files import checkpoint_name
from densevit.runs.directory import RunFolder
from densevit.runs.initial_file import check_initial, initial_digest, with_initial_digest
from densevit.sweep.plan import make_plan
from densevit.utils.errors import UserError


def digest(content):
    return sha256(content).hexdigest()[:16]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return the cache file of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    initial_file._known.cache_clear()
    return tmp_path / "cache" / "densevit" / "initial-weights.json"


def plan_of(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "sweep.yaml").write_text(text)
    return make_plan(folder / "sweep.yaml", folder / "out")


AXIS = "name: a\ngrid: {init_checkpoint: [null, w.pt]}\n"


def test_the_ids_follow_the_content_and_not_the_path(tmp_path):
    plans = []
    for name, content in (("one", b"weights"), ("moved", b"weights"), ("other", b"changed")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.pt").write_bytes(content)
        plans.append(plan_of(tmp_path / name, AXIS))
    one, moved, other = ([run.id for run in plan.runs] for plan in plans)
    assert one == moved
    assert (one[0] == other[0], one[1] == other[1]) == (True, False)
    config = plans[1].runs[1].config
    assert config.init_checkpoint == str(tmp_path / "moved" / "w.pt")
    assert config.init_sha256 == digest(b"weights")
    # The same size and time of change, as after `cp -p`: the time of the inode differs.
    file, times = tmp_path / "one" / "w.pt", (tmp_path / "one" / "w.pt").stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert plan_of(tmp_path / "one", AXIS).runs[1].id not in (one[1], other[1])


@pytest.mark.parametrize(
    "text",
    [
        "grid: {init_checkpoint: [null, w.pt]}",
        "zip: [{init_checkpoint: [null, w.pt], epochs: [9, 8]}]",
        "include: [{}, {init_checkpoint: w.pt}]",
        "search: {space: {init_checkpoint: {choice: [w.pt]}}, samples: 1}",
        "fixed: {init_checkpoint: w.pt}",
    ],
)
def test_a_path_is_relative_to_its_file_in_every_section(tmp_path, text):
    (tmp_path / "w.pt").touch()
    plan = plan_of(tmp_path, f"name: a\n{text}\n")
    assert plan.runs[-1].config.init_checkpoint == str(tmp_path / "w.pt")


def test_paths_in_rules_are_relative_to_their_file_too(tmp_path):
    folder = tmp_path / "odd [name]"
    (folder / "w").mkdir(parents=True)
    for name in "abc":
        (folder / "w" / f"{name}.pt").write_text(name)
    plan = plan_of(
        folder,
        """
        name: a
        grid: {init_checkpoint: [null, w/a.pt, w/b.pt, w/c.pt]}
        exclude: [{where: {init_checkpoint: w/a.pt}, because: x}]
        baseline: {init_checkpoint: "w/b*"}
        resources: {when: [{where: {init_checkpoint: ["*c.pt"]}, gpus: 4}]}
        """,
    )
    assert [r.config.init_checkpoint and r.config.init_checkpoint[-4:] for r in plan.runs] == [
        None, "b.pt", "c.pt",
    ]  # fmt: skip
    assert [run.resources for run in plan.runs] == [{}, {}, {"gpus": 4}]


def test_a_run_is_named_by_its_newest_checkpoint_and_not_while_it_trains(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.checkpoint_folder.mkdir(parents=True)
    for step, content in ((4, b"old"), (8, b"new")):
        (run.checkpoint_folder / checkpoint_name(step, digest(content))).write_bytes(content)
    assert initial_digest(str(run.path)) == digest(b"new")
    with run.lock():
        run.write_status("running")
        with pytest.raises(UserError, match="this run is still training"):
            initial_digest(str(run.path))
        run.results_file.touch()  # it evaluates another benchmark
        assert initial_digest(str(run.path)) == digest(b"new")


def test_a_file_is_read_once_and_its_results_outlive_it(tmp_path, cache, monkeypatch):
    file = tmp_path / "w.pt"
    file.write_bytes(b"weights")
    assert initial_digest(str(file)) == digest(b"weights")
    initial_file._known.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(initial_file, "content_digest", None)
        assert initial_digest(str(file)) == digest(b"weights")
        file.unlink()
        assert initial_digest(str(file)) == digest(b"weights")
    cache.unlink()
    initial_file._known.cache_clear()
    with pytest.raises(UserError) as error:
        plan_of(tmp_path, "name: a\ngrid: {init_checkpoint: [null, w.pt]}\n")
    assert str(error.value) == (
        f"{tmp_path}/sweep.yaml: grid: init_checkpoint: {file}: no such file or run directory; its "
        f"content is part of a run's identity: copy it here, or give the first 16 digits of its "
        f"SHA-256 as init_sha256"
    )
    # With them, a plan needs no file.
    pinned = f"init_checkpoint: w.pt, init_sha256: '{sha256(b'weights').hexdigest()}'"
    plan = plan_of(tmp_path, f"name: a\nfixed: {{{pinned}}}")
    file.write_bytes(b"weights")
    (run,) = plan.runs
    assert run.id == plan_of(tmp_path, "name: a\nfixed: {init_checkpoint: w.pt}").runs[0].id
    file.write_bytes(b"changed")
    with pytest.raises(UserError, match=f"has {digest(b'changed')}, not {digest(b'weights')}"):
        with_initial_digest(run.config, "here")
    with pytest.raises(UserError, match="its content has changed since this run was planned"):
        check_initial(run.config)


def test_no_directory_is_made_for_weights_without_a_digest(tmp_path):
    config = RunConfig(init_checkpoint="w.pt")
    with pytest.raises(ValueError, match="init_sha256 must be set"):
        RunFolder(tmp_path / identity(config).run).create(config)

"""Checkpoint files: written completely, checked when read, and robust to disk errors."""

import errno
import io
import logging
import os
import signal
import subprocess
import threading
from contextlib import suppress

import pytest
import torch

from densevit.runs import checkpoint
from densevit.runs.checkpoint import Checkpoints, load
from densevit.runs.checkpoint_files import content_digest, is_checkpoint, newest_first
from densevit.utils.errors import UserError


def state(step, run="a" * 12, **more):
    generator = torch.Generator().manual_seed(step)
    weights = {"w": torch.randn(50, 20, generator=generator), "n": torch.tensor(step)}
    return {
        "run": run,
        "step": step,
        "model": weights,
        "list": [torch.ones(3) * step, None],
        **more,
    }


def written(folder, *steps, **more):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(state(step, **more), step, lambda: None)
    checkpoints.finish()
    return newest_first(folder)


def read(folder):
    return load(folder, "a" * 12)


def test_what_is_saved_is_loaded_and_the_last_two_are_kept(tmp_path):
    assert read(tmp_path) is None
    found = written(tmp_path, 5, 10, 700, 1200)
    assert [path.name.split("-")[1] for path in found] == ["00001200", "00000700"]
    assert sorted(tmp_path.iterdir()) == sorted(found)
    got, wanted = read(tmp_path), state(1200)
    assert torch.equal(got["model"]["w"], wanted["model"]["w"])
    assert (got["step"], got["list"][1], int(got["model"]["n"])) == (1200, None, 1200)
    assert written(tmp_path, 1200) == found, "the same step again removes no other"


def test_what_changes_after_a_save_is_not_in_it(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(checkpoint, "_write", held_back(checkpoint._write, go))
    checkpoints, held = Checkpoints(tmp_path), state(1)
    for step in (1, 2):  # the second uses the memory of the first
        held["model"]["w"].fill_(step)
        go.clear()
        checkpoints.save(held, step, lambda: None)
        assert checkpoints.busy
        held["model"]["w"].fill_(-1)
        go.set()
        checkpoints.finish()
        assert not checkpoints.busy
        assert (read(tmp_path)["model"]["w"] == step).all()


def held_back(function, event):
    def wrapped(*arguments):
        assert event.wait(240)
        function(*arguments)

    return wrapped


def torn(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def emptied(path):
    path.write_bytes(b"")


def foreign(path):
    other = written(path.parent / "other", 9, run="b" * 12)[0]
    path.unlink()
    other.rename(path.with_name(other.name.replace("00000009", "00000020")))
    (path.parent / "other").rmdir()


def harmful(path):
    """Return a pickle that would run code, under a matching name."""

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "harmed"),)

    file = io.BytesIO()
    torch.save({"run": "a" * 12, "x": Harm()}, file)
    path.unlink()
    file.seek(0)
    path.with_name(f"step-00000020-{content_digest(file)}.pt").write_bytes(file.getvalue())


DAMAGES = {
    torn: "is damaged: its content is not what was written",
    flipped: "is damaged: its content is not what was written",
    emptied: "is damaged: its content is not what was written",
    foreign: f"is no checkpoint of run {'a' * 12} but of {'b' * 12}",
    harmful: "cannot be read: Weights only load failed",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_file_is_named_and_the_one_before_is_taken(tmp_path, caplog, damage):
    caplog.set_level(logging.INFO, "densevit")
    newest, before = written(tmp_path, 10, 20)
    damage(newest)
    assert read(tmp_path)["step"] == 10
    assert DAMAGES[damage] in caplog.text
    assert "step-00000020-" in caplog.text
    assert f"continuing from the checkpoint before it, {before.name}" in caplog.text
    assert not (tmp_path / "harmed").exists()
    before.unlink()
    with pytest.raises(UserError, match="there is no other checkpoint to resume from"):
        read(tmp_path)


def test_the_step_decides_which_is_the_newest_and_strangers_are_left_alone(tmp_path):
    written(tmp_path, 99_999_999)
    found = written(tmp_path, 100_000_000)
    assert read(tmp_path)["step"] == 100_000_000
    for name in ("notes.txt", "step-12.pt", "step-0012-xyz.pt", "last.pt"):
        (tmp_path / name).write_text("mine")
    assert newest_first(tmp_path) == found
    assert {path for path in tmp_path.iterdir() if is_checkpoint(path)} == set(found)
    written(tmp_path, 100_000_001)
    assert (tmp_path / "last.pt").read_text() == "mine"


def test_a_full_disk_costs_a_warning_and_nothing_that_is_there(tmp_path, caplog, monkeypatch):
    found = written(tmp_path, 10)
    real = torch.save

    def full(content, file):
        real(content, file)
        file.truncate(file.tell() // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    assert written(tmp_path, 20) == found
    assert (
        f"the checkpoint of step 20 cannot be written: No space left on device; the run continues; "
        f"{found[0]} stays"
    ) in caplog.text
    assert list(tmp_path.iterdir()) == found, "the half file is gone"
    monkeypatch.undo()
    assert [path.name[:13] for path in written(tmp_path, 30)] == ["step-00000030", "step-00000010"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
def test_a_disk_that_is_really_full(tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        found = written(disk, 10)
        assert written(disk, 20, big=torch.zeros(1_000_000)) == found
        assert "No space left on device" in caplog.text
        assert load(disk, "a" * 12)["step"] == 10
        assert len(written(disk, 30)) == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_leftovers_of_a_killed_writer_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "put", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            written(tmp_path, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    assert newest_first(tmp_path) == []
    checkpoint.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "disturb",
    [
        lambda checkpoints: checkpoints.prepare({"model": {"w": torch.zeros(50, 20)}}),
        lambda checkpoints: checkpoints.save(state(6), 6, lambda: None),
    ],
    ids=["taking memory", "the next save"],
)
def test_a_write_is_not_disturbed_by(tmp_path, monkeypatch, disturb):
    go = threading.Event()
    monkeypatch.setattr(checkpoint, "_write", held_back(checkpoint._write, go))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5), 5, lambda: None)
    assert checkpoints.prepared, "the memory is there"
    # The write continues only in `finish`: code that does not wait for it runs first, on any
    # machine.
    finish = checkpoints.finish
    monkeypatch.setattr(checkpoints, "finish", lambda: (go.set(), finish()))
    disturb(checkpoints)
    checkpoints.finish()
    written_first = checkpoint.read(newest_first(tmp_path)[-1])
    assert torch.equal(written_first["model"]["w"], state(5)["model"]["w"])


def test_saving_takes_the_memory_for_the_copy_once(tmp_path):
    checkpoints, held = Checkpoints(tmp_path), state(1)
    assert not checkpoints.prepared
    checkpoints.prepare(held)
    assert checkpoints.prepared
    checkpoints.finish()
    place = checkpoints._copy["model"]["w"].data_ptr()
    for step in (1, 2):
        checkpoints.save(held, step, lambda: None)
        checkpoints.finish()
        assert checkpoints._copy["model"]["w"].data_ptr() == place


@pytest.mark.parametrize(
    "other", [torch.ones(20, 50), torch.full((50, 20), 0.1, dtype=torch.float64)]
)
def test_a_tensor_that_the_memory_does_not_fit_is_kept_as_it_is(tmp_path, other):
    checkpoints = Checkpoints(tmp_path)
    for step, tensor in enumerate((state(1)["model"]["w"], other)):
        checkpoints.save(state(step, tensor=tensor), step, lambda: None)
    checkpoints.finish()
    got = read(tmp_path)["tensor"]
    assert got.dtype == other.dtype
    assert torch.equal(got, other)


def test_what_comes_first_is_done_before_the_file_appears(tmp_path):
    checkpoints, there = Checkpoints(tmp_path), []
    checkpoints.save(state(1), 1, lambda: there.append(newest_first(tmp_path)))
    checkpoints.finish()
    assert there == [[]]
    assert len(newest_first(tmp_path)) == 1

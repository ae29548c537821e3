"""What `densevit show` refuses, before it loads a network."""

import pytest

from densevit.cli import main
from densevit.config import RunConfig
from densevit.rundir import RunFolder


@pytest.fixture
def run(tmp_path, tiny, monkeypatch):
    """A run without a checkpoint: what gets as far as its network is refused for that."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "some-run")
    folder.create(RunConfig(**tiny))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "file.png").write_bytes(b"")
    return folder.path


@pytest.mark.parametrize("kind", ["matches", "similarity"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pictures"], "pictures: is a folder (wanted a picture's file, or the number of one"),
        (["gone.png"], "gone.png: no such file (wanted a picture's file, or the number of one"),
        (["3", "--to", "pictures"], "pictures: is a folder (wanted a file to write: --to FILE)"),
        (["3", "--to", "."], "is a folder (wanted a file to write: --to FILE)"),
        (["3", "--to", "file.png/a.png"], "file.png: is a file and no folder to write to"),
        (["3"], "holds no checkpoint yet"),
        (["file.png", "--to", "new/a.png"], "holds no checkpoint yet"),
    ],
)
def test_a_folder_is_no_picture_and_no_place_for_one(run, capsys, kind, words, told):
    before = sorted(run.parent.rglob("*"))
    assert main(["show", kind, str(run), *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert told in shown.err
    assert sorted(run.parent.rglob("*")) == before


def test_the_place_that_a_picture_is_given_may_be_a_folder(run, capsys):
    (run.parent / "matches-some-run-3.png").mkdir()
    assert main(["show", "matches", str(run), "3"]) == 2
    assert "matches-some-run-3.png: is a folder (wanted a file to" in capsys.readouterr().err

"""What `densevit show` rejects before it loads a network, and the figure of attention."""

import pytest
from PIL import Image
from tiny import tiny_run

from densevit.cli.main import main
from densevit.config.run_config import RunConfig
from densevit.runs.directory import RunFolder
from densevit.train.execute import execute


@pytest.fixture
def run(tmp_path, tiny, monkeypatch):
    """Return a run without a checkpoint: a command that needs the network is rejected because of
    that."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "some-run")
    folder.create(RunConfig(**tiny))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "file.png").write_bytes(b"")
    return folder.path


@pytest.mark.parametrize("kind", ["matches", "similarity", "attention"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pictures"], "pictures: is a folder; give an image file, or the number of one"),
        (["gone.png"], "gone.png: no such file; give an image file, or the number of one"),
        (["3", "--to", "pictures"], "pictures: is a folder; give a file to write: --to FILE"),
        (["3", "--to", "."], "is a folder; give a file to write: --to FILE"),
        (["3", "--to", "file.png/a.png"], "file.png: is a file, not a folder to write to"),
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
    assert "matches-some-run-3.png: is a folder; give a file to" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blobs):
    """Return a finished run; do not change it."""
    folder = RunFolder(tmp_path_factory.mktemp("outputs") / "abc")
    folder.create(RunConfig(**{**tiny_run(blobs), "cl_mode": "none", "epochs": 1}))
    assert execute(folder) == 0
    return folder.path


def test_attention_is_drawn_of_a_block(trained, blobs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = next((blobs / "val").rglob("*.*"))
    called = ["3"], ["3", "--block", "1"], ["3", "--block", "0"], [str(file)]
    drawn = []
    for number, words in enumerate(called):
        target = tmp_path / f"{number}.png"
        assert main(["show", "attention", str(trained), *words, "--to", str(target)]) == 0
        assert capsys.readouterr().out == f"{target}\n"
        with Image.open(target) as image:
            assert image.format == "PNG"
            assert image.width > 1000
        drawn.append(target.read_bytes())
    assert drawn[0] == drawn[1]  # the last of two blocks
    assert drawn[0] != drawn[2]
    assert main(["show", "attention", str(trained), "3"]) == 0
    assert (tmp_path / "attention-abc-3.png").read_bytes() == drawn[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["3", "--block", "2"], "block: 2 must be from 0 to 1"),
        (["3", "--block", "-1"], "block: -1 must be from 0 to 1"),
        (["99"], "99: val has 15 images, from 0 to 14"),
    ],
)
def test_mistakes_about_attention_are_told_in_a_line(trained, tmp_path, capsys, words, told):
    to = ["--to", str(tmp_path / "a.png")]
    assert main(["show", "attention", str(trained), *words, *to]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert told in shown.err
    assert not list(tmp_path.iterdir())

"""What the command line says about words that it does not know."""

import pytest

from densevit import __version__
from densevit.cli.main import main, main_sweep


def ended(call, *words):
    with pytest.raises(SystemExit) as error:
        call([*words])
    return error.value.code


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["s.yaml", "--yes"], "--yes: is an option of densevit-sweep cancel, and not of densevit-sweep run"),
        (["plan", "s.yaml", "--failed"], "--failed: is an option of densevit-sweep logs and densevit-sweep retry, and not of densevit-sweep plan"),
        (["s.yaml", "--job", "2"], "--job: unknown; did you mean '--jobs'?"),
        (["s.yaml", "--version=2"], "--version: unknown; did you mean"),
        (["s.yaml", "t.yaml"], "t.yaml: unknown; densevit-sweep run takes no more names; see --help"),
        (["logs", "s.yaml", "--failed", "0a1b"], "0a1b: unknown; put all names before the options"),
        (["stauts", "s.yaml"], "stauts: is neither a command nor a file; did you mean 'status'?"),
    ],
)  # fmt: skip
def test_an_unknown_word_is_told_with_where_it_belongs(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ended(main_sweep, *words) == 2
    assert capsys.readouterr().err.startswith(f"densevit-sweep: {told}")


def test_an_argument_of_the_network_is_no_flag(capsys):
    assert ended(main, "train", "--img-size", "32") == 2
    told = "--img-size: unknown; it is an argument of the network: --model-kwargs '{img_size: ...}'"
    assert capsys.readouterr().err == f"densevit: {told}\n"


def test_both_commands_have_a_version(capsys):
    for call, name in ((main, "densevit"), (main_sweep, "densevit-sweep")):
        assert ended(call, "--version") == 0
        assert capsys.readouterr().out == f"{name} {__version__}\n"


def test_a_profile_of_the_command_line_counts_from_the_current_folder(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "a.yaml").write_text("name: a\nfixed: {device: cpu}\n")
    (tmp_path / "local.yaml").write_text("accunt: me\n")
    monkeypatch.chdir(tmp_path)
    for profile in ("local.yaml", "./local.yaml"):
        words = ["sweeps/a.yaml", "--launcher", "slurm", "--profile", profile, "--dry-run"]
        assert main_sweep(words) == 2
        told = f"{tmp_path}/local.yaml: accunt: unknown key; did you mean 'account'?"
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_a_shell_completes_both_commands(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("densevit-sweep", "explain", "no-canary", "queue-size", "attention"):
        assert word in script

"""Output that is closed, not in UTF-8 or not read; and Ctrl-C during the imports of a command."""

import io
import os
import subprocess
import sys

from densevit.utils.console import say
from densevit.utils.errors import exit_code
from densevit.utils.streams import outliving_readers, replace_letters

TEXT = "3.0 † ± 1 − λ é \udcff 日"


def test_letters_that_an_encoding_lacks_are_replaced_by_plain_ones(monkeypatch):
    for encoding, wanted in (
        ("ascii", b"3.0 ^ +/- 1 - lambda e \\udcff \\u65e5\n"),
        ("latin-1", b"3.0 ^ \xb1 1 - lambda \xe9 \\udcff \\u65e5\n"),
        ("utf-8", "3.0 † ± 1 − λ é \\udcff 日\n".encode()),  # a file name that is not UTF-8
    ):
        written = io.BytesIO()
        stream = io.TextIOWrapper(written, encoding=encoding)
        replace_letters(stream)
        monkeypatch.setattr(sys, "stdout", stream)
        say(TEXT)
        stream.flush()
        assert written.getvalue() == wanted


def _unread(monkeypatch):
    """Make stdout a pipe that nobody reads; return what stderr receives."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    return errors


def test_a_command_that_starts_runs_goes_on_if_its_output_is_not_read(monkeypatch):
    errors = _unread(monkeypatch)
    done = []

    def work():
        with outliving_readers():
            for text in "abc":
                print(text, flush=True)
                say(text)
                done.append(text)
        return 0

    assert exit_code("densevit", work) == 0
    assert done == ["a", "b", "c"]
    assert errors.getvalue() == "nobody reads the output any more; the command goes on\n"


def _help(text):
    print(text)
    sys.exit(0)


def test_another_command_ends_without_a_word_if_its_output_is_not_read(monkeypatch):
    for output in (say, print, lambda text: print(text, flush=True), _help):
        errors = _unread(monkeypatch)
        assert exit_code("densevit", lambda output=output: output("a") or 0) == 0
        sys.stdout.close()  # as at exit: nothing is left that could fail
        assert errors.getvalue() == ""


def _densevit(*words, shell="", code=None):
    command = [sys.executable, *(["-m", "densevit"] if code is None else ["-c", code]), *words]
    return subprocess.run(
        ["sh", "-c", f'"$@" {shell}', "sh", *command], capture_output=True, text=True
    )


def test_closed_output_and_input_are_none_of_its_business(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\n")
    plan = ["sweep", "plan", str(tmp_path / "a.yaml")]
    done = _densevit(*plan, shell=">&- <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_during_the_imports_is_a_line():
    code = """
import os, signal, sys
class PressCtrlC:
    def find_spec(self, name, *_):
        if name == "densevit.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, PressCtrlC())
from densevit.__main__ import main_sweep
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts without
main_sweep()
"""
    done = _densevit(code=code)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "densevit-sweep: stopped before anything was started\n"

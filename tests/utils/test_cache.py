"""The cache of a user whose home folder cannot be written."""

import os

from densevit.utils.cache import use_own_compile_cache, use_writable_cache


def test_a_home_that_cannot_be_written_is_replaced_by_the_outputs(tmp_path, monkeypatch, capsys):
    home, outputs = tmp_path / "home", tmp_path / "out"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    for name in ("XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    use_writable_cache(outputs)
    assert "XDG_CACHE_HOME" not in os.environ
    # The superuser may write anywhere but where a file is in the way.
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(home)))
    use_writable_cache(outputs)
    assert capsys.readouterr().err == (
        f"{home}/.cache: cannot be written; {outputs}/cache holds the caches instead\n"
    )
    assert os.environ["XDG_CACHE_HOME"] == str(outputs / "cache")
    # Downloaded weights are still found.
    assert os.environ["HF_HOME"] == f"{home}/.cache/huggingface"
    assert "TORCH_HOME" not in os.environ
    use_writable_cache(outputs)  # a process that this one starts says nothing more
    assert capsys.readouterr().err == ""
    assert not outputs.exists()


def test_a_home_that_is_no_folder_is_replaced_too(tmp_path, monkeypatch, capsys):
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", "/dev/null")
    use_writable_cache(tmp_path)
    assert "/dev/null/.cache: cannot be written" in capsys.readouterr().err


def test_compiled_code_is_kept_where_nobody_else_writes(tmp_path, monkeypatch):
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored at the end
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    use_own_compile_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "densevit" / "torchinductor")
    assert cache_dir() == str(tmp_path / "densevit" / "torchinductor")

"""The kernel's count of OOM kills, in both versions of control groups."""

import pytest

from densevit.launch.slurm.oom import oom_kills


@pytest.mark.parametrize(
    ("own", "file", "text", "count"),
    [
        ("0::/job_7/step_0\n", "job_7/step_0/memory.events", "low 0\noom 3\noom_kill 2\n", 2),
        ("9:cpu:/a\n4:memory:/slurm/job_7\n", "memory/slurm/job_7/memory.oom_control",
         "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1),
        ("0::/job_7\n", "elsewhere", "oom_kill 5\n", 0),
        ("0::/job_7\n", "job_7/memory.events", "oom_kill many\n", 0),
    ],
)  # fmt: skip
def test_kills_are_counted_by_the_control_group(tmp_path, own, file, text, count):
    (tmp_path / "self").write_text(own)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert oom_kills(tmp_path / "self", tmp_path) == count


def test_where_nothing_tells_it_is_none(tmp_path):
    assert oom_kills(tmp_path / "gone", tmp_path) == 0
    assert oom_kills() >= 0

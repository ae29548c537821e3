"""Steps that a resumed run has removed from its metrics file and written again."""

import pytest
from mlflow import MlflowClient
from rundirs import (
    START,
    client_of,
    history,
    looking,
    make_run,
    train_lines,
    write_lines,
)
from servers import points

from densevit.runs.directory import run_folder
from densevit.tracking.mirror import Messages
from densevit.tracking.mirror_process import mirror_once, up_to_date
from densevit.tracking.store_uri import store_uri
from densevit.tracking.up_to_date import complete_runs

NOTHING: tuple = ([], [])


def gauged(lines, *steps):
    """Add a system metric to some lines; such metrics appear at arbitrary steps."""
    return [line | ({"system/cpu": 1.0} if line["step"] in steps else {}) for line in lines]


def steps(outputs, run_id, key):
    return [point[0] for point in history(outputs, run_id, key)]


@pytest.fixture
def asked(monkeypatch):
    """Return the metrics whose history is requested."""
    import mlflow

    found, ask = [], mlflow.MlflowClient.get_metric_history

    def get(client, run_id, key):
        found.append(key)
        return ask(client, run_id, key)

    monkeypatch.setattr("mlflow.MlflowClient.get_metric_history", get)
    return found


@pytest.mark.parametrize("alive", [False, True], ids=["new mirror", "same mirror"])
def test_other_steps_than_before_are_sent_once_the_run_is_as_far_again(outputs, alive, asked):
    run_id = make_run(outputs, gauged(train_lines(1, 60), 20, 50), state="running")
    folder = run_folder(outputs, run_id)
    mirror = looking(outputs, run_id)
    with folder.lock():
        assert mirror.update(last=False) == Messages()
        if not alive:
            mirror = looking(outputs, run_id)
        write_lines(folder, gauged(train_lines(1, 40) + train_lines(41, 55, 9.5), 20, 45))
        for _ in range(3):
            assert mirror.update(last=False) == Messages()
        assert asked == []
        write_lines(folder, gauged(train_lines(56, 70, 9.5), 66), "a")
        assert mirror.update(last=False) == Messages()
        assert sorted(asked) == ["system/cpu", "train/loss", "train/top1"]
        write_lines(folder, gauged(train_lines(71, 75, 9.5), 72), "a")
        assert mirror.update(last=False) == Messages()
        assert len(asked) == 3
    assert steps(outputs, run_id, "system/cpu") == [20, 45, 50, 66, 72]
    assert steps(outputs, run_id, "train/loss") == list(range(1, 76))


@pytest.mark.parametrize("state", ["finished", "running"])
def test_a_run_that_ends_before_it_is_as_far_again_has_all_in_the_store(outputs, state):
    run_id = make_run(outputs, gauged(train_lines(1, 60), 20, 50), state="cancelled")
    folder = run_folder(outputs, run_id)
    assert mirror_once(outputs, [run_id]) == NOTHING
    write_lines(folder, gauged(train_lines(1, 40) + train_lines(41, 55, 9.5), 20, 45))
    folder.write_status(state, started=START)
    with folder.lock():  # like a driver that ends while the run continues elsewhere
        assert mirror_once(outputs, [run_id]) == NOTHING
    assert steps(outputs, run_id, "system/cpu") == [20, 45, 50]
    assert up_to_date(outputs, [run_id]) == (state == "finished")


def test_two_mirrors_of_a_run_that_goes_on_ask_for_no_history(outputs, asked):
    run_id = make_run(outputs, train_lines(1, 5), state="running")
    folder = run_folder(outputs, run_id)
    mirrors = [looking(outputs, run_id), looking(outputs, run_id)]
    with folder.lock():
        for last in range(6, 26):
            write_lines(folder, train_lines(last, last), "a")
            assert mirrors[last % 3 == 0].update(last=False) == Messages()
    assert asked == []
    assert steps(outputs, run_id, "train/loss") == list(range(1, 26))


def test_what_is_known_is_lost_and_the_store_is_asked(outputs, asked):
    run_id = make_run(outputs, gauged(train_lines(1, 9), 4))
    assert mirror_once(outputs, [run_id]) == NOTHING
    run_folder(outputs, run_id).tracking_file.write_text("[1]\n")
    assert not up_to_date(outputs, [run_id])
    assert mirror_once(outputs, [run_id]) == NOTHING
    assert sorted(asked) == ["system/cpu", "train/loss", "train/top1"]
    assert points(outputs / "mlflow.db")["metrics"] == 9 * 2 + 1
    assert up_to_date(outputs, [run_id])


def test_a_file_without_lines_is_up_to_date(outputs):
    """A run that was restarted without a checkpoint, and failed at once."""
    run_id = make_run(outputs, train_lines(1, 5), state="cancelled")
    assert mirror_once(outputs, [run_id]) == NOTHING
    run_folder(outputs, run_id).metrics_file.write_text("")
    run_folder(outputs, run_id).write_status("failed", started=START)
    assert mirror_once(outputs, [run_id]) == NOTHING
    assert up_to_date(outputs, [run_id])


def test_what_arrived_without_an_answer_is_known_when_the_file_was_cut_before_it(
    outputs, monkeypatch
):
    run_id = make_run(outputs, train_lines(1, 10), state="running")
    folder = run_folder(outputs, run_id)
    mirror = looking(outputs, run_id)
    with folder.lock():
        for _ in range(2):  # then it is known to be the only one
            assert mirror.update(last=False) == Messages()
        write_lines(folder, train_lines(11, 20), "a")
        with monkeypatch.context() as patched:
            log = MlflowClient.log_batch

            def lose(*given, **named):
                log(*given, **named)
                raise ConnectionError("the answer is lost")

            patched.setattr(MlflowClient, "log_batch", lose)
            assert len(mirror.update(last=False).problems) == 1
    write_lines(folder, train_lines(1, 10))
    folder.write_status("failed", started=START)
    assert mirror.update(last=True) == Messages()
    assert steps(outputs, run_id, "train/loss") == list(range(1, 21))
    assert up_to_date(outputs, [run_id])
    found = complete_runs(client_of(outputs), [folder], store_uri(outputs), None, False)
    assert found == ({run_id}, None)

"""System metrics are in a run's lines, and cost the run nothing."""

import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import ModuleType, SimpleNamespace

import pytest
import torch
from forked import Ranks, command
from test_execute import folder_of, weights_of
from tiny import without_machine

from densevit.runs.metrics_file import read_metrics
from densevit.train import loop, system_metrics
from densevit.train.execute import execute
from densevit.train.system_metrics import SystemMetrics, sampling
from densevit.utils.errors import EXIT_FAILED, EXIT_MISTAKE, Stopped

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
OFTEN, NEVER = 0.001, 1000.0
NAMES = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/network_receive_megabytes",
    "system/network_transmit_megabytes",
}


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(system_metrics, "SECONDS", OFTEN)


def watching():
    return [thread for thread in threading.enumerate() if thread.name == "system metrics"]


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    return found


def system(line):
    return {name: value for name, value in line.items() if name.startswith("system/")}


def test_the_lines_of_a_run_tell_what_its_machine_did(tmp_path, tiny, often, monkeypatch):
    def read(self, real=SystemMetrics.read):
        wait_for(lambda: self._samples)
        return real(self)

    monkeypatch.setattr(SystemMetrics, "read", read)
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none", "log_every": 1})
    assert execute(folder) == 0
    assert not watching()
    lines, _ = read_metrics(folder.metrics_file)
    told = [system(line) for line in lines if system(line)]
    assert all(("train/learning_rate" in line) == bool(system(line)) for line in lines)
    assert len(told) == 10
    for found in told:
        assert found.keys() == NAMES
        assert all(0 <= v <= 100 for name, v in found.items() if name.endswith("percentage"))
        assert found["system/system_memory_usage_megabytes"] > 1
    sent = [found["system/network_transmit_megabytes"] for found in told]
    assert sent == sorted(sent), "counted from the start on"
    assert max(found["system/cpu_utilization_percentage"] for found in told) > 0


def test_the_names_and_the_numbers_are_mlflows():
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    ours = SystemMetrics(system_metrics._machine())
    theirs = {}
    for monitor in (CPUMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
    assert theirs.keys() == NAMES
    found = ours._sample()
    for name in ("system/system_memory_usage_megabytes", "system/system_memory_usage_percentage"):
        assert found[name] == pytest.approx(theirs[name], rel=0.2)


def test_a_run_has_the_same_bits_whether_it_is_sampled_or_not(tmp_path, tiny, monkeypatch):
    runs = []
    for name, seconds in (("quiet", NEVER), ("sampled", OFTEN)):
        monkeypatch.setattr(system_metrics, "SECONDS", seconds)
        settings = {**tiny, "cl_mode": "joint", "workers": 1, "epochs": 1}
        folder = folder_of(tmp_path, settings, name)
        assert execute(folder) == 0
        lines, _ = read_metrics(folder.metrics_file)
        if seconds == NEVER:
            assert not any(system(line) for line in lines), "nothing was sampled"
        runs.append((weights_of(folder), [without_machine(line) for line in lines]))
    (wanted, lines), (got, sampled) = runs
    assert sampled == lines
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError()], ids=str)
def test_the_thread_ends_with_a_run_that_fails(tmp_path, tiny, often, monkeypatch, error):
    def step(*_):
        assert watching()
        raise error

    monkeypatch.setattr(loop, "train_step", step)
    assert execute(folder_of(tmp_path, tiny)) == EXIT_FAILED
    assert not watching()


def test_the_thread_ends_with_a_run_that_stops(tmp_path, tiny, often):
    folder = folder_of(tmp_path, tiny)
    calls = []

    def asked():
        calls.append(len(watching()))
        return signal.SIGTERM if len(calls) == 5 else 0

    with suppress(Stopped):
        loop.train(folder, asked, folder.config())
    assert calls == [1] * 5
    assert not watching()


def test_no_thread_where_the_data_are_wrong(tmp_path, tiny, often):
    assert (
        execute(folder_of(tmp_path, {**tiny, "data_dir": str(tmp_path / "gone")})) == EXIT_MISTAKE
    )
    assert not watching()


def telling(arguments):
    """Execute a run whose processes each report at their end whether they sampled."""
    real, seen = loop.train_step, []

    def step(*given):
        seen.append(len(watching()))
        return real(*given)

    loop.train_step = step
    code = command(arguments)
    print(json.dumps([os.environ["RANK"], sorted(set(seen))]), flush=True)
    return code


def test_only_the_process_that_writes_samples(tmp_path, tiny):
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none", "epochs": 1})
    ranks = Ranks(["train", "--run-dir", str(folder.path)], tmp_path / "said", telling)
    assert ranks.wait() == [0, 0], ranks.output()
    said = [line for line in ranks.output().splitlines() if line.startswith("[")]
    assert sorted(said) == ['["0", [1]]', '["1", [0]]']


def test_the_mean_is_that_of_the_samples_since_the_last_look():
    values = iter([1.0, 2.0, 4.0, 8.0])
    found = SystemMetrics(
        {"one": lambda: {"a": next(values), system_metrics._CUMULATIVE[0]: next(values)}}
    )
    assert found.read() == {}
    for _ in range(2):
        found._samples.append(found._sample())
    assert found.read() == {"a": 2.5, system_metrics._CUMULATIVE[0]: 8.0}
    assert found.read() == {}


def test_a_source_that_does_not_answer_is_told_once(often, monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    def broken():
        raise OSError("no answer")

    monkeypatch.setattr(
        system_metrics, "_machine", lambda: {"fan": broken, "clock": lambda: {"a": 1.0}}
    )
    with sampling(CPU) as found:
        wait_for(lambda: len(found._samples) > 3)
    assert found.read() == {"a": 1.0}
    assert caplog.text.count("system metrics of the fan are not logged: OSError: no answer") == 1


@pytest.mark.parametrize("module", ["psutil", "pynvml"])
def test_a_library_that_is_missing_is_told_once(often, monkeypatch, caplog, module):
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, module, None)
    with sampling(GPU if module == "pynvml" else CPU) as found:
        wait_for(lambda: len(found._samples) > 3)
    assert len(caplog.records) == 1
    assert "are not logged: ModuleNotFoundError: " in caplog.text
    assert found.read().keys() == (set() if module == "psutil" else NAMES)


def driver(uuid, **answers):
    """Return a stand-in for the library of NVIDIA on a machine with one GPU; missing values are not
    supported."""
    made = ModuleType("pynvml")

    def asked(name):
        def answer(gpu):
            assert gpu == "the handle"
            if name not in answers:
                raise LookupError("Not Supported")
            return answers[name]

        return answer

    def handle(name):
        assert name == f"GPU-{uuid}"
        return "the handle"

    made.nvmlInit = lambda: None
    made.nvmlDeviceGetHandleByUUID = handle
    for name in ("UtilizationRates", "MemoryInfo", "PowerUsage"):
        setattr(made, f"nvmlDeviceGet{name}", asked(name))
    return made


def test_the_gpu_of_the_process_is_told_of(often, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    uuid = "8d1b5a3c-0000-1111-2222-333344445555"
    monkeypatch.setattr(
        torch.cuda, "get_device_properties",
        lambda device: SimpleNamespace(uuid=uuid) if device == GPU else None,
    )  # fmt: skip
    whole = {"UtilizationRates": SimpleNamespace(gpu=97, memory=5), "PowerUsage": 350_250,
             "MemoryInfo": SimpleNamespace(used=20e9, total=80e9)}  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", driver(uuid, **whole))
    with sampling(GPU) as found:
        wait_for(lambda: found._samples)
    told = found.read()
    assert {name: told[name] for name in told.keys() - NAMES} == {
        "system/gpu_0_utilization_percentage": 97.0,
        "system/gpu_0_memory_usage_megabytes": 20_000.0,
        "system/gpu_0_memory_usage_percentage": 25.0,
        "system/gpu_0_power_usage_watts": 350.25,
    }
    assert not caplog.records
    del whole["PowerUsage"]
    monkeypatch.setitem(sys.modules, "pynvml", driver(uuid, **whole))
    with sampling(GPU) as found:
        wait_for(lambda: len(found._samples) > 2)
    assert len(found.read().keys() - NAMES) == 3
    assert caplog.text.count("system metrics of the GPU's power are not logged") == 1


def test_a_driver_that_is_not_there(often, monkeypatch, caplog):
    """Or one that knows no such GPU."""
    caplog.set_level(logging.INFO)
    with sampling(torch.device("cuda", 99)) as found:
        wait_for(lambda: found._samples)
    assert found.read().keys() == NAMES
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "system metrics of the GPU are not logged"
    ]


def test_a_driver_that_is_stuck_does_not_keep_the_run(often, monkeypatch):
    going = threading.Event()
    monkeypatch.setattr(system_metrics, "JOIN_SECONDS", 0.05)
    monkeypatch.setattr(system_metrics, "_machine", lambda: {"stuck": lambda: going.wait() and {}})
    with sampling(CPU) as found:
        assert found.read() == {}
    (left,) = watching()  # the end has not waited for it
    assert left.daemon
    going.set()
    left.join()
    assert not watching()


def test_a_sample_that_is_being_taken_is_waited_for(often, monkeypatch):
    asked = threading.Event()

    def slow():
        asked.set()
        time.sleep(0.2)  # a slow driver
        return {"a": 1.0}

    monkeypatch.setattr(system_metrics, "_machine", lambda: {"slow": slow})
    with sampling(CPU):
        assert asked.wait(240)
    assert not watching()


def test_a_machine_that_has_no_more_threads(monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    def refused(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with sampling(CPU) as found:
        assert found.read() == {}
    assert "are not logged: RuntimeError: can't start new thread" in caplog.text


def test_a_forked_process_has_no_such_thread(often):
    with sampling(CPU) as found:
        wait_for(lambda: found._samples)
        child = os.fork()
        if child == 0:
            os._exit(len(watching()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        found.read()
        wait_for(lambda: found._samples)  # and here it continues

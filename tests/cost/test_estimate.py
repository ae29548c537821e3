"""The cost of a sweep: the arithmetic compared with calculations by hand, and real measurements."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_imports import HEAVY, imported_by

from densevit.config import yaml_file
from densevit.config.run_config import FIELDS, RunConfig
from densevit.cost import budget
from densevit.cost import estimate as estimate_module
from densevit.cost.budget import check_budget, estimate_lines, estimate_record, parse_budget
from densevit.cost.estimate import CPU_RUN_HOURS, GPU_HOURS, estimate, load_estimate, used
from densevit.cost.speeds import Speed, measure, speed_key, speeds_file, wanted_probes
from densevit.launch.machine import Place, this_machine
from densevit.runs.status import Status
from densevit.sweep.plan import make_plan
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json

# One hour per step, so that hours are whole numbers: 42 images in batches of 8 are 5 steps per
# epoch.
HOUR = 3600.0
PICTURES = {"train": 42, "val": 15, "dark": 12}


def plan_of(tmp_path, tiny, **parts):
    (tmp_path / "base.yaml").write_text(yaml_file.dump(tiny))
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml_file.dump({"name": "little", "base": "base.yaml", **parts}))
    return make_plan(file, tmp_path / "outputs")


def any_device_plan(tmp_path, tiny, **parts):
    """A plan whose runs use a GPU where there is one; those of `tiny` never do."""
    return plan_of(tmp_path, {**tiny, "device": "auto"}, **parts)


def speed_of(steps=(HOUR,) * 20, on_gpu=False, processes=1, **seconds):
    zero = {"startup": 0.0, "look": 0.0, "evaluation": 0.0, "evaluated_picture": 0.0}
    return Speed("Thing", on_gpu, processes, steps, **{**zero, **seconds}, pictures=PICTURES)


def same_speed(plan, speed):
    return {probe.key: speed for probe in wanted_probes(plan)}


def entry_of(speed):
    return json.loads(json.dumps(dataclasses.asdict(speed)))


class Found:
    """A machine whose measurements are given; `asked` lists the runs that were measured."""

    def __init__(self, answer, code=0, name="here"):
        self.answer, self.code, self.asked = answer, code, []
        self.place = Place(name, self)

    def __call__(self, source, target):
        done = {}
        for item in json.loads(source.read_text()):
            self.asked.append(item)
            answer = self.answer(item["config"])
            if answer is KeyboardInterrupt:
                raise KeyboardInterrupt
            if answer is not None:
                done[item["key"]] = answer
                write_json(target, done)
        return self.code


# Which runs have the same speed


def test_of_runs_that_are_equally_fast_one_is_measured(tmp_path, tiny):
    plan = plan_of(
        tmp_path,
        tiny,
        grid={
            "cl_mode": ["none", "global", "dense"],
            "temperature": [0.1, 0.2],
            "sampling_strategy": ["random", "hardest"],
            "learning_rate": [1e-3, 1e-4],
        },
        seeds=3,
    )
    probes = wanted_probes(plan)
    # none, global, dense with each sampling strategy; 2 + 4 + 8 cells.
    assert [(p.config.cl_mode, p.config.sampling_strategy) for p in probes] == [
        ("none", "random"), ("global", "random"), ("dense", "random"), ("dense", "hardest"),
    ]  # fmt: skip
    assert len({probe.key for probe in probes}) == 4
    assert len(plan.grid.cells) == 14


OTHER_VALUES = {
    "cl_mode": "global", "model_name": "vit_small_patch16_224", "model_kwargs": {"depth": 3},
    "dataset": "pacs", "precision": "bf16", "sampling_strategy": "hardest", "query_patches": 3,
    "correspondence_features": "dense", "dense_negatives": "pooled", "key_encoder": "shared",
    "init_checkpoint": "x.pt", "init_sha256": "a" * 16, "data_dir": "/data", "benchmarks": {"a": "/a"}, "device": "cpu",
    "experiment_name": "other", "on_collapse": "stop", "lambda_weight": 0.25, "layer_decay": 0.5, "learning_rate": 0.1,
    "watched": ["knn"], "probes": ["knn"], "masks": "shapes", "void": [0],
    "label_column": "fine",
}  # fmt: skip
SAME_SPEED = {
    "epochs", "learning_rate", "warmup_epochs", "weight_decay", "grad_clip", "layer_decay",
    "drop_path", "label_smoothing", "mixup", "pretrained", "init_checkpoint", "init_sha256", "lambda_weight",
    "contrastive_weight_adaptive", "temperature", "learnable_temp", "seed", "experiment_name",
    "log_every", "health_every", "on_collapse", "checkpoint_minutes",
    "watched", "watch_every", "watch_samples", "probes", "masks", "void",
    "momentum", "joint_dense_weight",  # the last one does not apply to the default
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_changes_the_speed_or_does_not(name):
    default = FIELDS[name].get_default()
    other = not default if isinstance(default, bool) else OTHER_VALUES.get(name)
    if other is None:
        other = default + 1 if isinstance(default, int) else default / 2 + 0.1
    same = speed_key(RunConfig(**{name: other})) == speed_key(RunConfig())
    assert same is (name in SAME_SPEED)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"cl_mode": "joint", "joint_dense_weight": 0.0}, {"cl_mode": "global"}, True),
        ({"cl_mode": "joint", "joint_dense_weight": 1.0}, {"cl_mode": "dense"}, True),
        ({"cl_mode": "joint"}, {"cl_mode": "joint", "joint_dense_weight": 0.9}, True),
        ({"cl_mode": "joint"}, {"cl_mode": "dense"}, False),
        ({"lambda_weight": 0.0}, {"cl_mode": "none"}, True),
        # A linear probe, and a network without a gradient of view 2.
        ({"lambda_weight": 1.0}, {"lambda_weight": 0.5}, False),
        (
            {"lambda_weight": 1.0, "contrastive_weight_adaptive": True},
            {"lambda_weight": 0.5},
            True,
        ),
        # Fields that do not apply.
        ({"cl_mode": "none", "queue_size": 5}, {"cl_mode": "none"}, True),
        ({"cl_mode": "global", "sampled_patches": 5}, {"cl_mode": "global"}, True),
        ({"dense_negatives": "pooled", "sampled_patches": 5}, {"dense_negatives": "pooled"}, True),
    ],
)
def test_what_the_losses_cost_decides(one, other, same):
    assert (speed_key(RunConfig(**one)) == speed_key(RunConfig(**other))) is same


def test_another_folder_of_pictures_is_measured_anew(tmp_path, tiny, monkeypatch):
    plan = plan_of(tmp_path, {**tiny, "data_dir": None})
    monkeypatch.setenv("DENSEVIT_DATA", "/one")
    first = wanted_probes(plan)[0].key
    assert wanted_probes(plan)[0].key == first
    monkeypatch.setenv("DENSEVIT_DATA", "/two")
    assert wanted_probes(plan)[0].key != first


# From the speed of a step to the cost of a sweep


def test_a_range_is_that_of_the_steps():
    # 0, 1, ..., 10: a tenth of them is below 1, half below 5, nine tenths below 9.
    assert speed_of(steps=[10.0, *range(10)]).step(workers=0) == (1, 5, 9)
    assert speed_of(steps=[2.0, 2.0, 2.0]).step(workers=1) == (2, 2, 2)


def test_loading_processes_that_deliver_in_bursts_are_averaged():
    bursts = speed_of(steps=[4.0, 0.0, 0.0, 0.0] * 5)
    assert bursts.step(workers=4) == (1, 1, 1)
    assert bursts.step(workers=1).central == 0
    # Fewer steps than processes: only their mean is known.
    assert speed_of(steps=[4.0, 1.0, 1.0]).step(workers=8) == (2, 2, 2)


def test_the_hours_of_a_run_add_up(tmp_path, tiny):
    plan = plan_of(tmp_path, {**tiny, "epochs": 4, "health_every": 2})
    speed = speed_of(
        steps=[10.0, *map(float, range(10))],
        startup=100.0, look=1000.0, evaluation=10_000.0, evaluated_picture=100_000.0,
    )  # fmt: skip
    # 4 epochs of 5 steps. Health checks: before the first step, after 10 even steps and after steps
    # 5, 10, 15 and 20, of which two are even. Evaluations: val 4 times and dark once, 4 x 15 + 12
    # images.
    rest = 100 + 13 * 1000 + 5 * 10_000 + 72 * 100_000
    expected = [(rest + 20 * step) / 3600 for step in (1, 5, 9)]
    found = estimate(plan, same_speed(plan, speed), throttle=1)
    assert found.total == pytest.approx(expected)
    assert found.remaining == pytest.approx(expected)
    assert found.wall_hours == pytest.approx(expected)
    assert (found.unit, found.devices) == (CPU_RUN_HOURS, ("Thing",))


def test_the_processes_of_a_run_share_its_evaluations(tmp_path, tiny):
    plan = any_device_plan(tmp_path, tiny, resources={"gpus": 2})
    speed = speed_of(steps=(0.0,) * 3, on_gpu=True, processes=2, evaluated_picture=HOUR)
    # Two evaluations of val, 8 of whose 15 images one process has, and dark with 6.
    found = estimate(plan, same_speed(plan, speed), throttle=1)
    assert found.wall_hours.central == pytest.approx(2 * 8 + 6)
    assert found.total.central == pytest.approx(2 * (2 * 8 + 6))


@pytest.mark.parametrize(
    ("resources", "on_gpu", "counts"),
    [
        ({}, True, 1),
        ({"gpus": 4}, True, 4),
        ({"gpus": 4, "nodes": 2, "cpus": 8, "hours": 3}, True, 8),
        ({"gpus": 0.5}, True, 0.5),
        ({"gpus": 0}, True, 1),  # probed on a GPU of this machine all the same
        ({"gpus": 1, "pack": 4}, True, 0.25),
        ({"gpus": 4, "nodes": 2, "pack": 4}, False, 1),
        ({}, False, 1),
    ],
)
def test_an_hour_of_a_run_counts_its_gpus_where_there_are_any(
    tmp_path, tiny, resources, on_gpu, counts
):
    plan = any_device_plan(tmp_path, tiny, resources=resources)
    found = estimate(plan, same_speed(plan, speed_of(on_gpu=on_gpu)), throttle=1)
    assert found.unit == (GPU_HOURS if on_gpu else CPU_RUN_HOURS)
    assert found.total.central == pytest.approx(10 * counts)  # two epochs of five steps
    assert found.wall_hours.central == pytest.approx(10)
    status = {plan.runs[0].id: Status("running", spent=2 * HOUR)}
    assert used(plan, status, found) == pytest.approx(2 * counts)


@pytest.mark.parametrize(
    ("resources", "processes"),
    [({}, 1), ({"gpus": 0}, 1), ({"gpus": 4}, 4), ({"gpus": 4, "nodes": 2}, 8),
     ({"gpus": 4, "pack": 4}, 1), ({"gpus": 1, "pack": 3}, 1), ({"gpus": 0.5}, 1)],
)  # fmt: skip
def test_a_run_is_measured_as_one_process_of_those_that_will_train_it(
    tmp_path, tiny, resources, processes
):
    (probe,) = wanted_probes(any_device_plan(tmp_path, tiny, resources=resources))
    assert probe.processes == processes
    (alone,) = wanted_probes(any_device_plan(tmp_path, tiny))
    assert (probe.key == alone.key) is (processes == 1)


def test_each_axis_has_its_shares(tmp_path, tiny):
    plan = any_device_plan(
        tmp_path,
        tiny,
        grid={"cl_mode": ["none", "dense"], "queue_size": [100, 200]},
        seeds=2,
        resources={"gpus": 1, "when": [{"where": {"cl_mode": "dense"}, "gpus": 2}]},
    )
    # A step of the three cells takes 1, 2 and 3 hours, and a run has 10 steps; dense counts twice.
    hours = {"none": 1, "dense 100": 2, "dense 200": 3}
    speeds = {}
    for probe in wanted_probes(plan):
        mode = probe.config.cl_mode
        name = mode if mode == "none" else f"{mode} {probe.config.queue_size}"
        speeds[probe.key] = speed_of(steps=(hours[name] * HOUR,) * 20, on_gpu=True)
    found = estimate(plan, speeds, throttle=2, runs=plan.runs[1:])
    assert found.total.central == pytest.approx(2 * (10 + 40 + 60))
    assert found.remaining.central == pytest.approx(2 * (10 + 40 + 60) - 10)
    assert (len(found.runs), found.to_run) == (6, 5)
    assert found.shares["cl_mode"] == pytest.approx({"none": 10 / 110, "dense": 100 / 110})
    assert found.shares["queue_size"] == pytest.approx(
        {"–": 10 / 110, "100": 40 / 110, "200": 60 / 110}
    )
    # Two at a time: 20 and 30, then 10 after the 20; then 20 and 30 on what is free at 30.
    assert found.wall_hours.central == pytest.approx(60)
    assert {found.runs[run.id].central for run in plan.runs} == {10, 40, 60}


def test_runs_that_ask_for_no_gpu_have_a_cost_where_the_probe_used_one(tmp_path, tiny):
    grid = {"cl_mode": ["none", "dense"]}
    plan = any_device_plan(tmp_path, tiny, grid=grid, resources={"gpus": 0})
    found = estimate(plan, same_speed(plan, speed_of(on_gpu=True)), throttle=1)
    assert found.total.central == pytest.approx(2 * 10)
    assert found.shares["cl_mode"] == pytest.approx({"none": 0.5, "dense": 0.5})


def test_nothing_is_left_of_a_sweep_that_is_finished(tmp_path, tiny):
    plan = plan_of(tmp_path, tiny)
    found = estimate(plan, same_speed(plan, speed_of()), throttle=3, runs=[])
    assert (found.remaining, found.wall_hours) == ((0, 0, 0), (0, 0, 0))
    check_budget(found, 1e-9)


# How long it takes


def ticks(durations, slots):
    """Simulate hour by hour: finished runs leave, and waiting ones take their places."""
    waiting, working, hour = list(durations), [], 0
    while True:
        working = [end for end in working if end > hour]
        while waiting and len(working) < slots:
            working.append(hour + waiting.pop(0))
            working = [end for end in working if end > hour]
        if not working and not waiting:
            return hour
        hour += 1


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 5))
def test_jobs_take_the_slot_that_is_free_first(durations, slots):
    found = estimate_module._makespan(durations, slots)
    assert found == ticks(durations, slots)
    if durations:  # Graham's bounds
        assert found >= max(max(durations), math.ceil(sum(durations) / slots))
        assert found <= sum(durations) / slots + (1 - 1 / slots) * max(durations)


def test_runs_that_are_packed_share_a_job(tmp_path, tiny):
    plan = any_device_plan(
        tmp_path,
        tiny,
        grid={"cl_mode": ["none", "global", "dense"]},
        seeds=3,
        resources={"gpus": 1, "pack": 2, "when": [{"where": {"cl_mode": "dense"}, "pack": 1}]},
    )
    jobs = estimate_module._jobs(plan.runs)
    assert [[(run.config.cl_mode, run.seed) for run in job] for job in jobs] == [
        [("none", 0), ("global", 0)],
        [("dense", 0)],
        [("none", 1), ("global", 1)],
        [("dense", 1)],
        [("none", 2), ("global", 2)],
        [("dense", 2)],
    ]
    hours = {"none": 1, "global": 2, "dense": 4}
    speeds = {
        probe.key: speed_of(steps=(hours[probe.config.cl_mode] * HOUR,) * 20, on_gpu=True)
        for probe in wanted_probes(plan)
    }
    found = estimate(plan, speeds, throttle=1)
    # A job of none and global takes as long as global; each of its runs counts half a GPU.
    assert found.wall_hours.central == pytest.approx(3 * (20 + 40))
    assert found.total.central == pytest.approx(3 * (10 / 2 + 20 / 2 + 40))


# Output and refusals


def test_the_lines_for_a_terminal(tmp_path, tiny):
    plan = plan_of(tmp_path, tiny, grid={"cl_mode": ["none", "global"]}, seeds=2)
    steps = [1.5 * HOUR, *(HOUR * (0.5 + i / 10) for i in range(10))]  # 0.5, 0.6, ... 1.5 hours
    speeds = same_speed(plan, speed_of(steps=steps, on_gpu=True))
    found = estimate(plan, speeds, throttle=2, runs=plan.runs[2:])
    assert estimate_lines(found) == [
        "estimated cost: 4 runs, 40 GPU-hours (24 to 56)",
        "still to be spent: 2 runs, 20 GPU-hours (12 to 28)",
        "wall time: 10.0 h (6.0 h to 14.0 h), 2 at a time",
        "share of cl_mode: none 50 %, global 50 %",
        "measured on Thing",
    ]
    record = json.loads(json.dumps(estimate_record(found)))
    assert record["remaining"] == pytest.approx({"low": 12, "central": 20, "high": 28})
    assert record["wall_hours"].keys() == record["total"].keys()
    assert record["runs"].keys() == {run.id for run in plan.runs}
    assert record["runs"][plan.runs[0].id]["central"] == pytest.approx(10)
    assert (record["unit"], record["to_run"], record["throttle"]) == ("GPU-hours", 2, 2)
    assert record["devices"] == ["Thing"]
    assert record["shares"] == {"cl_mode": pytest.approx({"none": 0.5, "global": 0.5})}


@pytest.mark.parametrize(
    ("hours", "words"),
    [(0.001, "4 s"), (0.2, "12 min"), (1.0, "1.0 h"), (47.9, "47.9 h"), (60.0, "2.5 days")],
)
def test_a_wall_time_is_told_in_its_unit(hours, words):
    assert budget._duration(hours) == words


@pytest.mark.parametrize(
    ("text", "hours"),
    [("200gpuh", 200), ("200 gpuh", 200), ("12.5gpuh", 12.5), (" 0.5gpuh ", 0.5)],
)
def test_budgets(text, hours):
    assert parse_budget(text) == hours


@pytest.mark.parametrize(
    "text",
    ["200", "gpuh", "", "0gpuh", "-3gpuh", "2e3gpuh", "1,000gpuh", "nangpuh", "200 gpu h", "٣gpuh"],
)
def test_what_is_no_budget(text):
    with pytest.raises(UserError, match="must be a number of GPU-hours above 0, such as 200gpuh"):
        parse_budget(text)


def test_more_than_the_budget_is_refused_with_both_numbers(tmp_path, tiny):
    plan = plan_of(tmp_path, tiny, seeds=3)
    steps = [1.5 * HOUR, *(HOUR * (0.5 + i / 10) for i in range(10))]
    speeds = same_speed(plan, speed_of(steps=steps, on_gpu=True))
    whole = estimate(plan, speeds, throttle=1)  # 3 x 10 hours
    check_budget(whole, 30.001)
    with pytest.raises(UserError) as refused:
        check_budget(whole, 29)
    assert str(refused.value) == (
        "--budget: the 3 runs that are not finished would cost about 30 GPU-hours (up to 42), "
        "more than the 29 of the budget"
    )
    # Finished runs cost nothing more.
    check_budget(estimate(plan, speeds, throttle=1, runs=plan.runs[1:]), 29)


# Measuring, and storing the measurements


def test_what_was_measured_is_not_measured_again(tmp_path, tiny):
    plan = plan_of(tmp_path, tiny, grid={"cl_mode": ["none", "global"]}, seeds=2)
    probes, file = wanted_probes(plan), speeds_file(plan)
    assert file == tmp_path / "outputs" / "sweeps" / "little" / "estimate.json"
    speed = speed_of(steps=[1.0, 2.0, 3.0])
    here = Found(lambda _: entry_of(speed))
    found = measure(plan, probes, file, here.place)
    assert [item["key"] for item in here.asked] == [probe.key for probe in probes]
    assert here.asked[0]["config"] == json.loads(json.dumps(probes[0].config.model_dump()))
    assert here.asked[0]["processes"] == 1
    assert found[probes[1].key].steps == [1.0, 2.0, 3.0]
    assert measure(plan, probes, file, here.place) == found
    assert len(here.asked) == 2
    assert [path.name for path in file.parent.iterdir()] == ["estimate.json"]

    # One more value of an axis: only its kind is measured. Another machine: all kinds are.
    more = plan_of(tmp_path, tiny, grid={"cl_mode": ["none", "global", "dense"]})
    measure(more, wanted_probes(more), file, here.place)
    assert [item["config"]["cl_mode"] for item in here.asked[2:]] == ["dense"]
    measure(more, wanted_probes(more), file, here.place)
    assert len(here.asked) == 3
    there = Found(lambda _: entry_of(speed), name="there")
    measure(more, wanted_probes(more), file, there.place)
    assert len(there.asked) == 3

    # Measurements of another version are ignored.
    write_json(file, {**read_json(file), "format": [1, 0]})
    measure(plan, probes, file, here.place)
    assert len(here.asked) == 5


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ({"error": "batch_size: 9 is too much"}, 0, "sweep.yaml: batch_size: 9 is too much"),
        (None, -9, "sweep.yaml: ended with exit code -9 and no message"),
    ],
)
def test_a_probe_that_fails_is_the_users_to_mend_and_the_others_are_kept(
    tmp_path, tiny, answer, code, words
):
    plan = plan_of(tmp_path, tiny, grid={"cl_mode": ["none", "global"]})
    file = speeds_file(plan)
    good = entry_of(speed_of())
    here = Found(lambda config: answer if config["cl_mode"] == "global" else good, code)
    with pytest.raises(UserError) as error:
        measure(plan, wanted_probes(plan), file, here.place)
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    assert str(error.value).endswith("(measuring global)")
    again = Found(lambda _: good)
    measure(plan, wanted_probes(plan), file, again.place)
    assert [item["config"]["cl_mode"] for item in again.asked] == ["global"]


def test_what_was_measured_before_the_user_stopped_is_kept(tmp_path, tiny):
    plan = plan_of(tmp_path, tiny, grid={"cl_mode": ["none", "global"]})
    good = entry_of(speed_of())
    here = Found(lambda config: KeyboardInterrupt if config["cl_mode"] == "global" else good)
    with pytest.raises(KeyboardInterrupt):
        measure(plan, wanted_probes(plan), speeds_file(plan), here.place)
    again = Found(lambda _: good)
    measure(plan, wanted_probes(plan), speeds_file(plan), again.place)
    assert [item["config"]["cl_mode"] for item in again.asked] == ["global"]


def test_an_estimate_is_remembered_for_the_runs_of_a_plan(tmp_path, tiny, monkeypatch):
    plan = plan_of(tmp_path, tiny, grid={"cl_mode": ["none", "global"]})
    assert load_estimate(plan) is None
    assert not plan.outputs.exists(), "looking creates nothing"
    times = iter([1000.0, 2000.0, 3000.0])
    monkeypatch.setattr("time.time", lambda: next(times))
    probes, file = wanted_probes(plan), speeds_file(plan)
    speeds = {}
    for name, hours in (("first", 1), ("second", 2)):
        place = Found(lambda _, h=hours: entry_of(speed_of((h * HOUR,) * 20)), name=name).place
        speeds[name] = measure(plan, probes, file, place)
    assert load_estimate(plan) == estimate(plan, speeds["second"], 1)
    # A place that knows one kind alone says nothing of the plan, though it was measured last.
    third = Found(lambda _: entry_of(speed_of((9 * HOUR,) * 20)), name="third").place
    measure(plan, probes[:1], file, third)
    assert load_estimate(plan) == estimate(plan, speeds["second"], 1)
    more = plan_of(tmp_path, tiny, grid={"cl_mode": ["none", "global", "dense"]})
    assert load_estimate(more) is None


def test_real_probes_of_a_sweep_and_one_that_cannot_work(tmp_path, tiny, capfd):
    plan = plan_of(tmp_path, tiny, grid={"batch_size": [8, 64]})
    with pytest.raises(UserError, match="batch_size: 64 is more than the 42 training images"):
        measure(plan, wanted_probes(plan), speeds_file(plan), this_machine())
    assert "measuring 2 of 2" in capfd.readouterr().err
    works = plan_of(tmp_path, tiny, grid={"batch_size": [8]})
    found = load_estimate(works)
    assert found.unit == CPU_RUN_HOURS
    assert 0 < found.total.low <= found.total.central <= found.total.high


def test_estimating_imports_nothing_heavy(tmp_path):
    loaded = imported_by("import densevit.cost.estimate", tmp_path)
    assert loaded.isdisjoint(HEAVY)

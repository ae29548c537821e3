"""Small synthetic frames of a sweep, as `collect` and `stats` return them, and readers of figures."""

import itertools

import numpy as np
import pandas as pd

from densevit.results.tables.main_table import CellTable

BENCHMARKS = ("val", "imagenet-a", "imagenet-r", "imagenet-v2", "imagenet-sketch",
              "stylized-imagenet", "imagenet-real")  # fmt: skip
LONG = "dense · a label of $many words$ and an_underscore that nobody would ever write " * 2
AXES = {"cl_mode": ("none", "dense"), "temperature": (0.2, 0.07, 0.1), "queue": (1, 2, 65536)}


def make_cells(count, labels=()):
    """Return the cells of a grid over three axes; two axes do not apply to the first cell, `none`."""
    combinations = [("none", None, None), *itertools.product(
        ("global", "dense"), (0.1, 0.2, 0.07, 0.05), (1024, 256, 4096, 16384, 65536))]  # fmt: skip
    rows = [
        {"cell": f"c{i}", "label": " · ".join("–" if v is None else str(v) for v in values)}
        | dict(zip(("cl_mode", "temperature", "queue_size"), values, strict=True))
        for i, values in enumerate(combinations[:count])
    ]
    frame = pd.DataFrame(rows)
    for name in ("temperature", "queue_size"):
        frame[name] = pd.Series([row[name] for row in rows], dtype=object)
    frame.loc[: len(labels) - 1, "label"] = list(labels)
    return frame


def make_frame(cells, seeds=3, benchmarks=BENCHMARKS, chance=0):
    chance, rows = np.random.default_rng(chance), []
    for cell, seed in itertools.product(cells["cell"], range(seeds)):
        base = 70 + chance.normal(0, 2)
        about = {
            "run": f"{cell}-s{seed}",
            "cell": cell,
            "seed": seed,
            "state": "finished",
            "n": 50_000,
        }
        for place, name in enumerate(benchmarks):
            value = base - 8 * place + chance.normal()
            among = 200.0 if name in ("imagenet-a", "imagenet-r") else 1000.0
            for metric, number in (("top1", value), ("ways", among)):
                rows.append({**about, "benchmark": name, "metric": metric, "value": number})
        for metric in ("top1_imagenet-a", "top1_imagenet-r", "real_top1"):
            rows.append({**about, "benchmark": "val", "metric": metric, "value": base + 15})
    return pd.DataFrame(rows)


def make_curves(cells, seeds=3, epochs=20, names=("val/top1",), chance=0):
    chance, parts = np.random.default_rng(chance), []
    for cell, seed, name in itertools.product(cells["cell"], range(seeds), names):
        epoch = np.arange(1.0, epochs + 1)
        values = 60 * (1 - np.exp(-epoch / 8)) + chance.normal(0, 1, epochs)
        parts.append(
            pd.DataFrame({
                "run": f"{cell}-s{seed}", "cell": cell, "seed": seed,
                "step": (100 * epoch).astype(int), "epoch": epoch, "name": name, "value": values,
            })
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def make_differences(cells, benchmarks=BENCHMARKS, chance=0):
    chance, rows = np.random.default_rng(chance), []
    for cell, name in itertools.product(cells["cell"][1:], benchmarks):
        value, half = chance.normal(), 0.3 + abs(chance.normal())
        verdict = "established" if abs(value) > half else "too noisy"
        rows.append({
            "cell": cell, "baseline": "c0", "benchmark": name, "metric": "top1", "n": 5,
            "difference": value, "low": value - half, "high": value + half, "verdict": verdict,
        })  # fmt: skip
    return pd.DataFrame(rows)


def make_marginals(benchmarks=("val",), chance=0):
    chance, rows = np.random.default_rng(chance), []
    for name, (axis, (first, *others)) in itertools.product(benchmarks, AXES.items()):
        for level in others:
            value, half = chance.normal(), 0.3 + abs(chance.normal())
            rows.append({
                "axis": axis, "level": level, "reference": first, "contexts": 3, "n": 9,
                "difference": value, "low": value - half, "high": value + half, "p": 0.1,
                "p_holm": 0.01 if abs(value) > half else 0.6, "benchmark": name,
            })  # fmt: skip
    return pd.DataFrame(rows)


def make_costs(cells, seeds=2, chance=0):
    chance, rows = np.random.default_rng(chance), []
    for cell, seed in itertools.product(cells["cell"], range(seeds)):
        phases = ("data_ms", "augment_ms", "forward_ms", "contrastive_ms", "backward_ms")
        times = {name: chance.uniform(5, 60) for name in phases}
        memory = chance.uniform(5000, 9000)
        rows.append({"run": f"{cell}-s{seed}", "cell": cell, "seed": seed,
                     "gpu_hours": chance.uniform(1, 9),
                     "kwh": np.nan, "peak_memory_mib": memory, "step_ms": sum(times.values()), **times})  # fmt: skip
    return pd.DataFrame(rows)


def make_table(cells, frame, benchmarks=BENCHMARKS):
    data = cells[["cell", "label"]].assign(seeds=3, n=3)
    top1 = frame[frame["metric"] == "top1"].groupby(["cell", "benchmark"])["value"]
    for name in benchmarks:
        of = [(cell, name) for cell in cells["cell"]]
        data[f"{name}_mean"], data[f"{name}_std"] = top1.mean()[of].values, top1.std()[of].values
        data[f"{name}_low"] = data[f"{name}_mean"] - 1.25
        data[f"{name}_high"] = data[f"{name}_mean"] + 1.5
        data[f"{name}_n"] = 3
    return CellTable("top1", (), tuple(benchmarks), data, intervals=True)


def lines_of(axes, marker=None):
    return [line for line in axes.get_lines() if marker is None or line.get_marker() == marker]


def notes(figure):
    return " ".join(figure.get_supxlabel().split())

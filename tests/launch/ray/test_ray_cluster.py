"""The resources that a run requests from Ray: `ray:` overrides the sweep's, exceptions override
both."""

import pytest

from densevit.config import yaml_file
from densevit.launch.ray.cluster import needs, processes
from densevit.sweep.plan import make_plan


@pytest.mark.parametrize(
    ("resources", "ray", "count", "wanted"),
    [
        ({}, {}, 1, (1, 0)),
        ({"gpus": 1, "cpus": 8}, {}, 1, (8, 1)),
        ({"gpus": 1, "cpus": 8, "pack": 4}, {}, 1, (2, 0.25)),
        ({"gpus": 1, "cpus": 8}, {"gpus_per_run": 0.5, "cpus_per_run": 2}, 1, (2, 0.5)),
        ({"gpus": 1, "when": [{"where": {"cl_mode": "dense"}, "gpus": 1}]}, {"gpus_per_run": 0.25}, 1, (1, 1)),
        ({"gpus": 1, "when": [{"where": {"cl_mode": "none"}, "gpus": 1}]}, {"gpus_per_run": 0.25}, 1, (1, 0.25)),
        ({"gpus": 1, "when": [{"where": {"cl_mode": "dense"}, "pack": 2}]}, {"gpus_per_run": 1}, 1, (1, 0.5)),
        ({"gpus": 4, "cpus": 32}, {}, 4, (8, 1)),
        ({"gpus": 2, "cpus": 8, "nodes": 2}, {}, 4, (4, 1)),
        ({"nodes": 2, "cpus": 3}, {}, 2, (3, 0)),
        ({"nodes": 2, "gpus": 0.5}, {}, 2, (1, 1)),
        ({"gpus": 4, "cpus": 8}, {"gpus_per_run": 0.25}, 1, (8, 0.25)),
        ({}, {"gpus_per_run": 2, "cpus_per_run": 4}, 2, (2, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_needs(tmp_path, resources, ray, count, wanted):
    file = tmp_path / "s.yaml"
    (tmp_path / "base.yaml").write_text("dataset: shapes\n")
    grid = {"cl_mode": ["dense"]}
    file.write_text(yaml_file.dump({"name": "s", "base": "base.yaml", "grid": grid,
                                   "resources": resources, "ray": ray}))  # fmt: skip
    plan = make_plan(file, tmp_path / "o")
    run = plan.runs[0]
    assert processes(plan, run) == count
    assert needs(plan, run) == dict(zip(("CPU", "GPU"), wanted, strict=True))

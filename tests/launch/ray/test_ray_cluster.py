"""The resources that a run requests from Ray: `ray:` overrides the sweep's, exceptions override
both."""

import pytest

from densevit.config import yaml_file
from densevit.launch.ray.cluster import address, needs, processes
from densevit.sweep.plan import make_plan
from densevit.utils.errors import UserError


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


def test_an_address_of_ray_client_is_told_wherever_it_is_given(tmp_path, monkeypatch):
    file = tmp_path / "s.yaml"
    file.write_text("name: s\nray: {address: ray://head:10001}\n")
    told = (
        "'ray://head:10001' must not be an address of Ray Client; give HOST:PORT of the head node"
    )
    with pytest.raises(UserError, match=f"s.yaml: ray.address: {told}"):
        make_plan(file, tmp_path)
    file.write_text("name: s\n")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match=rf"^\$RAY_ADDRESS: {told}"):
        address(make_plan(file, tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "head")
    with pytest.raises(UserError, match="'head' must be auto, local or HOST:PORT"):
        address(make_plan(file, tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert address(make_plan(file, tmp_path)) == "local"

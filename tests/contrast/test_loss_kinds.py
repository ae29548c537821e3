"""A new kind of contrastive loss: a record and a module, here those of this test, and nothing else."""

import forked
import pytest
from pydantic import ValidationError
from tiny import TINY

from densevit.config import loss_kinds, yaml_file
from densevit.config.identity import science
from densevit.config.loss_kinds import LossKind
from densevit.config.run_config import RunConfig
from densevit.contrast.pairs import PairFunctions, Pairs, project_keys, unit
from densevit.data.shapes import dataset
from densevit.runs import checkpoint
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import read_metrics
from densevit.sweep.plan import make_plan


def pair_blocks(config, view1, view2, draws, true_matches):
    """Each query is the mean of a block of patches; its positive is the same block of view 2."""

    def blocks(patches):
        return patches.unflatten(1, (config.query_patches, -1)).mean(dim=2)

    keys = project_keys(view2.head, blocks(view2.tokens.patches))
    queries = unit(view1.head(blocks(view1.tokens.patches)))
    return Pairs(queries.flatten(0, 1), unit(keys).flatten(0, 1), keys)


FUNCTIONS = PairFunctions(pair_blocks, queue_keys=lambda config, pairs, *_: unit(pairs.keys))
BLOCKS = LossKind(
    "blocks", __name__, tokens="patches", help="blocks of patches",
    fields={"query_patches": None}, joint=lambda dense: dense,
)  # fmt: skip


def sweep_with_blocks(arguments):
    """The command `densevit-sweep` of somebody who has added the record, on fewer images."""
    loss_kinds.LOSS_KINDS += (BLOCKS,)
    dataset.COUNTS.update({**dict.fromkeys(dataset.SPLITS, 20), "train": 100})
    return forked.sweep(arguments)


@pytest.fixture
def _blocks(monkeypatch):
    monkeypatch.setattr(loss_kinds, "LOSS_KINDS", (*loss_kinds.LOSS_KINDS, BLOCKS))


@pytest.mark.usefixtures("_blocks")
def test_a_sweep_with_a_new_kind_of_loss(tmp_path):
    settings = {**TINY, "dataset": "shapes", "data_dir": str(tmp_path / "shapes"), "epochs": 1}
    settings["query_patches"] = 4
    (tmp_path / "base.yaml").write_text(yaml_file.dump(settings))
    file = tmp_path / "sweep.yaml"
    grid = {"cl_mode": ["blocks", "joint"]}
    file.write_text(yaml_file.dump({"name": "kinds", "base": "base.yaml", "grid": grid}))
    outputs = tmp_path / "outputs"
    done = forked.done(["run", file, "--outputs", outputs, "--no-tracking"], work=sweep_with_blocks)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {run.config.cl_mode: run for run in make_plan(file, outputs).runs}
    folders = {mode: RunFolder(outputs / "runs" / run.id) for mode, run in runs.items()}
    assert {folder.status().state for folder in folders.values()} == {"finished"}

    logged = {
        mode: {name for line in read_metrics(folder.metrics_file)[0] for name in line}
        for mode, folder in folders.items()
    }
    assert "train/contrastive_loss" in logged["blocks"]
    assert {"train/blocks_loss", "train/global_loss", "train/dense_loss"} <= logged["joint"]
    for names in logged.values():
        assert {"health/blocks_effective_rank", "health/blocks_queue_age"} <= names
    assert not [name for name in logged["blocks"] if "dense" in name]

    state = checkpoint.load(folders["blocks"].checkpoint_folder, runs["blocks"].id)
    assert (state["contrast"]["queues.blocks.image_ids"] >= 0).all(), "its queue is full of keys"
    assert any(name.startswith("heads.blocks") for name in state["model"])


@pytest.mark.usefixtures("_blocks")
def test_the_fields_of_a_new_kind_enter_the_identity_where_they_have_an_effect():
    given, rate = {"query_patches": 4, "sampled_patches": 7}, {"learning_rate": 2.5e-4}
    wanted = {"cl_mode": "blocks", "query_patches": 4, **rate}
    assert science(RunConfig(cl_mode="blocks", **given)) == wanted
    assert science(RunConfig(cl_mode="global", **given)) == {"cl_mode": "global", **rate}
    assert science(RunConfig(cl_mode="dense", **given)) == {**given, **rate}


def test_a_mode_is_a_kind_of_loss_that_is_listed(monkeypatch):
    with pytest.raises(ValidationError):
        RunConfig(cl_mode="blocks")
    monkeypatch.setattr(loss_kinds, "LOSS_KINDS", (*loss_kinds.LOSS_KINDS, BLOCKS))
    assert RunConfig(cl_mode="blocks").cl_mode == "blocks"

"""`densevit eval` on a run, a checkpoint and a file, and metrics recomputed from predictions."""

import json
import shutil

import forked
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from densevit.cli.main import main
from densevit.config.run_config import RunConfig
from densevit.data.crops import plain_view
from densevit.data.fingerprint import fingerprint
from densevit.data.open_benchmark import open_benchmark
from densevit.models.load import load_model
from densevit.runs.directory import RunFolder
from densevit.train.execute import execute
from densevit.utils.files import read_json
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blobs):
    """Return a finished run in an outputs folder; do not change it."""
    from tiny import TINY

    outputs = tmp_path_factory.mktemp("outputs")
    config = RunConfig(**{**TINY, "data_dir": str(blobs), "cl_mode": "none"})
    folder = RunFolder(outputs / "runs" / "abc")
    folder.create(config)
    assert execute(folder) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """Return a copy of the run, and a function that evaluates in its outputs folder."""
    outputs = tmp_path / "outputs"
    shutil.copytree(trained.path.parent.parent, outputs)

    def call(*words):
        return main(["eval", *map(str, words), "--outputs", str(outputs), "--workers", "0"])

    return RunFolder(outputs / "runs" / "abc"), call


def numbers_of(folder):
    return read_json(folder.results_file)["benchmarks"]


def test_a_run_on_its_own_sets_and_on_another(run, blobs, capsys):
    folder, call = run
    before = numbers_of(folder)
    assert call("abc") == 0
    assert numbers_of(folder)["val"] == pytest.approx(before["val"], rel=1e-5)
    assert call("abc", f"night={blobs / 'dark'}", "--batch-size", 5) == 0
    assert numbers_of(folder)["night"]["n"] == 12
    assert numbers_of(folder).keys() == {"val", "night"}
    # A sweep that names other images `night` is not told that it has their number.
    night = fingerprint(open_benchmark("night", str(blobs / "dark"), ("blue", "green", "red"), ""))
    assert read_json(folder.fingerprint_file)["benchmarks"]["night"] == night
    assert "night: top-1" in capsys.readouterr().out


def test_its_checkpoint_and_the_file_it_exports_answer_as_it_does(run, blobs, tmp_path):
    folder, call = run
    dark = f"dark={blobs / 'dark'}"
    assert call(folder.path, dark) == 0
    wanted = numbers_of(folder)["dark"]
    (checkpoint,) = sorted(folder.checkpoint_folder.glob("*.pt"))[-1:]
    assert call(checkpoint, dark, "--to", tmp_path / "one") == 0
    assert wanted.pop("matched_clean") >= 0, "the run's folder has answers to val, others none"
    assert numbers_of(RunFolder(tmp_path / "one"))["dark"] == pytest.approx(wanted)
    outputs = str(folder.path.parent.parent)
    assert main(["export", "abc", "--to", str(tmp_path / "net.safetensors"), "--outputs", outputs]) == 0  # fmt: skip
    assert call(tmp_path / "net.safetensors", dark) == 0
    evaluated = RunFolder(folder.path.parent.parent / "evals" / "net")
    assert numbers_of(evaluated)["dark"] == pytest.approx(wanted, rel=1e-5)


def test_from_predictions_needs_neither_network_nor_pictures(run, capsys):
    folder, call = run
    held = numbers_of(folder)
    shutil.rmtree(folder.checkpoint_folder)
    record = read_json(folder.results_file)
    record["benchmarks"]["val"] = {"top1": 0.0, "n": 15}
    folder.results_file.write_text(json.dumps(record))
    assert call("abc", "--from-predictions") == 0
    assert numbers_of(folder) == held
    shutil.rmtree(folder.path / "predictions")
    assert call("abc", "--from-predictions") == 2
    assert "holds no predictions" in capsys.readouterr().err


def test_weights_of_timm_in_a_file_have_timms_own_transform(tmp_path):
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, img_size=224)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    named = load_model(str(tmp_path / "weights.safetensors"), None, name)
    assert len(named.classes) == 1000
    wanted = timm.data.resolve_data_config({}, model=model)
    theirs = timm.data.create_transform(**wanted, is_training=False)
    noise = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    ours = plain_view(named.image_size, **named.preprocessing)
    assert torch.equal(ours(picture), theirs(picture))
    batch = ours(picture)[None]
    model.eval()
    named.model.eval()
    with torch.inference_mode():
        assert torch.equal(named.model(batch), model(batch))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["abd"], "no run, file or timm model has this name"),
        (["vit_tiny_patch16_225", "imagenet-a"], "did you mean 'vit_tiny_patch16_224'"),
        (["nowhere/net.safetensors", "imagenet-a"], "no such run, checkpoint or file"),
        (["abc", "imagenet-a"], "has no path; give its path"),
        (["abc", "mine=/nowhere"], "no such folder"),
        (["abc", "night", "--from-predictions"], "recomputes all stored benchmarks; name none"),
        (["abc", "../../evil=/nowhere"], "a name has letters, digits"),
        (["abc", "=/nowhere"], "a name has letters, digits"),
        (["abc", "val=/nowhere"], "val is one of the run's own"),
        (["abc", "knn=/nowhere"], "a path other than the run's own needs --to DIR"),
        (["abc", "knn=/nowhere", "--to", "there"], "knn: /nowhere: no such folder"),
        (["abc", "dense-probe"], "dense-probe: no masks are given; give dense-probe=PATH"),
        (["abc", "knn", "knn"], "knn is given twice"),
        (["abc", "dense-probe=shapes", "--to", "there", "--void", "0"], "void: [0]: is for masks"),
        (
            ["abc", "dense-probe=/x", "--void", "0", "300"],
            "--void: [0, 300]: must be values from 0",
        ),
    ],
)
def test_a_mistake_is_one_line(run, capsys, monkeypatch, words, told):
    monkeypatch.delenv("DENSEVIT_DATA", raising=False)
    assert run[1](*words) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1


def test_a_probe_is_not_scored_on_the_images_it_was_fitted_to(run, capsys, tmp_path, blobs):
    for split in ("train", "val"):
        (tmp_path / "twice" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "twice" / split).symlink_to(blobs / "train")
    assert run[1]("abc", f"knn={tmp_path / 'twice'}", "--to", tmp_path / "there") == 2
    shown = capsys.readouterr().err
    assert "knn: val: 100.0 % of its images are also in train: blue/0.png = blue/0.png" in shown
    assert not (tmp_path / "there").exists()
    place = (f"night={blobs / 'dark'}", "--label-column", "fine")
    assert run[1]("abc", *place) == 2
    assert "label_column: fine: is for Hugging Face data sets" in capsys.readouterr().err


def test_an_unfinished_run_wants_a_place(run, capsys, tmp_path, blobs):
    folder, call = run
    folder.results_file.unlink()
    assert call("abc") == 2
    assert "--to DIR" in capsys.readouterr().err
    assert call("abc", f"dark={blobs / 'dark'}", "--to", tmp_path / "now") == 0


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Return files of timm's smallest ViT and ResNet, with the run's classes and random weights."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    files = {}
    for name in ("test_vit", "test_resnet"):
        files[name] = folder / f"{name}.safetensors"
        model = timm.create_model(name, num_classes=1000)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, files[name])
    return files


def test_probes_of_any_network_on_any_pictures(networks, blobs, tmp_path, monkeypatch):
    def call(name, *words):
        words = [networks[name], *words, "--model-name", name, "--workers", "0"]
        return main(["eval", *map(str, words)])

    name, to = "test_vit", tmp_path / "vit"
    wanted = ["knn", "knn-patch", "linear-probe"]
    assert call(name, *(f"{probe}={blobs}" for probe in wanted), "--to", to, "--keep-features") == 0
    found = numbers_of(RunFolder(to))
    assert list(found) == wanted
    # Even random features tell red from green.
    assert all(numbers["top1"] > 60 for numbers in found.values())
    (train,) = (to / "features").glob("train-both-*.npy")
    rows = np.load(train)
    assert (rows.shape, rows.dtype) == ((42, 2, 64), np.float16)
    # The network's own prediction for a training image, upright and unchanged.
    named = load_model(str(networks[name]), None, name)
    first = sorted((blobs / "train").rglob("*.png"))[0]
    view = plain_view(named.image_size, **named.preprocessing)(Image.open(first).convert("RGB"))
    with torch.inference_mode():
        tokens = named.model.eval().forward_features(view[None])[0]
    torch.testing.assert_close(
        torch.from_numpy(rows[0, 0]).float(), tokens[0], atol=5e-3, rtol=5e-3
    )
    # Kept features are not computed again.
    monkeypatch.setattr("densevit.evaluate.probes.feature_store.extract", None)
    assert call(name, f"knn={blobs}", f"knn-patch={blobs}", "--to", to) == 0
    assert numbers_of(RunFolder(to))["knn"] == found["knn"]
    assert not (to / "features").exists()


def test_a_network_without_patches_has_neighbours_and_no_dense_probe(
    networks, blobs, tmp_path, capsys
):
    file, about = str(networks["test_resnet"]), ["--model-name", "test_resnet", "--workers", "0"]
    about += ["--to", str(tmp_path / "to")]
    assert main(["eval", file, f"knn={blobs}", *about]) == 0
    assert numbers_of(RunFolder(tmp_path / "to"))["knn"]["n"] == 15
    misspelt = [word.replace("resnet", "resnat") for word in about]
    assert main(["eval", file, f"knn={blobs}", *misspelt]) == 2
    assert "timm has no such model; did you mean 'test_resnet'" in capsys.readouterr().err
    assert main(["eval", file, f"knn-patch={blobs}", *about]) == 2
    assert "knn-patch: the network has no patch tokens" in capsys.readouterr().err


def test_a_name_behind_an_option_is_told_where_it_belongs(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", "abc", "--workers", "0", "night=/nowhere"])
    assert ended.value.code == 2
    assert "night=/nowhere: unknown; put all names before" in capsys.readouterr().err


def test_two_networks_do_not_share_a_folder(run, blobs, tmp_path, capsys):
    folder, call = run
    dark = f"dark={blobs / 'dark'}"
    outputs = str(folder.path.parent.parent)
    for name in ("a", "b"):
        assert main(["export", "abc", "--to", str(tmp_path / f"{name}.safetensors"), "--outputs", outputs]) == 0  # fmt: skip
    held = load_file(tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        about = file.metadata()
    save_file({**held, "head.bias": held["head.bias"] + 1}, tmp_path / "b.safetensors", about)
    assert call(tmp_path / "a.safetensors", dark, "--to", tmp_path / "one") == 0
    assert call(tmp_path / "a.safetensors", dark, "--to", tmp_path / "one") == 0
    assert call(tmp_path / "b.safetensors", dark, "--to", tmp_path / "one") == 2
    assert "holds results of" in capsys.readouterr().err


def test_an_error_in_a_loading_process_ends_the_command(trained, tmp_path, blobs):
    """Loading processes ignore signals and Python waits for them, so they must have been stopped."""
    shutil.copytree(blobs / "dark", tmp_path / "bad")
    broken = sorted((tmp_path / "bad").rglob("*.png"))[-1]
    whole = broken.read_bytes()
    # Intact at both ends, which is all that the check before reads.
    broken.write_bytes(whole[:60] + bytes(len(whole) - 80) + whole[-20:])
    done = forked.done(["eval", trained.path, f"bad={tmp_path / 'bad'}", "--to", tmp_path / "to",
                        "--workers", "2", "--batch-size", "2"])  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert broken.name in done.stderr


def test_other_pictures_of_the_same_names_are_other_pictures(run, blobs, tmp_path):
    """Features of an earlier evaluation are found by the content of the images."""
    _, call = run
    other = shutil.copytree(blobs, tmp_path / "other")
    rng = np.random.default_rng(0)
    for file in other.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)

    def neighbours(pictures, to):
        assert call("abc", f"knn={pictures}", "--to", tmp_path / to, "--keep-features") == 0
        return numbers_of(RunFolder(tmp_path / to))["knn"]

    first, wanted = neighbours(blobs, "one"), neighbours(other, "two")
    assert first != wanted
    assert neighbours(other, "one") == wanted
    assert neighbours(blobs, "one") == first


def test_a_name_of_the_runs_own_means_its_own_pictures(run, blobs, tmp_path, monkeypatch):
    folder, call = run
    before = numbers_of(folder)["val"]
    shutil.copytree(blobs / "dark", tmp_path / "data" / "val")
    monkeypatch.setenv("DENSEVIT_DATA", str(tmp_path / "data"))
    assert call("abc", "val") == 0
    assert numbers_of(folder)["val"] == pytest.approx(before, rel=1e-5)


def test_numbers_from_predictions_alone_stay_the_networks(run, blobs, tmp_path):
    _, call = run
    assert call("abc", f"dark={blobs / 'dark'}", "--to", tmp_path / "to") == 0
    (tmp_path / "to" / "results.json").unlink()
    assert call(tmp_path / "to", "--from-predictions") == 0
    assert call("abc", f"night={blobs / 'dark'}", "--to", tmp_path / "to") == 0
    assert numbers_of(RunFolder(tmp_path / "to")).keys() == {"dark", "night"}

"""The evaluations of a run besides training: probes, watched sets, matches, and damaged images."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from densevit.cli.main import main
from densevit.config.run_config import RunConfig
from densevit.data.crops import plain_view
from densevit.data.datasets import open_data
from densevit.data.loaders import plain_batches
from densevit.evaluate import resume
from densevit.evaluate.correspondence_file import read_matches
from densevit.evaluate.metrics import score
from densevit.evaluate.predictions import read_predictions, write_predictions
from densevit.evaluate.probes import feature_store
from densevit.evaluate.probes.segmentation import dense_probe
from densevit.models.load import load_model
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import read_metrics
from densevit.train import evaluation
from densevit.train.execute import execute
from densevit.utils.errors import EXIT_CARRY_ON, EXIT_MISTAKE, Stopped, UserError
from densevit.utils.files import read_json

ALL = ["knn", "linear-probe", "dense-probe"]


@pytest.fixture(scope="module")
def masked(tmp_path_factory, blobs):
    """Return the images of `blobs` with masks: the left half is background, the right half the
    class."""
    root = tmp_path_factory.mktemp("masked")
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number, path in enumerate(sorted((blobs / split).rglob("*.png"))):
            image = Image.open(path)
            mask = np.zeros(image.size[::-1], np.uint8)
            mask[:, image.width // 2 :] = 1 + sorted(("red", "green", "blue")).index(path.parent.name)  # fmt: skip
            shutil.copy(path, root / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("background\nblue\ngreen\nred\n")
    return root


@pytest.fixture(scope="module", autouse=True)
def _short_dense_probe():
    """Use a tenth of its steps; tests/evaluate/probes/test_segmentation.py tests how well it
    learns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "densevit.evaluate.probes.segmentation.dense_probe", partial(dense_probe, steps=50)
        )
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blobs, masked):
    """Return a finished run with every kind of evaluation; do not change it."""
    from tiny import TINY

    settings = {
        **TINY, "data_dir": str(blobs), "epochs": 5, "probes": ALL, "masks": str(masked),
        "benchmarks": {"dark": str(blobs / "dark")}, "watched": ["dark", "knn"], "watch_every": 2,
        "watch_samples": 6,
    }  # fmt: skip
    folder = RunFolder(tmp_path_factory.mktemp("outputs") / "runs" / "abc")
    folder.create(RunConfig(**settings))
    assert execute(folder) == 0
    return folder


def test_each_probe_has_its_numbers(trained):
    found = read_json(trained.results_file)["benchmarks"]
    assert list(found) == ["val", "dark", *ALL]
    assert found["knn"]["n"] == found["linear-probe"]["n"] == found["dense-probe"]["n"] == 15
    assert found["dense-probe"]["miou"] > 100 / 4, "better than a guess among four classes"
    names = ("background", "blue", "green", "red")
    assert found["dense-probe"]["miou"] == pytest.approx(
        np.mean([found["dense-probe"][f"iou_{name}"] for name in names])
    )
    for name in ("knn", "linear-probe"):
        assert found[name] == score(read_predictions(trained.predictions_file(name)))


def test_the_neighbours_are_those_of_scikit_learn(trained):
    named = load_model("abc", trained, None)
    data = open_data(trained.config(), named.image_size)
    named.model.eval()

    def features(images):
        view = plain_view(named.image_size, **named.preprocessing)
        batches = plain_batches(images, view, batch_size=50, workers=0, pin=False)
        with torch.inference_mode():
            return torch.cat([named.model(batch[0]).image for batch in batches]).half().float()

    near = KNeighborsClassifier(20, metric="cosine", weights=lambda gap: np.exp((1 - gap) / 0.07))
    near.fit(features(data.train).numpy(), list(data.train.labels))
    wanted = near.predict(features(data.val).numpy())
    assert read_predictions(trained.predictions_file("knn")).top[:, 0].tolist() == wanted.tolist()


def test_watched_sets_are_looked_at_every_few_epochs(trained):
    lines = [line for line in read_metrics(trained.metrics_file)[0] if "watch/dark/top1" in line]
    assert [line["epoch"] for line in lines] == [2, 4]
    shares = [line["watch/dark/top1"] * 6 / 100 for line in lines]
    assert shares == pytest.approx([round(share) for share in shares]), "of six pictures"
    assert all("watch/knn/top1" in line for line in lines)
    assert evaluation._spread(12, 6) == [0, 2, 4, 6, 8, 10], (
        "of all classes, by which they are sorted"
    )
    assert evaluation._spread(2, 6) == [0, 1]


def test_eval_gives_the_runs_own_numbers_and_these_follow_from_the_files(trained, tmp_path):
    held = read_json(trained.results_file)["benchmarks"]
    again = RunFolder(tmp_path / "again")
    assert main(["eval", str(trained.path), "--to", str(again.path), "--workers", "0"]) == 0
    found = read_json(again.results_file)["benchmarks"]
    assert list(found) == list(held)
    for name, numbers in held.items():
        assert found[name] == pytest.approx(numbers, rel=1e-5), name
    again.results_file.unlink()
    assert main(["eval", str(again.path), "--from-predictions"]) == 0
    assert read_json(again.results_file)["benchmarks"] == found


@pytest.fixture
def copied(trained, tmp_path):
    """Return the trained run in its own folder, without its results."""
    shutil.copytree(trained.path, tmp_path / "abc")
    folder = RunFolder(tmp_path / "abc")
    folder.results_file.unlink()
    return folder


def test_what_an_interrupted_evaluation_has_answered_is_not_asked_again(
    trained, copied, monkeypatch
):
    held = read_json(trained.results_file)["benchmarks"]
    copied.predictions_file("dark").unlink()
    write_predictions(
        read_predictions(copied.predictions_file("knn")), copied.predictions_file("knn"), "x"
    )
    asked = []

    def spied(where, what):
        own = getattr(evaluation, where)

        def spy(*words, **named):
            asked.append(what(words))
            return own(*words, **named)

        monkeypatch.setattr(evaluation, where, spy)

    spied("predict_together", lambda words: words[1].name)
    spied("run_probe", lambda words: words[0])
    assert execute(copied) == 0
    assert asked == ["dark", "knn"], "what is missing, and what another network has answered"
    found = read_json(copied.results_file)["benchmarks"]
    assert found == {name: pytest.approx(numbers) for name, numbers in held.items()}


def test_a_large_set_is_carried_on_where_it_was_interrupted(trained, copied, monkeypatch):
    wanted = read_predictions(trained.predictions_file("dark"))
    copied.predictions_file("dark").unlink()
    monkeypatch.setattr(resume, "PART", 5)
    asked, own = [], evaluation.predict_together

    def interrupted(*words, chosen, **named):
        asked.append(list(chosen))
        if len(asked) == 3:
            raise Stopped("SIGTERM")
        return own(*words, chosen=chosen, **named)

    monkeypatch.setattr(evaluation, "predict_together", interrupted)
    assert execute(copied) == EXIT_CARRY_ON
    assert execute(copied) == 0
    assert asked == [[*range(5)], [*range(5, 10)], [10, 11], [10, 11]]
    found = read_predictions(copied.predictions_file("dark"))
    assert found.samples == wanted.samples
    for name in ("labels", "top", "losses"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5)
    assert list((copied.path / "predictions" / "parts").iterdir()) == []


def test_features_are_found_again_and_let_go_at_the_end(copied, monkeypatch):
    for name in ALL:
        copied.predictions_file(name).unlink()
    made, own = [], feature_store.extract

    def spy(*words, **named):
        made.append(named["tokens"])
        return own(*words, **named)

    monkeypatch.setattr(feature_store, "extract", spy)

    def broken(*_, **__):
        raise Stopped("SIGTERM")

    with monkeypatch.context() as patched:
        patched.setattr("densevit.evaluate.probes.linear.linear_probe", broken)
        assert execute(copied) == EXIT_CARRY_ON
    assert made == ["cls", "cls"]
    assert len(list(copied.features_folder.iterdir())) == 2
    assert execute(copied) == 0
    assert made[2:] == ["patches", "patches"], "the dense probe's; the linear probe's were there"
    assert not copied.features_folder.exists()


def test_other_masks_than_the_run_has_seen_are_refused(copied, masked, tmp_path):
    shutil.copytree(masked, tmp_path / "masks")
    for part in ("images", "masks"):
        (tmp_path / "masks" / "val" / part / "0.png").unlink()
    copied.create(RunConfig(**{**copied.config().model_dump(), "masks": str(tmp_path / "masks")}))
    assert execute(copied) == EXIT_MISTAKE
    assert "the masked val images have changed" in copied.status().message


def test_matches_before_and_after_training(trained):
    before, after = (read_matches(trained.matches_file(when)) for when in ("before", "after"))
    assert len(before) == len(after) == 3
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one.views.pixels, other.views.pixels)
        assert np.array_equal(one.truth, other.truth)
    assert any(not np.array_equal(b.similarity, a.similarity) for b, a in zip(before, after, strict=True))  # fmt: skip
    with pytest.raises(UserError, match=r"gone\.npz: cannot be read"):
        read_matches(trained.path / "gone.npz")


@pytest.mark.parametrize("kind", ["matches", "similarity"])
def test_a_picture_is_drawn(trained, blobs, tmp_path, capsys, kind):
    picture = next((blobs / "val").rglob("*.png"))
    words = ["show", kind, str(trained.path)]
    assert main([*words, str(picture), "--to", str(tmp_path / "a.png")]) == 0
    assert main([*words, "3", "--to", str(tmp_path / "b.png")]) == 0
    for name in ("a.png", "b.png"):
        assert Image.open(tmp_path / name).width > 300
    assert main([*words, "99"]) == 2
    assert "val has 15 images" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dark", "train"])
def test_a_damaged_image_is_refused_before_training(tmp_path, tiny, blobs, monkeypatch, name):
    """Not at the end of training, when the test sets are read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(blobs, tmp_path / "data")
    broken = next((tmp_path / "data" / name).rglob("*.png"))
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 255  # both ends are as they were
    broken.write_bytes(content)
    folder = RunFolder(tmp_path / "run")
    dark = {"dark": str(tmp_path / "data" / "dark")}
    folder.create(RunConfig(**{**tiny, "data_dir": str(tmp_path / "data"), "benchmarks": dark}))
    assert execute(folder) == EXIT_MISTAKE
    assert folder.status().message.startswith(f"{name}: ")
    assert broken.name in folder.status().message
    assert not folder.metrics_file.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"watched": ["drak"]},
            "watched: drak: is none of the run's test sets; did you mean 'dark'",
        ),
        ({"probes": ["dense-probe"]}, "probes: dense-probe: needs images with masks"),
    ],
)
def test_what_cannot_be_asked_is_refused(tiny, changes, told):
    with pytest.raises(UserError) as raised:
        open_data(RunConfig(**{**tiny, **changes}), 32)
    assert told in str(raised.value)


def test_a_bad_mask_is_told_before_training(tmp_path, tiny, masked):
    shutil.copytree(masked, tmp_path / "masks")
    mask = sorted((tmp_path / "masks" / "val" / "masks").iterdir())[3]
    Image.fromarray(np.full((5, 5), 1, np.uint8)).save(mask)
    folder = RunFolder(tmp_path / "run")
    folder.create(
        RunConfig(**{**tiny, "probes": ["dense-probe"], "masks": str(tmp_path / "masks")})
    )
    assert execute(folder) == EXIT_MISTAKE
    assert mask.name in folder.status().message
    assert not folder.metrics_file.exists()

"""What a run is asked beside its training: probes, watched sets, matches, and whole pictures."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from densevit.cli import main
from densevit.config import RunConfig
from densevit.data.loading import plain_batches
from densevit.data.sources import open_data
from densevit.data.views import plain_view
from densevit.errors import EXIT_MISTAKE, UserError
from densevit.lifecycle import execute
from densevit.matchfile import read_matches
from densevit.named import open_named
from densevit.predictions import read_answers
from densevit.rundir import RunFolder, read_json, read_metrics
from densevit.scores import score

ALL = ["knn", "linear-probe", "dense-probe"]


@pytest.fixture(scope="module")
def masked(tmp_path_factory, blobs):
    """The pictures of `blobs` with masks: the left half is the background, the right the class."""
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blobs, masked):
    """A finished run with everything that a run may be asked; do not change it."""
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
        assert found[name] == score(read_answers(trained.predictions_file(name)))


def test_the_neighbours_are_those_of_scikit_learn(trained):
    named = open_named("abc", trained, None)
    data = open_data(trained.config(), named.image_size)
    named.model.eval()

    def features(images):
        view = plain_view(named.image_size, **named.pictures)
        batches = plain_batches(images, view, batch_size=50, workers=0, pin=False)
        with torch.inference_mode():
            return torch.cat([named.model(batch[0]).image for batch in batches]).half().float()

    near = KNeighborsClassifier(20, metric="cosine", weights=lambda gap: np.exp((1 - gap) / 0.07))
    near.fit(features(data.train).numpy(), list(data.train.labels))
    wanted = near.predict(features(data.val).numpy())
    assert read_answers(trained.predictions_file("knn")).top[:, 0].tolist() == wanted.tolist()


def test_watched_sets_are_looked_at_every_few_epochs(trained):
    lines = [line for line in read_metrics(trained.metrics_file)[0] if "watch/dark/top1" in line]
    assert [line["epoch"] for line in lines] == [2, 4]
    shares = [line["watch/dark/top1"] * 6 / 100 for line in lines]
    assert shares == pytest.approx([round(share) for share in shares]), "of six pictures"
    assert all("watch/knn/top1" in line for line in lines)


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
    assert "val has 15 pictures" in capsys.readouterr().err


def test_a_damaged_test_picture_is_told_before_training(tmp_path, tiny, blobs):
    shutil.copytree(blobs, tmp_path / "data")
    broken = next((tmp_path / "data" / "dark").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:-20])
    folder = RunFolder(tmp_path / "run")
    dark = {"dark": str(tmp_path / "data" / "dark")}
    folder.create(RunConfig(**{**tiny, "data_dir": str(tmp_path / "data"), "benchmarks": dark}))
    assert execute(folder) == EXIT_MISTAKE
    assert broken.name in folder.status().message
    assert not folder.metrics_file.exists() or folder.metrics_file.stat().st_size == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"watched": ["drak"]},
            "watched: drak: is none of the run's test sets; did you mean 'dark'",
        ),
        ({"probes": ["dense-probe"]}, "probes: dense-probe: needs pictures with masks"),
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

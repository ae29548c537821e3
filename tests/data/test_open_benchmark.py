"""The known benchmarks: a network that predicts the true class is correct on each of them."""

import csv
import shutil
import tarfile

import numpy as np
import pytest
import torch
from archives import PLACE, by_number, by_wnid, colored, lay
from scipy.io import savemat
from torch import nn

from densevit.data import imagenet
from densevit.data.crops import plain_view
from densevit.data.imagenet import wnids
from densevit.data.imagenet_val import image_number
from densevit.data.known_benchmarks import expected_classes
from densevit.data.loaders import plain_batches
from densevit.data.open_benchmark import LAYOUTS, open_benchmark
from densevit.evaluate.metrics import score
from densevit.evaluate.predict import PredictionRows, predict
from densevit.evaluate.predictions import check_finite
from densevit.utils.errors import RunError, UserError

VIEW = plain_view(8, (0.0,) * 3, (1.0,) * 3, 1.0, "center", "bicubic")
CPU = torch.device("cpu")
SIX = ("imagenet", "imagenet-a", "imagenet-r", "imagenet-v2", "stylized-imagenet", "imagenet-sketch")  # fmt: skip


class Knowing(nn.Module):
    """Predict the number that the color of an image encodes."""

    num_classes = 1000

    def forward(self, images):
        levels = (images.mean(dim=(2, 3)) * 255 / 8 - 0.5).round().long()
        return nn.functional.one_hot(levels[:, 0] * 32 + levels[:, 1], 1000).float() * 20


class Guessing(nn.Module):
    """Return logits that are a random function of the image."""

    num_classes = 1000

    def __init__(self):
        super().__init__()
        self.table = torch.randn(1024, 1000, generator=torch.Generator().manual_seed(1))

    def forward(self, images):
        levels = (images.mean(dim=(2, 3)) * 255 / 8 - 0.5).round().long()
        return self.table[levels[:, 0] * 32 + levels[:, 1]]


def answers_of(asked, model, batch_size=64, parts=1):
    found = []
    for part in range(parts):
        chosen = range(len(asked))[part::parts]
        batches = plain_batches(asked, VIEW, batch_size=batch_size, workers=0, pin=False, chosen=chosen)  # fmt: skip
        found.append(predict(model, batches, asked, CPU, lambda: None, -(-len(chosen) // batch_size)))  # fmt: skip
    return PredictionRows.joined(found).to_predictions(asked)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Return the six benchmarks with one image per class, under their names in $DENSEVIT_DATA."""
    root = tmp_path_factory.mktemp("benchmarks")
    for name in SIX:
        layout = LAYOUTS[name]
        by_number(root / name) if layout.folders == "number" else by_wnid(root / name, layout.classes)  # fmt: skip
    return root


# Classes and images: Russakovsky et al. 2015; Hendrycks et al. 2021 (A, R); Recht et al. 2019 (V2, each
# of the three); Geirhos et al. 2019 (Stylized-ImageNet's val; cue conflict); Wang et al. 2019 (Sketch, as
# its archive has it); Hendrycks and Dietterich 2019 (C: 15 + 4 corruptions of 5 severities).
PUBLISHED = {
    "imagenet": (1000, 50_000),
    "imagenet-a": (200, 7_500),
    "imagenet-r": (200, 30_000),
    "imagenet-v2": (1000, 10_000),
    "imagenet-v2-threshold": (1000, 10_000),
    "imagenet-v2-top": (1000, 10_000),
    "stylized-imagenet": (1000, 50_000),
    "imagenet-sketch": (1000, 50_889),
    "imagenet-c": (1000, 19 * 5 * 50_000),
    "cue-conflict": (16, 1_280),
}


def test_the_benchmarks_have_as_many_classes_and_images_as_were_published():
    found = {name: (len(expected_classes(each)), each.images) for name, each in LAYOUTS.items()}
    assert found == PUBLISHED


@pytest.mark.parametrize("name", SIX)
def test_who_knows_the_true_class_is_right_everywhere(sets, monkeypatch, name):
    monkeypatch.setenv("DENSEVIT_DATA", str(sets))
    asked = open_benchmark(name, None, wnids(), "x")
    numbers = score(answers_of(asked, Knowing()))
    ways = 200 if name in ("imagenet-a", "imagenet-r") else 1000
    assert (numbers["top1"], numbers["ways"], numbers["n"]) == (100, ways, ways)
    assert numbers.get("top1_all", 100) == 100
    assert ("top1_all" in numbers) == (ways == 200)


@pytest.mark.parametrize(("name", "which"), [("imagenet-a", "imagenet_a"), ("imagenet-r", "imagenet_r")])  # fmt: skip
def test_both_accuracies_of_a_part_of_the_classes(sets, name, which):
    asked = open_benchmark(name, str(sets / name), wnids(), "x")
    numbers = score(answers_of(asked, Guessing()))
    own = [PLACE[wnid] for wnid in wnids(which)]
    logits = Guessing().table[own]  # one image per class, in their order
    among = logits[:, own].argmax(dim=1)
    assert numbers["top1"] == pytest.approx(100 * np.mean(among.numpy() == np.arange(200)))
    everywhere = logits.argmax(dim=1).numpy() == own
    assert numbers["top1_all"] == pytest.approx(100 * np.mean(everywhere))
    wanted = nn.functional.cross_entropy(logits[:, own].double(), torch.arange(200))
    assert numbers["nll"] == pytest.approx(wanted.item(), rel=1e-5)


def test_clean_accuracy_on_the_classes_of_a_and_r(sets):
    asked = open_benchmark("imagenet", str(sets / "imagenet"), wnids(), "x")
    numbers = score(answers_of(asked, Guessing()))
    for name, which in (("imagenet-a", "imagenet_a"), ("imagenet-r", "imagenet_r")):
        own = [PLACE[wnid] for wnid in wnids(which)]
        right = Guessing().table[own][:, own].argmax(dim=1).numpy() == np.arange(200)
        assert numbers[f"top1_{name}"] == pytest.approx(100 * right.mean())


@pytest.mark.parametrize(("batch_size", "parts"), [(1, 1), (7, 2), (999, 3)])
def test_batches_and_processes_change_no_answer(sets, batch_size, parts):
    asked = open_benchmark("imagenet-r", str(sets / "imagenet-r"), wnids(), "x")
    once, again = answers_of(asked, Guessing()), answers_of(asked, Guessing(), batch_size, parts)
    assert list(once.samples) == list(again.samples)
    for name in ("labels", "top", "anywhere", "probabilities", "losses"):
        assert np.array_equal(getattr(once, name), getattr(again, name)), name


def test_folders_that_are_only_numbers_are_no_classes_of_imagenet_a(tmp_path):
    lay(tmp_path / "a", {str(index): index for index in range(200)})
    with pytest.raises(UserError) as raised:
        open_benchmark("imagenet-a", str(tmp_path / "a"), wnids(), "benchmarks: imagenet-a")
    told = str(raised.value)
    assert "200 WordNet ids" in told
    assert "n01498041/" in told
    assert "folder numbers do not identify classes" in told


def test_numbers_of_v2_are_read_as_numbers(sets, tmp_path):
    asked = open_benchmark("imagenet-v2-top", str(sets / "imagenet-v2"), wnids(), "x")
    assert [asked.labels[i] for i, sample in enumerate(asked.ids) if sample[:2] == "2/"] == [2]
    shutil.copytree(sets / "imagenet-v2", tmp_path / "v2")
    (tmp_path / "v2" / "999").rename(tmp_path / "v2" / "1000")
    with pytest.raises(UserError, match="numbers 0 to 999"):
        open_benchmark("imagenet-v2", str(tmp_path / "v2"), wnids(), "x")


@pytest.mark.parametrize("change", ["missing", "extra", "empty"])
def test_a_class_folder_is_missing_extra_or_empty(tmp_path, change):
    root = by_wnid(tmp_path / "r", "imagenet_r")
    first = root / wnids("imagenet_r")[0]
    if change == "extra":
        shutil.copytree(first, root / "n00000000")
    else:
        (first / "picture.png").unlink()
        if change == "missing":
            first.rmdir()
    words = {"missing": "lacks n01443537", "extra": "has n00000000 besides", "empty": "holds no images"}  # fmt: skip
    with pytest.raises(UserError, match=words[change]):
        open_benchmark("imagenet-r", str(root), wnids(), "x")


def test_a_network_of_other_classes_is_refused(sets):
    with pytest.raises(UserError, match=r"has 200 classes; the network, with 2, does not know"):  # fmt: skip
        open_benchmark("imagenet-a", str(sets / "imagenet-a"), ("cat", "dog"), "x")


def test_the_flat_folder_by_each_of_its_label_files(tmp_path):
    flat = tmp_path / "val"
    flat.mkdir()
    chosen = [7, 0, 999, 500]  # the class of each image
    for number, index in enumerate(chosen, 1):
        (flat / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(colored(index))
    with pytest.raises(UserError, match=r"LOC_val_solution\.csv"):
        open_benchmark("imagenet", str(flat), wnids(), "x")

    # The development kit has its own numbering of the classes.
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    order = np.random.default_rng(0).permutation(1000)
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O")]
    table = np.array([(n + 1, wnids()[index]) for n, index in enumerate(order)], dtype=kinds)
    savemat(kit / "meta.mat", {"synsets": table})
    truth = [int(np.flatnonzero(order == index)[0]) + 1 for index in chosen]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, truth)))
    check_flat(flat, chosen)

    (flat / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(wnids()[i] for i in chosen))  # fmt: skip
    check_flat(flat, chosen)
    with (tmp_path / "LOC_val_solution.csv").open("w") as file:
        rows = [(f"ILSVRC2012_val_{n:08d}", f"{wnids()[i]} 1 2 3 4 ") for n, i in enumerate(chosen, 1)]  # fmt: skip
        csv.writer(file).writerows([("ImageId", "PredictionString"), *rows[::-1]])
    check_flat(flat, chosen)
    (tmp_path / "LOC_val_solution.csv").write_text("ILSVRC2012_val_00000001,n00000000 1 2 3 4\n")
    with pytest.raises(UserError, match=r"LOC_val_solution\.csv: gives n00000000 to"):
        open_benchmark("imagenet", str(flat), wnids(), "x")


def check_flat(flat, chosen):
    asked = open_benchmark("imagenet", str(flat), wnids(), "x")
    assert list(asked.labels) == chosen
    assert score(answers_of(asked, Knowing()))["top1"] == 100


def test_reassessed_labels_count_where_there_are_any(tmp_path):
    labels = imagenet.reassessed()
    several = next(n for n, found in enumerate(labels) if len(found) > 1)
    none = next(n for n, found in enumerate(labels) if not found)
    one = next(n for n, found in enumerate(labels) if len(found) == 1)
    shown = {several: labels[several][1], none: 3, one: (labels[one][0] + 1) % 1000}
    flat = tmp_path / "val"
    flat.mkdir()
    wanted = []
    for number in range(1, max(shown) + 2):
        if number - 1 in shown:
            index = shown[number - 1]
            (flat / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(colored(index))
        wanted.append(wnids()[shown.get(number - 1, 0)])
    (flat / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(wanted))
    numbers = score(answers_of(open_benchmark("imagenet", str(flat), wnids(), "x"), Knowing()))
    assert numbers["real_n"] == 2
    assert numbers["real_top1"] == 50
    assert numbers["top1"] == 100
    assert image_number("n01440764/ILSVRC2012_val_00000293.JPEG") == 293
    with pytest.raises(UserError, match="the results of imagenet include real_top1"):
        open_benchmark("imagenet-real", str(flat), wnids(), "x")


def test_corruptions_and_their_mean_against_alexnet(tmp_path, monkeypatch):
    for module in ("open_benchmark", "known_benchmarks"):
        monkeypatch.setattr(f"densevit.data.{module}.expected_classes", lambda _: wnids()[:2])
    root = tmp_path / "c"
    for number, kind in enumerate(imagenet.CORRUPTIONS):
        for severity in range(1, 6):
            # One of the two images always shows its class, the other only at low severities.
            shown = 1 if severity <= number % 6 else 5
            lay(root / kind / str(severity), {wnids()[0]: 0, wnids()[1]: shown})
    numbers = score(answers_of(open_benchmark("imagenet-c", str(root), wnids(), "x"), Knowing()))
    wanted = {kind: 100 * (0.5 + 0.1 * (n % 6)) for n, kind in enumerate(imagenet.CORRUPTIONS)}
    for kind, accuracy in wanted.items():
        assert numbers[f"top1_{kind}"] == pytest.approx(accuracy)
    # Table 1 of the paper, to its one decimal.
    table = dict(zip(imagenet.CORRUPTIONS[:15], (88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7,
                 82.7, 81.9, 56.5, 85.3, 64.6, 71.8, 60.7), strict=True))  # fmt: skip
    mean = np.mean([100 * (100 - wanted[k]) / table[k] for k in table])
    assert numbers["mce"] == pytest.approx(mean, rel=1e-3)
    shutil.rmtree(root / "fog")
    fewer = score(answers_of(open_benchmark("imagenet-c", str(root), wnids(), "x"), Knowing()))
    assert "mce" not in fewer
    assert "top1_snow" in fewer


# The classes of each category in the authors' code, by their names in WordNet.
MEMBERS = {
    "airplane": "airliner",
    "bear": "brown bear, American black bear, ice bear, sloth bear",
    "bicycle": "bicycle-built-for-two, mountain bike",
    "boat": "canoe, fireboat, lifeboat, speedboat, yawl",
    "bottle": "beer bottle, pill bottle, pop bottle, water bottle, water jug, whiskey jug, wine bottle",
    "car": "beach wagon, convertible, sports car",
    "cat": "tabby, tiger cat, Persian cat, Siamese cat, Egyptian cat, cougar",
    "chair": "barber chair, folding chair, rocking chair, throne",
    "clock": "analog clock, digital clock, wall clock",
    "elephant": "Indian elephant, African elephant",
    "keyboard": "computer keyboard, typewriter keyboard",
    "knife": "cleaver",
    "oven": "rotisserie",
    "truck": "fire engine, garbage truck, minivan, moving van, pickup, police van, tow truck, trailer truck",
}


def test_the_categories_of_cue_conflict_have_the_published_classes():
    lines = imagenet._shipped("imagenet_synset_to_lemma.txt").read_text().splitlines()
    names = {wnid: lemmas.split(",")[0] for wnid, lemmas in (line.split("\t") for line in lines)}
    members = dict(imagenet.category_members())
    birds, dogs = ([PLACE[wnid] for wnid in members.pop(kind)] for kind in ("bird", "dog"))
    assert {
        kind: ", ".join(names[wnid] for wnid in found) for kind, found in members.items()
    } == MEMBERS
    # ImageNet's birds are 7 (cock) to 24 and 80 to 146, its domestic dogs 151 to 268.
    assert set(birds) < {*range(7, 25), *range(80, 147)}
    assert set(dogs) < {*range(151, 269)}


def test_cue_conflict_counts_shape_and_texture(tmp_path):
    members = imagenet.category_members()
    assert {kind: len(found) for kind, found in members.items()} == {
        "airplane": 1, "bear": 4, "bicycle": 2, "bird": 49, "boat": 5, "bottle": 7, "car": 3,
        "cat": 6, "chair": 4, "clock": 3, "dog": 109, "elephant": 2, "keyboard": 2, "knife": 1,
        "oven": 1, "truck": 8,
    }  # fmt: skip
    first = {kind: PLACE[found[-1]] for kind, found in members.items()}
    root = lay(tmp_path / "cue", dict.fromkeys(members, first["oven"]), "x1-oven1.png")
    # Shape: 3 of them; texture: the others except the oven's own (no conflict); one is neither.
    for kind in ("cat", "dog", "car"):
        (root / kind / "x1-oven1.png").write_bytes(colored(first[kind]))
    (root / "boat" / "x1-oven1.png").write_bytes(colored(first["knife"]))
    numbers = score(answers_of(open_benchmark("cue-conflict", str(root), wnids(), "x"), Knowing()))
    assert numbers["n"] == 15
    assert numbers["top1"] == pytest.approx(100 * 3 / 15)
    assert numbers["texture_top1"] == pytest.approx(100 * 11 / 15)
    assert numbers["shape_bias"] == pytest.approx(100 * 3 / 14)


def test_a_category_is_the_mean_of_its_classes(tmp_path):
    members = imagenet.category_members()
    root = lay(tmp_path / "cue", {kind: n for n, kind in enumerate(members)}, "x1-oven1.png")
    found = answers_of(open_benchmark("cue-conflict", str(root), wnids(), "x"), Guessing())
    table = Guessing().table[: len(members)].double().softmax(dim=1)
    means = torch.stack([table[:, [PLACE[w] for w in g]].mean(dim=1) for g in members.values()], 1)
    assert found.top[:, 0].tolist() == means.argmax(dim=1).tolist()
    chances = (means / means.sum(dim=1, keepdim=True)).max(dim=1).values
    assert found.probabilities[:, 0] == pytest.approx(chances.numpy(), rel=1e-5)


def test_classes_of_ones_own_by_a_file_and_by_wordnet_ids(tmp_path):
    outputs = ("cat", "dog", "horse")
    root = lay(tmp_path / "mine", {"kitten": 0, "puppy": 1, "wolfhound": 1})
    file = tmp_path / "classes.txt"
    file.write_text("kitten cat\npuppy dog  # young\n\nwolfhound dog\n")
    asked = open_benchmark("mine", {"path": str(root), "classes": str(file)}, outputs, "x")
    assert asked.classes == ("cat", "dog")
    assert list(asked.labels) == [0, 1, 1]
    assert asked.groups == ((0,), (1,))
    file.write_text("kitten cat\npuppy dog\n")
    with pytest.raises(UserError, match="has no line for wolfhound"):
        open_benchmark("mine", {"path": str(root), "classes": str(file)}, outputs, "x")
    file.write_text("kitten cat\npuppy dog\nwolfhound wolf\n")
    with pytest.raises(UserError, match="does not know wolf"):
        open_benchmark("mine", {"path": str(root), "classes": str(file)}, outputs, "x")
    file.write_text("kitten cat\npuppy dog\nkitten dog\n")
    with pytest.raises(UserError, match=r"classes\.txt:3: kitten twice"):
        open_benchmark("mine", {"path": str(root), "classes": str(file)}, outputs, "x")
    file.write_text("kitten\n")
    with pytest.raises(UserError, match=r"classes\.txt:1: 'kitten'; "):
        open_benchmark("mine", {"path": str(root), "classes": str(file)}, outputs, "x")
    file.write_text("kitten cat\npuppy cat\nwolfhound cat\n")
    with pytest.raises(UserError, match="has only the class cat, so that every accuracy"):
        open_benchmark("mine", {"path": str(root), "classes": str(file)}, outputs, "x")
    with pytest.raises(UserError, match="its classes are not those of train/"):
        open_benchmark("mine", str(root), outputs, "x")
    few = lay(tmp_path / "few", {wnids()[3]: 3, wnids()[9]: 9})
    asked = open_benchmark("few", {"path": str(few), "classes": "imagenet"}, wnids(), "x")
    numbers = score(answers_of(asked, Knowing()))
    assert (numbers["top1"], numbers["top1_all"], numbers["ways"]) == (100, 100, 2)
    with pytest.raises(UserError, match="must be WordNet ids of ImageNet: kitten"):
        open_benchmark("mine", {"path": str(root), "classes": "imagenet"}, wnids(), "x")


def test_a_classes_file_may_name_classes_with_spaces_and_signs(tmp_path):
    root = lay(tmp_path / "mine", {"sea lion": 0, "#tag": 1, "c#": 1})
    file = tmp_path / "classes.txt"
    file.write_text(
        '# of mine\n"sea lion"  "eared seal" # a comment\n"#tag" c#\nc# c#\n', "utf-8-sig"
    )
    given = {"path": str(root), "classes": str(file)}
    asked = open_benchmark("mine", given, ("c#", "eared seal", "x"), "x")
    assert asked.classes == ("c#", "eared seal")
    assert dict(zip(asked.ids, asked.labels, strict=True)) == {
        "#tag/picture.png": 0, "c#/picture.png": 0, "sea lion/picture.png": 1
    }  # fmt: skip
    file.write_text("sea lion eared seal\n")
    with pytest.raises(UserError, match='a name with spaces in quotes: "sea lion" seal'):
        open_benchmark("mine", given, ("c#", "eared seal"), "x")


class Knows(nn.Module):
    """Predict the class that the color of an image encodes, among some of ImageNet's."""

    def __init__(self, own):
        super().__init__()
        self.own, self.num_classes = torch.tensor(own), len(own)

    def forward(self, images):
        return Knowing()(images)[:, self.own]


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_network_of_some_of_imagenets_classes_is_scored_on_the_shared_ones(tmp_path, sets, form):
    """ImageNet-100 and ImageNet-A, -R, -V2, -Sketch."""
    own = [PLACE[wnid] for wnid in wnids("imagenet_a")[:30]] + [0, 5, 999]
    outputs = tuple(sorted(wnids()[index] for index in own))
    model = Knows([PLACE[wnid] for wnid in outputs])
    of_r = len(set(outputs) & set(wnids("imagenet_r")))
    assert 1 < of_r < 33
    counts = {"imagenet-a": 30, "imagenet-r": of_r, "imagenet-v2": 33, "imagenet-sketch": 33}
    for name, count in counts.items():
        path = sets / name
        if form == "tar":
            path = tmp_path / f"{name}.tar"
            with tarfile.open(path, "w") as tar:
                tar.add(sets / name, arcname="")
        asked = open_benchmark(name, str(path), outputs, "x")
        assert [line[:20] for line in asked.notes()] == [f"is scored on the {count} "]
        numbers = score(answers_of(asked, model))
        assert (numbers["top1"], numbers["ways"], numbers["n"]) == (100, count, count)
        assert "mce" not in numbers
        assert not [key for key in numbers if key.startswith("real")]
    with pytest.raises(UserError, match="the network has none of its classes"):
        open_benchmark("imagenet-a", str(sets / "imagenet-a"), wnids()[:2], "x")


def test_clean_accuracy_of_some_of_imagenets_classes_is_among_the_shared_ones(tmp_path):
    shared = wnids("imagenet_a")[:3]
    own = tuple(sorted([*shared, wnids()[0], wnids()[999]]))
    root = lay(tmp_path / "val", {wnid: PLACE[wnid] for wnid in own})
    asked = open_benchmark("val", str(root), own, "x")
    assert [own[index] for index in asked.among["imagenet-a"]] == list(shared)
    assert asked.layout == ""


def test_a_network_whose_classes_are_in_another_order_is_asked_in_its_own(tmp_path):
    outputs = ("disk", "arrow", "cross")
    root = lay(tmp_path / "set", {"arrow": 1, "cross": 2, "disk": 0})
    asked = open_benchmark("mine", str(root), outputs, "x")
    assert asked.classes == outputs
    by_name = dict(zip(asked.ids, asked.labels, strict=True))
    assert {name.split("/")[0]: label for name, label in by_name.items()} == {"arrow": 1, "cross": 2, "disk": 0}  # fmt: skip


def test_a_picture_of_cue_conflict_must_say_its_texture(tmp_path):
    root = lay(tmp_path / "cue", dict.fromkeys(imagenet.CATEGORIES, 3), "Cat1-Dog1.png")
    with pytest.raises(UserError, match="must contain its texture"):
        open_benchmark("cue-conflict", str(root), wnids(), "x")


def test_outputs_that_are_no_numbers_are_no_answers(sets):
    class Broken(Knowing):
        def forward(self, images):
            return super().forward(images) * float("nan")

    asked = open_benchmark("imagenet-a", str(sets / "imagenet-a"), wnids(), "x")
    with pytest.raises(RunError, match="imagenet-a: the network's outputs are not finite"):
        check_finite(answers_of(asked, Broken()))

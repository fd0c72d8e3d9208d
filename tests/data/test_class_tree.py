"""What a folder is, decided from its listing: trees as people have them, with the classes or the refusal that each must give."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from unseen_ray.data.listing.class_tree import ClassTree, class_tree_of
from unseen_ray.data.listing.files import FileStat, Listing
from unseen_ray.data.listing.image_files import images_among
from unseen_ray.data.listing.splits import split_of
from unseen_ray.errors import DataError

TWO = ("cat", "dog")


def under(folders: Iterable[str], *, ending: str = ".jpg", count: int = 2) -> list[str]:
    return [f"{folder}/{number}{ending}" for folder in folders for number in range(count)]


def nested(tops: Iterable[str], classes: Iterable[str] = TWO, **options: object) -> list[str]:
    return under([f"{top}/{name}" for top in tops for name in classes], **options)  # type: ignore[arg-type]


def tree_of(names: Iterable[str], folders: Iterable[str] = (), heads: dict[str, bytes] | None = None) -> ClassTree:
    listing = Listing(files=dict.fromkeys(names, FileStat(100, None)), folders=list(folders))
    return class_tree_of(
        listing, where="data", images_of=lambda some: images_among(some, lambda name: (heads or {}).get(name, b""))
    )


WNIDS = ("n01440764", "n01443537", "n01484850")
CLASSES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "ImageNet train": (under(WNIDS, ending=".JPEG"), WNIDS),
    "Tiny-ImageNet train": (
        under([f"{w}/images" for w in WNIDS], ending=".JPEG") + [f"{w}/{w}_boxes.txt" for w in WNIDS],
        WNIDS,
    ),
    "CIFAR-10 as png": (under(["airplane", "automobile", "bird"], ending=".png"), ("airplane", "automobile", "bird")),
    "CIFAR-100 vehicles, of which one is a train": (
        under(["bus", "train", "tank"], ending=".png"),
        ("bus", "tank", "train"),
    ),
    "MNIST by digit": (under([str(d) for d in range(10)], ending=".png"), tuple(str(d) for d in range(10))),
    "twelve numbered classes": (under([str(d) for d in range(12)]), tuple(sorted(str(d) for d in range(12)))),
    "State Farm": (under([f"c{d}" for d in range(10)]), tuple(f"c{d}" for d in range(10))),
    "Food-101 images": (under(["apple_pie", "baby_back_ribs"]), ("apple_pie", "baby_back_ribs")),
    "EuroSAT": (under(["AnnualCrop", "Forest", "SeaLake"]), ("AnnualCrop", "Forest", "SeaLake")),
    "face masks": (under(["with_mask", "without_mask"], ending=".png"), ("with_mask", "without_mask")),
    "chest x-rays of one split": (
        [*under(["NORMAL", "PNEUMONIA"], ending=".jpeg"), "NORMAL/.DS_Store"],
        ("NORMAL", "PNEUMONIA"),
    ),
    "malaria cells": (
        [*under(["Parasitized", "Uninfected"], ending=".png"), "Parasitized/Thumbs.db"],
        ("Parasitized", "Uninfected"),
    ),
    "Stanford Dogs": (
        under(["n02085620-Chihuahua", "n02085782-Japanese_spaniel"]),
        ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"),
    ),
    "Stanford Cars train": (
        under(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]),
        ("AM General Hummer SUV 2000", "Acura RL Sedan 2012"),
    ),
    "iNaturalist by species": (
        under(["00000_Animalia_Annelida", "00001_Plantae"]),
        ("00000_Animalia_Annelida", "00001_Plantae"),
    ),
    "iNaturalist by kingdom": (under(["Birds/3111", "Plants/5002", "Plants/5003"]), ("Birds", "Plants")),
    "Caltech-101": (under(["BACKGROUND_Google", "Faces_easy"]), ("BACKGROUND_Google", "Faces_easy")),
    "DTD": (under(["banded", "blotchy"]), ("banded", "blotchy")),
    "PlantVillage": (
        under(["Apple___Apple_scab", "Apple___healthy"], ending=".JPG"),
        ("Apple___Apple_scab", "Apple___healthy"),
    ),
    "SVHN-like with an archive": ([*under(["1", "2"], ending=".png"), "data.zip"], ("1", "2")),
    "a mac's zip of classes": ([*under(TWO), "__MACOSX/cat/._0.jpg", "__MACOSX/dog/._1.jpg"], TWO),
    "a Synology share": ([*under(TWO), "@eaDir/cat/0.jpg"], TWO),
    "classes beside annotations in csv": ([*under(TWO), "annotations/labels.csv", "README.md"], TWO),
    "classes named like tests": (under(["stress test", "blood test"]), ("blood test", "stress test")),
    "two recordings of each class": (under(["cat/Test1", "cat/Test2", "dog/Test1", "dog/Test2"]), ("cat", "dog")),
    "good and defective parts": (under(["defective", "ok"]), ("defective", "ok")),
    "Kaggle's seg_train, one folder down": (under(["buildings", "forest"]), ("buildings", "forest")),
    "CLEVR-like counts": (under(["count-3", "count-4"]), ("count-3", "count-4")),
    "Arabic, Chinese and emoji names": (under(["قط", "狗", "🐈"]), ("قط", "狗", "🐈")),
}

REFUSED: dict[str, tuple[list[str], str]] = {
    "torchvision's ImageNet root": (
        nested(["train", "val"], WNIDS, ending=".JPEG"),
        "splits train, val, not classes. Set source: data/train ",
    ),
    "ILSVRC from Kaggle": (
        nested(["ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val"], WNIDS),
        "Set source: data/ILSVRC/Data/CLS-LOC/train ",
    ),
    "Tiny-ImageNet": (
        under([f"train/{w}/images" for w in WNIDS])
        + under(["val/images", "test/images"])
        + ["wnids.txt", "val/val_annotations.txt"],
        "Set source: data/train ",
    ),
    "Tiny-ImageNet's val": (
        ["val_annotations.txt", *under(["images"], ending=".JPEG")],
        "all images of source data lie in one folder, images",
    ),
    "brain tumours": (nested(["Training", "Testing"], ["glioma", "notumor"]), "Set source: data/Training "),
    "fruits-360": (
        nested(["Training", "Test"]) + under(["test-multiple_fruits"]) + ["papers/a.pdf"],
        "Set source: data/Training ",
    ),
    "capitals": (nested(["TRAIN", "TEST"]), "Set source: data/TRAIN "),
    "train_set, test_set": (nested(["train_set", "test_set"]), "Set source: data/train_set "),
    "training_set twice": (
        nested(["training_set/training_set", "test_set/test_set"]),
        "Set source: data/training_set/training_set ",
    ),
    "Intel scenes": (
        nested(["seg_train/seg_train", "seg_test/seg_test"]) + under(["seg_pred/seg_pred"]),
        "Set source: data/seg_train/seg_train ",
    ),
    "ASL alphabet": (
        nested(["asl_alphabet_train/asl_alphabet_train", "asl_alphabet_test/asl_alphabet_test"]),
        "Set source: data/asl_alphabet_train/",
    ),
    "YOLO classification": (nested(["train", "val", "test"]), "Set source: data/train "),
    "YOLO detection": (
        under(["images/train", "images/val"]) + under(["labels/train", "labels/val"], ending=".txt"),
        "data/images holds the splits train, val, not classes. Set source: data/images/train ",
    ),
    "Hugging Face imagefolder": ([*nested(["train", "test"]), "README.md"], "Set source: data/train "),
    "Hugging Face imagefolder under data": (nested(["data/train", "data/validation"]), "Set source: data/data/train "),
    "chest_xray with its copy": (
        [
            *nested(
                ["train", "test", "val", "chest_xray/train", "chest_xray/test", "chest_xray/val"],
                ["NORMAL", "PNEUMONIA"],
            ),
            "__MACOSX/train/._a",
        ],
        "Set source: data/train ",
    ),
    "iNaturalist 2021": (nested(["train_mini", "val"], ["00000_A", "00001_B"]), "Set source: data/train_mini "),
    "Stanford Cars": (
        nested(["car_data/car_data/train", "car_data/car_data/test"]),
        "Set source: data/car_data/car_data/train ",
    ),
    "train2017": (nested(["train2017", "val2017"]), "Set source: data/train2017 "),
    "dev and eval": (nested(["dev", "eval"]), "holds the splits dev, eval"),
    "Dogs vs. Cats": ([*under(["train", "test"]), "sampleSubmission.csv"], "holds the splits test, train, not classes"),
    "splits beside a folder of csv": ([*nested(["train", "val"]), "annotations/a.csv"], "Set source: data/train "),
    "splits of a mac's zip": ([*nested(["train", "val"]), "__MACOSX/train/cat/._0.jpg"], "Set source: data/train "),
    "train alone": (
        nested(["train"]),
        "would be of one class. The classes seem to be cat, dog: set source: data/train.",
    ),
    "a folder too high": (nested(["photos"]), "set source: data/photos."),
    "two folders too high": (nested(["archive/photos"]), "set source: data/archive/photos."),
    "Stanford Dogs with its annotations": (
        [*nested(["Images"], ["n1", "n2"]), "Annotation/n1/n1_1", "Annotation/n2/n2_1"],
        "set source: data/Images.",
    ),
    "CUB-200": (
        [*nested(["images"], ["001.Albatross", "002.Auklet"]), "attributes/a.txt", "classes.txt"],
        "set source: data/images.",
    ),
    "Oxford flowers": (under(["jpg"]), "lie in one folder, jpg"),
    "Oxford pets": (
        under(["images"]) + under(["annotations/trimaps"], ending=".png"),
        "named like parts of a data set",
    ),
    "segmentation": (under(["images", "masks"], ending=".png"), "named like parts of a data set"),
    "VOC": (under(["JPEGImages", "SegmentationClass"], ending=".png"), "named like parts of a data set"),
    "HAM10000": (under(["HAM10000_images_part_1", "HAM10000_images_part_2"]), "named like parts of a data set"),
    "NIH chest x-rays": (
        under(["images_001/images", "images_002/images"], ending=".png"),
        "named like parts of a data set",
    ),
    "numbered folds": (nested(["fold1", "fold2"]), "named like parts of a data set"),
    "MVTec": (
        under(["bottle/train/good", "bottle/test/broken", "cable/train/good", "cable/test/cut"]),
        "holds the splits test, train",
    ),
    "SVHN": (under(["train", "test", "extra"], ending=".png"), "holds the splits test, train, not classes"),
    "COCO": (under(["train2017", "val2017", "unlabeled2017"]), "holds the splits train2017, val2017, not classes"),
    "new plant diseases": (
        [
            *nested(["New Plant/New Plant/train", "New Plant/New Plant/valid"]),
            *nested(["new plant(aug)/New Plant/train", "new plant(aug)/New Plant/valid"]),
            *under(["test/test"]),
        ],
        "holds the splits train, valid",
    ),
    "loose images": (["0.jpg", "1.jpg"], "2 images lie directly in it"),
    "phone pictures that Pillow cannot read": (
        under(TWO, ending=".heic"),
        "4 other files lie in its folders (4 .heic)",
    ),
    "no file at all": ([], "holds no images in class folders"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_trees_of_classes(name: str) -> None:
    names, classes = CLASSES[name]
    tree = tree_of(names)
    assert tree.classes == tuple(sorted(classes))
    assert tree.images == sorted(tree.images) and {image.split("/")[0] for image in tree.images} == set(classes)


@pytest.mark.parametrize("name", REFUSED)
def test_trees_that_are_refused_with_the_folder_to_name(name: str) -> None:
    names, said = REFUSED[name]
    with pytest.raises(DataError) as refused:
        tree_of(names)
    assert said in str(refused.value)


@pytest.mark.parametrize("name", [name for name, (_, said) in REFUSED.items() if "et source: " in said])
def test_the_folder_that_a_refusal_names_is_accepted_where_it_has_classes(name: str) -> None:
    names, _ = REFUSED[name]
    with pytest.raises(DataError) as refused:
        tree_of(names)
    place = str(refused.value).split("et source: data/")[1].removesuffix(".").split(" (and")[0]
    inner = [name.removeprefix(f"{place}/") for name in names if name.startswith(f"{place}/")]
    if name == "YOLO detection":
        with pytest.raises(DataError, match="2 images lie directly in it"):
            tree_of(inner)
    else:
        assert len(tree_of(inner).classes) >= 2


def test_everything_that_is_no_image_of_a_class_is_counted_and_named() -> None:
    names = [*under(TWO), "cat/a.heic", "cat/b.heic", "dog/notes.txt", "loose.png", "labels.csv", "annotations/a.csv"]
    assert tree_of(names).passed_over.split("; ") == [
        "1 image beside the class folders",
        "1 file beside the class folders that is not an image (1 .csv)",
        "3 files in class folders that are not images (2 .heic, 1 .txt)",
        "1 folder without images (annotations)",
    ]
    assert tree_of(under(TWO)).passed_over == ""


def test_files_without_an_ending_are_told_by_their_first_bytes() -> None:
    heads = {"cat/one": b"\x89PNG\r\n\x1a\n....", "cat/IMG.0001": b"\xff\xd8\xff\xe0", "dog/two": b"%PDF-1.4"}
    tree = tree_of([*under(["dog"]), *heads, "cat/0.png.bak"], heads=heads)
    assert tree.images == ["cat/IMG.0001", "cat/one", "dog/0.jpg", "dog/1.jpg"]
    assert tree.passed_over == "2 files in class folders that are not images (1 no ending, 1 .bak)"


def test_of_very_many_files_without_an_ending_some_are_read() -> None:
    asked: list[str] = []

    def head(name: str) -> bytes:
        asked.append(name)
        return b"\xff\xd8\xff"

    names = [f"cat/{number}" for number in range(1000)]
    assert images_among(names, head) == set(names) and len(asked) == 64


def test_an_empty_folder_is_a_class_and_one_of_other_files_is_not() -> None:
    assert tree_of([*under(TWO), "notes/a.txt"], folders=["cat", "dog", "bird", "notes"]).classes == (
        "bird",
        "cat",
        "dog",
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Train_Set2", "train"),
        ("mnist_test", "test"),
        ("VALIDATION", "validation"),
        ("testImages", "test"),
        ("train2017", "train"),
        ("latest", None),
        ("attest", None),
        ("strain", None),
        ("trainee", None),
        ("deviation", None),
        ("contested", None),
        ("evaluate", None),
    ],
)
def test_split_words_count_as_whole_words(name: str, kind: str | None) -> None:
    assert split_of(name) == kind


@pytest.mark.parametrize(
    ("names", "folders", "said"),
    [
        (nested(["train"]), ["train", "val"], "holds the splits train, val"),
        (nested(["photos"]), ["photos", "logs"], "set source: data/photos."),
        (under(["train"]), ["train", "else"], "lie in one folder, train"),
    ],
)
def test_an_empty_folder_makes_no_classes_of_what_lies_beside_it(
    names: list[str], folders: list[str], said: str
) -> None:
    with pytest.raises(DataError) as refused:
        tree_of(names, folders=folders)
    assert said in str(refused.value)


def test_the_only_class_of_which_images_are_kept_may_lie_beside_empty_ones() -> None:
    assert tree_of(under(["cat"]), folders=["cat", "dog"]).classes == ("cat", "dog")

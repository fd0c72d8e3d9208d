"""Names that people give to the splits and the parts of a data set, as opposed to names of classes."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["SPLIT_WORDS", "is_only_split", "is_structure", "split_of", "words_of"]

_TRAIN, _VALIDATION, _TEST = "train", "validation", "test"
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "trainval", "trn"), _TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "valset", "dev", "devel", "eval", "evaluation"), _VALIDATION),
    **dict.fromkeys(("test", "testing", "tests", "testset", "tst", "holdout", "heldout"), _TEST),
}  # fmt: skip
"""Words for a split, with the kind of split that each means."""
_BESIDE = {
    "set", "sets", "data", "dataset", "split", "images", "image", "imgs", "img", "pictures", "photos", "folder", "files", "raw",
}  # fmt: skip
_STRUCTURE = {
    "images", "image", "imgs", "img", "jpegimages", "jpg", "jpegs", "png", "pngs", "annotations", "annotation", "anno", "annos",
    "masks", "mask", "labels", "label", "trimaps", "segmentation", "segmentations", "segmentationclass", "segmentationobject",
    "ground", "truth", "groundtruth", "gt", "bboxes", "boxes", "depth",
}  # fmt: skip
_PARTS = {"part", "parts", "batch", "shard", "chunk", "fold", "images", "image", "imgs"}


def words_of(name: str) -> list[str]:
    """The words of a file's or folder's name in lower case, without numbers: `Train_Set2` is train, set."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+", name)]


def split_of(name: str) -> str | None:
    """The kind of split that a name mentions, or None: `mnist_train` is train."""
    return next((SPLIT_WORDS[word] for word in words_of(name) if word in SPLIT_WORDS), None)


def is_only_split(name: str) -> bool:
    """Whether a name says a split and nothing else, as `TRAIN` or `test_set` do and `bullet train` does not."""
    words = words_of(name)
    return split_of(name) is not None and all(word in SPLIT_WORDS or word in _BESIDE for word in words)


def is_structure(names: Iterable[str]) -> bool:
    """Whether names side by side say how data is kept rather than what it shows: images and masks, or numbered parts."""
    words = [words_of(name) for name in names]
    if all(each and (set(each) <= _STRUCTURE or "".join(each) in _STRUCTURE) for each in words):
        return True
    return len(words) > 1 and all(each == words[0] for each in words) and bool(_PARTS & set(words[0]))

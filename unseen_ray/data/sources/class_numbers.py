"""Brings the labels of a test set to the numbers that its source gives the same classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from unseen_ray.core.arrays import IntArray, labels_by_chunk
from unseen_ray.data.sources.info import SourceInfo
from unseen_ray.errors import DataError

__all__ = ["labels_as_in", "numbers_as_in"]

_NAMED = 3


def labels_as_in(test: SourceInfo, names: Sequence[str], num_classes: int) -> IntArray:
    """(T,) int64 labels of a test set, numbered as its source numbers the classes; see `numbers_as_in`."""
    labels_T = test.labels_N.astype(np.int64)
    numbers = numbers_as_in(test, names, num_classes)
    return labels_T if numbers is None else numbers[labels_T]


def numbers_as_in(test: SourceInfo, names: Sequence[str], num_classes: int) -> IntArray | None:
    """The source's number of each class of a test set; None where the numbers are the same.

    Classes are matched by name. Where one of the two has no names and those of the other are all whole numbers, as of folders
    `0` to `11`, the labels without names are these numbers. Otherwise numbers without names stand for themselves.

    Args:
        test: the test set.
        names: C class names of the source, or none.
        num_classes: C of the source.

    Raises:
        DataError: if the test set has classes that the source does not have, or a name is that of two. It may lack some.
    """
    theirs, ours = list(test.class_names), list(names)
    if theirs and theirs == ours:  # also where two classes share a name, as ImageNet's cranes do
        return None
    if not theirs or not ours:
        theirs, ours = _by_number(theirs, test.num_classes), _by_number(ours, num_classes)
    elif more := sorted(set(theirs) - set(ours)):
        raise DataError(
            f"test {test.name} has {_some(more)}, unlike the source. Give both the same classes, with the same names."
        )
    elif twice := sorted({name for each in (theirs, ours) for name, count in Counter(each).items() if count > 1}):
        raise DataError(
            f"test {test.name} and the source name their classes in another order, and {_some(twice)} more than once, so that they "
            "cannot be matched. Give each class its own name."
        )
    place = {name: number for number, name in enumerate(ours)}
    present = _present(test)
    if unknown := sorted(int(number) for number in present if theirs[number] not in place):
        raise DataError(
            f"test {test.name} has label {theirs[unknown[-1]]}, but the source has {num_classes} classes "
            f"({', '.join(ours) if len(ours) <= _NAMED else f'{ours[0]} to {ours[-1]}'}). Give a test set with the same classes."
        )
    numbers = np.array([place.get(name, -1) for name in theirs], np.int64)
    return None if np.array_equal(numbers[present], present) else numbers


def _by_number(names: list[str], count: int) -> list[str]:
    """What to match classes by where one side has no names: the whole numbers that the names are, else how they are counted."""
    numbers = {str(int(name)): None for name in names if name.isdecimal()}
    if names and len(numbers) == len(names):
        return list(numbers)
    return [str(number) for number in range(count)]


def _present(test: SourceInfo) -> IntArray:
    """The labels that occur, in order."""
    present_C = np.zeros(test.num_classes, bool)
    for _, piece in labels_by_chunk(test.labels_N):
        present_C[piece] = True
    return np.flatnonzero(present_C)


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")

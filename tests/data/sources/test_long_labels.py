"""Labels of many rows are narrow and lie in a file; they say the same, and what is wrong with them is found where it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unseen_ray.data.sources.label_columns import digest_of_labels, gather_labels
from unseen_ray.data.sources.parquet import ParquetSource
from unseen_ray.errors import DataError

PIXEL = b"P6\n1 1\n255\n\0\0\0"


def pieces(labels: np.ndarray, size: int = 7) -> Iterator[np.ndarray]:
    return (labels[start : start + size] for start in range(0, len(labels), size))


@pytest.mark.parametrize(("classes", "dtype"), [(3, np.uint8), (256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
@pytest.mark.parametrize("stated", [False, True])
def test_labels_are_as_narrow_as_the_classes_allow(classes: int, dtype: type, stated: bool) -> None:
    labels = np.random.default_rng(classes).integers(0, classes, 200)
    labels[150] = classes - 1
    found, count = gather_labels(
        pieces(labels), 200, where="x", num_classes=classes if stated else None, rows_in_memory=50
    )
    assert isinstance(found, np.memmap)
    assert (found.dtype, count) == (np.dtype(dtype), classes)
    np.testing.assert_array_equal(found, labels)


def test_few_labels_are_what_they_were() -> None:
    labels = np.arange(9) % 3
    found, count = gather_labels(pieces(labels), 9, where="x", num_classes=None)
    assert not isinstance(found, np.memmap)
    assert (found.dtype, count) == (np.int64, 3)
    assert digest_of_labels(found) == labels.tobytes()


def test_a_digest_does_not_depend_on_how_narrow_labels_are() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 100)
    assert digest_of_labels(labels.astype(np.uint8)) == digest_of_labels(labels.astype(np.uint16))
    other = labels.copy()
    other[99] += 1
    assert digest_of_labels(labels.astype(np.uint8)) != digest_of_labels(other.astype(np.uint8))


def test_a_wrong_label_is_named_by_its_row() -> None:
    labels = np.zeros(100, np.int64)
    labels[77] = -3
    with pytest.raises(DataError, match="row 77 of x has label -3"):
        gather_labels(pieces(labels), 100, where="x", num_classes=None, rows_in_memory=50)
    labels[77] = 12
    with pytest.raises(DataError, match="row 77 of x has label 12, but its metadata names 5 classes"):
        gather_labels(pieces(labels), 100, where="x", num_classes=5, rows_in_memory=50)


def test_a_long_parquet_source_is_the_same(tmp_path: Path) -> None:
    labels = np.random.default_rng(2).integers(0, 4, 120)
    for number, part in enumerate(np.split(labels, [50, 70])):
        table = pa.table({"image": pa.array([PIXEL] * len(part)), "label": part})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=16)
    short = ParquetSource(path=str(tmp_path), limit=110).info
    long = ParquetSource(path=str(tmp_path), limit=110, rows_in_memory=50).info
    assert (len(long), long.num_classes, long.size_px) == (len(short), 4, 1)
    assert long.labels_N.dtype == np.uint8
    np.testing.assert_array_equal(long.labels_N, labels[:110])
    np.testing.assert_array_equal(short.labels_N, labels[:110])

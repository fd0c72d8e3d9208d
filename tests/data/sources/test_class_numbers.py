"""Labels of a test set as its source numbers them: matched by name, by the number that a name is, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes
from unseen_ray.data.sources.class_numbers import labels_as_in
from unseen_ray.data.sources.info import SourceInfo
from unseen_ray.errors import DataError

DIGITS = sorted(map(str, range(12)))  # as folders sort: 0, 1, 10, 11, 2, ...


def info(labels: Sequence[int], names: Sequence[str] = (), num_classes: int | None = None) -> SourceInfo:
    count = num_classes or len(names) or max(labels) + 1
    return SourceInfo(
        name="x", labels_N=np.array(labels), num_classes=count, size_px=8, original_px=None, class_names=tuple(names), fingerprint=""
    )  # fmt: skip


@pytest.mark.parametrize(
    ("test", "names", "num_classes", "expected"),
    [
        (info([0, 1, 2]), (), 3, [0, 1, 2]),
        (info([0, 1]), (), 3, [0, 1]),
        (info([0, 1, 2], ("cat", "dog", "eel")), ("cat", "dog", "eel"), 3, [0, 1, 2]),
        (info([0, 1, 2], ("eel", "cat", "dog")), ("cat", "dog", "eel"), 3, [2, 0, 1]),
        (info([0, 10, 2]), DIGITS, 12, [0, 2, 4]),
        (info([0, 2, 4], DIGITS), (), 12, [0, 10, 2]),
        (info([0, 1], ("1", "2")), (), 3, [1, 2]),
        (info([1, 2]), ("01", "02"), 2, [0, 1]),
        (info([0, 1]), ("cat", "dog"), 2, [0, 1]),
        (info([0, 1], ("cat", "dog")), (), 2, [0, 1]),
        (info([0, 1], ("cat", "dog", "eel")), (), 2, [0, 1]),
        (info([0, 1], ("bee", "eel")), ("cat", "bee", "eel"), 3, [1, 2]),
        (info([0, 1, 2], ("crane", "dog", "crane")), ("crane", "dog", "crane"), 3, [0, 1, 2]),
    ],
)
def test_labels_get_the_numbers_of_the_source(
    test: SourceInfo, names: Sequence[str], num_classes: int, expected: list[int]
) -> None:
    found = labels_as_in(test, names, num_classes)
    assert found.dtype == np.int64 and found.tolist() == expected


@pytest.mark.parametrize(
    ("test", "names", "num_classes", "message"),
    [
        (info([0, 3]), (), 3, r"has label 3, but the source has 3 classes \(0, 1, 2\)"),
        (info([0, 12]), DIGITS, 12, r"has label 12, but the source has 12 classes \(0 to 9\)"),
        (info([0]), ("1", "2"), 2, r"has label 0, but the source has 2 classes \(1, 2\)"),
        (info([0, 1], ("cat", "dog")), ("cat", "eel"), 2, r"has 'dog', unlike the source"),
        (info([0, 1], ("cat", "Dog")), ("cat", "dog"), 2, r"has 'Dog', unlike"),
        (info([0, 1], ("crane", "dog")), ("crane", "dog", "crane"), 3, r"'crane' more than once"),
    ],
)
def test_classes_that_the_source_does_not_have_are_refused(
    test: SourceInfo, names: Sequence[str], num_classes: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        labels_as_in(test, names, num_classes)


def test_a_folder_of_numbers_and_a_parquet_of_numbers_are_measured_alike(tmp_path: Path) -> None:
    labels = np.arange(96) % 12
    images = [png_bytes(pixels) for pixels in class_pixels(labels, 8)]
    for number, (label, raw) in enumerate(zip(labels, images, strict=True)):
        (tmp_path / "tree" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / str(label) / f"{number}.png").write_bytes(raw)
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "numbers.parquet")
    names = [str(number) for number in range(12)][::-1]
    named = pa.table({"image": images, "label": 11 - labels}).replace_schema_metadata(
        {b"class_names": str(names).replace("'", '"')}
    )
    pq.write_table(named, tmp_path / "named.parquet")
    common = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "executor": "local"}
    result = ur.prune(ur.PruneConfig(source=str(tmp_path / "tree"), out=tmp_path / "run", **common))
    found = [
        ur.evaluate(result, test=str(tmp_path / test), seeds=1, against=()).arms[0].accuracies
        for test in ("tree", "numbers.parquet", "named.parquet")
    ]
    assert found[0] == found[1] == found[2]


def test_names_that_cannot_be_compared_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [png_bytes(pixels) for pixels in class_pixels(np.arange(24) % 2, 8)]
    table = pa.table({"image": images, "label": np.arange(24) % 2})
    pq.write_table(table, tmp_path / "test.parquet")
    pq.write_table(table.replace_schema_metadata({b"class_names": b'["cat", "dog"]'}), tmp_path / "train.parquet")
    config = ur.PruneConfig(
        source=str(tmp_path / "train.parquet"), test=str(tmp_path / "test.parquet"), keep=0.5, folds=2,
        recipe={"epochs": 1, "min_steps": 0}, executor="local", out=tmp_path / "run",
    )  # fmt: skip
    ur.prune(config)
    assert "train.parquet names its classes and" in caplog.text and "cannot be checked" in caplog.text

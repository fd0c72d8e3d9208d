"""What is refused before anything starts: a run's folder within its source, functions without a name, archives."""

from __future__ import annotations

import functools
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.execution.ray import connect
from unseen_ray.storage.patterns import covers

FAST = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "executor": "local"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of two Parquet files, with a tree of classes below it."""
    labels = np.arange(24) % 2
    for name in ("a.parquet", "b.parquet"):
        write_parquet(tmp_path / "data" / name, labels, [png_bytes(pixels) for pixels in class_pixels(labels, 8)])
    for number, (label, pixels) in enumerate(zip(labels, class_pixels(labels, 8), strict=True)):
        (tmp_path / "tree" / "xy"[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / "xy"[label] / f"{number}.png").write_bytes(png_bytes(pixels))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("tree", "tree"),
        ("tree", "tree/pruned"),
        ("tree", "tree/x/../runs/1"),
        ("tree", "link/runs"),
        ("link", "tree/runs"),
        ("data", "data/run"),
        ("data/*.parquet", "data"),
        ("data/**/*.parquet", "data/run"),
    ],
)
def test_a_run_s_folder_within_its_source_is_refused(data: Path, source: str, out: str) -> None:
    (data / "link").symlink_to(data / "tree")
    before = sorted(data.rglob("*"))
    with pytest.raises(ur.ConfigError, match=r"lies in the source .*, which it would change\. Name a folder elsewhere"):
        ur.prune(ur.PruneConfig(source=str(data / source), out=data / out, **FAST))
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize(
    ("source", "out"), [("data/*.parquet", "data/run"), ("data/a.parquet", "data/run"), ("tree", "tree2")]
)
def test_a_run_s_folder_beside_its_source_is_not(data: Path, source: str, out: str) -> None:
    place, folder = str(data / source), str(data / out)
    before = open_source(source_ref(place)).info.fingerprint
    ur.prune(ur.PruneConfig(source=place, out=folder, **FAST))
    assert open_source(source_ref(place)).info.fingerprint == before


def test_brackets_in_a_folder_that_exists_hide_nothing(tmp_path: Path) -> None:
    (tmp_path / "br[1]").mkdir()
    assert covers(f"{tmp_path}/br[1]", f"{tmp_path}/br[1]/run") and not covers(
        f"{tmp_path}/br[1]", f"{tmp_path}/br1/run"
    )


class Samples:
    labels = np.arange(24) % 2
    keys = tuple(map(str, range(24)))

    def __len__(self) -> int:
        return 24

    def __getitem__(self, number: int) -> np.ndarray:
        return np.full((8, 8, 3), 40 + 50 * self.labels[number], np.uint8)

    def itself(self) -> Samples:
        return self


def flat_entropy(log_probs: np.ndarray, labels: np.ndarray, *, power: float = 1.0) -> np.ndarray:
    return (-((np.exp(log_probs) * log_probs).sum(axis=1) ** power)).astype(np.float32)


def closure() -> Callable[..., Any]:
    def inner(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return flat_entropy(log_probs, labels, power=2)

    return inner


@pytest.mark.parametrize(
    "fields",
    [
        {"score": lambda log_probs, labels: -log_probs.max(axis=1)},
        {"score": closure()},
        {"score": functools.partial(flat_entropy, power=2.0)},
        {"score": {"use": lambda log_probs, labels, *, power: -log_probs.max(axis=1), "power": 2.0}},
        {"policy": lambda scores_M, labels_M, ids_M, budget, *, kept_C, seed: np.arange(budget)},
        {"model": lambda num_classes: None},
        {"source": lambda: Samples()},
        {"source": functools.partial(Samples)},
        {"source": Samples().itself},
        {"test": lambda: Samples()},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_functions_without_a_name_are_refused_before_anything_is_trained(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(
        ur.ConfigError, match=r"has no name of its own, by which the run could be resumed\. Write it with def"
    ):
        ur.prune(ur.PruneConfig(**{"source": Samples, "out": tmp_path / "run", **FAST, **fields}))
    assert not (tmp_path / "run").exists()


def test_functions_with_a_name_are_known_again(tmp_path: Path) -> None:
    config = ur.PruneConfig(source=Samples, score={"use": flat_entropy, "power": 2.0}, out=tmp_path / "run", **FAST)
    first = ur.prune(config)
    assert ur.prune(config).coreset.ids.tolist() == first.coreset.ids.tolist()


def test_an_archive_is_told_from_a_parquet_file(tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with pytest.raises(ur.DataError, match=r"a\.zip of source .* is an archive\. Unpack it"):
        open_source(source_ref(str(tmp_path / "a.zip")))


def test_a_parquet_source_is_pickled_as_how_to_open_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    source = open_source(source_ref({"use": "parquet", "path": "data/*.parquet", "limit": 30, "size": 6}))
    list(source.read([0, 29]))  # files are open, and row groups are held
    stored = pickle.dumps(source)
    monkeypatch.chdir("/")
    copy = pickle.loads(stored)
    assert list(copy.read([0, 29])) == list(source.read([0, 29])) and copy.info.size_px == 6


@pytest.mark.parametrize(("length", "is_long"), [(10, False), (35, False), (36, True), (90, True)])
def test_ray_gets_a_short_folder_where_tmpdir_is_too_long(
    monkeypatch: pytest.MonkeyPatch, length: int, is_long: bool
) -> None:
    monkeypatch.setattr(connect.tempfile, "gettempdir", lambda: "/" + "t" * (length - 1))
    assert (connect._short_folder() is not None) == is_long


@pytest.mark.parametrize(
    ("place", "to", "expected"),
    [
        ("/data/*/train-*.parquet", "/data/runs/x", False),
        ("/data/*/train-*.parquet", "/data/runs", False),
        ("/data/*/*.parquet", "/data/runs", True),
        ("/data/{a,b}/train.parquet", "/data/runs/x", False),
        ("/data/{a,b}/*.parquet", "/data/b", True),
        ("/data/**/*.parquet", "/data/runs/x", True),
        ("/data/**/*.parquet", "/else/runs", False),
        ("/data/imgs", "/data/imgs/.runs/x", False),
        ("/data/imgs", "/data/imgs/runs/x", True),
        ("s3://bucket/*/train-*.parquet", "s3://bucket/runs/x", False),
        ("s3://bucket/data?region=us-east-1", "s3://bucket/runs", False),
    ],
)
def test_only_what_a_source_would_read_is_covered(place: str, to: str, expected: bool) -> None:
    assert covers(place, to, ("coreset.parquet", "keys.parquet")) == expected

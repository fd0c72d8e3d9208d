"""What the tests share: small data made on the spot, and the places where real data may lie."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a job in the background, and what it starts would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


def png_bytes(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a PNG, which keeps every bit."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


LONG_FILES = (
    "test_same_ids.py",
    "test_job.py",
    "test_decoding.py",
    "test_features.py",
    "test_cluster.py",
    "test_elastic.py",
    "test_golden_runs.py",
    "test_lock.py",
    "test_faults.py",
    "test_watch.py",
    "test_readme.py",
    "test_long_runs.py",
    "test_sweep.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest begin first, so that workers side by side end at about the same time."""
    items.sort(key=lambda item: LONG_FILES.index(item.path.name) if item.path.name in LONG_FILES else len(LONG_FILES))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End without the interpreter's tear-down, in which threads of pyarrow that wait for a silent storage may crash."""
    status = config.stash.get(_STATUS, None)
    if status is not None:
        if (ray := sys.modules.get("ray")) is not None:
            ray.shutdown()
        if config.pluginmanager.has_plugin("terminalreporter"):  # a worker of pytest-xdist has none
            config.get_terminal_writer().flush()
        for each in gc.get_objects():  # wandb has left its own to the tear-down
            if type(each) is tempfile.TemporaryDirectory:
                with contextlib.suppress(OSError):
                    each.cleanup()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """What a command that a test calls sets for its process is taken back: its log, its signals, its path."""
    logger, hook = logging.getLogger("unseen_ray"), sys.unraisablehook
    log, path = (list(logger.handlers), logger.propagate, logger.level), list(sys.path)
    listening = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    logger.handlers, logger.propagate, level = log
    logger.setLevel(level)
    sys.path[:], sys.unraisablehook = path, hook
    for number, handler in listening.items():
        signal.signal(number, handler)


def class_pixels(labels: np.ndarray, size_px: int, seed: int = 0) -> np.ndarray:
    """(N, H, W, 3) uint8 noise with a stripe whose place tells the class: easy to learn, different in every image."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 128, (len(labels), size_px, size_px, 3), dtype=np.uint8)
    for place, label in enumerate(labels):
        pixels[place, int(label) % size_px, :, int(label) % 3] += 120
    return pixels


def write_parquet(path: Path, labels: np.ndarray, images: list[bytes], *, image: str = "image", **columns: Any) -> Path:
    """A Parquet file in the Hugging Face image schema."""
    structs = pa.array(
        [{"bytes": data, "path": None} for data in images], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image: structs, "label": pa.array(labels), **columns}), path)
    return path


@pytest.fixture
def parquet_file(tmp_path: Path) -> Callable[..., Path]:
    """Makes a Parquet file of `count` learnable PNGs: `parquet_file(count=40, classes=4, size_px=8, name="data.parquet")`."""

    def make(*, count: int = 40, classes: int = 4, size_px: int = 8, name: str = "data.parquet", seed: int = 0) -> Path:
        labels = np.arange(count) % classes
        images = [png_bytes(pixels) for pixels in class_pixels(labels, size_px, seed)]
        return write_parquet(tmp_path / name, labels.astype(np.int64), images)

    return make


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a class-per-folder tree of PNGs: `image_folder(per_class=5, classes=("cat", "dog"), size_px=10)`."""

    def make(
        *, per_class: int = 5, classes: tuple[str, ...] = ("cat", "dog"), size_px: int = 10, name: str = "pets"
    ) -> Path:
        root = tmp_path / name
        for number, label in enumerate(classes):
            (root / label).mkdir(parents=True)
            for place, pixels in enumerate(class_pixels(np.full(per_class, number), size_px, seed=number)):
                (root / label / f"{place:03d}.png").write_bytes(png_bytes(pixels))
        return root

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, where there is one."""
    root = Path(os.environ.get("UNSEEN_DATA", "data"))
    if not (root / "cifar10-train.parquet").exists():
        pytest.skip(
            f"real data: {root}/cifar10-train.parquet is not there; set UNSEEN_DATA to the folder that holds it"
        )
    return root

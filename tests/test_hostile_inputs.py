"""A seeded fuzzer of hostile inputs in every format that is read: an answer or one of our errors, soon, in little memory, in place."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import resource
import shutil
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import unseen_ray as ur
from tests.hostile_runs import CASES, Case, Damage
from tests.test_fuzz import cut, empty, flip, lose, noise, overwrite, repeat, zero
from unseen_ray.config.fields.yaml_text import parsed_yaml
from unseen_ray.data.images.decode import to_pixels
from unseen_ray.data.images.opening import UndecodableError
from unseen_ray.data.sources.cifar.batch import read_batch
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.npy import array_of_npy

QUICK, ALL = 155, 2000
LIMIT_S = 60
MEMORY = 2**30  # bytes that all cases of a process may add together
ROWS = 6
RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(ROWS)]
HOSTILE = (
    b"\xff" * 8, b"\x00" * 16, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"../../x", b"/etc/passwd", b"\x1b[2J", b"\xff\xda", b"*&a [",
    b"9" * 40, b"-1", b"NaN", b"1e400", b"[" * 3000, b"{" * 3000, b"(" * 3000, b"True", b"null", b"\xed\xb2\x80",
)  # fmt: skip

Opened = Callable[[Path], object]


def grow(data: bytes, rng: random.Random) -> bytes:
    """Something hostile within the bytes."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(HOSTILE) * rng.choice((1, 1, 4)) + data[place:]


def replace(data: bytes, rng: random.Random) -> bytes:
    """Something hostile in place of as many bytes."""
    place, piece = rng.randrange(len(data) + 1), rng.choice(HOSTILE)
    return data[:place] + piece + data[place + len(piece) :]


DAMAGES = [cut, flip, overwrite, zero, lose, repeat, empty, noise, grow, grow, replace, replace]


def encoded(kind: str, number: int = 0, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(buffer, kind, **options)
    return buffer.getvalue()


def table() -> pa.Table:
    images = [{"bytes": encoded("PNG", row), "path": None} for row in range(ROWS)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array(images, kind), "label": np.arange(ROWS) % 2})


def parquet_bytes(content: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink)
    return bytes(sink.getvalue())


def arrow_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table().schema) as writer:
        writer.write_table(table())
    return bytes(sink.getvalue())


def tar_bytes(kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for row in range(ROWS):
            for ending, data in (("png", encoded("PNG", row)), ("cls", b"%d" % (row % 2))):
                info = tarfile.TarInfo(f"{'d' * 120 if kind == tarfile.PAX_FORMAT else 'd'}/{row:03d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def npy_bytes() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(ROWS) % 2)
    return buffer.getvalue()


def cifar_bytes() -> bytes:
    return pickle.dumps(
        {b"labels": [0, 1], b"data": np.zeros((2, 3072), np.uint8), b"filenames": [b"a.png", b"b.png"]}, 2
    )


def image_of(path: Path) -> object:
    return to_pixels(path.read_bytes(), 8)


def source_of(path: Path) -> object:
    source = open_source(source_ref(str(path)))
    list(source.read(range(min(len(source.info), ROWS))))
    return source.keys(range(len(source.info)))


@dataclass(frozen=True)
class Kind:
    """An input: its name, what it holds when it is whole, and who reads it."""

    name: str
    whole: Callable[[], bytes]
    read: Opened


KINDS = {
    "jpeg": Kind("a.jpg", lambda: encoded("JPEG"), image_of),
    "progressive": Kind("a.jpg", lambda: encoded("JPEG", progressive=True), image_of),
    "png": Kind("a.png", lambda: encoded("PNG"), image_of),
    "gif": Kind("a.gif", lambda: encoded("GIF"), image_of),
    "bmp": Kind("a.bmp", lambda: encoded("BMP"), image_of),
    "tiff": Kind("a.tif", lambda: encoded("TIFF"), image_of),
    "webp": Kind("a.webp", lambda: encoded("WEBP"), image_of),
    "jpeg2000": Kind("a.jp2", lambda: encoded("JPEG2000"), image_of),
    "ppm": Kind("a.ppm", lambda: encoded("PPM"), image_of),
    "parquet": Kind("a.parquet", lambda: parquet_bytes(table()), source_of),
    "arrow": Kind("a.arrow", arrow_bytes, source_of),
    "tar": Kind("a.tar", lambda: tar_bytes(tarfile.USTAR_FORMAT), source_of),
    "pax tar": Kind("a.tar", lambda: tar_bytes(tarfile.PAX_FORMAT), source_of),
    "csv": Kind("a.csv", lambda: b"path,label\n0.png,0\n1.png,1\n", source_of),
    "json lines": Kind("a.jsonl", lambda: b'{"path": "0.png", "label": 0}\n{"path": "1.png", "label": 1}\n', source_of),
    "cifar": Kind("a", cifar_bytes, lambda path: read_batch(path.read_bytes())),
    "npy": Kind("a.npy", npy_bytes, lambda path: array_of_npy(path.read_bytes())),
    "labels": Kind("a.npy", npy_bytes, lambda path: open_source(source_ref({"use": "labels", "path": str(path)})).info),
    "yaml": Kind("a.yaml", lambda: b"source: digits\nkeep: 0.5\nrecipe: &r {epochs: 2}\nscoring: {recipe: *r}\n",
                 lambda path: parsed_yaml(path.read_text())),
    "manifest": Kind("manifest.json", lambda: (GOLDEN / "manifest.json").read_bytes(), lambda path: ur.load(str(path.parent))),
}  # fmt: skip
GOLDEN = next((Path(__file__).parent / "golden").rglob("manifest.json")).parent
# What the readers of bytes alone raise, for their callers to put into a message.
OURS = (ur.UnseenError, UndecodableError, ValueError)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def files_below(folder: Path) -> set[str]:
    return {os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}


def of_bytes(kind: Kind, label: str) -> Case:
    """Damage to the bytes of an input, which one reader takes."""

    def case(at: Path, rng: random.Random, damage: Damage) -> str:
        for row in range(2):
            (at / f"{row}.png").write_bytes(encoded("PNG", row))
        data = kind.whole()
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = damage(data or b"\0", rng)
        (at / kind.name).write_bytes(data)
        before = files_below(at)
        try:
            kind.read(at / kind.name)
        except OURS as error:
            assert isinstance(error, (ur.UnseenError, UndecodableError)) or label in ("cifar", "npy", "yaml"), error
            assert str(error)
            return "refused"
        finally:
            assert files_below(at) == before
        return "read"

    return case


ALL_CASES: dict[str, Case] = {**{label: of_bytes(kind, label) for label, kind in KINDS.items()}, **CASES}


def any_damage(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(DAMAGES)(data or b"\0", rng)


def run_cases(numbers: range, tmp_path: Path) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    at = tmp_path / "given"
    for number in numbers:
        label = list(ALL_CASES)[number % len(ALL_CASES)]
        at.mkdir()
        try:
            with within(LIMIT_S):
                outcomes[ALL_CASES[label](at, random.Random(number), any_damage)] += 1
        except BaseException as error:
            raise AssertionError(f"case {number} ({label}): {type(error).__name__}: {error}") from error
        shutil.rmtree(at)
        assert not files_below(tmp_path), (number, label)
    return outcomes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "numbers", [range(QUICK), pytest.param(range(QUICK, ALL), marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_hostile_inputs_are_read_or_refused_with_a_message(
    tmp_path: Path, numbers: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = run_cases(numbers, tmp_path)
    assert outcomes["refused"] > len(numbers) / 3 and outcomes["read"] > len(numbers) / 20, outcomes
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert len(ALL_CASES) >= 30


def test_an_arrow_file_whose_offsets_lead_out_of_it_is_refused(tmp_path: Path) -> None:
    data = arrow_bytes()
    sizes = [len(encoded("PNG", row)) for row in range(ROWS)]
    offsets = np.cumsum([0, *sizes]).astype("<i4").tobytes()
    assert data.count(offsets) == 1
    (tmp_path / "a.arrow").write_bytes(data.replace(offsets, offsets[:-4] + b"\xff\xff\xff\x7f"))
    with pytest.raises(ur.DataError, match=r"a\.arrow of source .* cannot be read as an Arrow file"):
        source_of(tmp_path / "a.arrow")


def test_a_list_whose_columns_are_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"pa\xffth,label\n0.png,0\n")
    with pytest.raises(ur.DataError, match=r"cannot be read as a table: .*utf-8"):
        source_of(tmp_path / "a.csv")


def test_every_kind_is_read_while_it_is_whole(tmp_path: Path) -> None:
    for row in range(2):
        (tmp_path / f"{row}.png").write_bytes(encoded("PNG", row))
    for kind in KINDS.values():
        (tmp_path / kind.name).write_bytes(kind.whole())
        if kind.name != "manifest.json":  # whose tables are not there
            kind.read(tmp_path / kind.name)
    assert Folder(str(tmp_path)).read("a.npy") is not None

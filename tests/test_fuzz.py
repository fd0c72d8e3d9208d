"""Damage of every kind, by a seeded fuzzer: a clear error or the right answer, never a traceback, a hang or another result."""

from __future__ import annotations

import contextlib
import io
import random
import shlex
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.cli import main
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.runs.tasks import Progress

COUNT, CLASSES, SIZE_PX, KEPT = 48, 4, 8, 24
LINE = shlex.split(
    "--keep 0.5 --folds 2 --schedule [0.3,0.5] --recipe.epochs 2 --recipe.min_steps 0 --scoring.share 1 --executor local --log_to none"
)
YAML = """source: {use: parquet, path: DATA, image: image, label: label}
keep: 0.5
score: entropy
also_score: [margin, el2n]
folds: 2
schedule: [0.3, 0.5]
recipe:
  use: quick
  epochs: 2
policy: {use: class_balanced}
executor: local
"""
LIMIT_S = 60
QUICK, ALL = 42, 210

Damage = Callable[[bytes, random.Random], bytes]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.randrange(1, 64)
    return data[:place] + rng.randbytes(length) + data[place + length :]


def zero(data: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.randrange(1, 512)
    return data[:place] + bytes(len(data[place : place + length])) + data[place + length :]


def lose(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.randrange(1, 64) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[max(place - rng.randrange(1, 64), 0) : place] + data[place:]


def empty(data: bytes, rng: random.Random) -> bytes:
    return b""


def noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(max(len(data), 8))


DAMAGES: list[Damage] = [cut, flip, overwrite, zero, lose, repeat, empty, noise]


@dataclass(frozen=True)
class Whole:
    """What is whole before a case damages a copy: data, a finished run, and one that was stopped in a fit.

    Attributes:
        root: the folder of all that.
        ids: what the run keeps.
        again: what is kept by choosing again from its stage 0.
    """

    root: Path
    ids: list[int]
    again: list[int]

    def copy(self, to: Path, *names: str) -> Path:
        """A copy of some of it."""
        for name in names:
            if (self.root / name).is_dir():
                shutil.copytree(self.root / name, to / name)
            else:
                shutil.copy(self.root / name, to / name)
        return to


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    labels = np.arange(COUNT) % CLASSES
    write_parquet(root / "data.parquet", labels, [png_bytes(pixels) for pixels in class_pixels(labels, SIZE_PX)])
    line = ["prune", "--source", str(root / "data.parquet"), *LINE]
    assert outcome([*line, "--out", str(root / "finished")])[0] == 0
    fields = ur.load(root / "finished").config.model_copy(update={"out": str(root / "stopped")})

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.task.startswith("stage 1") and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ur.prune(fields, on_event=stop)
    assert list((root / "stopped" / "checkpoints").rglob("*.safetensors"))
    finished = ur.load(root / "finished")
    again = ur.select(finished, keep=0.5, out=root / "again")
    return Whole(root, finished.coreset.ids.tolist(), again.coreset.ids.tolist())


def outcome(argv: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command; one that takes longer than a minute has hung."""
    stderr, code = io.StringIO(), 0
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"hung: {argv}"))
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            main(argv)
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        signal.alarm(0)
    return code, stderr.getvalue()


def damaged_source(whole: Whole, at: Path, damage: Damage, rng: random.Random) -> tuple[int, str, Path]:
    data = whole.copy(at, "data.parquet") / "data.parquet"
    data.write_bytes(damage(data.read_bytes(), rng))
    return *outcome(["prune", "--source", str(data), *LINE, "--out", str(at / "run")]), at / "run"


def damaged_image(whole: Whole, at: Path, damage: Damage, rng: random.Random) -> tuple[int, str, Path]:
    table = pq.read_table(whole.root / "data.parquet").to_pydict()
    images = [row["bytes"] for row in table["image"]]
    place = rng.randrange(COUNT)
    images[place] = damage(images[place], rng)
    data = write_parquet(at / "data.parquet", np.array(table["label"]), images)
    bad = ["--on_bad_sample", rng.choice(["error", "skip"])]
    return *outcome(["prune", "--source", str(data), *LINE, *bad, "--out", str(at / "run")]), at / "run"


def damaged_file(name: str, pattern: str) -> Callable[[Whole, Path, Damage, random.Random], tuple[int, str, Path]]:
    """One of the run's files that match, then the same line again."""

    def case(whole: Whole, at: Path, damage: Damage, rng: random.Random) -> tuple[int, str, Path]:
        whole.copy(at, name)
        path = rng.choice(sorted(path for path in (at / name).rglob(pattern) if path.is_file()))
        path.write_bytes(damage(path.read_bytes(), rng))
        line = ["prune", "--source", str(whole.root / "data.parquet"), *LINE, "--out", str(at / name)]
        return *outcome(line), at / name

    return case


def read_damaged(whole: Whole, at: Path, damage: Damage, rng: random.Random) -> tuple[int, str, Path]:
    """A file of a finished run, then a command that only reads."""
    run = whole.copy(at, "finished") / "finished"
    path = rng.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    path.write_bytes(damage(path.read_bytes(), rng))
    again = ["select", str(run), "--keep", "0.5", "--out", str(at / "again")]
    line = rng.choice([again, ["export", str(run), "--to", str(at / "kept.npy")], ["report", str(run)]])
    code, stderr = outcome(line)
    if code == 0 and line[0] == "export":
        assert np.load(at / "kept.npy").tolist() == whole.ids
    if code == 0 and line[0] == "select":
        assert ur.load(at / "again").coreset.ids.tolist() == whole.again
    return code, stderr, at


def damaged_yaml(whole: Whole, at: Path, damage: Damage, rng: random.Random) -> tuple[int, str, Path]:
    text = YAML.replace("DATA", str(whole.root / "data.parquet")).encode()
    (at / "run.yaml").write_bytes(damage(text, rng))
    return *outcome(["plan", str(at / "run.yaml")]), at


KINDS: dict[str, Callable[[Whole, Path, Damage, random.Random], tuple[int, str, Path]]] = {
    "Parquet source": damaged_source,
    "image": damaged_image,
    "manifest": damaged_file("stopped", "manifest*.json"),
    "checkpoint": damaged_file("stopped", "checkpoints/**/*"),
    "votes and scores": damaged_file("finished", "*.parquet"),
    "read only": read_damaged,
    "YAML": damaged_yaml,
}


OWN = ("manifest", "checkpoint", "votes and scores")


def check(kind: str, whole: Whole, code: int, stderr: str, run: Path) -> None:
    """What the line has to answer; a run's own files are mended, whatever is damaged."""
    assert "Traceback" not in stderr, stderr
    if kind in OWN:
        assert code == 0, f"ended with {code}:\n{stderr}"
        assert ur.load(run).coreset.ids.tolist() == whole.ids
    elif code:
        assert code in (2, 3, 4), f"ended with {code}:\n{stderr}"
        assert "error: " in stderr
    elif kind in ("Parquet source", "image"):
        ids = ur.load(run).coreset.ids.tolist()
        assert len(ids) in (KEPT, KEPT - 1)  # a skipped sample may take a half of one with it
        assert ids == whole.ids or pixels_of(run.parent / "data.parquet") != pixels_of(whole.root / "data.parquet")


def pixels_of(data: Path) -> list[bytes | None]:
    """What the images of a file decode to, None for one that does not."""
    found: list[bytes | None] = []
    for _, encoded in open_source(source_ref(str(data))).read(range(COUNT)):
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                found.append(image.convert("RGB").tobytes())
        except (OSError, ValueError, SyntaxError):
            found.append(None)
    return found


def fuzz(whole: Whole, root: Path, count: int, seed: int) -> dict[str, Any]:
    ended: Counter[tuple[str, int]] = Counter()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        kind = list(KINDS)[number % len(KINDS)]
        damage = rng.choice(DAMAGES)
        at = root / str(number)
        at.mkdir()
        try:
            code, stderr, run = KINDS[kind](whole, at, damage, rng)
            check(kind, whole, code, stderr, run)
        except BaseException as error:
            error.add_note(f"case {number}: {kind}, {damage.__name__}")
            raise
        ended[kind, code] += 1
        shutil.rmtree(at)
    return dict(ended)


def test_damage_ends_in_an_error_or_the_right_answer(whole: Whole, tmp_path: Path) -> None:
    ended = fuzz(whole, tmp_path, QUICK, seed=1)
    assert sum(ended.values()) == QUICK
    assert {kind for kind, _ in ended} == set(KINDS)


@pytest.mark.slow
def test_two_hundred_damaged_inputs(whole: Whole, tmp_path: Path) -> None:
    ended = fuzz(whole, tmp_path, ALL, seed=0)
    print(*sorted(ended.items()), sep="\n")
    assert sum(ended.values()) == ALL

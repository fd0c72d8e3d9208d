"""Cases of the fuzzer about run folders and command lines: a stranger's votes, tables, manifests, checkpoints, names and arguments."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.conftest import png_bytes
from unseen_ray.cli import main
from unseen_ray.cli.app import cli
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import UnseenError
from unseen_ray.runs.votes import find_receipt, read_votes
from unseen_ray.storage.checked_json import from_checked_json
from unseen_ray.storage.filesystem import Folder, sha256_of
from unseen_ray.sweeps.records import front_of, records_below, records_table, trainings_of
from unseen_ray.training.loop.checkpoints import Checkpoints

GOLDEN = Path(__file__).parent / "golden"
DOCUMENTED = (0, 2, 3, 4)
ODD = [
    None, True, -1, 0, 2**31, 2**63, 10**30, 1.5, float("nan"), float("inf"), 1e308, "", "x", "../../x", "\x1b[2J", "\ud800",
    "9" * 40, [], [None], ["x"], [[1]], {}, {"a": 1}, {"use": "os:system"},
]  # fmt: skip
NAMES = [
    b"\xff\xfe", b"-rf", b"=1+1", b"a\\b", b"..x", b"...", b"\x1b[2Jx", b"a\nb", b"x" * 240, b"\xe2\x80\xae", b" ", b"%s%n", b"{0}", b"'\"",
    b"$(id)", b"*", b"con", b"\xed\xb2\x80",
]  # fmt: skip

Damage = Callable[[bytes, random.Random], bytes]


def command(argv: list[str], out: Path) -> str:
    """Run a command in this process; its exit code is a documented one, and its output no traceback and no control characters."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main(argv)
        except SystemExit as ended:
            code = int(ended.code or 0)
    text = stdout.getvalue() + stderr.getvalue()
    assert code in DOCUMENTED, f"{argv} ended with {code}: {text[-400:]}"
    assert "Traceback" not in text, f"{argv}: {text[-1500:]}"
    assert "\x1b" not in text, f"{argv}: {text[-400:]!r}"
    assert code == 0 or "rror" in stderr.getvalue(), f"{argv} ended with {code} and said {stderr.getvalue()[-400:]!r}"
    return "refused" if code else "read"


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within JSON."""
    if above:
        yield above
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*above, key))


def replaced(values: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy of JSON with one value replaced."""
    changed = json.loads(json.dumps(values))
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = new
    return changed


def forged_json(data: bytes, rng: random.Random) -> bytes:
    """JSON of ours with some values replaced by odd ones, and no checksum that would tell."""
    values = from_checked_json(data)
    for _ in range(rng.choice((1, 1, 2))):
        values = replaced(values, rng.choice(list(places(values))), rng.choice(ODD))
    return json.dumps(values).encode()


def forged_table(data: bytes, rng: random.Random) -> bytes:
    """A table of ours with a column changed."""
    table = pq.read_table(io.BytesIO(data))
    place = rng.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    row = rng.randrange(max(table.num_rows, 1))

    def with_value(value: Any) -> pa.Array:
        values = column.to_pylist()
        values[row : row + 1] = [value]
        return pa.array(values, column.type)

    changes: list[Callable[[], pa.Table]] = [
        lambda: table.remove_column(place),
        lambda: table.append_column(name, column),
        lambda: table.slice(0, row),
        lambda: table.take(pa.array(rng.sample(range(table.num_rows), table.num_rows))),
        lambda: table.set_column(place, name, pa.array([str(value) for value in column.to_pylist()])),
        lambda: table.set_column(place, name, pa.nulls(table.num_rows, column.type)),
        lambda: table.set_column(place, name, pa.array([[1]] * table.num_rows)),
        lambda: table.set_column(place, name, with_value(None)),
        lambda: table.set_column(place, name, with_value(-5)),
        lambda: table.set_column(place, name, with_value(2**31 - 1)),
        lambda: table.set_column(place, name, with_value(float("nan"))),
        lambda: table.set_column(place, name, with_value(float("inf"))),
        lambda: table.rename_columns([*table.column_names[:-1], "\x1b[2J"]),
    ]
    sink = pa.BufferOutputStream()
    # values that the column's type cannot hold leave the table as it was
    with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
        table = rng.choice(changes)().replace_schema_metadata(table.schema.metadata)
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def readers(run: Path, at: Path, rng: random.Random) -> list[str]:
    """A command that reads a run."""
    return rng.choice(
        [
            ["watch", str(run), "--once"],
            ["select", str(run), "--keep", "0.3", "--out", str(at / "again")],
            ["select", str(run), "--keep", "0.6", "--policy", rng.choice(["top", "random", "ccs"]), "--out", str(at / "again")],
            ["report", str(run), "--json"],
            ["export", str(run), "--to", str(at / f"kept.{rng.choice(['csv', 'npy', 'txt', 'parquet'])}")],
        ]
    )  # fmt: skip


def stored(name: str, forge: Damage | None, golden: str = "short") -> Callable[[Path, random.Random, Damage], str]:
    """A file of a finished run is damaged or forged, and often its checksum as well; then a command reads the run."""

    def case(at: Path, rng: random.Random, damage: Damage) -> str:
        run = at / "run"
        shutil.copytree(GOLDEN / golden, run)
        path = rng.choice(sorted(run.glob(name)))
        how = forge if forge is not None and rng.random() < 0.7 else damage
        path.write_bytes(how(path.read_bytes(), rng))
        if rng.random() < 0.8:
            values = from_checked_json((GOLDEN / golden / "manifest.json").read_bytes())
            if path.name.startswith("manifest"):
                shutil.copy(path, run / "manifest.copy.json")
            else:
                values["files"][path.relative_to(run).as_posix()] = sha256_of(path.read_bytes())
                for manifest in ("manifest.json", "manifest.copy.json"):
                    (run / manifest).write_text(json.dumps(values))
        return command(readers(run, at, rng), at)

    return case


def votes(at: Path, rng: random.Random, damage: Damage) -> str:
    """Votes as a resumed run and its merge read them."""
    shutil.copytree(GOLDEN / "short" / "stage-00", at / "stage-00")
    path = at / "stage-00" / "votes" / "00.parquet"
    key = (pq.read_schema(path).metadata or {})[b"unseen_ray.task"].decode()
    path.write_bytes((forged_table if rng.random() < 0.6 else damage)(path.read_bytes(), rng))
    folder = Folder(str(at))
    try:
        found = find_receipt(folder, 0, 0, key)
        read_votes(folder, 0, 0)
    except UnseenError as error:
        assert str(error)
        return "refused"
    return "read" if found is not None else "refused"


def checkpoint(at: Path, rng: random.Random, damage: Damage) -> str:
    """A checkpoint in safetensors and the JSON that names it."""
    key, position = "0" * 64, {"epoch": 1, "epochs": 2, "accuracy": 0.5, "images_per_s": 1.0, "seconds": 1.0}
    Checkpoints(Folder(str(at)), key).write({"a": torch.arange(6.0), "b": torch.zeros(2, 2)}, position)
    head, tensors = at / f"checkpoints/{key[:32]}/checkpoint.json", next(at.rglob("*.safetensors"))
    values = json.loads(head.read_bytes())
    path = rng.choice((head, tensors))
    if path == head and rng.random() < 0.7:
        head.write_bytes(json.dumps(replaced(values, rng.choice(list(places(values))), rng.choice(ODD))).encode())
    else:
        path.write_bytes(damage(path.read_bytes(), rng))
    if path == tensors and rng.random() < 0.8:
        values["files"][tensors.name] = sha256_of(tensors.read_bytes())
        head.write_text(json.dumps(values))
    try:
        saved = Checkpoints(Folder(str(at)), key).read()
    except UnseenError as error:
        assert str(error)
        return "refused"
    return "refused" if saved is None else "read"


def sweep(at: Path, rng: random.Random, damage: Damage) -> str:
    """The records of a sweep's trials, as a resumed sweep reads them, and commands on its folder."""
    shutil.copytree(GOLDEN / "sweep", at / "sweep")
    path = rng.choice(sorted((at / "sweep").rglob("*.json")))
    path.write_bytes((forged_json if rng.random() < 0.7 else damage)(path.read_bytes(), rng))
    records = records_below(Folder(str(at / "sweep")))
    records_table(records, sorted({knob for record in records for knob in record.knobs}))
    front_of([record for record in records if record.status == "finished"])
    trainings_of(records)
    run = path.parent if path.name.startswith("manifest") and path.parent.name == "seed-0" else at / "sweep"
    return command(readers(run, at, rng), at)


def names(at: Path, rng: random.Random, damage: Damage) -> str:
    """A folder of classes and files with odd names."""
    root = os.fsencode(at / "data")
    for label in rng.sample(NAMES, 2):
        os.makedirs(os.path.join(root, label))
        for name in rng.sample(NAMES, 3):
            # some file systems take no such name
            with contextlib.suppress(OSError), open(os.path.join(root, label, name[:240] + b".png"), "wb") as file:
                file.write(png_bytes(np.zeros((8, 8, 3), np.uint8)))
    try:
        source = open_source(source_ref(str(at / "data")))
        keys = source.keys(range(len(source.info)))
        assert len(set(keys)) == len(keys) and len(list(source.read(range(len(keys))))) == len(keys)
    except UnseenError as error:
        assert str(error)
    return command(["plan", "--source", str(at / "data"), "--keep", "0.5", "--executor", "local"], at)


WORDS = [
    "digits", "cifar10", "0.5", "-1", "nan", "inf", "1e400", "", "\x1b[2J", "x" * 5000, "[" * 500, "{a: b}", "*a", "&a [*a]", "../..",
    "/dev/null", "/proc/self/mem", "s3://", "s3://k:s@b/x", "http://x", "os:system", "none", "-h", "9" * 400, "\udcff", "~", "null",
]  # fmt: skip

KEPT = ("--executor", "--address", "--source", "--test", "--out", "--to", "--once")
"""Flags that stay as they are: with others, a command would start a cluster, fetch data, wait, or write elsewhere."""


def command_line(at: Path, rng: random.Random, damage: Damage) -> str:
    """Values that no flag expects, flags of the command or of another, and words out of place; on commands that train nothing."""
    run = str(GOLDEN / rng.choice(["short", "scored", "selection", "sweep", "interrupted"]))
    np.save(at / "p.npy", np.full((6, 3), 1 / 3, np.float32))
    np.save(at / "y.npy", np.arange(6) % 3)
    line = rng.choice(
        [
            *[["plan", "--source", "digits", "--keep", "0.5", "--executor", "local"]] * 4,
            ["select", run, "--keep", "0.5", "--out", str(at / "again"), "--policy", "top", "--score", "entropy"],
            ["export", run, "--to", str(at / "kept.csv")],
            ["report", run, "--json"],
            ["watch", run, "--once"],
            ["score", "--probs", str(at / "p.npy"), "--labels", str(at / "y.npy"), "--out", str(at / "scores")],
            ["list", "scores"],
            ["copies", run, "--json"],
            ["evaluate", str(at / "none"), "--seeds", "1"],
            ["prune", "--source", str(at / "none"), "--keep", "0.5", "--out", str(at / "run"), "--executor", "local"],
            ["sweep", str(at / "p.npy")],
        ]
    )
    own = [
        param.opts[0]
        for param in cli.commands[line[0]].params
        if param.opts[0].startswith("--") and param.opts[0] not in KEPT
    ]
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.5 and own:
            line += [rng.choice(own), rng.choice(WORDS)]
        elif kind < 0.9:
            places = [
                place
                for place, word in enumerate(line)
                if place and not word.startswith("--") and line[place - 1] not in KEPT
            ]
            line[rng.choice(places or [0])] = rng.choice(WORDS)
        else:
            line.insert(rng.randrange(len(line) + 1), rng.choice(WORDS))
    return command(line, at)


Case = Callable[[Path, random.Random, Damage], str]
CASES: dict[str, Case] = {
    "run's manifest": stored("manifest.json", forged_json),
    "run's scores": stored("stage-0[01]/scores.parquet", forged_table),
    "run's coreset": stored("coreset.parquet", forged_table),
    "run's keys": stored("keys.parquet", forged_table),
    "run's arrays": stored("stage-00/*.npy", None),
    "run's evaluation": stored("evaluation.json", forged_json),
    "run's votes": votes,
    "checkpoint": checkpoint,
    "sweep's files": sweep,
    "names": names,
    "command line": command_line,
}

"""What is exported as a file is written by pieces, to the byte what it would be if it were written at once."""

from __future__ import annotations

import io
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

import unseen_ray as ur
from unseen_ray.errors import StorageError
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import TableWriter

RUN = Path(__file__).parent / "golden" / "short"  # with a holdout
ENDINGS = (".npy", ".txt", ".csv", ".parquet")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    fields = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "executor": "local"}
    out = tmp_path_factory.mktemp("export") / "run"
    return ur.prune(ur.PruneConfig(source={"use": "digits", "limit": 300}, out=out, **fields))


def at_once(table: pa.Table, ending: str) -> bytes:
    """The same from the whole table."""
    if ending == ".txt":
        return "".join(f"{key}\n" for key in table.column("key").to_pylist()).encode()
    stream, sink = io.BytesIO(), pa.BufferOutputStream()
    if ending == ".npy":
        np.save(stream, table.column("id").to_numpy())
        return stream.getvalue()
    pyarrow.csv.write_csv(table, sink) if ending == ".csv" else pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def other_coreset(
    result: ur.PruneResult, out: Path, ids: np.ndarray, key: Callable[[int], str], *, part_rows: int | None = None
) -> ur.PruneResult:
    """A run in `out` like another one, with another coreset, of a source with seven million rows more than it needs."""
    columns = {"id": ids, "key": pa.array([key(number) for number in ids]), "label": ids % 10}
    more = {"stage": np.zeros(len(ids), np.int32), "score": (ids % 977).astype(np.float32) / 977}
    folder = Folder(str(out))
    writer = TableWriter(folder, "coreset.parquet", len(ids), part_rows=part_rows)
    writer.add(pa.table({**columns, **more}))
    manifest = result.manifest.changed(
        files={name: digest for name, digest in result.manifest.files.items() if name != "coreset.parquet"}
        | writer.close(),
        source=result.manifest.source.model_copy(update={"rows": int(ids[-1]) + 7_000_000}),
    )
    return replace(result, run=replace(result.run, folder=folder, manifest=manifest))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_short_coreset(result: ur.PruneResult, tmp_path: Path, ending: str) -> None:
    to = tmp_path / "new" / f"kept{ending}"
    assert ur.export(result, to) == 150
    assert to.read_bytes() == at_once(result.run.table("coreset.parquet"), ending)
    assert [path.name for path in to.parent.iterdir()] == [to.name]


@pytest.mark.slow
def test_a_coreset_of_several_row_groups(result: ur.PruneResult, tmp_path: Path) -> None:
    ids = np.arange(2**20 + 2**18 + 17)
    long = other_coreset(result, tmp_path / "run", ids, lambda number: f"images/{number:08d}.png")
    table = long.run.table("coreset.parquet")
    wanted = {ending: at_once(table, ending) for ending in ENDINGS}
    del table
    for ending in ENDINGS:
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        assert ur.export(long, tmp_path / f"kept{ending}") == 2**20 + 2**18 + 17
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if ending != ".parquet":  # whose pages may be cut elsewhere
            assert (tmp_path / f"kept{ending}").read_bytes() == wanted[ending], ending
        assert peak < 16 * 2**20, f"{ending}: Python held {peak / 2**20:.0f} MiB"
        until = time.monotonic() + 10  # readers' threads may end a little later
        while pa.total_allocated_bytes() - before >= 2**20 and time.monotonic() < until:
            time.sleep(0.05)
        assert pa.total_allocated_bytes() - before < 2**20

    with pq.ParquetFile(tmp_path / "kept.parquet") as found, pq.ParquetFile(io.BytesIO(wanted[".parquet"])) as whole:
        groups = [
            [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] for file in (found, whole)
        ]
        assert groups[0] == groups[1] == [2**20, 2**18 + 17]
        assert found.read() == whole.read()


@pytest.mark.parametrize("ids", [[0], [2**20 - 1, 2**20], [5, 3 * 2**20, 9 * 2**20 + 1], list(range(0, 2**19, 2))])
@pytest.mark.parametrize("part_rows", [None, 2**17])
def test_weights_tell_kept_rows_of_the_source_from_all_others(
    result: ur.PruneResult, tmp_path: Path, ids: list[int], part_rows: int | None
) -> None:
    sparse = other_coreset(result, tmp_path / "run", np.array(ids), str, part_rows=part_rows)
    tracemalloc.start()
    assert ur.export(sparse, tmp_path / "weights.npy", form="weights") == len(ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20, f"Python held {peak / 2**20:.0f} MiB"
    weights = np.load(tmp_path / "weights.npy")
    assert weights.dtype == np.float32 and weights.shape == (ids[-1] + 7_000_000,)
    assert np.flatnonzero(weights).tolist() == ids and weights.sum() == len(ids)


def test_weights_have_zeros_for_the_holdout_and_draw_with_torch(tmp_path: Path) -> None:
    kept = ur.load(RUN).coreset.ids
    ur.export(RUN, tmp_path / "weights.npy", form="weights")
    weights = np.load(tmp_path / "weights.npy")
    assert len(weights) == ur.load(RUN).manifest.source.rows > ur.load(RUN).manifest.source.num_samples
    drawn = list(WeightedRandomSampler(torch.from_numpy(weights), len(kept), replacement=False))
    assert sorted(drawn) == kept.tolist()
    assert np.array_equal(np.flatnonzero(weights), kept)


@pytest.mark.parametrize(
    ("to", "form", "message"),
    [
        (
            "kept.txt",
            "weights",
            r"--as weights is for \.npy, and --to .* names a \.txt file\. Name a file ending in \.npy",
        ),
        ("kept/", "weights", r"--as weights is for \.npy, and --to .* names a folder\. Name a file"),
        (
            "kept.npy",
            "webdataset",
            r"--as webdataset is for a folder, and --to .* names a \.npy file\. Name a folder, w",
        ),
        (
            "kept",
            "tars",
            r"--as tars is not a form of an export\. Allowed: webdataset \(a folder\), weights \(\.npy\), holdout \(\.npy\), "
            r"sampler \(\.json\)",
        ),
        ("kept.json", "weights", r"--as weights is for \.npy, and --to .* names a \.json file"),
        (
            "kept.npy",
            "sampler",
            r"--as sampler is for \.json, and --to .* names a \.npy file\. Name a file ending in \.json",
        ),
    ],
)
def test_a_form_goes_with_its_ending(tmp_path: Path, to: str, form: str, message: str) -> None:
    with pytest.raises(ur.ConfigError, match=message):
        ur.export(RUN, f"{tmp_path}/{to}", form=form)
    assert list(tmp_path.iterdir()) == []


def test_a_key_with_a_line_break_leaves_what_was_there(result: ur.PruneResult, tmp_path: Path) -> None:
    ids = np.arange(2**18 + 5)
    broken = other_coreset(
        result, tmp_path / "run", ids, lambda number: "a\nb" if number == 2**18 + 1 else f"{number}.png"
    )
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "kept.txt").write_text("before")
    with pytest.raises(ur.ConfigError, match=r"key 'a\\nb' holds a line break"):
        ur.export(broken, tmp_path / "kept" / "kept.txt")
    assert [(path.name, path.read_text()) for path in (tmp_path / "kept").iterdir()] == [("kept.txt", "before")]


def test_a_damaged_coreset_is_not_exported(result: ur.PruneResult, tmp_path: Path) -> None:
    long = other_coreset(result, tmp_path / "run", np.arange(300), str)
    path = tmp_path / "run" / "coreset.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    for ending in ENDINGS:
        with pytest.raises(StorageError, match="damaged"):
            ur.export(long, tmp_path / f"kept{ending}")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_that_cannot_be_written_is_named(result: ur.PruneResult, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ur.ConfigError, match=r"--to .*kept\.npy cannot be written"):
        ur.export(result, tmp_path / "file" / "kept.npy")

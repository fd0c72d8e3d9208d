"""What anybody may have written: YAML, .npy headers and the tables of a run, checked before anything relies on it."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from tests.conftest import png_bytes
from tests.hostile_runs import places, replaced
from unseen_ray.config.fields.yaml_text import MOST_DEPTH, parsed_yaml
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import DataError
from unseen_ray.reporting.score_tables import keys_of
from unseen_ray.runs.evaluation_file import known_results, stored_tables
from unseen_ray.runs.manifest import read_manifest
from unseen_ray.runs.run import load_run
from unseen_ray.storage.checked_json import from_checked_json
from unseen_ray.storage.filesystem import Folder, sha256_of
from unseen_ray.storage.npy import array_of_npy
from unseen_ray.sweeps.layout import record_name
from unseen_ray.sweeps.records import Record, read_record, write_record
from unseen_ray.training.loop.checkpoints import Checkpoints

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "1,000,000 values or more"),
        ("a: &a [*a]", "1,000,000 values or more"),
        ("[" * 5000, "nested more than 100 deep"),
        ("{a: " * 5000, "nested more than 100 deep"),
        ("- " * 5000 + "x", "nested more than 100 deep"),
        ("*nowhere", "."),
        ("a: [", "."),
        ("\x00", "."),
    ],
)
def test_yaml_beyond_its_limits_is_refused_at_once(text: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        parsed_yaml(text)
    assert time.monotonic() - start < 5


def test_yaml_within_its_limits_is_read_as_ever() -> None:
    text = "base: &base {epochs: 3}\nrecipe:\n  <<: *base\n  lr: 0.1\nlist: [1, 2.5, null, yes, &x a, *x]\n"
    assert parsed_yaml(text) == {
        "base": {"epochs": 3}, "recipe": {"epochs": 3, "lr": 0.1}, "list": [1, 2.5, None, True, "a", "a"],
    }  # fmt: skip
    deep = "[" * (MOST_DEPTH - 2) + "]" * (MOST_DEPTH - 2)
    assert json.dumps(parsed_yaml(deep)) == deep and parsed_yaml("") is None


@pytest.mark.parametrize("field", [{"schedule": {"first": 0.1, "stages": 10**9}}, {"repeats": 10**9}])
def test_counts_without_bounds_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ur.ConfigError, match=r"10000|at most"):
        ur.PruneConfig(source="digits", keep=0.5, out="x", **field)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296, 0)}x",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f8', 'fortran_order': 3, 'shape': (1,)}",
        "{'descr': '<f8'}",
        "[" * 100,
        "{'descr': '<f8', 'fortran_order': False, 'shape': 1}",
    ],
)
def test_a_npy_header_that_contradicts_the_file_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        array_of_npy(npy(header, bytes(8)))


def test_a_npy_file_is_read_as_numpy_reads_it() -> None:
    for array in (
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.ones((2, 3), np.float32)),
        np.array(3),
        np.empty((0, 4)),
    ):
        stream = io.BytesIO()
        np.save(stream, array)
        assert np.array_equal(array_of_npy(stream.getvalue()), array)


@pytest.mark.parametrize(
    "label", [pa.array([0, 2**63], pa.uint64()), pa.array([0, 15_000_000], pa.int64()), pa.array([0, 2**64 - 1], pa.uint64())]
)  # fmt: skip
def test_labels_that_are_no_class_numbers_are_refused(tmp_path: Path, label: pa.Array) -> None:
    images = [png_bytes(np.zeros((8, 8, 3), np.uint8))] * 2
    pq.write_table(pa.table({"image": images, "label": label}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has label \d+"):
        _ = open_source(source_ref(str(tmp_path / "a.parquet"))).info


@pytest.mark.slow
def test_a_table_whose_footer_says_more_than_images_could_hold_is_refused(tmp_path: Path) -> None:
    zeros = pa.array([bytes(2**20)] * 1200)
    pq.write_table(
        pa.table({"image": zeros, "label": [0] * 1200}),
        tmp_path / "a.parquet",
        compression="zstd",
        use_dictionary=False,
    )
    with pytest.raises(
        DataError, match=r"a\.parquet of source .* holds 1,\d+,\d+,\d+ bytes in .* no images compress like this"
    ):
        open_source(source_ref(str(tmp_path / "a.parquet")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    out = tmp_path_factory.mktemp("forged") / "run"
    recipe = {"epochs": 1, "min_steps": 0}
    ur.prune(
        ur.PruneConfig(source="digits", keep=0.5, folds=2, executor="local", log_to="none", recipe=recipe, out=out)
    )
    return out


def forge(run: Path, to: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> Path:
    """A copy of a run in which a table is replaced and its checksum is right."""
    shutil.copytree(run, to)
    pq.write_table(change(pq.read_table(run / name)), to / name)
    manifest = json.loads((to / "manifest.json").read_text())
    manifest["files"][name] = sha256_of((to / name).read_bytes())
    del manifest["sha256"]
    for file in ("manifest.json", "manifest.copy.json"):
        (to / file).write_text(json.dumps(manifest))
    return to


def put(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def first_is(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: put(
        table, name, pa.array([value, *table.column(name).to_pylist()[1:]], table.schema.field(name).type)
    )


FORGED: dict[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "id below 0": ("coreset.parquet", first_is("id", -5)),
    "ids that fall": ("coreset.parquet", lambda table: table.take(pa.array(range(table.num_rows))[::-1])),
    "id beyond the source": ("coreset.parquet", lambda table: put(table, "id", pa.array(np.arange(table.num_rows) + 5000))),
    "id of text": ("coreset.parquet", lambda table: put(table, "id", pa.array([str(n) for n in range(table.num_rows)]))),
    "id twice": ("coreset.parquet", lambda table: put(table, "id", pa.array([0, 0, *range(1, table.num_rows - 1)]))),
    "column twice": ("coreset.parquet", lambda table: table.append_column("id", table.column("id"))),
    "no key": ("coreset.parquet", first_is("key", None)),
    "score NaN": ("stage-00/scores.parquet", first_is("entropy", float("nan"))),
    "score inf": ("stage-00/scores.parquet", first_is("entropy", float("inf"))),
    "label beyond C": ("stage-00/scores.parquet", first_is("label", 10)),
    "scores twice": ("stage-00/scores.parquet", lambda table: table.append_column("entropy", table.column("entropy"))),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_table_of_a_run_is_refused(finished: Path, tmp_path: Path, kind: str) -> None:
    name, change = FORGED[kind]
    run = forge(finished, tmp_path / "run", name, change)
    with pytest.raises(ur.UnseenError, match=r"is damaged or forged|cannot be written|is damaged"):
        if name == "coreset.parquet":
            ur.export(str(run), tmp_path / "kept.csv")
        else:
            ur.select(str(run), keep=0.4, out=str(tmp_path / "new"))
    assert not (tmp_path / "kept.csv").exists() and not (tmp_path / "new").exists()


def test_a_true_copy_is_taken(finished: Path, tmp_path: Path) -> None:
    run = forge(finished, tmp_path / "run", "coreset.parquet", lambda table: table)
    assert ur.export(str(run), tmp_path / "kept.csv") == 898
    assert len(ur.select(str(run), keep=0.4, out=str(tmp_path / "new")).coreset.ids) == 719


def test_json_nested_without_end_is_damage(tmp_path: Path) -> None:
    for name in ("manifest.json", "manifest.copy.json"):
        Folder(str(tmp_path)).write(name, b'{"a": ' + b"[" * 100_000)
    with pytest.raises(ur.ConfigError, match="is damaged"):
        ur.load(str(tmp_path))


SHORT = Path(__file__).parent / "golden" / "short"
ODD = [None, True, -1, 10**30, 1.5, float("nan"), float("inf"), "", "../x", [], [None], {}, {"a": 1}, [[1]]]


def test_every_field_of_a_manifest_is_read_or_refused_whatever_it_holds(tmp_path: Path) -> None:
    whole = from_checked_json((SHORT / "manifest.json").read_bytes())
    outcomes = Counter[bool]()
    for number, place in enumerate(places(whole)):
        for value in ODD[number % 7 :: 7]:
            Folder(str(tmp_path)).write("manifest.json", json.dumps(replaced(whole, place, value)).encode())
            try:
                outcomes[read_manifest(Folder(str(tmp_path))) is not None] += 1
            except ur.UnseenError as error:
                assert "manifest.json" in str(error)
                outcomes[False] += 1
    assert min(outcomes.values()) > 50, outcomes


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("config.repeats", float("inf")),
        ("config.schedule", -0.5),
        ("config.score", 10**9),
        ("config.recipe", "9" * 40),
        ("config.keep", [1]),
        ("asked.policy", {"a": 1}),
        ("asked.also_score", [3]),
        ("source.class_counts", []),
        ("source.class_names", ["a"]),
        ("source.num_classes", -1),
        ("stages.0.policy", {"a": 1}),
        ("stages.0.added", 10**30),
        ("stages.0.tasks.0.worker_seconds", -1),
        ("cost.seconds", float("inf")),
    ],
)
def test_a_forged_field_of_a_manifest_is_refused_by_name(tmp_path: Path, place: str, value: Any) -> None:
    whole = from_checked_json((SHORT / "manifest.json").read_bytes())
    way = tuple(int(key) if key.isdigit() else key for key in place.split("."))
    for name in ("manifest.json", "manifest.copy.json"):
        (tmp_path / name).write_text(json.dumps(replaced(whole, way, value)))
    with pytest.raises(ur.ConfigError, match=rf"manifest\.json is damaged: .*{way[0]}.*{way[-1]}"):
        ur.load(tmp_path)


def test_forged_evaluations_are_left_out_of_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = from_checked_json((SHORT / "evaluation.json").read_bytes())
    folder = Folder(str(tmp_path))
    assert stored_tables(Folder(str(SHORT))) == whole["tables"] and known_results(Folder(str(SHORT)))
    table = whole["tables"][0]
    for place in places(table):
        if place[0] in ("recipe", "environment", "class_names") or place[-1] in ("selections", "choices"):
            continue  # any value of these can be shown
        for value in ([[None]], {"a": 1}):
            folder.write("evaluation.json", json.dumps({**whole, "tables": [replaced(table, place, value)]}).encode())
            assert stored_tables(folder) in ([], [replaced(table, place, value)])
    folder.write("evaluation.json", json.dumps(replaced(whole, ("tables", 0, "arms", 0, "accuracies"), [])).encode())
    assert stored_tables(folder) == [] and "evaluation.json cannot be used" in caplog.text
    forged = replaced(whole["tables"][0], ("arms", 0, "accuracies"), [])
    folder.write("evaluation.json", json.dumps({**whole, "tables": [forged, *whole["tables"]]}).encode())
    assert stored_tables(folder) == whole["tables"]
    result = next(iter(whole["results"]))
    folder.write("evaluation.json", json.dumps(replaced(whole, ("results", result, "accuracy"), "x")).encode())
    assert known_results(folder) == {}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("stage-00/scores.parquet", lambda table: table.drop_columns(["label"]), "lacks the column label"),
        ("stage-00/scores.parquet", lambda table: table.slice(0, 200), "do not belong together"),
        ("stage-01/scores.parquet", lambda table: put(table, "id", pa.array(table.column("id").to_numpy() + 1)), "do not belong"),
        ("keys.parquet", lambda table: table.slice(0, 5), "lacks sample"),
        ("keys.parquet", lambda table: table.drop_columns(["id"]), "lacks the column id"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_together_are_refused(
    tmp_path: Path, name: str, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    run = forge(SHORT, tmp_path / "run", name, change)
    with pytest.raises(ur.UnseenError, match=message):
        if name == "keys.parquet":
            keys_of(load_run(str(run)), [7])
        else:
            ur.report_values(str(run))


@pytest.mark.parametrize(
    "head",
    [
        {"files": {"../../x": "0"}},
        {"files": ["x"]},
        {"files": None},
        {"position": []},
        {"position": {"epoch": "1"}},
        {"key": 3},
        {"format": []},
    ],
)
def test_a_forged_checkpoint_is_as_good_as_none(tmp_path: Path, head: dict[str, Any]) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), "0" * 64)
    checkpoints.write({}, {"epoch": 1})
    assert checkpoints.read() is not None
    (path,) = tmp_path.rglob("checkpoint.json")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **head}))
    assert checkpoints.read() is None


@pytest.mark.parametrize(
    "field", [{"accuracies": ["x"]}, {"knobs": {"a": "\ud800"}}, {"trainings": [[1]]}, {"baselines": []}]
)
def test_a_forged_record_of_a_sweep_is_as_good_as_none(tmp_path: Path, field: dict[str, Any]) -> None:
    folder, whole = Folder(str(tmp_path)), Record(name="a", knobs={"folds": 2}, status="finished", accuracies=(0.5,))
    write_record(folder, whole)
    assert read_record(folder, "a") == whole
    folder.write(record_name("a"), json.dumps({**asdict(whole), **field}).encode())
    assert read_record(folder, "a") is None

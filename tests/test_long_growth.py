"""A run above a number of rows keeps what it keeps on storage, and hands it to tasks by its file: the same ids, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from unseen_ray.config.limits import Limits
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import PruneConfig
from unseen_ray.core.samples.id_sets import AllIds
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.schedule import Stage
from unseen_ray.core.seeds import digest_ids
from unseen_ray.data.sources.parquet import ParquetSource
from unseen_ray.errors import StorageError
from unseen_ray.execution.local import LocalExecutor
from unseen_ray.pruning.pipeline import run_pipeline
from unseen_ray.pruning.plan import tasks_of
from unseen_ray.runs.id_files import open_id_files
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import make_job
from unseen_ray.runs.votes import find_receipt
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.row_streams import in_id_order
from unseen_ray.storage.tables import StoredTable, write_table

POLICIES: list[Any] = [
    "top",
    "class_balanced",
    "class_quota",
    "random",
    {"use": "ccs", "cut": 0.1},
    "beta",
    {"use": "mix", "share": 0.3},
    {"use": "class_quota", "by": "recall", "inside": "random"},
    {"use": "power", "of": "rank"},  # needs all candidates at once
    {"use": "k_center"},  # needs all candidates at once
]


LONG = Limits(rows_in_memory=90, rows_of_a_part=32, votes_of_a_part=32)


def config_of(out: Path, **fields: Any) -> PruneConfig:
    common: dict[str, Any] = {
        "source": {"use": "digits", "limit": 300},
        "keep": 0.6,
        "schedule": [0.3, 0.4, 0.6],
        "holdout": 0.2,
        "folds": 3,
        "fit": "tests.plugs:centroids",
        "executor": "local",
        "out": str(out),
    }
    return PruneConfig(**{**common, **fields})


def of_centroids(policy: Any) -> dict[str, Any]:
    """k_center reads features, which centroids have none of."""
    if policy != {"use": "k_center"}:
        return {"policy": policy}
    return {"policy": policy, "fit": None, "model": "small_cnn", "recipe": {"epochs": 1, "min_steps": 0}}


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_long_run_keeps_what_a_short_one_does(policy: Any, tmp_path: Path) -> None:
    fields = of_centroids(policy)
    whole = ur.prune(config_of(tmp_path / "whole", **fields))
    long = ur.prune(config_of(tmp_path / "long", **fields), limits=LONG)
    for name in ("coreset.parquet", "keys.parquet", *(f"stage-{stage:02d}/scores.parquet" for stage in range(3))):
        assert (tmp_path / "long" / name).is_dir()
        assert pq.read_table(tmp_path / "long" / name).equals(pq.read_table(tmp_path / "whole" / name)), name
    for one, other in zip(whole.manifest.stages, long.manifest.stages, strict=True):
        first, second = ({k: v for k, v in stage.sizes().items() if "seconds" not in k} for stage in (one, other))
        assert first == second
    assert not list((tmp_path / "long").glob("stage-*/coreset.parquet"))


@pytest.mark.parametrize(
    "fields",
    [
        *({"policy": policy} for policy in ("top", "random", "beta", {"use": "power", "of": "rank"})),
        {"combine": "rank_mean", "guard": "unlikely_label"},
        {"combine": "mean_prob", "guard": "confident_learning", "policy": "class_balanced"},
    ],
    ids=str,
)
def test_a_run_of_one_file_that_is_not_held_writes_the_same_bytes_by_the_same_tasks(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    held = ur.prune(config_of(tmp_path / "held", **fields))
    limits = Limits(rows_held=90, rows_merged_at_once=70)
    other = ur.prune(config_of(tmp_path / "other", reuse=[str(tmp_path / "held")], **fields), limits=limits)
    assert all(task.reused for stage in other.manifest.stages for task in stage.tasks)
    names = {name for name in held.manifest.files if "votes" not in name}
    assert {"coreset.parquet", "keys.parquet", *(f"stage-{stage:02d}/scores.parquet" for stage in range(3))} <= names
    assert {name: held.manifest.files[name] for name in names} == {name: other.manifest.files[name] for name in names}
    chosen = [
        ur.select(run.path, keep=0.5, out=tmp_path / f"chosen-{place}", limits=its, combine="mean")
        for place, (run, its) in enumerate(((held, Limits()), (other, limits)))
    ]
    assert chosen[0].manifest.files == chosen[1].manifest.files


@pytest.mark.parametrize("stage", [1, 2])
def test_a_long_run_goes_on_from_what_is_stored(stage: int, tmp_path: Path) -> None:
    undisturbed = ur.prune(config_of(tmp_path / "undisturbed"), limits=LONG)

    def stop(event: Any) -> None:
        if isinstance(event, Receipt) and event.task == f"stage {stage}":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config_of(tmp_path / "stopped"), executor=LocalExecutor(), on_event=stop, limits=LONG)
    assert (tmp_path / "stopped" / f"stage-{stage - 1:02d}/coreset.parquet").exists()
    seen: list[Receipt] = []
    events = lambda event: seen.append(event) if isinstance(event, Receipt) else None  # noqa: E731
    run_pipeline(config_of(tmp_path / "stopped"), executor=LocalExecutor(), on_event=events, limits=LONG)
    assert [(receipt.task, receipt.reused) for receipt in seen] == [(f"stage {n}", n == stage) for n in range(stage, 3)]
    again = ur.load(tmp_path / "stopped")
    assert again.coreset.ids.tolist() == undisturbed.coreset.ids.tolist()
    assert json.loads((tmp_path / "stopped" / "manifest.json").read_text())["finished"]


def test_what_a_task_trains_on_is_read_from_storage_and_damage_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    population = make_population(rng.integers(0, 4, 1000), 4)
    ids = np.sort(rng.permutation(1000)[:300])
    table = pa.table({"id": ids, "label": population.labels_of(ids)})
    files = write_table(Folder(str(tmp_path)), "coreset.parquet", table, part_rows=32)
    stored, counts_C = open_id_files(StoredTable(Folder(str(tmp_path)), "coreset.parquet", files), 4)
    assert len(stored.files) == 10
    assert (stored.count, stored.digest) == (300, digest_ids(ids))
    assert counts_C.tolist() == np.bincount(population.labels_of(ids), minlength=4).tolist()
    assert stored.resolve(population).tolist() == ids.tolist()
    for low, high in ((0, 1000), (ids[31], ids[32]), (ids[32], ids[64]), (ids[5] + 1, 700), (999, 5000), (40, 40)):
        assert stored.within(population, int(low), int(high)).tolist() == ids[(ids >= low) & (ids < high)].tolist()
    path = tmp_path / "coreset.parquet" / "part-00004.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match=r"part-00004\.parquet is damaged"):
        stored.resolve(population)


@pytest.mark.parametrize("seed", range(20))
def test_two_tables_in_the_order_of_their_ids(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(60)
    sides = [np.sort(side) for side in np.split(ids, [int(rng.integers(0, 61))])]

    def pieces(side: np.ndarray) -> Iterator[pa.Table]:
        for piece in np.split(side, np.sort(rng.integers(0, len(side) + 1, 4))):
            yield pa.table({"id": piece, "label": piece % 3})

    tables = list(in_id_order(pieces(sides[0]), pieces(sides[1])))
    assert pa.concat_tables(tables).column("id").to_pylist() == list(range(60))
    assert pa.concat_tables(tables).column("label").to_pylist() == [number % 3 for number in range(60)]


def test_votes_that_stand_are_found_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ur.prune(config_of(tmp_path / "run"), limits=LONG)
    receipt = run.manifest.stages[1].tasks[0]
    votes = next(name for name in receipt.files if name.endswith(".parquet"))
    key = pq.read_schema(tmp_path / "run" / votes).metadata[b"unseen_ray.task"].decode()
    monkeypatch.setattr(Folder, "read", lambda *_: pytest.fail("the file was read whole"))
    folder = Folder(str(tmp_path / "run"))
    found = find_receipt(folder, 1, 0, key)
    assert found is not None and found.files == receipt.files and found.reused
    assert find_receipt(folder, 1, 0, "0" * 64) is None
    assert find_receipt(folder, 1, 7, key) is None


def test_what_a_killed_clean_up_left_goes_with_the_next_start(tmp_path: Path) -> None:
    run = ur.prune(config_of(tmp_path / "run"), limits=LONG)
    folder = Folder(run.path)
    for name in ("stage-00/coreset.parquet/part-00000.parquet", "stage-01/coreset.parquet"):
        folder.write(name, b"left")
    assert ur.prune(config_of(tmp_path / "run"), limits=LONG).coreset.ids.tolist() == run.coreset.ids.tolist()
    assert not list((tmp_path / "run").glob("stage-*/coreset.parquet"))


def labels_of_a_fit(task: Any, *, source: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predictions evenly, if the labels that it is given are what is promised."""
    assert source.labels.dtype == np.int64 and len(source.labels) == len(source)
    yield task.unseen_ids, np.full((len(task.unseen_ids), task.num_classes), -np.log(task.num_classes))


def test_a_fit_is_given_int64_labels_of_a_long_source(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 300, 1000)
    table = pa.table({"image": pa.array([b"P6\n1 1\n255\n\0\0\0"] * 1000), "label": labels})
    pq.write_table(table, tmp_path / "data.parquet")
    fields = {"source": str(tmp_path / "data.parquet"), "holdout": 0.0, "stratify": False, "fit": labels_of_a_fit}
    config = config_of(tmp_path / "run", **fields)
    source = ParquetSource(path=str(tmp_path / "data.parquet"), rows_in_memory=90)
    assert source.info.labels_N.dtype == np.uint16
    job = make_job(ResolvedRun(config), source.info, LONG)
    executor = LocalExecutor()
    executor.prepare(job, source)
    tasks = tasks_of(Stage(index=0, target=300, added=300), config, AllIds())
    assert sum(receipt.scored for receipt in executor.score(tasks, lambda _: None)) == 2000


def unsure(p_label_M: np.ndarray) -> np.ndarray:
    """A guard of a user's own."""
    return p_label_M < 0.05


def test_a_guard_of_a_users_own_says_that_it_holds_all_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = ur.prune(config_of(tmp_path / "run", guard=unsure), limits=LONG)
    assert "unsure compares all 240 candidates at once: they are held in memory." in caplog.text
    assert found.coreset.ids.tolist() == ur.prune(config_of(tmp_path / "whole", guard=unsure)).coreset.ids.tolist()
    caplog.clear()
    ur.prune(config_of(tmp_path / "by-passes", guard="label_margin"), limits=LONG)
    assert "held in memory" not in caplog.text

"""The same ids and scores from both executors, whatever the geometry, K, and the number of workers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import unseen_ray as ur
from unseen_ray.config.limits import Limits
from unseen_ray.errors import BadSampleError, StorageError

pytestmark = pytest.mark.ray

FIELDS = {"source": {"use": "digits", "limit": 300}, "keep": 0.6, "recipe": {"epochs": 3, "min_steps": 0}}


def run(out: Path, **fields: object) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(**{**FIELDS, "out": str(out), **fields}))


def everything(result: ur.PruneResult) -> dict[str, object]:
    """The tables of a run by name, less what says when and where they were made."""
    tables = {}
    for name in result.manifest.files:
        table = result.run.folder.read_table(name)
        tables[name] = table.replace_schema_metadata(None)
    return tables


QUICK = [("fold", 3, 2)]
EVERY = [*product(("fold", "complement"), (2, 3, 5), (1, 2))]


@pytest.mark.parametrize(
    ("train_on", "folds", "cpus_per_fold"),
    [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in EVERY if each not in QUICK)],
)
def test_local_and_ray_give_the_same(
    tmp_path: Path, session: None, train_on: str, folds: int, cpus_per_fold: int
) -> None:
    fields = {"train_on": train_on, "folds": folds, "schedule": [0.4, 0.6]}
    local = everything(run(tmp_path / "local", executor="local", **fields))
    assert len([name for name in local if "votes" in name]) == folds + 1
    assert everything(run(tmp_path / "ray", cpus_per_fold=cpus_per_fold, **fields)) == local


@pytest.mark.slow
@pytest.mark.parametrize("drop", [False, True])
def test_groups_are_dealt_alike(tmp_path: Path, session: None, drop: bool) -> None:
    np.save(tmp_path / "groups.npy", np.arange(300) * 7 % 300 // 4)
    fields = {"group": {"use": str(tmp_path / "groups.npy"), "drop": drop}, "holdout": 0.1, "folds": 3}
    local = everything(run(tmp_path / "local", executor="local", **fields))
    assert everything(run(tmp_path / "ray", **fields)) == local


def test_both_geometries_coincide_at_two_folds(tmp_path: Path) -> None:
    one = run(tmp_path / "fold", executor="local", train_on="fold", folds=2)
    other = run(tmp_path / "complement", executor="local", train_on="complement", folds=2)
    assert one.scores == other.scores
    assert one.coreset.ids.tolist() == other.coreset.ids.tolist()


def test_the_scores_are_a_ray_dataset(tmp_path: Path, session: None) -> None:
    result = run(tmp_path, executor="local", folds=2)
    rows = result.to_ray_dataset().take(3)
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert set(result.scores.column_names) == set(rows[0])


@pytest.mark.slow
def test_scores_in_parts_are_a_ray_dataset_that_the_driver_does_not_read(tmp_path: Path, session: None) -> None:
    fields = {**FIELDS, "executor": "local", "folds": 2, "out": str(tmp_path / "lr=0.1" / "run")}
    result = ur.prune(ur.PruneConfig(**fields), limits=Limits(rows_in_memory=90, rows_of_a_part=32, votes_of_a_part=32))
    dataset = result.to_ray_dataset()
    assert "scores" not in vars(result)  # where the property keeps the table that it has read
    blocks: list[pa.Table] = ray.get(dataset.to_arrow_refs())
    assert pa.concat_tables(blocks) == result.scores
    part = Path(result.path) / "stage-00" / "scores.parquet" / "part-00004.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    with pytest.raises(StorageError, match="damaged"):
        result.to_ray_dataset()


@pytest.mark.slow
def test_repeats_and_rules_of_combination(tmp_path: Path, session: None) -> None:
    fields = {"repeats": 2, "folds": 2, "combine": "mean_prob", "save_probs": True}
    local, spread = run(tmp_path / "local", executor="local", **fields), run(tmp_path / "ray", **fields)
    assert local.scores == spread.scores
    assert set(local.scores.column("votes").to_pylist()) == {2}
    probs = [result.run.folder.read_array("stage-00/probs.npy") for result in (local, spread)]
    assert probs[0].shape == (300, 10)
    assert (probs[0] == probs[1]).all()
    again = ur.select(spread, keep=0.6, combine="mean_prob", out=tmp_path / "again")
    assert again.coreset.ids.tolist() == spread.coreset.ids.tolist()
    ranked = ur.select(spread, keep=0.6, combine="rank_mean", out=tmp_path / "ranked")
    fresh = run(tmp_path / "fresh", executor="local", **{**fields, "combine": "rank_mean"})
    assert ranked.scores.column("entropy") == fresh.scores.column("entropy")


@pytest.mark.slow
def test_a_run_refused_for_a_bad_image_leaves_its_folder_as_it_was(
    tmp_path: Path, session: None, parquet_file: Callable[..., Path]
) -> None:
    good, bad = parquet_file(), tmp_path / "bad.parquet"
    table = pq.read_table(good)
    images = table.column("image").to_pylist()
    images[17] = {"bytes": b"no image", "path": None}
    pq.write_table(table.set_column(0, "image", pa.array(images, table.schema.field("image").type)), bad)
    with pytest.raises(BadSampleError, match=r"bad\.parquet:17"):
        run(tmp_path / "run", source=str(bad))
    assert not (tmp_path / "run").exists()
    kept = run(tmp_path / "run", source=str(good)).coreset.ids.tolist()
    with pytest.raises(BadSampleError, match=r"bad\.parquet:17"):
        ur.prune(ur.PruneConfig(**{**FIELDS, "source": str(bad), "out": tmp_path / "run"}), fresh=True)
    assert ur.load(tmp_path / "run").coreset.ids.tolist() == kept

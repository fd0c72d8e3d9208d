"""A sampler for one's own loop: which ids an epoch has, on one process and on several."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import unseen_ray as ur
from unseen_ray.config.score_columns import SUSPECT
from unseen_ray.errors import StorageError
from unseen_ray.reporting.sampling_pool import SamplingPool, write_pool
from unseen_ray.storage.checked_json import to_checked_json

GOLDEN = Path(__file__).parent / "golden"
RUN = GOLDEN / "short"  # three stages, a holdout and a guard
KEPT = pq.read_table(RUN / "coreset.parquet")
SCORES = pq.read_table(RUN / "stage-00" / "scores.parquet")


def epochs(count: int, run: Path = RUN, **asked: Any) -> list[list[int]]:
    sampler = ur.KeptSampler(run, **asked)
    return [list(sampler) for _ in range(count)]


@pytest.mark.parametrize("run", ["short", "long", "selection"])
@pytest.mark.parametrize("fixed", [0, 0.25, 0.5])
def test_an_epoch_has_the_size_of_the_coreset_and_its_fixed_part(run: str, fixed: float) -> None:
    result = ur.load(GOLDEN / run)
    size = len(result.coreset)
    first = set(result.coreset.first(round(fixed * size), result.config.seed))
    found = epochs(80, run=GOLDEN / run, fixed=fixed)
    assert all(len(ids) == len(set(ids)) == size for ids in found)
    assert set.intersection(*map(set, found)) == first


def test_the_rest_is_of_the_run_without_holdout_and_suspects() -> None:
    allowed = set(SCORES.column("id").to_numpy()[~SCORES.column(SUSPECT).to_numpy()]) | set(
        KEPT.column("id").to_numpy()
    )
    seen = set().union(*epochs(40, fixed=0))
    assert len(allowed) < SCORES.num_rows < json.loads((RUN / "manifest.json").read_text())["source"]["rows"]
    assert seen == allowed


def test_all_fixed_is_the_coreset_in_another_order_each_epoch() -> None:
    found = epochs(3, fixed=1)
    assert all(sorted(ids) == KEPT.column("id").to_pylist() for ids in found)
    assert len({tuple(ids) for ids in found}) == 3


def test_keep_says_how_many_an_epoch_has() -> None:
    sampler = ur.KeptSampler(RUN, keep=0.3, fixed=0.5)
    assert len(sampler) == len(list(sampler)) == round(0.3 * SCORES.num_rows)


def test_its_text_says_what_it_draws() -> None:
    sampler = ur.KeptSampler(RUN, keep=0.5, fixed=0.5, seed=3, num_replicas=2, rank=1)
    size = len(sampler) * 2
    assert repr(sampler).startswith(f"KeptSampler({size} of ")
    assert repr(sampler).endswith(f" samples an epoch, {size // 2} fixed, seed 3, rank 1 of 2)")


def test_epochs_are_numbered_and_can_be_set() -> None:
    first, second, third = epochs(3)
    sampler = ur.KeptSampler(ur.load(RUN))
    sampler.set_epoch(1)
    assert list(sampler) == second
    assert list(pickle.loads(pickle.dumps(sampler))) == third
    sampler.set_epoch(0)
    assert list(sampler) == first
    with pytest.raises(ur.ConfigError, match="epoch=-1 must be a whole number, 0 or more"):
        sampler.set_epoch(-1)
    assert epochs(1, seed=1) != [first]


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_it_resumes_after_any_id_of_any_epoch(count: int, numbered: bool) -> None:
    asked: dict[str, Any] = {"keep": 0.04, "num_replicas": 3, "rank": 1}
    sampler, wanted = ur.KeptSampler(RUN, **asked), epochs(4, **asked)
    assert len(sampler) == 3
    list(sampler)
    ids = iter(sampler)
    begun = [next(ids) for _ in range(count)]
    state = json.loads(json.dumps(sampler.state_dict()))
    assert state == {"epoch": 1, "given": count} and begun == wanted[1][:count]
    resumed = ur.KeptSampler(RUN, **asked)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    found = []
    for epoch in range(1, 4):
        if numbered:
            resumed.set_epoch(epoch)
        found.append(list(resumed))
    assert found == [wanted[1][count:], *wanted[2:]]
    assert list(ids) == wanted[1][count:], "the interrupted one goes on, too"
    assert resumed.state_dict() == {"epoch": 3, "given": 3}
    resumed.set_epoch(1)
    assert list(resumed) == wanted[1], "an epoch that was resumed is whole the next time"


def test_an_iteration_that_gave_nothing_is_no_epoch() -> None:
    first, second = epochs(2)
    sampler = ur.KeptSampler(RUN)
    unused, used = iter(sampler), iter(sampler)
    assert list(used) == first and sampler.state_dict() == {"epoch": 0, "given": len(first)}
    assert list(sampler) == second
    assert list(unused) == first


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_loader_without_workers_resumes_after_any_batch(drop_last: bool) -> None:
    def loader() -> tuple[ur.KeptSampler, DataLoader[int]]:
        sampler = ur.KeptSampler(RUN)
        return sampler, DataLoader(range(300), sampler=sampler, batch_size=50, drop_last=drop_last)  # type: ignore

    wanted = [[batch.tolist() for batch in whole] for whole in [loader()[1]] for _ in range(2)]
    for done in range(len(wanted[0])):
        sampler, batches = loader()
        for _ in itertools.islice(batches, done):
            pass
        state = sampler.state_dict()
        sampler, batches = loader()
        sampler.load_state_dict(state)
        assert [[batch.tolist() for batch in batches] for _ in range(2)] == [wanted[0][done:], wanted[1]]


@pytest.mark.parametrize("size", [None, 50])
def test_a_loader_with_workers_goes_on_after_a_whole_epoch(size: int | None) -> None:
    sampler = ur.KeptSampler(RUN)
    whole = {"epoch": 0, "given": len(list(sampler))}
    sampler.load_state_dict(whole)
    loader = DataLoader(range(300), sampler=sampler, batch_size=size, num_workers=1)  # type: ignore
    given = [np.hstack([[], *loader]).tolist() for _ in range(3)]
    assert [ids for ids in given if ids][:2] == epochs(3)[1:]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_torchdata_resumes_after_any_batch_of_any_epoch(options: dict[str, Any]) -> None:
    reason = "torchdata is not installed; pip install torchdata"
    loaders = pytest.importorskip("torchdata.stateful_dataloader", reason=reason)

    def loader() -> Any:
        return loaders.StatefulDataLoader(range(300), sampler=ur.KeptSampler(RUN), batch_size=50, **options)

    def batches(left: Any) -> list[list[int]]:
        return [batch.tolist() for batch in left]

    wanted = [[ids[start : start + 50] for start in range(0, 144, 50)] for ids in epochs(3)]
    for done in range(4):
        begun, resumed = loader(), loader()
        assert batches(begun) == wanted[0]
        left = iter(begun)
        assert batches(itertools.islice(left, done)) == wanted[1][:done]
        resumed.load_state_dict(begun.state_dict())
        assert batches(left) == batches(resumed) == wanted[1][done:]
        assert batches(resumed) == wanted[2]
    begun, resumed = loader(), loader()
    assert batches(begun) == wanted[0]
    resumed.load_state_dict(begun.state_dict())  # of a whole epoch, after its loop has ended
    assert [batches(resumed) for _ in range(2)] == wanted[1:]


def test_a_loop_that_sets_its_epochs_goes_on_after_a_whole_epoch() -> None:
    sampler, resumed = ur.KeptSampler(RUN), ur.KeptSampler(RUN)
    first = list(sampler)
    resumed.load_state_dict(sampler.state_dict())
    given = []
    for epoch in (1, 2):
        resumed.set_epoch(epoch)
        given.append(list(resumed))
    assert [first, *given] == epochs(3)


@pytest.mark.parametrize(
    "state", [{}, {"epoch": 1}, {"epoch": -1, "given": 0}, {"epoch": 0, "given": 145}, {"epoch": "0", "given": 1.5}]
)
def test_a_state_of_another_sampler_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ur.ConfigError, match=r"is not of this sampler: .* as `given` 0 to 144, the ids of an epoch"):
        ur.KeptSampler(RUN).load_state_dict(state)


@pytest.mark.parametrize("replicas", [1, 2, 5, 7])
def test_ranks_share_an_epoch_evenly(replicas: int) -> None:
    (whole,) = epochs(1)
    parts = [epochs(1, num_replicas=replicas, rank=rank)[0] for rank in range(replicas)]
    each = len(whole) // replicas
    assert [len(ids) for ids in parts] == [each] * replicas
    assert sorted(number for ids in parts for number in ids) == sorted(whole[: each * replicas])
    assert len(ur.KeptSampler(RUN, num_replicas=replicas)) == each


def test_a_loader_reads_these_rows_of_the_source() -> None:
    dataset = ur.torch_subset(ur.load(RUN), np.array).dataset
    sampler = ur.KeptSampler(RUN, seed=3)
    loader = DataLoader(dataset, batch_size=50, sampler=sampler)  # type: ignore[arg-type, var-annotated]
    labels = np.concatenate([labels.numpy() for _, labels in loader])
    assert len(loader) == -(-len(sampler) // 50)
    (ids,) = epochs(1, seed=3)
    assert labels.tolist() == [dataset.targets[number] for number in ids]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keep": 0.0}, r"keep=0\.0 must be above 0 and at most 1"),
        ({"keep": 1.1}, r"keep=1\.1 must be above 0 and at most 1"),
        ({"fixed": -0.1}, r"fixed=-0\.1 must be 0 to 1"),
        ({"fixed": 1.5, "seed": -1}, r"2 problems[\s\S]*fixed=1\.5[\s\S]*seed=-1 must be 0 or more"),
        ({"num_replicas": 0}, "num_replicas=0 must be 1 or more"),
        (
            {"fixed": "a", "seed": 1.5},
            r"2 problems[\s\S]*fixed='a' must be a number[\s\S]*seed=1\.5 must be a whole number",
        ),
        ({"num_replicas": 2, "rank": 0.5}, r"rank=0\.5 must be a whole number"),
        ({"num_replicas": 2, "rank": 2}, "rank=2 must be 0 to 1, below num_replicas=2"),
        (
            {"keep": 0.9, "fixed": 0.9},
            r"fixed=0\.9 of 216 samples an epoch is 194, and .*short keeps 144\. Lower fixed or",
        ),
        ({"keep": 1.0, "fixed": 0.1}, r"keep=1\.0 is 240 samples an epoch; it must be 1 to "),
        ({"keep": 0.001, "fixed": 0}, r"keep=0\.001 is 0 samples an epoch"),
        ({"num_replicas": 145}, r"is 144 samples an epoch; it must be 145 to "),
    ],
)
def test_what_no_epoch_can_have_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ur.ConfigError, match=message):
        ur.KeptSampler(RUN, **asked)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sampler") / "sampler.json"
    assert ur.export(RUN, path) == KEPT.num_rows
    return path


@pytest.mark.parametrize("run", ["short", "long", "selection", "own_fit"])
@pytest.mark.parametrize(
    "asked", [{}, {"fixed": 0.3, "seed": 7}, {"fixed": 1.0}, {"keep": 0.3, "fixed": 0.6, "num_replicas": 3, "rank": 2}]
)
def test_an_exported_sampler_draws_the_epochs_of_its_run(tmp_path: Path, run: str, asked: dict[str, Any]) -> None:
    ur.export(GOLDEN / run, tmp_path / "sampler.json", form="sampler")
    assert epochs(3, run=tmp_path / "sampler.json", **asked) == epochs(3, run=GOLDEN / run, **asked)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_ids_and_order_are_read_as_they_were_written(data: st.DataObject) -> None:
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, 60), min_size=1))))
    picked = np.array(data.draw(st.lists(st.sampled_from(ids.tolist()), unique=True, min_size=1)))
    rows = int(ids[-1]) + data.draw(st.integers(1, 3))
    about = {"source": {"name": "é", "fingerprint": "", "rows": rows}, "num_samples": rows}
    cuts = [np.array(data.draw(st.lists(st.integers(0, 60), max_size=3).map(sorted)), np.int64) for _ in range(2)]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        write_pool(file, **about, drawable=np.split(ids, cuts[0]), picked=np.split(picked, cuts[1]))
        file.flush()
        found = SamplingPool.of_file(file.name)
    assert found.ids_L.tolist() == ids.tolist() and found.picked_M.tolist() == picked.tolist()
    assert {"source": found.source, "num_samples": found.num_samples} == about


def test_an_exported_sampler_needs_no_run(exported: Path, tmp_path: Path) -> None:
    alone = "import sys, unseen_ray as ur; print(list(ur.KeptSampler(sys.argv[1]))); assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", alone, exported], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(found.stdout) == epochs(1)[0]
    values = json.loads(exported.read_text())
    manifest = ur.load(RUN).manifest
    assert values["source"] == {"name": "digits", "fingerprint": manifest.source.fingerprint, "rows": 300}
    assert all(start < stop for start, stop in values["drawable"])
    with pytest.raises(ur.ConfigError, match=rf"fixed=0\.9 of 216 .* and {exported} keeps 144"):
        ur.KeptSampler(exported, keep=0.9, fixed=0.9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"kind": "prune"},
            ur.ConfigError,
            r"holds no sampler\. Give a file that `unseen-ray export RUN --to \S+\.json` ",
        ),
        ({"schema_version": 2}, ur.ConfigError, r"has schema_version 2; this unseen_ray reads up to 1\. Upgrade"),
        ({"picked": None}, StorageError, "is damaged: .*picked must be .* integers, not object .* Write it again"),
        ({"picked": [1.5]}, StorageError, "picked must be a one-dimensional array of integers, not float64"),
        ({"picked": ["1"]}, StorageError, "picked must be a one-dimensional array of integers"),
        ({"picked": [2**70]}, StorageError, "picked must be a one-dimensional array of integers"),
        ({"picked": []}, ur.ConfigError, "keep=None is 0 samples an epoch"),
        ({"picked": [1, 1]}, StorageError, "picked holds 1 more than once"),
        ({"picked": [100]}, StorageError, "1 ids are not among the 50 allowed ones; the first is 100"),
        ({"drawable": []}, StorageError, "2 ids are not among the 0 allowed ones"),
        ({"drawable": [0, 10, 20]}, StorageError, "is damaged: ValueError"),
        ({"drawable": [[0, 10], [20]]}, StorageError, "is damaged: ValueError"),
        ({"drawable": [[10, 50], [0, 9]]}, StorageError, "drawable must be pairs of rising row numbers up to 300"),
        ({"drawable": [[0, 10], [10, 50]]}, StorageError, "drawable holds 10 more than once"),
        ({"drawable": [[-1, 50]]}, StorageError, "drawable holds -1; row numbers start at 0"),
        ({"drawable": [[0, 301]]}, StorageError, "drawable must be pairs of rising row numbers up to 300"),
        ({"num_samples": 49}, StorageError, "50 of its 49 samples can be drawn"),
        ({"source": []}, StorageError, "is damaged: TypeError"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    values = {"kind": "sampler", "schema_version": 1, "source": {"rows": 300}, "num_samples": 50}
    values |= {"drawable": [[0, 50]], "picked": [3, 1]}
    path = tmp_path / "sampler.json"
    path.write_bytes(to_checked_json(values))
    assert len(ur.KeptSampler(path)) == 2
    path.write_bytes(to_checked_json(values | change))
    with pytest.raises(error, match=message):
        ur.KeptSampler(path)


def test_a_damaged_or_missing_sampler_is_refused(exported: Path, tmp_path: Path) -> None:
    text = exported.read_text()
    for number, damaged in enumerate((text[:-9], "", "[1]", text.replace('"rows": 300', '"rows": 301'), "\0")):
        path = tmp_path / f"{number}.json"
        path.write_text(damaged)
        with pytest.raises(
            StorageError, match=rf"{path} is damaged: .*Write it again: `unseen-ray export RUN --to {number}"
        ):
            ur.KeptSampler(path)
    with pytest.raises(ur.ConfigError, match=r"new\.json cannot be read: .*Give a file that `unseen-ray export"):
        ur.KeptSampler(tmp_path / "new.json")


def test_damaged_scores_are_refused(tmp_path: Path) -> None:
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    (run / "stage-00" / "scores.parquet").write_bytes(b"")
    with pytest.raises(ur.UnseenError, match=r"scores\.parquet is damaged"):
        ur.KeptSampler(run)

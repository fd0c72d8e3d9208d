"""The ids of a long task are mapped from a file: the same ids, which its owner may change, and of which nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unseen_ray.core.samples.id_sets import AllIds, ArrayIds, FoldIds, FoldSpec, IdSet, Outside, Union
from unseen_ray.core.samples.population import make_population
from unseen_ray.training.mapped_ids import ids_of, own_ids

FOLD = FoldIds(FoldSpec(num_folds=3, seed=1, block_rows=64), 1)
POPULATION = make_population(np.arange(300) % 7, 7, holdout=0.2, skipped=np.array([5, 299]), chunk_rows=50)


@pytest.mark.parametrize(
    "ids",
    [AllIds(), FOLD, Outside(FOLD), Union((FOLD, ArrayIds(np.array([0])))), ArrayIds(np.empty(0, np.int64))],
    ids=str,
)
def test_the_ids_are_those_in_memory(ids: IdSet) -> None:
    wanted = ids.resolve(POPULATION)
    for most in (0, 100, 10_000):
        found = ids_of(ids, POPULATION, most)
        mine = own_ids(found, most)
        assert type(found) is type(mine) is np.ndarray and found.dtype == mine.dtype == np.int64
        np.testing.assert_array_equal(found, wanted)
        mine[::-1].sort()
        np.testing.assert_array_equal(mine, wanted[::-1])
        np.testing.assert_array_equal(found, wanted)


def test_they_take_no_memory_of_the_process_and_leave_no_file(tmp_path: Path) -> None:
    code = """if True:
        import re, tempfile, numpy as np
        from unseen_ray.core.samples.id_sets import AllIds
        from unseen_ray.core.samples.population import make_population
        from unseen_ray.training.mapped_ids import ids_of, own_ids
        own = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
        population = make_population(np.zeros(6_000_000, np.uint8), 1, chunk_rows=10_000)
        before = own()
        ids = ids_of(AllIds(), population, 1000)
        mine = own_ids(ids, 1000)
        assert (ids == mine).all() and ids.sum() == 6_000_000 * 5_999_999 // 2
        print(own() - before)
    """
    line = [sys.executable, "-c", code]
    found = subprocess.run(
        line, capture_output=True, text=True, check=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert int(found.stdout) < 30_000  # kB; both have 47 MB
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_named(tmp_path: Path) -> None:
    code = """if True:
        import resource, numpy as np
        from unseen_ray.training.mapped_ids import own_ids
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        own_ids(np.arange(1000), 10)
    """
    line = [sys.executable, "-c", code]
    failed = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert f"StorageError: the ids of a task cannot be kept in {tmp_path} while it runs: " in failed.stderr
    assert "Make room there for 8 bytes a sample and worker" in failed.stderr

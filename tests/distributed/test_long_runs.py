"""Long runs on a real cluster: ranges on several aggregators, one of them lost, and a driver that holds no array of all samples."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

import unseen_ray as ur
from tests.test_long_growth import config_of
from unseen_ray.config.limits import Limits
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.samples.id_sets import AllIds, ArrayIds, FoldIds, Outside
from unseen_ray.core.samples.population import Population
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import StorageError
from unseen_ray.execution.ray.merge_actors import Aggregators
from unseen_ray.pruning.merge import Merger, merge_request
from unseen_ray.runs.id_files import IdFiles
from unseen_ray.runs.tasks import make_job

pytestmark = pytest.mark.usefixtures("session")


LONG = Limits(rows_in_memory=90, rows_of_a_part=32, rows_of_a_chunk=64, votes_of_a_part=24)


@pytest.mark.slow
def test_the_driver_of_a_long_run_holds_no_array_of_all_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = ur.prune(config_of(tmp_path / "whole"))

    def refuse(*_: Any) -> Any:
        pytest.fail("the driver asked for the ids of all samples")

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO"):
        for name in ("ids_N", "labels_N"):
            patch.setattr(Population, name, property(refuse))
        for rule in (AllIds, FoldIds, Outside, IdFiles):
            patch.setattr(rule, "resolve", refuse)
        patch.setattr(Population, "labels_of", refuse)
        patch.setattr(ArrayIds, "within", refuse)
        long = ur.prune(config_of(tmp_path / "long", executor="ray"), limits=LONG)
    assert long.coreset.ids.tolist() == whole.coreset.ids.tolist()
    for stage in range(3):
        name = f"stage-{stage:02d}/scores.parquet"
        assert pq.read_table(tmp_path / "long" / name).equals(pq.read_table(tmp_path / "whole" / name))
    merges = [record.getMessage() for record in caplog.records if "aggregators" in record.getMessage()]
    count = min(int(ray.cluster_resources()["CPU"]), 4)
    assert merges == [f"8 ranges of ids are merged by {count} aggregators"] * 3


@pytest.mark.slow
def test_an_aggregator_that_is_killed_is_replaced(tmp_path: Path) -> None:
    run = ur.prune(config_of(tmp_path / "run"), limits=LONG)
    info = open_source(source_ref({"use": "digits", "limit": 300})).info
    job = make_job(ResolvedRun(config_of(tmp_path / "run")), info, LONG)
    request = merge_request(
        job,
        job.population(info.labels_N),
        stage=0,
        kept=AllIds(),
        num_kept=0,
        num_parts=3,
        votes_each=2,
    )
    wanted = Merger(job, info.labels_N).merge(request)
    assert wanted.files.items() <= run.manifest.files.items()
    aggregators = Aggregators(job.config)
    shared = ["a run", ray.put(job), ray.put(info.labels_N)]
    try:
        assert aggregators.merge(shared, job, request).files == wanted.files
        os.kill(ray.get(aggregators._first._actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
        time.sleep(0.5)
        again = aggregators.merge(shared, job, request)
    finally:
        aggregators.close()
    assert again.files == wanted.files
    assert again.summary.labels_C.tolist() == np.asarray(wanted.summary.labels_C).tolist()


@pytest.mark.slow
def test_a_stage_whose_votes_are_damaged_is_not_merged(tmp_path: Path) -> None:
    ur.prune(config_of(tmp_path / "run"), limits=LONG)
    job = make_job(
        ResolvedRun(config_of(tmp_path / "run")), open_source(source_ref({"use": "digits", "limit": 300})).info, LONG
    )
    labels = open_source(job.source).info.labels_N
    request = merge_request(
        job, job.population(labels), stage=0, kept=AllIds(), num_kept=0, num_parts=3, votes_each=2
    )  # fmt: skip
    votes = tmp_path / "run" / "stage-00" / "votes" / "01.parquet" / "part-00002.parquet"
    before = votes.read_bytes()
    votes.write_bytes(before[:200] + bytes([before[200] ^ 1]) + before[201:])
    aggregators = Aggregators(job.config)
    try:
        with pytest.raises(StorageError, match=r"01\.parquet/part-00002\.parquet is damaged"):
            aggregators.merge(["a run", ray.put(job), ray.put(labels)], job, request)
        votes.write_bytes(before)
        assert len(aggregators.merge(["a run", ray.put(job), ray.put(labels)], job, request).files) == 8
    finally:
        aggregators.close()

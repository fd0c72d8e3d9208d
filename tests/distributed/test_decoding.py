"""A simulated cluster of nodes with and without GPU: where images are decoded, and folds trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.data.images.loading import load_pixel_store
from unseen_ray.data.images.pixel_store import MemoryPixelStore, chunks_of
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import BadSampleError, DataError
from unseen_ray.execution.ray import decoding
from unseen_ray.execution.ray.actor_pool import FoldPool
from unseen_ray.execution.ray.capacity import plain_nodes, survey
from unseen_ray.execution.ray.decoding import Wanted, decode_spread
from unseen_ray.runs.manifest import Manifest, write_manifest
from unseen_ray.runs.manifest_entries import SourceEntry
from unseen_ray.storage.filesystem import Folder

NO_SOURCE = SourceEntry(fingerprint="", num_samples=0, num_classes=0, class_names=[])

pytestmark = pytest.mark.ray

COUNT = 5000
SMALL = {"include_dashboard": False, "object_store_memory": 200 * 2**20}
HEALTH = {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "2"}
ONE_GPU = {"CPU": 1.0, "GPU": 1.0}


@pytest.fixture(scope="module")
def mixed(alone: None) -> Iterator[tuple[Cluster, list[str], list[str]]]:
    """A head without CPUs, two nodes with CPUs alone, one with a pretended GPU; ids of the former and of the latter."""
    patch = pytest.MonkeyPatch()
    for name, value in HEALTH.items():
        patch.setenv(f"RAY_health_check_{name}", value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **SMALL})
    plain = [cluster.add_node(num_cpus=1, num_gpus=0, **SMALL).node_id for _ in range(2)]
    with_gpu = [cluster.add_node(num_cpus=2, num_gpus=2, **SMALL).node_id]
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster, plain, with_gpu
    ray.shutdown()
    cluster.shutdown()
    patch.undo()


@pytest.fixture
def pool(mixed: object, tmp_path: Path) -> Iterator[Callable[..., FoldPool]]:
    """Makes a pool of fold actors."""
    made = []

    def make(request: dict[str, float] = ONE_GPU, max_retries: int = 2) -> FoldPool:
        write_manifest(Folder(str(tmp_path)), Manifest(created="", config={}, asked={}, source=NO_SOURCE))
        capacity, out = survey(), str(tmp_path)
        made.append(
            FoldPool(
                request=request,
                capacity=capacity,
                precision="float32",
                max_retries=max_retries,
                wait_s=60,
                out=out,
                user_fit=True,  # torch could not train on a pretended GPU
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def log_in(folder: Path) -> Path:
    log = folder / "log"
    log.mkdir()
    return log


def noted(log: Path, **options: object) -> dict[str, Any]:
    return {"use": "tests.plugs:noted_rows", "count": COUNT, "log": str(log), **options}


def read_on(log: Path) -> dict[str, int]:
    """How many distinct rows each node read."""
    return {path.name: len(set(path.read_text().split())) for path in log.iterdir()}


def run(out: Path, source: dict[str, Any], **fields: object) -> ur.PruneResult:
    given = {"keep": 0.5, "folds": 2, "fit": "tests.plugs:centroids", "out": str(out), **fields}
    return ur.prune(ur.PruneConfig(source=source, **given))


@pytest.mark.slow
def test_images_are_decoded_where_there_is_no_gpu(mixed: tuple[Cluster, list[str], list[str]], tmp_path: Path) -> None:
    _, plain, with_gpu = mixed
    log = log_in(tmp_path)
    fit = {"use": "tests.plugs:noted_centroids", "log": str(tmp_path), "together": 1}
    result = run(tmp_path / "run", noted(log, seconds=0.5), fit=fit)
    assert set(read_on(log)) == set(plain)
    assert sum(read_on(log).values()) >= COUNT
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("0-*.json")]
    assert {note["node"] for note in notes} == set(with_gpu)
    local = run(tmp_path / "local", noted(log), executor="local")
    assert result.coreset.ids.tolist() == local.coreset.ids.tolist()
    assert result.scores == local.scores


@pytest.mark.slow
def test_folds_without_gpu_keep_off_nodes_that_have_one(
    mixed: tuple[Cluster, list[str], list[str]], tmp_path: Path
) -> None:
    _, plain, with_gpu = mixed
    for folds, nodes in ((2, set(plain)), (4, {*plain, *with_gpu})):
        log = tmp_path / str(folds)
        log.mkdir()
        fit = {"use": "tests.plugs:noted_centroids", "log": str(log), "together": folds}
        run(log / "run", {"use": "digits", "limit": 200}, folds=folds, fit=fit, gpus_per_fold=0)
        assert {json.loads(path.read_text())["node"] for path in log.glob("0-*.json")} == nodes


def test_every_pixel_and_every_bad_sample_are_those_of_one_process(
    pool: Callable[..., FoldPool], tmp_path: Path
) -> None:
    labels = np.arange(600) % 4
    images = [png_bytes(pixels) for pixels in class_pixels(labels, 10)]
    images[7], images[433] = b"", images[433][:50]
    ref = source_ref(str(write_parquet(tmp_path / "some.parquet", labels, images)))
    pixel_store, skipped = load_pixel_store(open_source(ref), 8, on_bad_sample="skip")
    assert isinstance(pixel_store, MemoryPixelStore)
    ranges = chunks_of(600, 100)
    for held in (True, False):
        found = dict(decode_spread(pool(), ref, ranges, Wanted(size_px=8, held=held), keep=0))
        assert sorted(found) == list(range(len(ranges)))
        assert sorted(bad.id for _, failed in found.values() for bad in failed) == skipped.tolist() == [7, 433]
        for place, (pixels, _) in found.items():
            assert (pixels is None) is not held
            assert pixels is None or np.array_equal(pixels, pixel_store.pixels_NHWC[slice(*ranges[place])])


@pytest.mark.slow
def test_what_memory_does_not_hold_is_decoded_into_files_once(mixed: object, tmp_path: Path) -> None:
    log = log_in(tmp_path)
    fields = {"pixel_memory_gb": 0, "pixel_folder": str(tmp_path / "pixels")}
    result = run(tmp_path / "run", noted(log), **fields)
    read = [row for path in log.iterdir() for row in path.read_text().split()]
    assert sorted(map(int, read)) == list(range(COUNT))  # by two folds, which train and score on all of them
    assert len(list((tmp_path / "pixels").rglob("*.pixels"))) == 8
    local = run(tmp_path / "local", noted(log_in(tmp_path / "run")), executor="local", **fields)
    assert result.coreset.ids.tolist() == local.coreset.ids.tolist()
    assert result.scores == local.scores == run(tmp_path / "memory", noted(log), executor="local").scores


@pytest.mark.slow
def test_errors_are_those_of_one_process(mixed: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sample row-4321 of source .* is float64 of shape \(3,\)"):
        run(tmp_path / "run", noted(log_in(tmp_path), broken=4321))
    labels = np.arange(COUNT) % 2
    images = [png_bytes(pixels) for pixels in class_pixels(labels, 4)]
    images[17] = images[17][:40]
    source = {"use": "parquet", "path": str(write_parquet(tmp_path / "bad.parquet", labels, images))}
    with pytest.raises(BadSampleError, match=r"sample bad.parquet:17 cannot be decoded"):
        run(tmp_path / "bad", source)
    kept = run(tmp_path / "skip", source, on_bad_sample="skip")
    assert 17 not in kept.scores.column("id").to_pylist()


@pytest.mark.slow
def test_fold_actors_decode_what_others_leave_no_cpu_for(
    mixed: tuple[Cluster, list[str], list[str]],
    pool: Callable[..., FoldPool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody else holds every CPU of the nodes without GPU, and does not let go."""
    _, plain, with_gpu = mixed
    monkeypatch.setattr(decoding, "_START_WITHIN_S", 3.0)

    class Holder:
        def ready(self) -> bool:
            return True

    where = [ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False) for node in plain]
    holders = [ray.remote(Holder).options(num_cpus=1, scheduling_strategy=here).remote() for here in where]
    assert all(ray.get([holder.ready.remote() for holder in holders]))
    log = log_in(tmp_path)
    try:
        ref, ranges = source_ref(noted(log)), chunks_of(COUNT, 1000)
        found = dict(decode_spread(pool(), ref, ranges, Wanted(size_px=8, held=True), keep=0))
    finally:
        for holder in holders:
            ray.kill(holder)
    assert sorted(found) == list(range(len(ranges)))
    assert set(read_on(log)) == set(with_gpu)


@pytest.mark.slow
def test_fold_actors_decode_where_no_node_is_without_gpu_or_folds_use_none(
    mixed: tuple[Cluster, list[str], list[str]], pool: Callable[..., FoldPool], tmp_path: Path
) -> None:
    log = log_in(tmp_path)
    found = dict(
        decode_spread(
            pool({"CPU": 2.0, "GPU": 0.0}),
            source_ref(noted(log)),
            chunks_of(COUNT, 1000),
            Wanted(size_px=8, held=True),
            keep=0,
        )
    )
    assert sorted(found) == list(range(5))
    assert set(read_on(log)) == set(mixed[2])  # no other node has two CPUs


@pytest.mark.slow
def test_a_lost_node_costs_what_it_was_decoding(
    mixed: tuple[Cluster, list[str], list[str]], pool: Callable[..., FoldPool], tmp_path: Path
) -> None:
    """The last test of the cluster: it takes a node away."""
    cluster, plain, _ = mixed
    log, found = log_in(tmp_path), {}
    ref, ranges = source_ref(noted(log, seconds=1.0)), chunks_of(COUNT, 500)
    for place, decoded in decode_spread(pool(max_retries=1), ref, ranges, Wanted(size_px=8, held=True), keep=0):
        if not found:
            (victim,) = (node for node in cluster.list_all_nodes() if node.node_id == plain[0])
            cluster.remove_node(victim, allow_graceful=False)
        found[place] = decoded
    assert sorted(found) == list(range(len(ranges)))
    source = open_source(source_ref({"use": "tests.plugs:rows", "count": COUNT}))
    pixels = np.stack([image for _, image in source.read(list(range(COUNT)))])
    assert np.array_equal(np.concatenate([found[place][0] for place in sorted(found)]), pixels)
    assert set(read_on(log)) <= set(plain)
    assert list(plain_nodes(survey(), {"CPU": 1.0, "GPU": 0.0})) == plain[1:]

"""Placement by the labels of nodes, on a simulated cluster of a head and three nodes, two of them in zone a."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

import unseen_ray as ur
from unseen_ray.execution.ray.actor_pool import FoldPool
from unseen_ray.execution.ray.capacity import Capacity, check_fits, fit_selectors, survey
from unseen_ray.runs.manifest import Manifest, write_manifest
from unseen_ray.runs.manifest_entries import SourceEntry
from unseen_ray.storage.filesystem import Folder

SOURCE = {"use": "digits", "limit": 200}
SMALL = {"include_dashboard": False, "object_store_memory": 200 * 2**20}
ZONES = ("a", "b", "a")
LABELS: tuple[dict[str, str], ...] = tuple(
    {"zone": zone, "ray.io/accelerator-type": {"a": "A100", "b": "H100"}[zone]} for zone in ZONES
)


def config(out: Path | None = None, **fields: Any) -> ur.PruneConfig:
    given = {"source": SOURCE, "keep": 0.5, "folds": 4, "fit": "tests.plugs:centroids", **fields}
    return ur.PruneConfig(**given, out=None if out is None else str(out))


@pytest.fixture(scope="module")
def zones(alone: None) -> Iterator[dict[str, str]]:
    """The zone of each node, by Ray's id of it."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **SMALL})
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1, labels=labels, **SMALL) for labels in LABELS]
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    cluster.wait_for_nodes()
    yield {node.node_id: zone for node, zone in zip(nodes, ZONES, strict=True)}
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_folds_run_only_where_placement_says_and_give_the_same_ids(zones: dict[str, str], tmp_path: Path) -> None:
    fit = {"use": "tests.plugs:noted_centroids", "log": str(tmp_path), "together": 2}
    placement = {"fits": {"zone": "!in(b, c)"}, "aggregator": {"zone": "a"}}
    result = ur.prune(config(tmp_path / "run", fit=fit, placement=placement))
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("0-*.json")]
    assert len(notes) == 4
    assert {note["node"] for note in notes} == {node for node, zone in zones.items() if zone == "a"}
    assert result.manifest.config["placement"] == placement
    local = ur.prune(config(tmp_path / "local", executor="local"))
    assert result.coreset.ids.tolist() == local.coreset.ids.tolist()


@pytest.mark.slow
@pytest.mark.ray
def test_labels_that_no_node_has_are_refused_with_those_that_nodes_have(zones: dict[str, str], tmp_path: Path) -> None:
    said = r"placement.fits={'zone': 'z'} matches no node of the cluster, nor does placement.fallback; its nodes have "
    with pytest.raises(ur.ConfigError, match=said + r".*zone: a \(2 of 4\), zone: b \(1 of 4\). Correct placement"):
        ur.prune(config(tmp_path, placement={"fits": {"zone": "z"}, "fallback": [{"zone": "y"}]}))
    with pytest.raises(ur.ConfigError, match=r"placement.aggregator={'zone': 'z'} matches no node"):
        ur.prune(config(tmp_path, placement={"aggregator": {"zone": "z"}}))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.ray
def test_a_deterministic_run_asks_for_the_gpu_of_its_first_worker(zones: dict[str, str], tmp_path: Path) -> None:
    """Which model is first is Ray's choice; from then on no node of another one is asked for, or counted."""
    no_source = SourceEntry(fingerprint="", num_samples=0, num_classes=0, class_names=[])
    write_manifest(Folder(str(tmp_path)), Manifest(created="", config={}, asked={}, source=no_source))
    pool = FoldPool(
        request={"CPU": 1.0, "GPU": 1.0},
        capacity=survey(),
        precision="float32",
        deterministic=True,
        max_retries=0,
        wait_s=60,
        out=str(tmp_path),
        user_fit=True,
    )
    try:
        pool.first_worker()
        pool.request_actors(3)
        (here,) = {zones[node] for node in pool.capacity.node_ids}
        assert len(pool.capacity.nodes) == ZONES.count(here)
    finally:
        pool.close()


def test_what_folds_request_follows_the_nodes_that_they_may_be_on() -> None:
    """A fold takes a GPU by default where its nodes have one; a second choice counts as well."""
    nodes = ({"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0})
    labelled = Capacity(nodes=nodes, node_ids=("c", "g"), labels=({"kind": "cpu"}, {"kind": "gpu"}))
    on_cpus = config(placement={"fits": {"kind": "!gpu"}})
    assert check_fits(on_cpus, labelled) == {"CPU": 1.0, "GPU": 0.0}
    assert labelled.having(fit_selectors(on_cpus)).node_ids == ("c",)
    either = config(placement={"fits": {"kind": "tpu"}, "fallback": [{"kind": "in(gpu, cpu)"}]})
    assert check_fits(either, labelled) == {"CPU": 1.0, "GPU": 1.0}
    assert check_fits(config(placement={"fits": {"kind": "tpu"}}), Capacity(nodes=nodes)) == {"CPU": 1.0, "GPU": 1.0}
    growing = Capacity(nodes=nodes, labels=labelled.labels, groups=({"CPU": 8.0},), autoscaling=True)
    assert check_fits(config(placement={"fits": {"kind": "tpu"}}), growing) == {"CPU": 1.0, "GPU": 0.0}


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (
            {"fit": {"zone": "a"}},
            "placement has no field 'fit'; it takes fits, fallback, aggregator, driver. Did you mean 'fits'?",
        ),
        (
            {"fits": "spot"},
            "placement.fits='spot' must be a mapping of labels, such as {ray.io/accelerator-type: H100}",
        ),
        ({"fits": {}}, "placement.fits={} must be a mapping of labels"),
        ({"fits": {"gpu": True}}, "placement.fits: gpu=True must be text: a value, !value, in(a, b) or !in(a, b)"),
        ({"fits": {"gpu": "in()"}}, "placement.fits: gpu='in()' must be text"),
        ({"fits": {"a b": "x"}}, "placement.fits: 'a b' is not the name of a label"),
        (
            {"fallback": [{"zone": "a"}]},
            "must be a list of mappings of labels, for where no node of placement.fits is free",
        ),
        ({"fits": {"zone": "a"}, "fallback": ["b"]}, "placement.fallback[0]='b' must be a mapping of labels"),
    ],
)
def test_a_placement_that_says_nothing_sensible_is_refused(placement: Any, said: str) -> None:
    with pytest.raises(ur.ConfigError) as failure:
        config(placement=placement)
    assert said in str(failure.value)


def test_placement_has_no_effect_in_one_process_and_plan_shows_it() -> None:
    placement = {"fits": {"ray.io/market-type": "spot"}, "fallback": [{"zone": "a"}], "driver": {"zone": "b"}}
    with pytest.raises(ur.ConfigError, match="placement has no effect with executor: local"):
        config(placement=placement, executor="local")
    shown = "trainings on nodes with ray.io/market-type: spot, else zone: a; the job of submit on nodes with zone: b"
    assert shown in repr(ur.plan(config(placement=placement)))
    assert ur.execution.plan.plan_values(config(placement=placement))["placement"] == placement
    assert "placement" not in config().to_json()

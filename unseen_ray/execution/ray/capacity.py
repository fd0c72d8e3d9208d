"""Whether a cluster can meet a fold's request: now, after its autoscaler has added nodes, or never."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unseen_ray.errors import ConfigError
from unseen_ray.execution.ray.internals import (
    autoscaler_groups,
    autoscaler_kinds,
    cpus_of_machine,
    draining_nodes,
    pending_requests,
)

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig

__all__ = [
    "GPU_LABEL",
    "Capacity",
    "Resources",
    "Selector",
    "check_enough",
    "check_feasible",
    "check_fits",
    "check_placement",
    "computes_alike",
    "default_gpus",
    "fit_request",
    "fit_selectors",
    "fold_request",
    "plain_nodes",
    "slots",
    "survey",
    "this_machine",
    "waiting_for",
]

Resources = Mapping[str, float]
Selector = Mapping[str, str]
"""Labels of a node with the values that it may have, as Ray writes them: `a`, `!a`, `in(a, b)` or `!in(a, b)`."""

GPU_LABEL = "ray.io/accelerator-type"
"""Ray's label of the model of a node's GPUs."""
_NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The resources of a cluster.

    Attributes:
        nodes: resources of each live node.
        groups: resources of each kind of node that the autoscaler may add, if it reports them.
        autoscaling: whether an autoscaler runs.
        node_ids: Ray's ids of `nodes`, or empty if unknown.
        labels: the labels of each node, or empty if unknown.
        pending: requests of all work on the cluster that wait for resources, and how many there are of each size.
    """

    nodes: tuple[Resources, ...]
    groups: tuple[Resources, ...] = ()
    autoscaling: bool = False
    node_ids: tuple[str, ...] = ()
    labels: tuple[Mapping[str, str], ...] = ()
    pending: tuple[tuple[Resources, int], ...] = ()

    def having(self, selectors: Sequence[Selector]) -> Capacity:
        """The same with only the nodes that one of the selectors matches; all where there are none, or labels are unknown."""
        if not selectors or not self.labels:
            return self
        places = [n for n, labels in enumerate(self.labels) if any(_matches(labels, each) for each in selectors)]
        return replace(
            self,
            nodes=tuple(self.nodes[n] for n in places),
            node_ids=tuple(self.node_ids[n] for n in places) if self.node_ids else (),
            labels=tuple(self.labels[n] for n in places),
        )


def slots(capacity: Capacity, request: Resources) -> int:
    """Number of workers of this size that fit on the live nodes."""
    return sum(_slots_of(node, request) for node in capacity.nodes)


def waiting_for(capacity: Capacity, request: Resources) -> int:
    """How many workers of all work on the cluster wait for what such a worker holds: GPUs if it has one, else CPUs alone."""
    kind = "GPU" if request["GPU"] > 0 else "CPU"
    rivals = [(each, count) for each, count in capacity.pending if each.get(kind, 0) > 0]
    return sum(count for each, count in rivals if (kind == "GPU" or not each.get("GPU")) and slots(capacity, each))


def plain_nodes(capacity: Capacity, request: Resources) -> dict[str, int]:
    """By id, the nodes without GPU that fit workers of this size, with the number of workers on each."""
    nodes = zip(capacity.node_ids, capacity.nodes, strict=True)
    room = {node_id: _slots_of(node, request) for node_id, node in nodes if not node.get("GPU", 0)}
    return {node_id: slots for node_id, slots in room.items() if slots > 0}


def default_gpus(capacity: Capacity) -> float:
    """1 if a node has a GPU or the autoscaler may add one, else 0."""
    return float(any(node.get("GPU", 0) >= 1 for node in (*capacity.nodes, *capacity.groups)))


def check_feasible(capacity: Capacity, request: Resources) -> None:
    """Refuse a request that no node can ever meet.

    Raises:
        ConfigError: with the numbers.
    """
    if slots(capacity, request) > 0:
        return
    possible = [*capacity.nodes, *capacity.groups]
    # an autoscaler that does not report its kinds of node may add a large enough one
    if any(_slots_of(node, request) for node in capacity.groups) or (capacity.autoscaling and not capacity.groups):
        return
    largest = {name: max((node.get(name, 0) for node in possible), default=0) for name in ("CPU", "GPU")}
    wants_gpu = request["GPU"] > 0 == largest["GPU"] and request["CPU"] <= largest["CPU"]
    lower = "Set gpus_per_fold=0 to train on CPUs" if wants_gpu else "Lower cpus_per_fold, gpus_per_fold or threads"
    raise ConfigError(
        f"a fold asks for {request['CPU']:g} CPU and {request['GPU']:g} GPU on one node, but the largest node "
        f"has {largest['CPU']:g} CPU and {largest['GPU']:g} GPU"
        + (", and the autoscaler can add none that is large enough" if capacity.autoscaling else "")
        + f". {lower}, or join a {'cluster with GPUs' if wants_gpu else 'larger cluster'}."
    )


def fold_request(config: PruneConfig, capacity: Capacity) -> Resources:
    """The resources that a fold of a run requests on a cluster."""
    gpus = config.gpus_per_fold if config.gpus_per_fold is not None else default_gpus(capacity)
    return {"CPU": float(config.cpus_per_fold or config.threads), "GPU": float(gpus)}


def fit_selectors(config: PruneConfig) -> tuple[Selector, ...]:
    """Which nodes trainings may be on, the preferred ones first; empty for all."""
    placement = config.placement or {}
    return (placement["fits"], *placement.get("fallback", ())) if "fits" in placement else ()


def check_placement(config: PruneConfig, capacity: Capacity, parts: Sequence[str] = ("fits", "aggregator")) -> None:
    """Refuse a placement that no node of a fixed cluster has the labels for.

    Raises:
        ConfigError: with the labels that nodes have.
    """
    placement = config.placement or {}
    wanted = {
        part: fit_selectors(config) if part == "fits" else (placement[part],) for part in parts if part in placement
    }
    if capacity.autoscaling or not capacity.labels:  # it does not say which labels its nodes will have
        return
    problems = [
        f"placement.{part}={dict(selectors[0])} matches no node of the cluster"
        + (", nor does placement.fallback" if len(selectors) > 1 else "")
        + f"; {_labels_text(capacity)}. Correct placement, or start a node with these labels (ray start --labels)."
        for part, selectors in wanted.items()
        if not capacity.having(selectors).labels
    ]
    if problems:
        raise ConfigError(problems)


def check_fits(config: PruneConfig, capacity: Capacity) -> Resources:
    """Check that the cluster can run a fold, and a fit on several workers; returns the request of a fold.

    Raises:
        ConfigError: with the numbers, or the labels that nodes have.
    """
    check_placement(config, capacity)
    capacity = capacity.having(fit_selectors(config))
    request = fold_request(config, capacity)
    check_feasible(capacity, request)
    check_enough(capacity, fit_request(request), config.min_gpus_per_fit or config.gpus_per_fit)
    return request


def fit_request(request: Resources) -> Resources:
    """The request of one worker of a fit on several GPUs: that of a fold, but with a whole GPU if folds use GPUs."""
    return {"CPU": request["CPU"], "GPU": 1.0 if request["GPU"] > 0 else 0.0}


def check_enough(capacity: Capacity, request: Resources, workers: int) -> None:
    """Refuse a fit on more workers than a fixed cluster has room for.

    Raises:
        ConfigError: with the numbers.
    """
    room = slots(capacity, request)
    if workers > max(room, 1) and not capacity.autoscaling:
        raise ConfigError(
            f"gpus_per_fit={workers} workers of {request['CPU']:g} CPU and {request['GPU']:g} GPU do not fit on the cluster: it has "
            f"room for {room}. Lower gpus_per_fit, cpus_per_fold or threads, or join a larger cluster."
        )


def this_machine() -> Capacity:
    """The capacity of a private cluster on this machine, known before it starts."""
    import torch

    return Capacity(nodes=({"CPU": cpus_of_machine(), "GPU": float(torch.cuda.device_count())},))


def survey() -> Capacity:
    """The capacity of the cluster that this process is connected to, without nodes that are about to be taken away."""
    import ray

    leaving, groups = draining_nodes(), autoscaler_groups()
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return Capacity(
        nodes=tuple(node["Resources"] for node in alive),
        groups=groups,
        # without an autoscaler, the monitor names the kinds of node after the nodes' ids
        autoscaling=bool(groups) or any(not kind.startswith("node_") for kind in autoscaler_kinds()),
        node_ids=tuple(node["NodeID"] for node in alive),
        labels=tuple(node["Labels"] for node in alive),
        pending=pending_requests(),
    )


def _matches(labels: Mapping[str, str], selector: Selector) -> bool:
    """Whether a node's labels are what a selector asks for; a node without a label has another value than any."""
    for label, wanted in selector.items():
        allowed = wanted.removeprefix("!").removeprefix("in(").removesuffix(")").replace(" ", "").split(",")
        if (labels.get(label) in allowed) == wanted.startswith("!"):
            return False
    return True


def _labels_text(capacity: Capacity) -> str:
    labels = [f"{label}: {value}" for each in capacity.labels for label, value in each.items() if label != _NODE_LABEL]
    found = [f"{text} ({count} of {len(capacity.labels)})" for text, count in sorted(Counter(labels).items())]
    return f"its nodes have {', '.join(found)}" if found else "its nodes have no labels"


def _slots_of(node: Resources, request: Resources) -> int:
    fits = [_times(name, node.get(name, 0), amount) for name, amount in request.items() if amount > 0]
    return min(fits, default=0)


def _times(name: str, present: float, amount: float) -> int:
    # a share is one of a single GPU; the slack makes ten shares of 0.1 fit, whatever the rounding of the division
    gpus = int(present) if name == "GPU" and amount < 1 else 1
    return gpus * int(present / max(gpus, 1) / amount + 1e-9)


def computes_alike(first: Mapping[str, Any], other: Mapping[str, Any], *, deterministic: bool) -> bool:
    """Whether two workers both have the run's number format in hardware, or both emulate it; `deterministic`, on one model of GPU."""
    precision = first["precision"]
    if deterministic and first["device"] != other["device"]:
        return False
    return (precision in first["supported"]) == (precision in other["supported"])

"""The resources and hours that a run takes on a cluster, as lines and tables."""

from __future__ import annotations

from typing import Any

from unseen_ray.cli.summary.text import bytes_text, hours_text
from unseen_ray.cli.tables import Column, Table

__all__ = ["cluster_lines", "cluster_table", "needs_table"]

_NAMES = {
    "decode_core_hours": "decoding, core hours",
    "decode_cores_training": "decoding cores per worker, training",
    "decode_cores_scoring": "decoding cores per worker, scoring",
    "decode_cores_in_all": "decoding cores, total",
    "encoded_bytes": "a stored image",
    "read_encoded": "read for decoding",
    "read_training": "read per worker, training",
    "read_scoring": "read per worker, scoring",
    "read_in_all": "read, total at most",
    "read_bytes": "read over the whole run",
    "network_pixels": "network: pixels",
    "network_votes": "network: votes and scores",
    "network_checkpoints": "network: checkpoints",
    "network_gradients": "network: gradients",
    "decoded_pixels": "decoded pixels",
    "disk_votes": "disk: votes",
    "disk_scores": "disk: scores",
    "disk_checkpoints": "disk: checkpoints at once",
    "out_write": "writes to out",
    "out_read": "reads from out",
}

_STAGE_COLUMNS = (
    Column("stage", left=True),
    Column("trainings", 1),
    Column("workers each", 4),
    Column("waves", 3),
    Column("idle in the last", 5),
    Column("wall"),
    Column("worker time", 1),
    Column("used", 2, ".0%"),
    Column("bottleneck", 2, left=True),
)


def cluster_lines(values: dict[str, Any]) -> list[str]:
    """The assumed rates, and how long the whole cluster takes."""
    rates, cluster = values["rates"], values["cluster"]
    rates_text = [
        f"{what} {rates[name]:,.0f} ({rates['how'][name]})"
        for name, what in (("training", "training"), ("scoring", "scoring"), ("decode", "decoding on one core"))
        if rates[name] is not None
    ]
    lines = [f"images/s: {', '.join(rates_text)}"] if rates_text else []
    if cluster is None or cluster["wall_hours"] is None:
        return lines
    gap = cluster["occupied_hours"] - cluster["worker_hours"]
    return [
        *lines,
        f"on {cluster['workers']} workers that never wait for data: {hours_text(cluster['wall_hours'])} over all stages (= the sum of "
        f"their wall hours), {hours_text(cluster['worker_hours'])} of worker time (= images / rate), {cluster['utilisation']:.0%} used "
        f"(= these / workers x wall hours; {hours_text(gap)} are idle); stage {cluster['bottleneck']} takes longest",
    ]


def cluster_table(values: dict[str, Any]) -> Table:
    """Waves, idle workers and hours of each stage, the longest one marked."""
    cluster = values["cluster"]
    table = Table(_STAGE_COLUMNS)
    for stage in cluster["stages"]:
        known = stage["wall_hours"] is not None
        table.add(
            stage["stage"],
            stage["models"],
            stage["workers_each"],
            stage["waves"],
            f"{stage['idle']} of {cluster['workers']}",
            hours_text(stage["wall_hours"]) if known else None,
            hours_text(stage["worker_hours"]) if known else None,
            stage["utilisation"] if known else None,
            "the longest" if stage["stage"] == cluster["bottleneck"] and len(cluster["stages"]) > 1 else None,
        )
    return table


def needs_table(values: dict[str, Any]) -> Table:
    """Each resource, and how it was computed."""
    table = Table([Column("what", left=True), Column("amount"), Column("how", left=True, prose=True)])
    for need in values["needs"]:
        table.add(_NAMES[need["name"]], _value_text(need["value"], need["unit"]), need["how"])
    return table


def _value_text(value: float | None, unit: str) -> str:
    if value is None:
        return "?"
    if unit in ("B", "B/s"):
        return bytes_text(value) + unit[1:]
    return hours_text(value) if unit == "h" else f"{value:,.1f}"

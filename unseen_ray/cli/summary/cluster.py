"""What a run takes of a stated cluster, as lines and tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from unseen_ray.cli.summary.text import bytes_text, hours_text, table_of

__all__ = ["cluster_lines", "cluster_table", "needs_table"]

_NAMES = {
    "decode_core_hours": "decoding, core hours",
    "decode_cores_training": "cores that decode for a worker in training",
    "decode_cores_scoring": "cores that decode for a worker in scoring",
    "decode_cores_in_all": "cores that decode, in all",
    "encoded_bytes": "an image as stored",
    "read_encoded": "read to decode",
    "read_training": "read by a worker in training",
    "read_scoring": "read by a worker in scoring",
    "read_in_all": "read in all, at most",
    "read_bytes": "read over the whole run",
    "network_pixels": "network: pixels",
    "network_votes": "network: votes and scores",
    "network_checkpoints": "network: checkpoints",
    "network_gradients": "network: gradients",
    "decoded_pixels": "decoded pixels",
    "disk_votes": "disk: votes",
    "disk_scores": "disk: scores",
    "disk_checkpoints": "disk: checkpoints at once",
    "out_write": "out takes",
    "out_read": "out gives",
}


def cluster_lines(values: dict[str, Any]) -> list[str]:
    """The rates that were taken, and what the whole cluster takes for how long."""
    rates, cluster = values["rates"], values["cluster"]
    said = [
        f"{what} {rates[name]:,.0f} ({rates['how'][name]})"
        for name, what in (("training", "training"), ("scoring", "scoring"), ("decode", "decoding on one core"))
        if rates[name] is not None
    ]
    lines = [f"images/s: {', '.join(said)}"] if said else []
    if cluster is None or cluster["wall_hours"] is None:
        return lines
    gap = cluster["occupied_hours"] - cluster["worker_hours"]
    return [
        *lines,
        f"on {cluster['workers']} workers that are kept fed: {hours_text(cluster['wall_hours'])} over all stages (= the sum of their wall "
        f"hours), {hours_text(cluster['worker_hours'])} of workers' time (= images / rate / 3600), {cluster['utilisation']:.0%} used "
        f"(= these / workers x wall hours; {hours_text(gap)} are idle); stage {cluster['bottleneck']} takes longest",
    ]


def cluster_table(values: dict[str, Any]) -> Table:
    """Waves, idle workers and hours of each stage, the longest one marked."""
    cluster = values["cluster"]
    table = table_of(
        "stage", "trainings", "workers each", "waves", "idle in the last", "wall", "workers' time", "used", ""
    )
    for stage in cluster["stages"]:
        known = stage["wall_hours"] is not None
        table.add_row(
            str(stage["stage"]),
            str(stage["models"]),
            str(stage["workers_each"]),
            str(stage["waves"]),
            f"{stage['idle']} of {cluster['workers']}",
            hours_text(stage["wall_hours"]) if known else "",
            hours_text(stage["worker_hours"]) if known else "",
            f"{stage['utilisation']:.0%}" if known else "",
            "<- the bottleneck" if stage["stage"] == cluster["bottleneck"] and len(cluster["stages"]) > 1 else "",
        )
    return table


def needs_table(values: dict[str, Any]) -> Table:
    """Each number and how it was computed."""
    table = table_of("what", "", "how")
    table.columns[2].justify = "left"
    for need in values["needs"]:
        table.add_row(_NAMES[need["name"]], _said(need["value"], need["unit"]), need["how"])
    return table


def _said(value: float | None, unit: str) -> str:
    if value is None:
        return "?"
    if unit in ("B", "B/s"):
        return bytes_text(value) + unit[1:]
    return hours_text(value) if unit == "h" else f"{value:,.1f}"

"""What faults cost: epochs trained again and the time until a fit goes on, from what the drivers were told."""

from __future__ import annotations

import itertools
import re
import statistics
from dataclasses import dataclass
from typing import Any

WATCHED = {"runs_with_other_ids": r"other ids", "hangs": r"hangs|did not end", "tracebacks": r"traceback"}
"""By the figure's name, the words that such a failure is told by."""
HARMLESS = {"storage slow", "fold actor stopped for 2 s", "driver stopped for 0 to 3 s"}


@dataclass
class Fault:
    """One fault and what it cost.

    Attributes:
        kind, run, storage: what was done to which run, whose files lie where.
        at_s: when, on the harness's clock.
        file: what it damaged.
        fits: trainings that it broke off.
        redone: epochs of them that were trained again, the one that was under way counted by its part.
        again: finished tasks that were done again.
        recovery_s: until a fit that it broke off went on; 0 where it broke off none.
    """

    kind: str
    run: int
    storage: str
    at_s: float
    file: str = ""
    fits: int = 0
    redone: float = 0.0
    again: int = 0
    recovery_s: float = 0.0


def charge(faults: list[Fault], events: list[dict[str, Any]], epoch_s: float) -> None:
    """Write to each fault's account what was done again because of it."""
    for task in {event["task"] for event in events}:
        its = [event for event in events if event["task"] == task]
        reached = 0
        for before, begun, first in zip(its, its[1:], its[2:], strict=False):
            reached = max(reached, before.get("done", 0) if before.get("doing") == "train" else 0)
            is_start = not begun["finished"] and begun["doing"] == "train" and not begun["done"]
            guilty = blamed(faults, before["at"])
            if not is_start or guilty is None:
                continue
            guilty.again += before["finished"]
            if first["finished"] or not first["done"] or not reached:
                continue
            under_way = 0.0 if before["finished"] else min((guilty.at_s - before["at"]) / epoch_s, 1.0)
            guilty.fits += 1
            guilty.redone += max(reached - first["done"] + (not first["earlier"]), 0) + max(under_way, 0.0)
            guilty.recovery_s = max(guilty.recovery_s, first["at"] - guilty.at_s)


def blamed(faults: list[Fault], at_s: float) -> Fault | None:
    """The first fault after a task's last sign of life."""
    return next((fault for fault in faults if fault.kind not in HARMLESS and fault.at_s > at_s - 0.1), None)


def epochs_of(events: list[dict[str, Any]]) -> tuple[int, float]:
    """How many epochs an undisturbed run trains, and the median seconds of one."""
    spans = []
    for task in {event["task"] for event in events}:
        at = [e["at"] for e in events if e["task"] == task and not e["finished"] and e["doing"] == "train"]
        spans += [later - earlier for earlier, later in itertools.pairwise(at)]
    return len(spans), statistics.median(spans)


def kinds_of(faults: list[Fault]) -> dict[str, dict[str, float]]:
    """By kind: medians and the worst, of those faults that broke a fit off."""
    found = {}
    for kind in sorted({fault.kind for fault in faults}):
        its = [fault for fault in faults if fault.kind == kind]
        broken = [fault for fault in its if fault.fits]
        found[kind] = {
            "faults": len(its),
            "broke_off": len(broken),
            "redone_epochs": round(statistics.median([fault.redone for fault in broken] or [0.0]), 2),
            "redone_epochs_most": round(max(fault.redone for fault in its), 2),
            "recovery_s": round(statistics.median([fault.recovery_s for fault in broken] or [0.0]), 1),
        }
    return found


def totals_of(faults: list[Fault]) -> dict[str, float]:
    """Over the faults that broke a fit off: the median and the most of what each cost, in all and for each fit."""
    broken = [fault for fault in faults if fault.fits]
    return {
        "broke_off": len(broken),
        "redone_epochs_median": statistics.median([fault.redone for fault in broken] or [0.0]),
        "redone_epochs_most": max([fault.redone for fault in broken] or [0.0]),
        "redone_epochs_of_a_fit_median": statistics.median([fault.redone / fault.fits for fault in broken] or [0.0]),
        "recovery_s_median": statistics.median([fault.recovery_s for fault in broken] or [0.0]),
        "finished_tasks_done_again": sum(fault.again for fault in faults),
        "votes_damaged": sum("/votes/" in fault.file for fault in faults),
    }


def report_of(campaigns: list[dict[str, Any]]) -> dict[str, Any]:
    """What the campaigns have shown, in all."""
    faults = [Fault(**fault) for campaign in campaigns for fault in campaign["each"]]
    failures = [failure.split("\n")[0] for campaign in campaigns for failure in campaign["failures"]]  # without paths
    sums = {name: sum(campaign[name] for campaign in campaigns) for name in ("runs", "driver_starts", "seconds")}
    (epochs,) = {campaign["epochs_of_a_run"] for campaign in campaigns}
    return {
        "faults": len(faults),
        "faults_on_ray": sum(len(campaign["each"]) for campaign in campaigns if campaign["on_ray"]),
        **sums,
        **{name: sum(re.search(what, failure) is not None for failure in failures) for name, what in WATCHED.items()},
        "failures": failures,
        "epochs_of_a_run": epochs,
        **totals_of(faults),
        "redone_share": sum(fault.redone for fault in faults) / (epochs * sums["runs"]),
        "skipped": campaigns[-1]["skipped"],
        "kinds": kinds_of(faults),
    }


def shortfalls_of(report: dict[str, Any]) -> list[str]:
    """What the campaigns show that should not be."""
    found = []
    if report["failures"]:
        found.append(f"{len(report['failures'])} failures, see the report")
    if report["finished_tasks_done_again"] > report["votes_damaged"]:
        found.append(
            f"{report['finished_tasks_done_again']} finished folds were trained again, and the votes of "
            f"{report['votes_damaged']} were damaged"
        )
    return found


def lines_of(report: dict[str, Any]) -> list[str]:
    """What the terminal gets."""
    lines = [
        f"{'fault':<38}{'times':>6}{'broke off a fit':>17}{'epochs redone':>15}{'most':>7}{'seconds until it goes on':>26}"
    ]
    for kind, its in report["kinds"].items():
        lines.append(
            f"{kind:<38}{its['faults']:>6}{its['broke_off']:>17}{its['redone_epochs']:>15.2f}{its['redone_epochs_most']:>7.2f}"
            f"{its['recovery_s']:>26.1f}"
        )
    lines.append(
        f"{report['faults']} faults, {report['faults_on_ray']} of them on Ray, against {report['runs']} runs; other ids: "
        f"{report['runs_with_other_ids']}, hangs: {report['hangs']}, tracebacks: {report['tracebacks']}; {report['broke_off']} broke "
        f"a fit off or two; redone for each of these: {report['redone_epochs_median']:.2f} epochs (median), "
        f"{report['redone_epochs_most']:.2f} at most; {100 * report['redone_share']:.1f} % of all training; "
        f"{report['finished_tasks_done_again']} finished folds trained again"
    )
    return lines

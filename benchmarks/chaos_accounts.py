"""What faults cost: epochs trained again and the time until a fit goes on, from what the drivers were told."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import Any

BREAKING = {
    "fold actor killed",
    "raylet killed",
    "node gone",
    "driver killed",
    "driver told to end",
    "file cut in half",
}


@dataclass
class Fault:
    """One fault and what it cost.

    Attributes:
        kind, run, storage: what was done to which run, whose files lie where.
        at_s: when, on the harness's clock.
        fits: trainings that it broke off.
        file: what it damaged.
        redone: epochs of them that were trained again, the one that was under way counted by its part.
        recovery_s: until a fit that it broke off went on; 0 where it broke off none.
    """

    kind: str
    run: int
    storage: str
    at_s: float
    fits: int = 0
    file: str = ""
    redone: float = 0.0
    recovery_s: float = 0.0


def charge(faults: list[Fault], events: list[dict[str, Any]], epoch_s: float) -> int:
    """Write what each fault had trained again to its account; how many finished tasks were done again."""
    done_again = 0
    for task in {event["task"] for event in events}:
        its = [event for event in events if event["task"] == task]
        reached = 0
        for before, begun, first in zip(its, its[1:], its[2:], strict=False):
            reached = max(reached, before.get("done", 0) if before.get("doing") == "train" else 0)
            is_start = not begun["finished"] and begun["doing"] == "train" and not begun["done"]
            if not is_start or first["finished"] or not first["done"] or not reached:
                continue
            guilty = next((f for f in faults if f.kind in BREAKING and f.at_s > before["at"] - 0.1), None)
            if guilty is None:
                raise SystemExit(f"{task} was started again, and no fault explains it")
            under_way = 0.0 if before["finished"] else min((guilty.at_s - before["at"]) / epoch_s, 1.0)
            announced = first["at"] - begun["at"] < epoch_s / 2  # too soon for an epoch: what the checkpoint holds
            goes_on_from = first["done"] if announced else first["done"] - 1
            guilty.fits += 1
            guilty.redone += max(reached - goes_on_from, 0) + max(under_way, 0.0)
            guilty.recovery_s = max(guilty.recovery_s, first["at"] - guilty.at_s)
        done_again += max(sum(event["finished"] and not event["reused"] for event in its) - 1, 0)
    return done_again


def epochs_of(events: list[dict[str, Any]]) -> tuple[int, float]:
    """How many epochs an undisturbed run trains, and the median seconds of one."""
    spans = []
    for task in {event["task"] for event in events}:
        at = [e["at"] for e in events if e["task"] == task and not e["finished"] and e["doing"] == "train"]
        spans += [later - earlier for earlier, later in itertools.pairwise(at)]
    return len(spans), statistics.median(spans)


def kinds_of(faults: list[Fault]) -> dict[str, dict[str, float]]:
    """By kind: medians, of the recovery over those faults that broke a fit off."""
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
    """Over the faults that broke a fit off: medians of what each cost, in all and for each fit."""
    broken = [fault for fault in faults if fault.fits]
    return {
        "broke_off": len(broken),
        "redone_epochs_median": statistics.median([fault.redone for fault in broken] or [0.0]),
        "redone_epochs_of_a_fit_median": statistics.median([fault.redone / fault.fits for fault in broken] or [0.0]),
        "recovery_s_median": statistics.median([fault.recovery_s for fault in broken] or [0.0]),
    }


def shortfalls_of(report: dict[str, Any]) -> list[str]:
    """What a campaign shows that should not be."""
    found = []
    if report["redone_epochs_median"] > 1:
        found.append(
            f"a fault that broke a fit off cost {report['redone_epochs_median']:.2f} epochs (median), more than one"
        )
    damaged = sum("/votes/" in fault["file"] for fault in report["each"])
    if report["finished_tasks_done_again"] > damaged:
        found.append(
            f"{report['finished_tasks_done_again']} finished folds were trained again, and the votes of {damaged} were damaged"
        )
    return found


def lines_of(report: dict[str, Any]) -> list[str]:
    """What the terminal gets."""
    lines = [
        f"{'fault':<28}{'times':>6}{'broke off a fit':>17}{'epochs redone':>15}{'most':>7}{'seconds until it goes on':>26}"
    ]
    for kind, its in report["kinds"].items():
        lines.append(
            f"{kind:<28}{its['faults']:>6}{its['broke_off']:>17}{its['redone_epochs']:>15.2f}{its['redone_epochs_most']:>7.2f}"
            f"{its['recovery_s']:>26.1f}"
        )
    lines.append(
        f"{report['faults']} faults survived by {report['runs']} runs, all with the ids of the undisturbed one; "
        f"{report['broke_off']} broke a fit off or two; redone for each of these, median: {report['redone_epochs_median']:.2f} epochs, "
        f"{report['redone_epochs_of_a_fit_median']:.2f} of a fit; {100 * report['redone_share']:.1f} % of all training; "
        f"{report['finished_tasks_done_again']} finished folds trained again"
    )
    return lines

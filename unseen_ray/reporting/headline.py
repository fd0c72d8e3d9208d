"""The answer that a page begins with: is it worth it?"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, TypeAlias

from unseen_ray.data.sources.labels_only import has_labels_alone
from unseen_ray.data.sources.registry import default_test, source_ref
from unseen_ray.errors import ConfigError

if TYPE_CHECKING:
    from unseen_ray.runs.run import Run

__all__ = ["command_to_measure", "headline_of", "is_measurable", "verdict"]

_RANDOM = ("random", "random_matched")
Values: TypeAlias = dict[str, Any]


def headline_of(evaluation: Values | None, *, bill: float | None, is_random: bool = False) -> Values:
    """Gain and price of a run, ready for JSON.

    Args:
        evaluation: the fullest table of the run; None if nothing was evaluated.
        bill: the cost of the choice as a share of one training on all samples, counted in images; None if unknown.
        is_random: whether a random subset was kept, which would have cost nothing.

    Returns:
        `against`: the random subset that was measured; None if none was.
        `gain`, `low`, `high`: accuracy of the coreset minus that of `against`, with its 95 % interval; None if unknown.
        `lost`, `lost_low`, `lost_high`: the same against all samples.
        `bill`: measured in time where `full` was trained on the same device, else counted in images; `bill_of` says which.
        `paid_after`: trainings on the coreset after which time is saved; None if it never is, or is not known.
        `is_random`: as given.
    """
    leads = {row["baseline"]: row for row in (evaluation or {}).get("differences", [])}
    arms = {arm["name"]: arm for arm in (evaluation or {}).get("arms", [])}
    against = next((name for name in _RANDOM if name in leads), None)
    even = (evaluation or {}).get("break_even")
    measured = even is not None and arms["full"]["seconds_each"] > 0
    return {
        "against": against,
        **_lead(leads.get(against), "gain", "low", "high"),
        **_lead(leads.get("full"), "lost", "lost_low", "lost_high"),
        "bill": even["choosing_s"] / arms["full"]["seconds_each"] if even and measured else bill,
        "bill_of": "time" if measured else "images",
        "paid_after": even["trainings"] if even and not is_random else None,
        "is_random": is_random,
    }


def _lead(row: Values | None, *names: str) -> Values:
    return dict(zip(names, [None] * 3 if row is None else [row[key] for key in ("mean", "low", "high")], strict=True))


def verdict(low: float | None, high: float | None, against: str = "random") -> str:
    """A gain over a random subset in a few words: ahead, behind, or level where its interval holds 0."""
    other = {"random_matched": "random with the same class counts"}.get(against, against)
    if low is None or high is None:
        return f"No interval yet for the gain over {other}"
    return f"Ahead of {other}" if low > 0 else f"Behind {other}" if high < 0 else f"Level with {other}"


def is_measurable(run: Run) -> bool:
    """Whether `evaluate` can train on the run's data with the run's model."""
    config = run.manifest.config
    return config["fit"] is None and not has_labels_alone(config["source"])


def command_to_measure(run: Run) -> str:
    """The command line that measures a run against random subsets and the full set."""
    config = run.manifest.config
    known = config["test"] is not None or run.manifest.source.holdout or _has_own_test(run.manifest.asked["source"])
    place = "" if known else " --test SOURCE"
    local = " --executor local" if config["executor"] == "local" else ""
    return f"unseen-ray evaluate {shlex.quote(run.folder.root)} --against random,full --seeds 5{place}{local}"


def _has_own_test(source: Any) -> bool:
    try:
        return default_test(source_ref(source)) is not None
    # A folder that is not seen from here; only sources that have a name have a test set of their own.
    except ConfigError:
        return False

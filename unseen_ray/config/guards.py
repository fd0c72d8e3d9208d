"""The guard of a run at work: which of the merged samples are suspects, and what is left to choose from."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from unseen_ray.config.run import PruneConfig
from unseen_ray.core import dynamics, scores
from unseen_ray.core import guard as builtin_guards
from unseen_ray.core.guard import allowed
from unseen_ray.errors import FitError
from unseen_ray.plugins import function_of, is_target, name_of, offered, plug_of

__all__ = [
    "SUSPECT",
    "check_guard",
    "guard_function",
    "needs_probs",
    "open_positions",
    "scores_read",
    "suspects_kept",
    "suspects_of",
    "warn_of_needed",
    "with_suspects",
]

logger = logging.getLogger(__name__)

SUSPECT = "suspect"


def guard_function(config: PruneConfig) -> Callable[..., Any] | None:
    """The guard of a run; None where it has none.

    Raises:
        ConfigError: if it cannot be imported, or does not take its options.
    """
    return None if config.guard == "none" else function_of(config.guard, builtin_guards, field="guard")


def check_guard(config: PruneConfig) -> None:
    """Import the guard, and have one of ours say what its options may be; ConfigError says what is wrong."""
    guard, use = guard_function(config), plug_of(config.guard)[0]
    if guard is not None and isinstance(use, str) and not is_target(use):
        one, number = np.zeros(1, np.int64), np.zeros(1, np.float32)
        tried: dict[str, Any] = {"ids_M": one, "labels_M": one, "probs_MC": np.ones((1, 1))}
        tried |= {f"{name}_M": number for name in scores_read(config)}
        guard(**offered(guard, {**tried, "seed": config.seed}))


def needs_probs(config: PruneConfig) -> bool:
    """Whether the guard reads N x C probabilities."""
    guard = guard_function(config)
    return guard is not None and "probs_MC" in inspect.signature(guard).parameters


def scores_read(config: PruneConfig) -> list[str]:
    """Names of the scores that the guard's signature asks for, stored for it whatever else is."""
    guard = guard_function(config)
    asked = () if guard is None else inspect.signature(guard).parameters
    return [name for name in (*scores.__all__, *dynamics.__all__) if f"{name}_M" in asked]


def suspects_of(config: PruneConfig, table: pa.Table, probs_MC: np.ndarray | None) -> np.ndarray | None:
    """(M,) bool over the rows of a score table; None where the run has no guard.

    Raises:
        FitError: if a user's guard answers with something else.
    """
    guard = guard_function(config)
    if guard is None:
        return None
    columns = {f"{name}_M": table.column(name).to_numpy() for name in table.column_names if name not in ("id", "label")}
    columns |= {"ids_M": table.column("id").to_numpy(), "labels_M": table.column("label").to_numpy()}
    suspects = np.asarray(guard(**offered(guard, {**columns, "probs_MC": probs_MC, "seed": config.seed})))
    if suspects.shape != (table.num_rows,) or suspects.dtype != np.bool_:
        raise FitError(
            f"guard {name_of(plug_of(config.guard)[0])} returned {suspects.dtype} of shape {suspects.shape}; "
            f"it must return bool of shape ({table.num_rows},)."
        )
    return suspects


def with_suspects(table: pa.Table, zero: pa.Table) -> pa.Table:
    """A later stage's scores with the suspects of stage 0, where most models have judged and none had seen the sample."""
    if SUSPECT not in zero.column_names or SUSPECT in table.column_names:
        return table
    places = np.searchsorted(zero.column("id").to_numpy(), table.column("id").to_numpy())
    return table.append_column(SUSPECT, zero.column(SUSPECT).take(pa.array(places)))


def suspects_kept(table: pa.Table, kept_M: np.ndarray) -> dict[str, int] | None:
    """How many suspects a score table has, and how many of them were kept; None where the run has no guard."""
    if SUSPECT not in table.column_names:
        return None
    suspects = table.column(SUSPECT).to_numpy()
    return {"found": int(suspects.sum()), "kept": int(suspects[kept_M].sum())}


def open_positions(config: PruneConfig, table: pa.Table, budget: int) -> np.ndarray:
    """(L,) rows of a score table that the policy may choose from; says so where the budget needs suspects too."""
    if SUSPECT not in table.column_names:
        return np.arange(table.num_rows)
    suspects, p_label, ids = (table.column(name).to_numpy() for name in (SUSPECT, "p_label", "id"))
    left = allowed(suspects, p_label, ids, budget, seed=config.seed)
    needed = int(suspects[left].sum())
    if needed:
        warn_of_needed(int(suspects.sum()), table.num_rows, budget, needed)
    return left


def warn_of_needed(suspected: int, candidates: int, budget: int, needed: int) -> None:
    """Say that a budget cannot do without suspects."""
    logger.warning(
        "the guard suspects %d of %d candidates, and %d are to be kept: the %d likeliest suspects are kept with them. "
        "Suspect fewer, or keep less.",
        suspected,
        candidates,
        budget,
        needed,
    )

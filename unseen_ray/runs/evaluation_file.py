"""evaluation.json: the results of finished trainings by their key, and the tables made from them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, TypeAdapter

from unseen_ray.runs.layout import EVALUATION
from unseen_ray.runs.tasks import EvalResult
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json, without_nan
from unseen_ray.storage.filesystem import Folder

__all__ = ["fullest_first", "known_results", "result_of", "store_results", "stored_tables", "with_table"]

logger = logging.getLogger(__name__)

# Accuracies may be compared only where all of these are equal.
_MEASURED_BY = ("model", "recipe", "budget", "test", "test_samples")
_RECIPE = {"use", "epochs", "steps"}
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Arm(BaseModel):
    name: str
    samples: NonNegativeInt
    selections: PositiveInt
    accuracies: Annotated[list[_Finite], Field(min_length=1)]
    class_accuracy: list[_Finite | None]
    class_samples: list[_Finite]
    seconds_each: _Finite
    choosing_s: _Finite | None
    devices: list[str]
    mean: _Finite
    std: _Finite | None
    worst_class: _Finite | None
    class_spread: _Finite | None


class _Difference(BaseModel):
    baseline: str
    mean: _Finite
    low: _Finite | None
    high: _Finite | None


class _BreakEven(BaseModel):
    choosing_s: _Finite
    saved_s: _Finite
    trainings: _Finite | None


class _Table(BaseModel):
    """What the report relies on in a table, which anybody may have written."""

    model: str
    recipe: dict[str, Any]
    budget: str
    test: str
    test_samples: NonNegativeInt
    environment: dict[str, Any]
    class_names: list[str] = []
    arms: Annotated[list[_Arm], Field(min_length=1)]
    differences: list[_Difference]
    break_even: _BreakEven | None

    def fits_together(self) -> bool:
        """Whether each part has what it refers to; older versions lacked some."""
        lengths = {len(values) for arm in self.arms for values in (arm.class_accuracy, arm.class_samples)}
        known = {arm.name for arm in self.arms}
        return (
            len(lengths) == 1
            and all(row.baseline in known for row in self.differences)
            and (self.break_even is None or "full" in known)
            and self.recipe.keys() >= _RECIPE
            and "torch" in self.environment
        )


_RESULT = TypeAdapter(EvalResult)


def stored_tables(folder: Folder) -> list[dict[str, Any]]:
    """The tables of a run's evaluations, the last one first; empty if the file is damaged."""
    data = folder.read(EVALUATION)
    # A damaged file costs its tables but not the report: trainings are measured again when they are asked for.
    try:
        tables: list[dict[str, Any]] = from_checked_json(data)["tables"] if data else []
        return [table for table in tables if _is_usable(table, folder.path(EVALUATION))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be used (%s)", folder.path(EVALUATION), error)
        return []


def _is_usable(table: dict[str, Any], path: str) -> bool:
    try:
        return _Table.model_validate(table).fits_together()
    except ValueError as error:  # the others are kept: what is stored next replaces the file
        logger.warning("a table of %s cannot be used (%s)", path, error)
        return False


def with_table(tables: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The new table first, without those that it replaces: measured in the same way, with no more arms or repeats."""
    return [new, *(table for table in tables if not (_alike(table, new) and _covers(new, table)))]


def fullest_first(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fullest of the tables measured as the newest one was, then the others, the newest first."""
    if not tables:
        return []
    alike = [table for table in tables if _alike(table, tables[0])]
    first = max(alike, key=lambda table: sum(len(arm["accuracies"]) for arm in table["arms"]))
    return [first, *(table for table in tables if table is not first)]


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in _MEASURED_BY)


def _covers(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether a table has every arm of another, each trained at least as often."""
    trained = {arm["name"]: len(arm["accuracies"]) for arm in new["arms"]}
    return all(trained.get(arm["name"], 0) >= len(arm["accuracies"]) for arm in old["arms"])


def known_results(folder: Folder) -> dict[str, EvalResult]:
    """The results of finished trainings by their key; empty if the file is damaged."""
    data = folder.read(EVALUATION)
    try:
        stored = from_checked_json(data)["results"] if data else {}
        return {key: result_of(value) for key, value in stored.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be used (%s); its trainings are repeated", folder.path(EVALUATION), error)
        return {}


def result_of(value: dict[str, Any]) -> EvalResult:
    """A result from its JSON; ValueError, KeyError or TypeError if it is not one."""
    accuracies = tuple(math.nan if a is None else a for a in value["class_accuracy"])
    return _RESULT.validate_python({**value, "class_accuracy": accuracies})


def store_results(folder: Folder, results: Mapping[str, EvalResult], tables: list[dict[str, Any]]) -> None:
    """Write results and tables."""
    values = without_nan({"tables": tables, "results": {key: asdict(result) for key, result in results.items()}})
    folder.write(EVALUATION, to_checked_json(values))

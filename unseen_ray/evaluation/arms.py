"""The arms of an evaluation: what each of their trainings trains on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from unseen_ray.core.samples.epoch_draw import EpochDraw
from unseen_ray.core.samples.id_sets import AllIds, ArrayIds, IdSet
from unseen_ray.core.seeds import derive
from unseen_ray.core.tasks import EvalTask
from unseen_ray.evaluation.baselines import matched_subset, random_subset

if TYPE_CHECKING:
    from unseen_ray.core.arrays import FloatArray, IdArray
    from unseen_ray.core.samples.population import Population

__all__ = ["ArmSubsets", "class_samples_of", "eval_tasks", "fixed_share"]

_RESAMPLED = re.compile(r"resampled(?::fixed=(0|0?\.\d+))?")


@dataclass(frozen=True, slots=True, eq=False)
class ArmSubsets:
    """Subsets that were already chosen for an arm.

    Attributes:
        subsets: sorted ids of each choice.
        seconds: worker-seconds that one choice took; None if unknown.
        devices: the devices of these workers, if known.
        draws: what an epoch takes of each subset; empty where it takes everything. Every training draws with another seed.
    """

    subsets: tuple[IdArray, ...]
    seconds: float | None
    devices: tuple[str, ...] = ()
    draws: tuple[EpochDraw, ...] = ()


def fixed_share(arm: str) -> float | None:
    """The share of an epoch that `resampled` (0) or `resampled:fixed=SHARE` keeps the same; None if the arm is neither."""
    found = _RESAMPLED.fullmatch(arm)
    return None if found is None else float(found[1] or 0)


def eval_tasks(
    chosen: Mapping[str, ArmSubsets], arms: Sequence[str], population: Population, seeds: int, seed: int
) -> list[EvalTask]:
    """The trainings of an evaluation, arm by arm.

    Args:
        chosen: the arms whose subsets are chosen, the coreset first.
        arms: names of all arms.
        population: what the run chose from.
        seeds: number of trainings of each subset.
        seed: the run's.
    """
    coresets = next(iter(chosen.values())).subsets
    tasks: list[EvalTask] = []
    # What a training starts from follows from its ids and its repeat: where selections share their ids, each needs repeats of its own,
    # which further seeds leave as they are.
    for arm, selection, each in itertools.product(arms, range(len(coresets)), range(seeds)):
        repeat, draw = each, None
        if arm in chosen:
            train: IdSet = ArrayIds(chosen[arm].subsets[selection])
            if chosen[arm].draws:  # of one pool as a rule
                drawn = _drawn_by(seed, "evaluate resampled", selection, each)
                draw, repeat = replace(chosen[arm].draws[selection], seed=drawn), each * len(coresets) + selection
        elif arm == "full":
            train, repeat = AllIds(), each * len(coresets) + selection
        else:  # drawn anew for every training
            train = ArrayIds(_drawn(arm, coresets[selection], population, seed, selection, repeat))
        tasks.append(EvalTask(index=len(tasks), arm=arm, selection=selection, repeat=repeat, train=train, draw=draw))
    return tasks


def class_samples_of(task: EvalTask, population: Population) -> FloatArray:
    """(C,) samples of each class that an epoch of a training has, on average where it draws some."""
    ids = task.train.resolve(population)
    counts_C: FloatArray = population.class_counts(ids).astype(np.float64)
    if task.draw is None:
        return counts_C
    fixed_C = population.class_counts(task.draw.fixed_ids)
    fixed = len(task.draw.fixed_ids)
    return fixed_C + (counts_C - fixed_C) * ((task.draw.size - fixed) / max(len(ids) - fixed, 1))


def _drawn(arm: str, coreset_ids: IdArray, population: Population, seed: int, selection: int, repeat: int) -> IdArray:
    drawn = _drawn_by(seed, "evaluate random", selection, repeat)
    if arm == "random":
        return random_subset(population.ids_N, len(coreset_ids), drawn)
    return matched_subset(population.labels_N, population.ids_N, population.class_counts(coreset_ids), drawn)


def _drawn_by(seed: int, purpose: str, selection: int, repeat: int) -> int:
    """The seed of a training's draws."""
    # The form must stay as it is: stored results are found by the subsets that it draws.
    return derive(derive(seed, purpose), f"{selection}.{repeat}" if selection else str(repeat))

"""The mathematics: fold plans, scores, the merge of votes, selection. Needs only numpy."""

from unseen_ray.core import arrays, combine_votes, dynamics, folds, schedule, scores, seeds, select, tasks, trajectory
from unseen_ray.core.samples import coreset, id_sets, population

__all__ = [
    "arrays",
    "combine_votes",
    "coreset",
    "dynamics",
    "folds",
    "id_sets",
    "population",
    "schedule",
    "scores",
    "seeds",
    "select",
    "tasks",
    "trajectory",
]

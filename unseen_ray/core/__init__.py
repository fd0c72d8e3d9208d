"""What is decided: fold plans, scores, the merge of votes, selection, growth. Needs numpy and nothing else."""

from unseen_ray.core import arrays, coreset, folds, ids, population, schedule, scorebook, scores, seeds, select, tasks

__all__ = [
    "arrays",
    "coreset",
    "folds",
    "ids",
    "population",
    "schedule",
    "scorebook",
    "scores",
    "seeds",
    "select",
    "tasks",
]

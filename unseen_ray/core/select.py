"""Policies: which of the scored candidates are kept. This module lists them by name; `core.policies` holds the code.

All policies share these arguments and may add options:

- scores_M: (M,) float scores of the candidates; a higher score is harder and is kept first.
- labels_M: (M,) int64 classes, 0 to C - 1.
- ids_M: (M,) int64 sample ids, each once, in any order.
- budget: how many samples to keep, 0 to M.
- kept_C: (C,) int64, how many samples of each class earlier stages kept.
- seed: non-negative; decides between equal scores and between equal remainders, and draws where a policy is random.

They return (budget,) positions into the candidates' arrays, without repeats. Every random choice is a function of (seed, id), so that
the samples kept depend neither on the order of the candidates nor on how they are sharded.
"""

from __future__ import annotations

from unseen_ray.core.policies.auto import auto
from unseen_ray.core.policies.beta import beta
from unseen_ray.core.policies.by_class import class_balanced, class_floor, class_quota
from unseen_ray.core.policies.by_features import d2, k_center
from unseen_ray.core.policies.by_rank import mix, moderate, random, top, window
from unseen_ray.core.policies.ccs import ccs
from unseen_ray.core.policies.power import power

__all__ = [
    "auto",
    "beta",
    "ccs",
    "class_balanced",
    "class_floor",
    "class_quota",
    "d2",
    "k_center",
    "mix",
    "moderate",
    "power",
    "random",
    "top",
    "window",
]

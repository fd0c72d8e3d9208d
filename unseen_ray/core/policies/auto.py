"""A policy that suits the data, by a rule: from how often the scoring models are right, and from how much is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.policies.base import Positions, check_number
from unseen_ray.core.policies.by_rank import mix, random, top
from unseen_ray.core.policies.ccs import ccs
from unseen_ray.core.stats import is_near_chance
from unseen_ray.errors import ConfigError

__all__ = ["BY_RULE", "LEAST_PER_CLASS", "RuleChoice", "auto", "use_by_rule"]

_POLICIES: dict[str, Callable[..., Positions]] = {"top": top, "ccs": ccs, "mix": mix, "random": random}
BY_RULE = tuple(_POLICIES)
"""The policies that the rule may name."""

# From this accuracy on unseen samples, the hardest alone train as well as a random subset does if this share is kept, or more; and
# strata train better than a random subset whatever is kept. A reading of the curves of Zheng et al. (ICLR 2023) on CIFAR-10, CIFAR-100
# and ImageNet. Where models are right less often, half by score is level with random or a little better if much is kept, and nothing
# that was tried is better if less is: benchmarks/results/cifar10_10k_choice_cpu.json.
# With fewer samples than that of each class, the hardest of them train worse than a random subset however well models learn the data:
# benchmarks/results/digits_choice_cpu.json; and theory expects it (Sorscher et al., Beyond neural scaling laws, arXiv 2206.14486).
_TOP_FROM = ((0.95, 0.4), (0.85, 0.55), (0.75, 0.75))
_STRATA_FROM = 0.75
_MIX_FROM = 0.6
LEAST_PER_CLASS = 25
# Where the largest class has this many times the samples of a quarter of the classes, and models are right on half or more, the hardest
# are those of the small classes, and train better than a random subset down to this share: benchmarks/results/long_tail_cpu.json and
# long_tail_backwards_cpu.json. Where models know less, they do not: benchmarks/results/long_tail_finegrained20_cpu.json.
_UNEVEN_FROM = 10
_UNEVEN_RIGHT_FROM = 0.5
_UNEVEN_KEEP_FROM = 0.3


class RuleChoice(NamedTuple):
    """What the rule names, and why, in words that follow its name and a colon."""

    policy: str
    reason: str


def auto(
    scores_M: FloatArray,
    labels_M: IntArray,
    ids_M: IdArray,
    budget: int,
    *,
    kept_C: IntArray,
    seed: int,
    pred_M: IntArray | None = None,
    guard: bool = True,
    trials: float = 0.0,
    candidates: Any = None,
) -> Positions:
    """Use what suits the data: `top` or `ccs` where models learn it well, else `mix`, or `random` where little is kept or learned.

    Of samples that they never saw, the scoring models are right on three quarters or more: the highest scores are kept if much is kept,
    else samples of every difficulty. On half or more, if a quarter of the classes have a tenth of the largest one's samples, or less, and
    30 % is kept: the highest scores. Otherwise half by score, or all at random where less than 60 % is kept. All are drawn at random,
    too, where fewer than 25 of a class are kept, and where the models are hardly better than always predicting the largest class.

    Args:
        scores_M, labels_M, ids_M, budget, kept_C, seed: see `core.select`.
        pred_M: (M,) the classes that the scoring models predict.
        guard: whether a run without a guard gets one that leaves out suspected wrong labels where they are many. Not read here.
        trials, candidates: for `prune`, which lets trainings decide instead of the rule; see `pruning.trials`. Not read here.

    Returns:
        (budget,) positions.

    Raises:
        ConfigError: if there is no `pred_M`, or an option is outside its range.
    """
    _check_options(trials, guard)
    if pred_M is None:
        raise ConfigError("policy auto reads pred_M, the predicted classes. Pass them too.")
    sizes_C, right = np.bincount(labels_M, minlength=len(kept_C)), int((pred_M == labels_M).sum())
    use = _POLICIES[use_by_rule(sizes_C, right, budget, kept_C).policy]
    return use(scores_M, labels_M, ids_M, budget, kept_C=kept_C, seed=seed)


def _check_options(trials: float, guard: bool) -> None:
    check_number("trials", trials)
    if not isinstance(guard, bool):
        raise ConfigError(
            f"policy option guard={guard!r} is neither true nor false; the field guard names one of yours."
        )


def use_by_rule(sizes_C: IntArray, right: int, budget: int, kept_C: IntArray) -> RuleChoice:
    """The policy for a stage.

    Args:
        sizes_C: (C,) its candidates of each class.
        right: those whose predicted class is theirs.
        budget: how many it adds.
        kept_C: (C,) what earlier stages kept of each class.
    """
    kept, candidates = int(kept_C.sum()) + budget, int(sizes_C.sum())
    accuracy = right / max(candidates, 1)
    known = f"the scoring models are right on {_down(100 * accuracy)} % of the samples that they never saw"
    if candidates and is_near_chance(accuracy, sizes_C):
        largest = _down(100 * float(sizes_C.max()) / candidates)
        return RuleChoice("random", f"{known}, and always predicting the largest class is right on {largest} %")
    # Budgets are whole numbers: 0.7 of 1,797 samples is 0.6995 of them, and is to be taken for 0.7.
    keep = (kept + 0.5) / max(kept - budget + candidates, 1)
    present = np.sort((all_C := sizes_C + kept_C)[all_C > 0])
    uneven = float(present[-1] / present[(len(present) - 1) // 4]) if len(present) else 1.0
    return _by_rule(accuracy, keep, kept / max(len(present), 1), uneven, known)


def _by_rule(accuracy: float, keep: float, per_class: float, uneven: float, known: str) -> RuleChoice:
    """The policy for scoring models that are right on this share of the samples that they never saw, if so much is kept.

    Args:
        accuracy: 0 to 1.
        keep: 0 to 1.
        per_class: samples kept of a class, on average.
        uneven: size of the largest class, divided by the lower quartile of the sizes.
        known: the accuracy in words.
    """
    if per_class < LEAST_PER_CLASS:
        return RuleChoice(
            "random", f"{_down(per_class)} samples of a class are kept on average, fewer than {LEAST_PER_CLASS}"
        )
    if accuracy >= _STRATA_FROM:
        share = min(share for least, share in _TOP_FROM if accuracy >= least)
        if keep >= share:
            return RuleChoice("top", f"{known}, and {100 * share:.0f} % or more are kept")
        return RuleChoice("ccs", f"{known}, and less than {100 * share:.0f} % are kept")
    if uneven >= _UNEVEN_FROM and accuracy >= _UNEVEN_RIGHT_FROM and keep >= _UNEVEN_KEEP_FROM:
        return RuleChoice("top", f"{known}, and a quarter of the classes are a tenth of the largest or less")
    known += f", less than {100 * _STRATA_FROM:.0f} %, and"
    if keep >= _MIX_FROM:
        return RuleChoice("mix", f"{known} {100 * _MIX_FROM:.0f} % or more are kept")
    return RuleChoice("random", f"{known} less than {100 * _MIX_FROM:.0f} % are kept")


def _down(value: float) -> str:
    """A number with two decimals at most, rounded down: one that is below a limit must not read as the limit."""
    return f"{math.floor(100 * value + 1e-6) / 100:g}"

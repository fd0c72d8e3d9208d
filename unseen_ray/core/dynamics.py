"""Scores over the epochs of a training, from a model's predictions after each. For every score, higher is kept first.

Each function takes options and returns a `Trajectory`: a value per sample after every scored epoch, and how these are reduced.
In `mode: unseen` the model never trains on these samples; in `mode: fitting` they are its training samples, without augmentation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unseen_ray.core.arrays import FloatArray
from unseen_ray.core.predictions import EpochView
from unseen_ray.core.trajectory import ChangeSpread, Forgets, Mean, Spread, Trajectory, TwoVariances
from unseen_ray.errors import ConfigError

__all__ = ["accumulated_el2n", "aum", "consistency", "correctness", "dual", "dyn_unc", "eva", "forgetting", "tdds"]

ONLY_NAMED = ("eva",)
"""Scores that `also_score: all` leaves out, so that it stores the columns that earlier versions stored."""


def forgetting(*, never_learned: str = "max") -> Trajectory:
    """How often a sample is right after one epoch and wrong after the next; samples that are never right score highest.

    Args:
        never_learned: the score of samples that are never right: `max`, the number of epochs, or `zero`, as in some
            implementations, which ranks the hardest samples as the easiest.

    Returns:
        0 to the number of scored epochs.

    Source: Toneva et al., An Empirical Study of Example Forgetting (ICLR 2019).
    """
    never = {"max": None, "zero": 0.0}[_one_of("never_learned", never_learned, ("max", "zero"))]
    return Trajectory(series=_is_right, reduce=functools.partial(Forgets, never_learned=never))


def aum(*, space: str = "logit", reduce: str = "mean") -> Trajectory:
    """Minus the area under the margin, which is the mean over epochs of z_y - max of the others; low areas are hard or mislabelled.

    Args:
        space: `logit`, or `prob` for margins of probabilities.
        reduce: `mean`, or `sum` over the epochs; `{space: prob, reduce: sum}` is what CCS (Zheng et al., ICLR 2023) computes.

    Returns:
        Any number; positive if another class leads on average.

    Source: Pleiss et al., Identifying Mislabeled Data using the Area Under the Margin Ranking (NeurIPS 2020).
    """
    series = {"logit": _logit_lag, "prob": _prob_lag}[_one_of("space", space, ("logit", "prob"))]
    total = _one_of("reduce", reduce, ("mean", "sum")) == "sum"
    return Trajectory(series=series, reduce=functools.partial(Mean, total=total))


def tdds(*, window: int = 10, epochs: int | None = None, decay: float = 0.9) -> Trajectory:
    """How unsteadily the predicted distribution changes from epoch to epoch, weighting late epochs most; uses no labels.

    The change k_t is the sum over classes of |p_t (ln p_t - ln p_(t-1))|. A window of J epochs gives the norm of its J - 1 changes
    less their mean, and the score is the sum over windows of norm * decay (1 - decay)^(number of later windows).

    Args:
        window: J, 3 or more; capped at the number of scored epochs.
        epochs: how many of the first epochs count, T of the paper; None for all.
        decay: weight of the newest window, in (0, 1].

    Returns:
        0 or more. Logarithms are of p + 1e-8; those of the previous epoch are kept in half precision.

    Source: Zhang et al., Spanning Training Progress: Temporal Dual-Depth Scoring (CVPR 2024).
    """
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1:
        raise ConfigError(
            f"score option decay={decay!r} must be above 0 and at most 1: the weight of the newest window."
        )
    reduce = functools.partial(ChangeSpread, window=_count("window", window, 3), epochs=_first(epochs), decay=decay)
    return Trajectory(series=EpochView.change_B, reduce=reduce, compares=True)


def dyn_unc(*, window: int = 10, epochs: int | None = None, last_window: bool = False) -> Trajectory:
    """How much p_y varies within windows of epochs, on average over the windows.

    Args:
        window: J, 2 or more; capped at the number of scored epochs.
        epochs: how many of the first epochs count; None for all.
        last_window: whether the window that ends with the last epoch counts, too; it does where it is the only one.

    Returns:
        0 or more: ten times the sample standard deviation of p_y over J epochs, averaged over the windows.

    Source: He et al., Large-scale Dataset Pruning with Dynamic Uncertainty (CVPR 2024 workshops), whose code has no last window.
    """
    if not isinstance(last_window, bool):
        raise ConfigError(f"score option last_window={last_window!r} is neither true nor false.")
    reduce = functools.partial(
        Spread, window=_count("window", window, 2), epochs=_first(epochs), last_window=last_window
    )
    return Trajectory(series=_p_label, reduce=reduce)


def dual(*, window: int = 10, epochs: int | None = None) -> Trajectory:
    """How much p_y varies within windows of epochs, times one minus its mean there: uncertain and hard.

    Args:
        window: J, 2 or more; capped at the number of scored epochs.
        epochs: how many of the first epochs count (30 of 200 in the paper for CIFAR); None for all.

    Returns:
        0 or more: ten times the sample standard deviation of p_y, times one minus its mean, averaged over all windows.

    Source: Cho, Shin and Yun, DUAL (ICML 2025), arXiv 2502.06905.
    """
    reduce = functools.partial(Spread, window=_count("window", window, 2), epochs=_first(epochs), weighted=True)
    return Trajectory(series=_p_label, reduce=reduce)


def eva(*, window: int = 10, late: int | None = None) -> Trajectory:
    """How much the norm of the error vector varies within an early and within a late window of epochs, added.

    Args:
        window: number of epochs of each window, 2 or more; capped at half of the scored epochs.
        late: the epoch, from 1, with which the late window begins; None for the middle of the training.

    Returns:
        0 or more: the sum of the two sample variances. The authors' code divides each by its sum over all samples, which would make a
        sample's score depend on the others.

    Source: Hong et al., Evolution-aware Variance Coreset Selection (ACM MM 2024), arXiv 2406.05677.
    """
    first = None if late is None else _count("late", late, 1)
    reduce = functools.partial(TwoVariances, window=_count("window", window, 2), late=first)
    return Trajectory(series=_error_length, reduce=reduce)


def accumulated_el2n(*, epochs: int = 10) -> Trajectory:
    """Mean norm of the error vector over the first epochs: EL2N as accumulated by CCS, up to a constant factor.

    Args:
        epochs: how many of the first epochs count, 1 or more.

    Returns:
        0 to sqrt 2.

    Source: Zheng et al., Coverage-centric Coreset Selection (ICLR 2023); Paul et al. (NeurIPS 2021) for one epoch, score `el2n`.
    """
    return Trajectory(series=_error_length, reduce=functools.partial(Mean, epochs=_count("epochs", epochs, 1)))


def correctness() -> Trajectory:
    """Share of the epochs after which a sample is wrong.

    Returns:
        0 to 1.

    Source: Swayamdipta et al., Dataset Cartography (EMNLP 2020), whose correctness is one minus this.
    """
    return Trajectory(series=_is_wrong, reduce=Mean)


def consistency() -> Trajectory:
    """One minus the mean over epochs of p_y: high for samples that the model learns slowly.

    Returns:
        0 to 1.

    Source: the training-speed proxy of Jiang et al.'s C-score (ICML 2021); confidence in Dataset Cartography (EMNLP 2020).
    """
    return Trajectory(series=_doubt, reduce=Mean)


def over_epochs(score: Callable[..., FloatArray], epochs: int | Sequence[int]) -> Trajectory:
    """The mean of a per-epoch score over some epochs: `{use: el2n, epochs: 10}` or `{use: el2n, epochs: [20]}`.

    Args:
        score: takes (B, C) log-probabilities and (B,) labels.
        epochs: how many of the first epochs count, or their numbers, from 1.

    Raises:
        ConfigError: if `epochs` is neither.
    """
    several = isinstance(epochs, (list, tuple)) and len(epochs) > 0
    for number in epochs if several else [epochs]:  # type: ignore[union-attr]
        _count("epochs", number, 1)
    counted: Any = tuple(epochs) if several else epochs  # type: ignore[arg-type]
    return Trajectory(
        series=lambda view: score(view.log_probs_BC, view.labels_B, epoch_view=view),
        reduce=functools.partial(Mean, epochs=counted),
    )


_LEAST = -1e30


def _p_label(view: EpochView) -> FloatArray:
    probs_B: FloatArray = np.exp(view.log_p_label_B)
    return probs_B


def _doubt(view: EpochView) -> FloatArray:
    return view.doubt_label_B


def _is_right(view: EpochView) -> FloatArray:
    return view.right_B.astype(np.float32)


def _is_wrong(view: EpochView) -> FloatArray:
    return (~view.right_B).astype(np.float32)


def _logit_lag(view: EpochView) -> FloatArray:
    # differences of log-probabilities are those of the logits; with a single class the difference is minus infinity
    lag_B: FloatArray = np.maximum(view.log_top_other_B - view.log_p_label_B, _LEAST)
    return lag_B


def _prob_lag(view: EpochView) -> FloatArray:
    lag_B: FloatArray = np.exp(view.log_top_other_B) - np.exp(view.log_p_label_B)
    return lag_B


def _error_length(view: EpochView) -> FloatArray:
    others_B = np.einsum("bc,bc->b", view.other_probs_BC, view.other_probs_BC)
    length_B: FloatArray = np.sqrt(others_B + np.square(_doubt(view).astype(np.float64)))
    return length_B


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"score option {name}={value!r} is neither {' nor '.join(allowed)}.")
    return value


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"score option {name}={value!r} must be a whole number, {least} or more.")
    return value


def _first(epochs: object) -> int | None:
    return None if epochs is None else _count("epochs", epochs, 1)

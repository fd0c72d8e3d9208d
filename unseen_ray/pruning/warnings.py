"""Warnings about a finished choice, before you spend a week of training on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from unseen_ray.config.guards import guard_value, guard_words
from unseen_ray.config.score_columns import SUSPECT, score_name
from unseen_ray.core.combine_votes import OF_STAGES
from unseen_ray.core.guard import unlikely_label
from unseen_ray.core.stats import is_near_chance, rank_correlations
from unseen_ray.plugins import plug_of

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.core.arrays import IdArray, IntArray
    from unseen_ray.runs.manifest_entries import StageEntry, StageSummary
    from unseen_ray.storage.tables import StoredTable

__all__ = [
    "check_selection",
    "suggest_weights",
    "warn_of_beta",
    "warn_of_chance",
    "warn_of_columns",
]

logger = logging.getLogger(__name__)

_HARD_FIRST = ("top", "class_balanced", "class_floor", "class_quota")
_COLLAPSE_BELOW = 0.35  # of all; hard-first choices lose to random at high pruning rates (Zheng et al., ICLR 2023)
_ALMOST_EMPTY = 0.05  # of the share kept in all
_MANY_SUSPECTS = 0.1  # of what is kept
_MOST_SUSPECTS = 1 / 3  # of all; in real data sets a tenth is wrong at most (Northcutt et al., NeurIPS 2021)
_NAMED = 5
_FEW, _PHOTO_PX, _LOW = 5_000, 32, 0.7  # samples, pixels of a side, accuracy
_COLLINEAR = 0.995  # rank correlation
_COMPARED = 20_000  # rows that scores are compared on
_SAMPLED = 200_000  # rows that shares are estimated from: their standard error is 0.1 % then


def check_selection(
    config: PruneConfig,
    scores: StoredTable,
    is_kept: Callable[[IdArray], np.ndarray],
    class_names: Sequence[str],
    *,
    sizes_C: IntArray,
    kept_C: IntArray,
    sampled: int = _SAMPLED,
) -> None:
    """Log likely problems of a choice; of many samples, every n-th is checked.

    Args:
        config: the run's.
        scores: of stage 0.
        is_kept: takes (M,) rising ids, returns (M,) whether each was kept.
        class_names: C names, or none.
        sizes_C, kept_C: (C,) samples of each class, and how many of them are kept.
        sampled: how many samples are checked at least.
    """
    table = _every(scores, max(1, int(sizes_C.sum()) // sampled))
    kept = is_kept(table.column("id").to_numpy())
    if not kept.any() or kept.all():
        return
    labels, preds = (table.column(name).to_numpy() for name in ("label", "pred"))
    _warn_of_collapse(config, kept, right=preds == labels)
    if plug_of(config.policy)[0] != "class_floor":
        _warn_of_empty_classes(sizes_C, kept_C, class_names)
    if SUSPECT in table.column_names:
        _warn_of_guard(config, table, right=preds == labels)
    else:
        _warn_of_suspects(config, table, kept, labels)
    _warn_of_collinearity(config, table)


def _every(scores: StoredTable, step: int) -> pa.Table:
    """Every `step`-th row."""
    if step == 1 and scores.held is not None:
        return scores.held
    found, begin = [], 0
    for batch in scores.batches():
        found.append(pa.Table.from_batches([batch]).take(pa.array(np.arange(begin, batch.num_rows, step))))
        begin = (begin - batch.num_rows) % step
    return pa.concat_tables(found)


def _warn_of_collapse(config: PruneConfig, kept: np.ndarray, *, right: np.ndarray) -> None:
    use, options = plug_of(config.policy)
    hard_first = use in _HARD_FIRST and plug_of(options.get("inside", "top"))[0] == "top"
    if config.mode == "unseen" and hard_first and kept.mean() < _COLLAPSE_BELOW:
        logger.warning(
            "the hardest %.0f %% alone often train worse than a random subset: the scoring models are right on %.0f %% of what is kept "
            "and on %.0f %% of what is not. Try policy: ccs, or beta by score dual%s, and let `unseen-ray evaluate` compare with random.",
            100 * kept.mean(),
            100 * right[kept].mean(),
            100 * right[~kept].mean(),
            "" if config.schedule else ", or growth in stages",
        )


def _warn_of_empty_classes(sizes_C: IntArray, kept_C: IntArray, class_names: Sequence[str]) -> None:
    share = kept_C.sum() / sizes_C.sum()
    shares_C = kept_C / np.maximum(sizes_C, 1)
    empty = np.flatnonzero((sizes_C > 0) & (shares_C < _ALMOST_EMPTY * share))
    if len(empty):
        worst = empty[np.argsort(shares_C[empty], kind="stable")][:_NAMED]
        named = ", ".join(f"{class_names[c] if class_names else c} ({shares_C[c]:.1%})" for c in worst)
        logger.warning(
            "almost nothing is kept of %d of %d classes: %s; of all samples, %.1f %% is. Try policy: class_floor.",
            len(empty),
            int((sizes_C > 0).sum()),
            named,
            100 * share,
        )


def _warn_of_guard(config: PruneConfig, table: pa.Table, *, right: np.ndarray) -> None:
    suspects = table.column(SUSPECT).to_numpy()
    if suspects.mean() > _MOST_SUSPECTS:
        logger.warning(
            "%s suspects %.0f %% of all labels, and the scoring models agree with %.0f %%: many suspects are mistakes of the "
            "models, and a choice without them can be worse than a random subset. Score with models that were trained longer (prune: "
            "scoring.share, recipe.epochs), or choose with guard: none.",
            guard_words(guard_value(config.guard, policy=config.policy, mode=config.mode)),
            100 * suspects.mean(),
            100 * right.mean(),
        )


def _warn_of_suspects(config: PruneConfig, table: pa.Table, kept: np.ndarray, labels: np.ndarray) -> None:
    if config.mode == "fitting":
        return  # a model that was trained on a wrong label has learned it
    preds, p_label = (table.column(name).to_numpy() for name in ("pred", "p_label"))
    suspects = unlikely_label(labels_M=labels, pred_M=preds, p_label_M=p_label)
    among, beside = suspects[kept].mean(), suspects[~kept].mean()
    if among > _MANY_SUSPECTS and among > 2 * beside:
        logger.warning(
            "%.0f %% of what is kept by %s may have a wrong label (predicted as another class, its own less than half as probable as by "
            "chance), and %.0f %% of what is not. Look at them in `unseen-ray report`; guard: confident_learning excludes them.",
            100 * among,
            score_name(config.score),
            100 * beside,
        )


def _warn_of_collinearity(config: PruneConfig, table: pa.Table) -> None:
    """Name scores that you asked for and that choose almost the same, before you compare them by trainings; from some rows."""
    decides = score_name(config.score)
    some = table.take(pa.array(np.linspace(0, table.num_rows - 1, min(table.num_rows, _COMPARED)).astype(np.int64)))
    asked = [score_name(value) for value in (config.also_score if isinstance(config.also_score, list) else [])]
    others = [name for name in some.column_names if name in asked and name != decides]
    if not others or decides in OF_STAGES:  # in stage 0 it is the loss, and later it is not
        return
    others = [name for name in others if name not in OF_STAGES]
    alike = rank_correlations([some.column(name).to_numpy() for name in (decides, *others)])[0][1:]
    near = [name for name, correlation in zip(others, alike, strict=True) if correlation > _COLLINEAR]
    if near:
        logger.warning(
            "%s and %s rank the samples almost alike (rank correlation above %g): you need to compare only one of them with random.",
            ", ".join(near),
            decides,
            _COLLINEAR,
        )


def warn_of_beta(config: PruneConfig) -> None:
    """Warn where `beta` takes its mu from a score that does not give the one that it was made for."""
    use, options = plug_of(config.policy)
    if "inside" in options:
        use, options = plug_of(options["inside"])
    if use == "beta" and options.get("mu") is None and score_name(config.score) != "dual":
        logger.warning(
            "policy beta takes mu from the highest scores. It was made for score dual, where mu is near 0.5; by %s it can be near 0, and "
            "the draw then prefers harder samples than top does. Set score: dual, or give mu: {use: beta, mu: 0.5}.",
            score_name(config.score),
        )


def warn_of_chance(entry: StageEntry, summary: StageSummary) -> None:
    """Warn if a stage's models are hardly better than always predicting the largest class."""
    if is_near_chance(entry.vote_accuracy, summary.labels_C):
        logger.warning(
            "the models of stage %d are right on %.1f %% of what they scored, and always predicting the largest class on %.1f %%: "
            "their scores mean little. Train longer (scoring.share, recipe.epochs), with fewer folds, or by another recipe.",
            entry.index,
            100 * entry.vote_accuracy,
            100 * _largest_share(summary),
        )


def suggest_weights(config: PruneConfig, entry: StageEntry, *, samples: int, size_px: int) -> None:
    """Suggest pretrained weights where models that start from random ones learn little from a few photographs."""
    recipe = config.recipe
    is_small = samples < _FEW and size_px > _PHOTO_PX and entry.index == 0
    if is_small and config.fit is None and recipe.use == "quick" and recipe.init is None and entry.vote_accuracy < _LOW:
        logger.warning(
            "models that start from random weights are right on only %.0f %% of the samples that they did not see, of %s in all. On "
            "so few photographs, pretrained weights usually score better: --recipe finetune --recipe.init FILE, and "
            "--recipe.init_saw none if they were never trained on these photographs.",
            100 * entry.vote_accuracy,
            f"{samples:,}",
        )


def warn_of_columns(accuracy: float, summary: StageSummary) -> None:
    """Warn if probabilities from elsewhere are hardly better than chance: most often, their columns or rows are in another order."""
    if is_near_chance(accuracy, summary.labels_C):
        logger.warning(
            "the probabilities are right on %.1f %% of the samples, and always predicting the largest class on %.1f %%. Column c must be "
            "class c of the labels, and row n sample n: classes sorted as text are in another order (0, 1, 10, 2).",
            100 * accuracy,
            100 * _largest_share(summary),
        )


def _largest_share(summary: StageSummary) -> float:
    return float(summary.labels_C.max() / summary.rows)

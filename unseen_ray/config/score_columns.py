"""Which scores a run stores, by column, and what they read: the predictions of the trained model, or those of many epochs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unseen_ray.config.guards import Guard
from unseen_ray.core import dynamics, scores
from unseen_ray.core.combine_votes import OF_STAGES, OF_VOTES, ScoreFunction
from unseen_ray.core.trajectory import Trajectory
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import bind_options, function_of, import_target, is_target, jsonable, name_of, plug_of

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig

__all__ = ["CONSISTENCY", "SUSPECT", "StoredScores", "of_probabilities", "plug_label", "score_name", "stored_scores"]

CONSISTENCY = "consistency"
"""The score over epochs that policies can read beside the deciding one."""

SUSPECT = "suspect"
"""Whether the guard of the run suspects the label."""

_COLUMNS = ("id", "key", "label", "stage", "score", "votes", "pred", "p_top", "p_label", SUSPECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredScores:
    """The scores of a run by column.

    Attributes:
        single: scores of the trained model's predictions.
        over_epochs: scores of the predictions after each scored epoch.
        of_votes: scores of all votes of a sample together.
        of_stages: scores that compare a stage with stage 0; they are computed from the loss.
        every: number of epochs between two scored epochs.
        asked: columns that are named: the deciding score, those of `also_score`, those that a guard reads.
        named: the configuration of all scores as texts, sorted so that their order does not matter.
        exact: see `EpochView`.
    """

    single: dict[str, ScoreFunction]
    over_epochs: dict[str, Trajectory]
    every: int
    asked: frozenset[str]
    named: tuple[str, ...]
    exact: bool = True
    of_votes: tuple[str, ...] = ()
    of_stages: tuple[str, ...] = ()

    @property
    def key(self) -> dict[str, Any]:
        """The part of the configuration that determines the stored columns."""
        told = [json.loads(text) for text in self.named]
        if self.exact:  # what is stored beside others keeps the key that earlier versions gave it
            told = [_with_last_window(value, False) if score_name(value) in self.asked else value for value in told]
        scores = sorted(json.dumps(value, sort_keys=True) for value in told)
        return {"scores": scores, **({"every": self.every} if self.over_epochs else {})}


def score_name(value: Any) -> str:
    """The column of a score: its name, or the name of the user's function."""
    use, _ = plug_of(value)
    name = name_of(use)
    return name.rpartition(":")[2].rpartition(".")[2] if callable(use) or is_target(name) else name


def plug_label(value: Any) -> str:
    """A score or a policy with its options in words, such as `ccs (cut 0.1)`."""
    said = ", ".join(f"{name} {option}" for name, option in jsonable(plug_of(value)[1]).items())
    return f"{score_name(value)}{f' ({said})' if said else ''}"


def stored_scores(config: PruneConfig, guard: Guard | None, *, of_models: bool, exact: bool = True) -> StoredScores:
    """The scores that a run stores.

    Args:
        config: the run's configuration.
        guard: the run's guard; the scores that it reads are stored too.
        of_models: whether our models give the predictions; with only probabilities, there are no scores of logits, of
            features or over epochs.
        exact: see `EpochView`.

    Raises:
        ConfigError: if a score cannot be imported or computed, or two would share a column.
    """
    has_stages, of_models = of_models, of_models and config.fit is None
    read = [] if guard is None else list(guard.scores)
    everything = _wanted(config, read, of_models)
    merged = dict.fromkeys(score_name(value) for value in everything if _is_merged(value))
    of_stages = tuple(name for name in merged if name in OF_STAGES)
    wanted = _with_losses([value for value in everything if not _is_merged(value)], of_stages, has_stages)
    single: dict[str, ScoreFunction] = {}
    over: dict[str, Trajectory] = {}
    listed = [] if isinstance(config.also_score, str) else config.also_score
    asked = frozenset([*map(score_name, [config.score, *listed]), *read])
    for place, value in enumerate(wanted):
        name = score_name(value)
        if place and value == wanted[0]:
            continue
        _check_name(value, {**single, **over})
        found = _resolved(value if exact else _with_last_window(value, True))
        if isinstance(found, Trajectory):
            over[name] = found
        else:
            single[name] = found
        if not of_models and (name in over or not of_probabilities(found)):
            raise ConfigError(
                f"score {name} needs {'predictions after every epoch' if name in over else 'more than probabilities'}, "
                f"but {'fit gives' if config.fit is not None else 'there are'} only probabilities. "
                f"Allowed: {', '.join(_of_answers())}."
            )
    named = sorted({json.dumps(jsonable(value), sort_keys=True) for value in wanted})
    every = config.score_every or 1
    return StoredScores(
        single=single,
        over_epochs=over,
        every=every,
        asked=asked,
        named=tuple(named),
        exact=exact,
        of_votes=tuple(name for name in merged if name in OF_VOTES),
        of_stages=of_stages,
    )


def _with_losses(wanted: list[Any], of_stages: tuple[str, ...], has_stages: bool) -> list[Any]:
    """The scores of models with the losses that scores of two stages compare; ConfigError where there are none."""
    if not of_stages:
        return wanted
    if not has_stages:
        raise ConfigError(
            f"score {of_stages[0]} compares the models of two stages, and there are only probabilities. Use loss."
        )
    if any(score_name(value) == "loss" != value for value in wanted):
        raise ConfigError(
            f"score {of_stages[0]} compares plain losses, and another score is called loss. Store that one in another run."
        )
    return wanted if "loss" in map(score_name, wanted) else [*wanted, "loss"]


def _is_merged(value: Any) -> bool:
    """Whether a score is computed where votes are merged, and not for each vote; ConfigError if it has options."""
    use, options = plug_of(value)
    if not isinstance(use, str) or use not in (*OF_VOTES, *OF_STAGES):
        return False
    if options:
        raise ConfigError(f"score: {use} takes no option {next(iter(options))!r}; it takes none.")
    return True


def _with_last_window(value: Any, counts: bool) -> Any:
    """`dyn_unc` with the option whose default earlier versions did not have: their votes are not those of today's default."""
    use, options = plug_of(value)
    return {"use": use, "last_window": counts, **options} if isinstance(use, str) and use == "dyn_unc" else value


def of_probabilities(score: Any) -> bool:
    """Whether a score needs only probabilities, so that mean probabilities will do too."""
    if isinstance(score, Trajectory):
        return False
    parameters = inspect.signature(score).parameters
    if any(parameters[name].default is inspect.Parameter.empty for name in scores.OF_ONE_MODEL if name in parameters):
        return False
    try:  # an option may make a score read the logits, such as `space` of least_confidence: only a call tells
        return "max_logit_N" not in parameters or bool(np.size(score(np.zeros((1, 1)), np.zeros(1, np.int64))))
    except ConfigError:
        return False


def _wanted(config: PruneConfig, read: list[str], of_models: bool) -> list[Any]:
    """The scores that a run stores, the deciding one first."""
    if config.also_score == "all":
        asked = [config.score, *read]
        every_epoch = of_models and (config.score_every is not None or any(map(_is_over_epochs, asked)))
        over_epochs = [name for name in dynamics.__all__ if every_epoch and name not in dynamics.ONLY_NAMED]
        names = [*(scores.__all__ if of_models else _of_answers()), *over_epochs, *read]
        return [config.score, *(name for name in dict.fromkeys(names) if name != score_name(config.score))]
    wanted = [config.score, *([] if config.also_score == "none" else config.also_score)]
    return [*wanted, *(name for name in read if name not in map(score_name, wanted))]


def _of_answers() -> list[str]:
    return [name for name in scores.__all__ if of_probabilities(getattr(scores, name))]


def _is_over_epochs(value: Any) -> bool:
    return not _is_merged(value) and isinstance(_resolved(value), Trajectory)


def _check_name(value: Any, known: dict[str, Any]) -> None:
    use, name = plug_of(value)[0], score_name(value)
    own = not isinstance(use, str) or is_target(use)
    if own and (name in _COLUMNS or name.startswith("std_")):
        raise ConfigError(f"a score called {name!r} would replace another column. Rename your function.")
    if name in known or (own and name in (*scores.__all__, *dynamics.__all__, *OF_VOTES, *OF_STAGES)):
        raise ConfigError(f"two scores are called {name!r}, which is the name of their column. Rename your function.")


def _resolved(value: Any) -> ScoreFunction | Trajectory:
    use, options = plug_of(value)
    own = not isinstance(use, str) or is_target(use)
    if not own and use in dynamics.__all__:
        return _trajectory(getattr(dynamics, str(use)), options, name_of(use))
    if not own and "epochs" in options:
        epochs = options.pop("epochs")
        single = function_of({**options, "use": use}, scores, field="score")
        if not of_probabilities(single):
            raise ConfigError(
                f"score {use} needs more than probabilities, and over epochs only these are kept. Leave out its option epochs."
            )
        return dynamics.over_epochs(single, epochs)
    function = import_target(use) if isinstance(use, str) and own else use
    if own and callable(function) and not _takes_answers(function):
        return _trajectory(function, options, name_of(use))
    return function_of(value, scores, field="score")


def _takes_answers(function: Callable[..., Any]) -> bool:
    """Whether a function takes log-probabilities and labels, rather than options alone."""
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters)


def _trajectory(function: Callable[..., Any], options: dict[str, Any], name: str) -> Trajectory:
    bind_options(function, options, field="score over epochs", name=name)
    made = function(**options)
    if not isinstance(made, Trajectory):
        raise ConfigError(
            f"score {name} takes no log-probabilities and returned a {type(made).__name__}. A score takes (log_probs_NC, labels_N), "
            "or options alone and returns an unseen_ray.core.trajectory.Trajectory."
        )
    return made

"""How the models that score are trained, and how many of them give a sample a vote: what a choice costs.

Scoring models may be cheaper than the model that the coreset is for: fewer epochs, a smaller network, fewer votes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from unseen_ray.config.fields.base import Fields
from unseen_ray.config.fields.describe import described
from unseen_ray.config.models import check_model
from unseen_ray.config.named_recipes import recipe_values
from unseen_ray.config.recipe import Recipe
from unseen_ray.core import dynamics
from unseen_ray.plugins import jsonable

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig

__all__ = [
    "Scoring",
    "check_scoring",
    "scored_by",
    "scoring_by_default",
    "scoring_given",
    "scoring_recipe",
    "scoring_stored",
    "scoring_values",
    "with_scoring_model",
]

_CHEAP = 0.25
"""The share of a recipe for which scoring models train, if nothing asks for more: it chooses as well as all of it."""

_STORED = {"share": 1.0}
"""What a stored configuration means where it names nothing."""

_RANDOM: dict[str, None] = dict.fromkeys(("init", "init_saw", "init_sha256"))
"""Changes of a recipe whose trainings start from random weights."""


@described
class Scoring(Fields):
    """What the scoring models have of their own; by default they train as `model` and `recipe` say, for a quarter as long."""

    share: float = Field(
        default=_CHEAP,
        gt=0,
        le=1,
        description="fraction of the recipe's epochs or steps for which scoring models train; default: 0.25, or 1 with a guard, "
        "a score over epochs or a scoring.recipe",
    )
    recipe: Recipe | None = Field(
        default=None,
        description="recipe of the scoring models, or the fields that differ from the run's, for all of its epochs; default: the run's",
    )
    model: Any = Field(default=None, description="the scoring model; default: the run's model")
    votes: int | None = Field(
        default=None,
        ge=1,
        description="folds that each model scores, and so the models that score a sample, from 1 to K-1; default: K-1",
    )
    models: int | None = Field(
        default=None,
        ge=2,
        description="folds that get a model, from 2 to K; the samples of the other folds are only scored, and every sample has one vote "
        "less than there are models; default: K",
    )

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from those of a run older than them, whose scoring models trained to the end, as JSON values."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: jsonable(value.model_dump() if isinstance(value, Recipe) else value)
            for name, value in found.items()
            if value != _STORED.get(name)
        }


def scoring_stored(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values of `scoring` that a stored configuration stands for."""
    return {**_STORED, **(value or {})}


def scoring_by_default(values: Mapping[str, Any]) -> dict[str, Any]:
    """`scoring` with the share that other fields ask for, if it names none: the whole recipe, where a part of it would do harm.

    A guard trusts the models to have learned the labels, a score over epochs needs epochs, and the user's own recipe or `fit` is
    trained as given.
    """
    given = scoring_given({} if values.get("scoring") is None else values["scoring"])
    if not isinstance(given, Mapping) or "share" in given:
        return {}
    own = values.get("fit") is not None or given.get("recipe") is not None
    guarded = values.get("guard") not in (None, "none", {"use": "none"})
    also = values.get("also_score")
    scores = [values.get("score"), *(also if isinstance(also, list | tuple) else ())]
    whole = own or guarded or values.get("score_every") is not None or any(map(_is_over_epochs, scores))
    return {"scoring": scoring_stored(given) if whole else given}


def scoring_given(value: Any) -> Any:
    """`scoring` as a mapping of the fields that were given; anything else than a `Scoring` as it is."""
    return {name: getattr(value, name) for name in value.model_fields_set} if isinstance(value, Scoring) else value


def _is_over_epochs(score: Any) -> bool:
    options = score if isinstance(score, Mapping) else {"use": score}
    return "epochs" in options or options.get("use") in dynamics.__all__


def scoring_values(value: Any, recipe: Recipe | None) -> Any:
    """The values of `scoring`, its recipe completed: a mapping without `use` changes the run's recipe."""
    if isinstance(value, Scoring) or value is None:
        return value or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"scoring={value!r} must be a mapping, such as {{share: 0.25, votes: 2}}.")
    own = value.get("recipe")
    if own is None or recipe is None:  # an invalid recipe is reported by itself
        return dict(value)
    if not isinstance(own, (str, Mapping, Recipe)):
        raise ValueError(f"scoring.recipe={own!r} must be a name or a mapping.")
    base = None
    if isinstance(own, Mapping) and "use" not in own:
        # The precision is the run's in the end, and initial weights belong to the model that they were made for.
        base = recipe.model_copy(update={"precision": "auto", **(_RANDOM if value.get("model") is not None else {})})
    return {**value, "recipe": recipe_values(own, base=base)}


def with_scoring_model(config: PruneConfig) -> PruneConfig:
    """The configuration of the scoring models: `model` and `recipe` are theirs, and nothing of that is left in `scoring`."""
    scoring = config.scoring
    recipe = scoring.recipe or _shortened(config.recipe, scoring.share)
    # A run has one precision, which the hardware decides.
    recipe = recipe.model_copy(update={"precision": config.recipe.precision})
    if scoring.model is not None and scoring.recipe is None:  # initial weights belong to the run's own model
        recipe = recipe.model_copy(update=_RANDOM)
    left = Scoring(share=1.0, votes=scoring.votes, models=scoring.models)
    model = config.model if scoring.model is None else scoring.model
    return config.model_copy(update={"model": model, "recipe": recipe, "scoring": left})


def _shortened(recipe: Recipe, share: float) -> Recipe:
    """The recipe with a share of its epochs or steps, at least one; all other fields stay."""
    lengths = {name: getattr(recipe, name) for name in ("epochs", "steps", "min_steps")}
    changes = {name: max(round(share * count), min(count, 1)) for name, count in lengths.items() if count is not None}
    return recipe.model_copy(update=changes)


def scored_by(config: Mapping[str, Any]) -> Any:
    """The scoring model of a stored configuration, or the user's own `fit`."""
    return config["fit"] or config.get("scoring", {}).get("model") or config["model"]


def scoring_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of the scoring models of a stored configuration, but for its length."""
    scoring = config.get("scoring", {})
    recipe: dict[str, Any] = scoring.get("recipe") or config["recipe"]
    return {**recipe, **_RANDOM} if scoring.get("model") and not scoring.get("recipe") else recipe


def check_scoring(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The problems of `scoring` beside the other fields; see `config.checks`."""
    scoring, folds = values["scoring"], values["folds"]
    if not isinstance(scoring, Scoring) or not isinstance(values["recipe"], Recipe):
        return []
    problems: list[str] = []
    for name in ("votes", "models"):
        count, most = getattr(scoring, name), folds - 1 if name == "votes" else folds
        if count is None:
            continue
        if values["mode"] == "fitting" or values["train_on"] != "fold":
            other = "mode: fitting" if values["mode"] == "fitting" else "train_on: complement, one vote a sample"
            problems.append(f"scoring.{name}={count} has no effect with {other}. Remove one of the two.")
        elif count > most:
            problems.append(
                f"scoring.{name}={count} is above {most}, which folds={folds} allows. Lower it, or raise folds."
            )
    if scoring.votes is not None and scoring.models is not None:
        problems.append(
            f"scoring.votes={scoring.votes} and scoring.models={scoring.models} both lower the votes of a sample; set one of them."
        )
    if scoring.recipe is not None and scoring.share != 1:
        problems.append(
            f"scoring.share={scoring.share:g} shortens the run's recipe, and scoring.recipe replaces it. Remove one of the two."
        )
    if scoring.recipe is not None and scoring.recipe.precision not in ("auto", values["recipe"].precision):
        problems.append(
            f"scoring.recipe.precision={scoring.recipe.precision} differs from recipe.precision={values['recipe'].precision}; "
            "a run has one precision. Set recipe.precision."
        )
    if scoring.model is not None:
        problems += check_model(scoring.model, field="scoring.model")
    own = [name for name in ("share", "recipe", "model") if name in scoring.to_json()]
    if values["fit"] is not None and own:
        problems.append(
            f"scoring.{own[0]} has no effect with fit, which does the training itself. Remove one of the two."
        )
    return problems

"""Models and loggers that have a short name, listed without importing them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unseen_ray.errors import ConfigError
from unseen_ray.plugins import check_plug, did_you_mean, function_of, import_target, jsonable, plug_of

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe

__all__ = [
    "LOGGERS",
    "MODELS",
    "SCORING_SPEEDUP",
    "TIMM",
    "ModelEntry",
    "check_model",
    "default_model",
    "entry_of",
    "model_builder",
    "relative_cost",
]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A named model.

    Attributes:
        target: `package.module:function`, called with `num_classes`.
        summary: one line for `unseen-ray list models`.
        body: number of weights before the last layer.
        features: number of inputs of the last layer.
        statistics: bytes that a checkpoint holds of what is no weight, such as the statistics of norms.
        macs: multiply-accumulate operations of the convolutions for each pixel of an image, of 32 px where it matters.
        head_bias: whether the last layer has a bias.
    """

    target: str
    summary: str
    body: int
    features: int
    statistics: int
    macs: int
    head_bias: bool = True

    def weights(self, num_classes: int) -> int:
        """Number of weights of the model."""
        return self.body + (self.features + self.head_bias) * num_classes

    def checkpoint_bytes(self, num_classes: int, recipe: Recipe) -> int:
        """Bytes of a checkpoint."""
        averaged = self.statistics if recipe.averages else 0
        return 4 * recipe.values_per_weight * self.weights(num_classes) + self.statistics + averaged


MODELS = {
    "small_cnn": ModelEntry(
        "unseen_ray.training.models:small_cnn",
        "3 convolutions, for images up to 64 px on a CPU; the default there",
        body=93_472,
        features=128,
        statistics=1_816,
        macs=10_080,
    ),
    "airbench": ModelEntry(
        "unseen_ray.training.models:airbench",
        "7 convolutions, the first one made from the images, for about 32 px; with recipe airbench-94",
        body=1_968_792,
        features=256,
        statistics=10_416,
        macs=115_376,
        head_bias=False,
    ),
    "resnet9": ModelEntry(
        "unseen_ray.training.models:resnet9",
        "8 convolutions with two skips, for images up to 64 px",
        body=6_568_000,
        features=512,
        statistics=17_984,
        macs=370_368,
    ),
    "resnet18_cifar": ModelEntry(
        "unseen_ray.training.models:resnet18_cifar",
        "ResNet-18 with the 3x3 stem, the field's model at 32 px",
        body=11_168_832,
        features=512,
        statistics=38_560,
        macs=542_400,
    ),
    "resnet18": ModelEntry(
        "torchvision.models:resnet18",
        "torchvision's ResNet-18; the default above 64 px",
        body=11_176_512,
        features=512,
        statistics=38_560,
        macs=36_144,
    ),
    "resnet34": ModelEntry(
        "torchvision.models:resnet34",
        "torchvision's ResNet-34",
        body=21_284_672,
        features=512,
        statistics=68_384,
        macs=73_008,
    ),
    "resnet50": ModelEntry(
        "torchvision.models:resnet50",
        "torchvision's ResNet-50",
        body=23_508_032,
        features=2048,
        statistics=212_904,
        macs=81_456,
    ),
}

TIMM = "timm/"
"""What stands before the name of one of timm's models."""

LOGGERS = {
    "tensorboard": (),
    "mlflow": ("tracking_uri", "experiment_name", "tags"),
    "wandb": ("project", "group", "entity", "tags"),
}
"""The loggers of a run with their options; passwords and keys come from the environment."""

SCORING_SPEEDUP = 3.0  # scoring is a forward pass, training also a backward pass of about twice the cost

_SMALL_PX = 64
# Options by which timm's and torchvision's models load weights.
_PRETRAINED = ("pretrained", "checkpoint_path", "weights")


def entry_of(model: Any) -> ModelEntry | None:
    """What is known of a configured model without building it; None if only that would tell."""
    use, options = plug_of(model)
    if options or not isinstance(use, str):
        return None
    return MODELS.get(use) or next((entry for entry in MODELS.values() if entry.target == use), None)


def relative_cost(model: Any, target: Any) -> float | None:
    """The work of one model on an image as a share of another's; None if it is not known."""
    if jsonable(model) == jsonable(target):
        return 1.0
    one, other = entry_of(model), entry_of(target)
    return None if one is None or other is None else one.macs / other.macs


def check_model(value: Any, *, field: str) -> list[str]:
    """Problems of a configured model: its form, or weights that it would load by itself."""
    use, options = plug_of(value) if not isinstance(value, dict) or "use" in value else (None, {})
    if loads := [name for name in _PRETRAINED if options.get(name)]:
        return [
            f"{field}: {loads[0]}={options[loads[0]]!r} would load pretrained weights, and the run cannot know what they "
            f"were trained on. Write them to a "
            "file once, and name it in recipe.init, with recipe.init_saw."
        ]
    if isinstance(use, str) and use.startswith(TIMM) and use != TIMM:
        return []
    return check_plug(value, field=field, names=[*MODELS, f"{TIMM}NAME"], kind="model")


def model_builder(value: Any) -> Callable[..., Any]:
    """The function that builds a model, with its options bound; it is called with `num_classes`.

    Raises:
        ConfigError: if it cannot be imported, does not take the options, or timm has no such model.
    """
    use, options = plug_of(value)
    if isinstance(use, str) and use.startswith(TIMM):
        name = use.removeprefix(TIMM)
        _check_timm(name)
        use, options = "timm:create_model", {"model_name": name, **options}
    target = MODELS[use].target if isinstance(use, str) and use in MODELS else use
    return function_of({**options, "use": target}, None, field="model")


def _check_timm(name: str) -> None:
    try:
        timm = import_target("timm:models")
    except ConfigError as error:
        raise ConfigError(
            f"model {TIMM}{name} needs timm, which cannot be imported. Install it: pip install timm."
        ) from error
    if not timm.is_model(name.partition(".")[0]):
        near = did_you_mean(name, timm.list_models())
        raise ConfigError(f"timm has no model {name!r}. List them in Python: timm.list_models('*vit*').{near}")


def default_model(size_px: int) -> str:
    """The model of a run that names none."""
    return "small_cnn" if size_px <= _SMALL_PX else "resnet18"

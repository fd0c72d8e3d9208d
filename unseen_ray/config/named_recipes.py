"""The named recipes, and how a configuration changes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unseen_ray.config.crops import CropSizes
from unseen_ray.config.messages import check_names
from unseen_ray.config.recipe import Recipe

__all__ = ["RECIPES", "recipe_name", "recipe_values"]

_ONE_CYCLE = Recipe(
    use="airbench-like",
    epochs=10,
    min_steps=0,
    batch_size=1024,
    lr=1.5,
    min_lr=0.1,
    momentum=0.85,
    weight_decay=1.33e-3,
    warmup=2.0,
    decay="linear",
    label_smoothing=0.2,
    augment="crop_flip",
)
_AIRBENCH = _ONE_CYCLE.model_copy(
    update={
        "use": "airbench-94",
        "epochs": 20,
        "min_lr": 0.105,
        "bias_lr": 64.0,
        "decay_norms": True,
        "warmup": 4.0,
        "lookahead": 0.95,
        "flip": "alternating",
        "shift": 0.0625,
    }
)

RECIPES: dict[str, tuple[Recipe, str]] = {
    "quick": (Recipe(), "15 epochs at lr 0.1 with warm-up and cosine, at least 300 steps; ours, for small models"),
    "ccs-40k": (
        Recipe(
            use="ccs-40k",
            epochs=None,
            steps=40_000,
            min_steps=0,
            batch_size=256,
            min_lr=1e-4,
            warmup=0.0,
            augment="crop_flip",
            decay_norms=True,
            drop_last=False,
        ),
        "40,000 steps of 256 for any set size; Zheng et al., Coverage-centric Coreset Selection (ICLR 2023)",
    ),
    "tdds-200": (
        Recipe(
            use="tdds-200",
            epochs=200,
            min_steps=0,
            batch_size=128,
            warmup=0.0,
            augment="crop_flip",
            pad="zeros",
            decay_norms=True,
            drop_last=False,
        ),
        "200 epochs over the kept samples, batch 128; Zhang et al., TDDS (CVPR 2024)",
    ),
    "ccs-300k": (
        Recipe(
            use="ccs-300k",
            epochs=None,
            steps=300_000,
            min_steps=0,
            batch_size=256,
            weight_decay=1e-4,
            warmup=0.0,
            augment="resized_crop_flip",
            decay_norms=True,
            drop_last=False,
        ),
        "300,000 steps of 256 for ResNet-34 on ImageNet; Zheng et al., Coverage-centric Coreset Selection (ICLR 2023)",
    ),
    "airbench-like": (
        _ONE_CYCLE,
        "10 epochs of one cycle, batch 1024; the optimiser of Jordan, 94% on CIFAR-10 in 3.29 Seconds (2024), not its network",
    ),
    "airbench-94": (
        _AIRBENCH,
        "20 epochs, batch 1024, for model airbench; Jordan, 94% on CIFAR-10 in 3.29 Seconds (2024), longer, as it mirrors no test images",
    ),
    "airbench-95": (
        _AIRBENCH.model_copy(update={"use": "airbench-95", "epochs": 40, "warmup": 8.0, "lr": 1.3, "min_lr": 0.091}),
        "40 epochs of airbench-94 at a lower rate, for model airbench with width: 96; after the net for 95% of Jordan (2024)",
    ),
    "finetune": (
        Recipe(
            use="finetune",
            optimizer="adamw",
            lr=3e-4,
            layer_decay=0.75,
            weight_decay=0.05,
            label_smoothing=0.1,
        ),
        "15 epochs of AdamW from recipe.init, lower layers slower; ours, with the layers' rates of Bao et al., BEiT (ICLR 2022)",
    ),
    "imagenet-90": (
        Recipe(
            use="imagenet-90",
            epochs=90,
            min_steps=0,
            batch_size=256,
            weight_decay=1e-4,
            warmup=5.0,
            augment="resized_crop_flip",
        ),
        "90 epochs, batch 256, crops of the stored square; Goyal et al., Large Minibatch SGD (2017), with cosine decay for its steps",
    ),
    "imagenet-16": (
        Recipe(
            use="imagenet-16",
            epochs=16,
            min_steps=0,
            batch_size=1024,
            lr=0.5,
            weight_decay=5e-5,
            warmup=2.0,
            decay="linear",
            label_smoothing=0.1,
            augment="resized_crop_flip",
            train_px=CropSizes(first=160, last=192, ramp=[0.6875, 0.8125]),
        ),
        "16 epochs of one cycle, crops of 160 px, 192 in the last four; Leclerc et al., FFCV (CVPR 2023), from the stored square",
    ),
}


def recipe_name(values: Mapping[str, Any]) -> str:
    """A recipe's name in tables, with the fields that differ from the named one, except for `precision` and `min_steps`.

    >>> recipe_name({**Recipe().model_dump(), "epochs": 30})
    'quick (epochs 30)'
    """
    named = RECIPES[values["use"]][0].model_dump() if values["use"] in RECIPES else {}
    changed = [
        f"{name} {_as_text(value)}"
        for name, value in values.items()
        if name not in ("use", "precision", "min_steps", "init_saw", "init_sha256")
        and value is not None
        and named.get(name) != value
    ]
    return str(values["use"]) + (f" ({', '.join(changed)})" if changed else "")


def _as_text(value: Any) -> str:
    """A field's value; for growing crops the first and the last side."""
    return f"{value['first']} to {value['last']}" if isinstance(value, Mapping) else str(value)


def recipe_values(value: str | Mapping[str, Any] | Recipe, *, base: Recipe | None = None) -> dict[str, Any]:
    """All fields of a recipe, from a name or a mapping that changes a named recipe.

    Args:
        value: the configuration's `recipe`.
        base: the recipe that a mapping without `use` changes; None for `quick`.

    Raises:
        ValueError: if there is no such recipe, or it sets both epochs and steps.
    """
    if isinstance(value, Recipe):  # its other fields are those of the recipe that it names
        value = {"use": value.use, **{name: getattr(value, name) for name in value.model_fields_set}}
    changes: dict[str, Any] = {"use": value} if isinstance(value, str) else dict(value)
    check_names("recipe", changes)
    name = changes.pop("use", "quick" if base is None else base.use)
    if not isinstance(name, str) or name not in RECIPES:
        from unseen_ray.plugins import did_you_mean

        raise ValueError(
            f"recipe={name!r} is not a recipe. Allowed: {', '.join(RECIPES)}.{did_you_mean(str(name), RECIPES)}"
        )
    if changes.get("epochs") is not None and changes.get("steps") is not None:
        raise ValueError(f"recipe sets epochs={changes['epochs']} and steps={changes['steps']}; set one of the two.")
    if "epochs" in changes and changes["epochs"] is None and changes.get("steps") is None:
        raise ValueError("recipe.epochs is blank; give a whole number, or set steps instead.")
    if "steps" in changes and changes["steps"] is None and "epochs" not in changes:
        raise ValueError("recipe.steps is blank; give a whole number, or set epochs instead.")
    if changes.get("steps") is not None:
        changes["epochs"] = None
    elif changes.get("epochs") is not None:
        changes["steps"] = None
    changes["use"] = name
    if changes.keys() >= Recipe().model_dump().keys():  # as stored, where newer fields with their default are left out
        return changes
    changed = RECIPES[name][0] if base is None else base
    return {**changed.model_dump(), **changes}

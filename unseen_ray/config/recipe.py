"""The fields of a recipe: how a model is trained, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from unseen_ray.config.crops import CropSizes, crops_of
from unseen_ray.config.fields.base import Fields
from unseen_ray.config.fields.describe import described
from unseen_ray.config.fields.listing import setting
from unseen_ray.config.messages import field_messages
from unseen_ray.errors import ConfigError
from unseen_ray.storage.path_validation import given_path

__all__ = ["Augment", "Precision", "Recipe"]

Precision = Literal["auto", "bf16", "fp16", "float32"]
Augment = Literal["auto", "none", "flip", "crop", "crop_flip", "crop_flip_cutout", "resized_crop_flip"]
Decay = Literal["cosine", "linear"]
Optimizer = Literal["sgd", "adamw"]
_AUGMENT_FROM_PX, _SMALL_PX = 16, 64
_SGD_RATES = 0.05  # AdamW moves each weight by about the learning rate a step: no rate above trains
# fields that older stored runs do not have
_LATER = (
    *("init", "init_saw", "init_sha256", "optimizer", "layer_decay", "ema", "mixup", "cutmix"),
    *("bias_lr", "lookahead", "flip", "shift", "cuda_graphs"),
)


@described
class Recipe(Fields):
    """A training recipe; in a configuration, fields that are not set are those of the recipe that `use` names.

    Raises:
        ConfigError: with every problem at once.
    """

    use: str = setting("quick", "the named recipe that the other fields change", "training", "NAME", rare=True)
    epochs: int | None = setting(15, "passes over the training set, unless steps is set", "training", ge=1)
    steps: int | None = setting(None, "optimiser steps, in place of epochs", "training", ge=1)
    min_steps: int = setting(
        300,
        "fewest steps of a training, for which a small set gets more epochs; in evaluate, of the full set's",
        "training",
        ge=0,
    )
    batch_size: int = setting(64, "samples per step, at most the whole training set", "training", ge=2)
    optimizer: Optimizer = setting("sgd", "sgd with Nesterov momentum, or adamw", "training")
    lr: float = setting(0.1, "peak learning rate, not scaled by the batch size", "training", gt=0)
    layer_decay: float = setting(
        1.0,
        "factor by which the learning rate falls from each layer to the one below; the last layer has lr",
        "training",
        rare=True,
        gt=0,
        le=1,
    )
    bias_lr: float = setting(
        1.0,
        "factor of the learning rate, but not of the weight decay, of the biases of norms",
        "training",
        rare=True,
        gt=0,
    )
    min_lr: float = setting(0.0, "final learning rate", "training", rare=True, ge=0)
    decay: Decay = setting(
        "cosine",
        "how the rate falls from lr to min_lr after the warm-up; linear makes a one-cycle triangle",
        "training",
        rare=True,
    )
    momentum: float = setting(0.9, "momentum of SGD, or the first beta of AdamW", "training", rare=True, ge=0, lt=1)
    weight_decay: float = setting(
        5e-4,
        "weight decay, decoupled for adamw; includes norms and biases with decay_norms",
        "training",
        rare=True,
        ge=0,
    )
    decay_norms: bool = setting(
        False, "also decay norms and biases, as published ResNet recipes do", "training", rare=True
    )
    warmup: float = setting(2.0, "epochs of linear warm-up, at most a fifth of all epochs", "training", rare=True, ge=0)
    label_smoothing: float = setting(
        0.0, "share of each label that is spread over all classes", "training", rare=True, ge=0, lt=1
    )
    mixup: float = setting(
        0.0, "alpha of mixup, 0 for none; with cutmix, each batch uses one of the two", "training", rare=True, ge=0
    )
    cutmix: float = setting(0.0, "alpha of CutMix; 0 for none", "training", rare=True, ge=0)
    ema: float = setting(
        0.0,
        "decay of an exponential moving average of the weights, which then makes the predictions; 0 for none",
        "training",
        rare=True,
        ge=0,
        lt=1,
    )
    lookahead: float = setting(
        0.0,
        "Lookahead: every 5 steps the weights return to a moving average of themselves; its decay a step at the end of the training; "
        "0 for none",
        "training",
        rare=True,
        ge=0,
        lt=1,
    )
    precision: Precision = setting("auto", "auto: bf16 if the hardware supports it", "training", rare=True)
    augment: Augment = setting(
        "auto",
        "none, flip, crop, crop_flip, crop_flip_cutout or resized_crop_flip; auto: none below 16 px, crop_flip up to 64, "
        "resized_crop_flip above",
        "training",
        "NAME",
    )
    flip: Literal["random", "alternating"] = setting(
        "random",
        "which images an epoch mirrors: alternating mirrors those that the epoch before did not",
        "training",
        rare=True,
    )
    shift: float = setting(
        0.125, "how far crop moves an image at most, as a share of its side", "training", rare=True, gt=0, le=0.5
    )
    pad: Literal["reflect", "zeros"] = setting(
        "reflect", "padding where a crop reaches beyond the image", "training", rare=True
    )
    drop_last: bool = setting(
        True,
        "skip the last, shorter batch of an epoch; always done if several workers share a training",
        "training",
        rare=True,
    )
    train_px: int | CropSizes | None = setting(
        None,
        "side of the training crops of resized_crop_flip, or {first, last, ramp, step} for one that grows; "
        "default: the stored size",
        "training",
        "INT|MAPPING",
        rare=True,
    )
    compile: bool = setting(
        False, "use torch.compile, with CUDA graphs on a GPU; results differ slightly", "training", rare=True
    )
    cuda_graphs: bool = setting(
        True,
        "on a GPU, replay the steps of a small model from a CUDA graph where that is faster; results stay the same",
        "training",
        rare=True,
    )
    deterministic: bool = setting(
        False, "identical results on GPUs of one model; on CPUs they always are", "training", rare=True
    )
    init: str | None = setting(
        None, "file of weights to start from, safetensors or torch.save; default: random weights", "training", "FILE"
    )
    init_saw: Literal["none"] | None = setting(
        None,
        "none: you assert that the weights in init were never trained on a sample of the source; mode: unseen requires it",
        "training",
    )
    init_sha256: str | None = setting(
        None,
        "SHA-256 that the file init must have, 64 hexadecimal digits; default: any",
        "training",
        "DIGEST",
        rare=True,
        pattern="^[0-9a-f]{64}$",
    )

    if not TYPE_CHECKING:  # type checkers read the fields

        def __init__(self, /, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise ConfigError(field_messages(error.errors(), Recipe, prefix="recipe.")) from None

    @field_validator("init", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return given_path("recipe.init", value)

    @model_validator(mode="after")
    def _init_is_there(self) -> Self:
        for name in ("init_saw", "init_sha256"):
            if self.init is None and getattr(self, name) is not None:
                raise ValueError(
                    f"recipe.{name}={getattr(self, name)} has no effect without recipe.init, the weights that it describes. "
                    "Remove it, or set recipe.init."
                )
        return self

    @model_serializer(mode="wrap")
    def _without_idle_fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer fields that have their default."""
        # digests of all fields name stored work: without this, a new field would rename the work of older versions
        values: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        return {name: value for name, value in values.items() if name not in _LATER or value != fields[name].default}

    @field_validator("train_px", mode="before")
    @classmethod
    def _a_size_or_sizes(cls, value: Any) -> Any:
        return crops_of(value)

    @model_validator(mode="after")
    def _augment_has_effect(self) -> Self:
        if self.augment != "auto" and (idle := self.idle_with(self.augment)):
            raise ValueError(f"recipe.{idle} has no effect with augment: {self.augment}. Remove one of the two.")
        return self

    @model_validator(mode="after")
    def _rate_falls(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(
                f"recipe.min_lr={self.min_lr}, the final learning rate, is above recipe.lr={self.lr}. Lower it too."
            )
        return self

    @model_validator(mode="after")
    def _rate_is_of_the_optimizer(self) -> Self:
        if self.optimizer == "adamw" and self.lr > _SGD_RATES:
            raise ValueError(
                f"recipe.lr={self.lr} is a learning rate of SGD, and optimizer is adamw, which diverges above {_SGD_RATES}. "
                "Set recipe.lr, to 0.001 for example, or take the recipe finetune."
            )
        return self

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.ema and self.lookahead:
            raise ValueError(
                f"recipe.ema={self.ema} and recipe.lookahead={self.lookahead} both average the weights. Set one of them to 0."
            )
        return self

    @property
    def averages(self) -> bool:
        """Whether a training holds an average of its weights."""
        return self.ema > 0 or self.lookahead > 0

    @property
    def values_per_weight(self) -> int:
        """Numbers that a training holds for each weight: itself, the optimiser's state, and the average."""
        states = 2 if self.optimizer == "adamw" else int(self.momentum > 0)
        return 1 + states + self.averages

    def augment_at(self, size_px: int) -> Augment:
        """The augmentation for images of this size."""
        if self.augment != "auto":
            return self.augment
        if size_px < _AUGMENT_FROM_PX:
            return "none"
        return "crop_flip" if size_px <= _SMALL_PX else "resized_crop_flip"

    def idle_with(self, augment: Augment) -> str | None:
        """The first field, and its value, that is set and of which this augmentation makes no use."""
        users = {"train_px": "resized", "flip": "flip", "shift": "crop"}
        kinds = ["resized", "flip"] if augment == "resized_crop_flip" else augment.split("_")
        for name, user in users.items():
            value = getattr(self, name)
            if user not in kinds and value != type(self).model_fields[name].default:
                return f"{name}={value}"
        return None

    def crop_px(self, epoch: int, epochs: int, size_px: int) -> int:
        """Side of the resized training crops in epoch `epoch` (from 0) of `epochs`, for images of `size_px`."""
        if isinstance(self.train_px, CropSizes):
            return self.train_px.at(epoch, epochs)
        return self.train_px or size_px

    def largest_crop(self) -> int | None:
        """The largest side that `train_px` names."""
        return self.train_px.last if isinstance(self.train_px, CropSizes) else self.train_px

    def plan(self, num_samples: int, *, workers: int = 1) -> tuple[int, int]:
        """(batch size, total steps) for a set of `num_samples`.

        Args:
            num_samples: size of the training set.
            workers: number of workers that share each batch evenly.
        """
        batch, per_epoch = self.epoch_plan(num_samples, workers=workers)
        if self.steps is not None:
            return batch, self.steps
        return batch, self.epochs_of(num_samples, workers=workers) * per_epoch

    def of_epochs(self, epochs: int) -> Recipe:
        """The same for so many epochs, whatever its own length."""
        return self.model_copy(update={"epochs": epochs, "steps": None, "min_steps": 0})

    def epoch_plan(self, num_samples: int, *, workers: int = 1) -> tuple[int, int]:
        """(batch size, steps per epoch); see `plan`.

        Raises:
            ValueError: if there are fewer samples than workers.
        """
        if num_samples < workers:
            raise ValueError(f"{num_samples} samples cannot be divided among {workers} workers.")
        batch = min(self.batch_size, num_samples) // workers * workers
        whole = num_samples // batch  # workers share every batch evenly, so they cannot use a shorter last one
        return batch, whole if self.drop_last or workers > 1 else math.ceil(num_samples / batch)

    def epochs_of(self, num_samples: int, *, workers: int = 1) -> int:
        """Passes over a set of `num_samples`, for a recipe that counts epochs."""
        assert self.epochs is not None
        _, per_epoch = self.epoch_plan(num_samples, workers=workers)
        return max(self.epochs, math.ceil(self.min_steps / per_epoch))

    def common_epoch(self, sizes: Sequence[int], *, over_epochs: bool) -> int | None:
        """Samples of an epoch by which trainings on sets of these sizes are equally long; None if each has its own length.

        Sets that differ by a sample always take as many steps: where one has a batch more, the larger set leaves a sample out, or the
        last batch of the smaller one lacks one.

        Args:
            sizes: of the sets.
            over_epochs: whether the trainings must have equally many epochs, too, where the sets differ by more.
        """
        small, large = min(sizes), max(sizes)
        if large - small == 1 and self.epoch_plan(small)[1] != self.epoch_plan(large)[1]:
            return large if self.drop_last else small
        return small if over_epochs and len(set(map(self.epochs_in_all, set(sizes)))) > 1 else None

    @property
    def scoring_batch(self) -> int:
        """Samples that a model predicts at once."""
        return 2 * self.batch_size

    def epochs_in_all(self, num_samples: int, *, workers: int = 1) -> int:
        """Epochs of a training, counting a last partial one."""
        _, per_epoch = self.epoch_plan(num_samples, workers=workers)
        _, steps = self.plan(num_samples, workers=workers)
        return math.ceil(steps / per_epoch)

    def image_passes(self, num_samples: int, *, workers: int = 1) -> int:
        """Images that a training on a set of `num_samples` processes."""
        batch, per_epoch = self.epoch_plan(num_samples, workers=workers)
        _, steps = self.plan(num_samples, workers=workers)
        return steps // per_epoch * min(per_epoch * batch, num_samples) + steps % per_epoch * batch

    def passes_after(self, epoch: int, num_samples: int, *, workers: int = 1) -> int:
        """Images that the first `epoch` epochs process."""
        batch, per_epoch = self.epoch_plan(num_samples, workers=workers)
        return min(epoch * min(per_epoch * batch, num_samples), self.image_passes(num_samples, workers=workers))

"""A source that a user's function returns: any object with `__len__`, `labels`, `keys` and `__getitem__`."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from unseen_ray.data.sources.info import Encoded, RawImage, SourceInfo, check_labels, fingerprint_of, probe_size
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.plugins import jsonable

__all__ = ["CustomSource", "settings_of"]

_NEEDED = ("__len__", "__getitem__", "labels", "keys")


class CustomSource:
    """Adapts a user's object.

    Its fingerprint covers its name, labels and keys, and its sample the settings. If pixels may change while these stay, give the
    object an attribute `fingerprint` (a string).

    Args:
        samples: `len()`, `labels` (N,) integers, `keys` (N,) distinct strings, `[id]` -> (H, W, 3) uint8; optionally
            `class_names`, `fingerprint`, `encoded_bytes` (mean stored bytes of an image) and `note` (a remark for the user).
        name: its name in messages.
        size: height and width to scale images to, in pixels; None for their own size, at most 64.
        settings: the options that the function was called with, see `settings_of`.
    """

    def __init__(self, samples: Any, *, name: str, size: int | None = None, settings: str = "") -> None:
        missing = [attribute for attribute in _NEEDED if not hasattr(samples, attribute)]
        if missing:
            raise ConfigError(
                f"source {name} returned a {type(samples).__name__} without {', '.join(missing)}. "
                "It must have __len__, labels, keys and __getitem__(id) -> (H, W, 3) uint8."
            )
        self._samples, self._name, self._size, self._settings = samples, name, size, settings
        if isinstance(samples.keys, str) or not isinstance(samples.keys, Iterable) or np.ndim(samples.labels) == 0:
            raise ConfigError(
                f"source {name} has keys of type {type(samples.keys).__name__} and labels of type {type(samples.labels).__name__}; "
                "keys must be a sequence of strings (an attribute, not a method), labels a sequence of integers."
            )
        self._keys = [str(key) for key in samples.keys]
        if not len(samples) == len(samples.labels) == len(self._keys):
            raise DataError(
                f"source {name} has {len(samples)} samples, {len(samples.labels)} labels and {len(self._keys)} keys; "
                "each sample needs one label and one key."
            )
        if len(set(self._keys)) < len(self._keys):
            raise DataError(f"source {name} has duplicate keys; each sample needs a unique one.")

    @cached_property
    def info(self) -> SourceInfo:
        """Labels and counts."""
        names = tuple(map(str, getattr(self._samples, "class_names", ())))
        labels, num_classes = check_labels(self._samples.labels, where=self._name, num_classes=len(names) or None)
        probed = np.unique(np.linspace(0, len(labels) - 1, 8).astype(int))
        size_px, original_px = probe_size((raw for _, raw in self.read(list(probed))), self._size)
        fingerprint = fingerprint_of(
            "custom", self._name, labels.tobytes(), self._keys, str(getattr(self._samples, "fingerprint", ""))
        )
        return SourceInfo(
            name=self._name,
            labels_N=labels,
            num_classes=num_classes,
            size_px=size_px,
            original_px=original_px,
            class_names=names,
            note=str(getattr(self._samples, "note", "")),
            fingerprint=fingerprint,
            sample=fingerprint_of(fingerprint, self._settings) if self._settings else "",
        )

    def encoded(self) -> Encoded | None:
        """From the object's `encoded_bytes`, or None."""
        stated = getattr(self._samples, "encoded_bytes", None)
        return None if stated is None else Encoded(bytes_each=float(stated), how="as the source says")

    def keys(self, ids: Sequence[int]) -> list[str]:
        """The object's own keys."""
        return [self._keys[number] for number in ids]

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, RawImage]]:
        """Pixels."""
        for number in map(int, ids):
            image = np.asarray(self._samples[number])
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise DataError(
                    f"sample {self._keys[number]} of source {self._name} is {image.dtype} of shape {image.shape}; "
                    "it must be uint8 of shape (H, W, 3)."
                )
            yield number, image


def settings_of(function: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """The options that a function is called with, defaults included, as text; without paths, since data may lie elsewhere later."""
    try:
        bound = inspect.signature(function).bind(**options)
        bound.apply_defaults()
        options = bound.arguments
    except (TypeError, ValueError):  # a callable without a signature
        pass
    told = {name: value for name, value in options.items() if not _is_path(value)}
    return json.dumps(jsonable(told), sort_keys=True, default=lambda value: type(value).__name__)


def _is_path(value: Any) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and ("/" in value or os.sep in value))

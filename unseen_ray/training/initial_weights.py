"""Load the weights that `recipe.init` names into a fresh model."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from unseen_ray.config.initial_weights import SAFETENSORS, form_of, read_weights
from unseen_ray.errors import ConfigError
from unseen_ray.training.loop.head import head_of

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe

__all__ = ["start_from"]

logger = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model")  # keys under which Lightning, timm and torchvision put the weights
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile put these before every name
_SHOWN = 3


def start_from(model: nn.Module, recipe: Recipe) -> None:
    """Load all weights of `recipe.init` into a model; a last layer of another width stays fresh.

    Args:
        model: fresh, on the CPU.
        recipe: with the SHA-256 of the file, if the driver found one.

    Raises:
        ConfigError: if the file is not what it was when the run began, holds no plain weights, or those of another model.
    """
    if recipe.init is None:
        return
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    given = _bare(_tensors(recipe), own)
    fresh = _head_of_other_width(model, given, own)
    _check_same(recipe.init, given, own, fresh)
    model.load_state_dict({name: value for name, value in given.items() if name not in fresh}, strict=False)
    if fresh:
        logger.info(
            "%s has another last layer (%d outputs, not %d); that one starts fresh: %s",
            recipe.init,
            len(given[fresh[0]]),
            len(own[fresh[0]]),
            ", ".join(fresh),
        )


def _tensors(recipe: Recipe) -> dict[str, Tensor]:
    """The file's tensors by name; none of its code is run."""
    data = read_weights(recipe)
    refused = f"recipe.init={recipe.init} holds no plain weights"
    advice = "Write the weights by safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
    try:
        if form_of(data) == SAFETENSORS:
            from safetensors.torch import load

            return load(data)
        found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{refused}, but pickled objects, which are never loaded: loading runs code. {advice}"
        ) from None
    except (SafetensorError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise ConfigError(f"{refused}: it is damaged ({str(error).splitlines()[0]}). {advice}") from None
    while isinstance(found, Mapping) and (key := next((key for key in _WRAPPERS if _wraps(found, key)), None)):
        found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"{refused} by name. {advice}")
    return {str(name): value for name, value in found.items()}


def _wraps(found: Mapping[Any, Any], key: str) -> bool:
    return isinstance(found.get(key), Mapping)


def _bare(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that wrappers of a model add."""
    names = {name: name for name in given}
    while not names.values() & own.keys():
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in names.values())), None)
        if prefix is None:
            break
        names = {name: bare.removeprefix(prefix) for name, bare in names.items()}
    return {names[name]: value for name, value in given.items()}


def _head_of_other_width(model: nn.Module, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Names of the last layer's tensors, where the file has them for another number of outputs; else none."""
    path, head = head_of(model)
    names = [name for name in (f"{path}.weight", f"{path}.bias") if head is not None and name in own]
    differ = bool(names) and all(
        name in given and given[name].shape[1:] == own[name].shape[1:] and given[name].ndim == own[name].ndim
        for name in names
    )
    return names if differ and given[names[0]].shape != own[names[0]].shape else []


def _check_same(init: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor], fresh: Sequence[str]) -> None:
    """Refuse weights of another model; ConfigError lists the first of what differs."""
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in given and name not in fresh and given[name].shape != own[name].shape
    ]
    found = {
        "lacks": [name for name in own if name not in given],
        "has more": [name for name in given if name not in own],
        "has other shapes": shapes,
    }
    differences = [f"{what}: {_first(names)}" for what, names in found.items() if names]
    if differences:
        raise ConfigError(
            f"recipe.init={init} holds the weights of another model; it {'; it '.join(differences)}. Name the model that they belong to."
        )


def _first(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

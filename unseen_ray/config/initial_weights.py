"""Initial weights of trainings (`recipe.init`) as the driver sees them: a file, its format and its SHA-256. Needs no torch."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from unseen_ray.config.recipe import Recipe
from unseen_ray.errors import ConfigError
from unseen_ray.storage.filesystem import absolute_path, filesystem_of, read_file, sha256_of
from unseen_ray.storage.plain_text import reason_of

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig

__all__ = ["SAFETENSORS", "TORCH", "check_digest", "form_of", "read_weights", "with_initial_weights"]

logger = logging.getLogger(__name__)

SAFETENSORS, TORCH = "safetensors", "torch"
_ZIP = b"PK\x03\x04"
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch's files before version 1.6
_HEADER_MOST = 100_000_000  # the limit of the safetensors library


def with_initial_weights(config: PruneConfig) -> PruneConfig:
    """The configuration with the absolute path and the SHA-256 of `recipe.init`, and of `scoring.recipe.init`.

    Raises:
        ConfigError: if a file cannot be read, holds no weights, or does not have the SHA-256 of the recipe.
    """
    if config.fit is not None:
        return config
    scoring = config.scoring
    if scoring.recipe is not None:
        scoring = scoring.model_copy(update={"recipe": _with_digest(scoring.recipe)})
    return config.model_copy(update={"recipe": _with_digest(config.recipe), "scoring": scoring})


def _with_digest(recipe: Recipe) -> Recipe:
    if recipe.init is None:
        return recipe
    found = recipe.model_copy(update={"init": absolute_path(recipe.init)})
    digest = sha256_of(read_weights(found))
    seen = "you assert that they never saw a sample" if recipe.init_saw == "none" else "what they saw is not known"
    logger.info("every training starts from %s (SHA-256 %s): %s", found.init, digest[:12], seen)
    return found.model_copy(update={"init_sha256": digest})


def read_weights(recipe: Recipe) -> bytes:
    """The bytes of a recipe's initial weights.

    Raises:
        ConfigError: if they cannot be read, are in another format, or do not have the SHA-256 of the recipe.
    """
    assert recipe.init is not None
    fs, path = filesystem_of(recipe.init)
    try:
        data = read_file(fs, path)
    except OSError as error:
        raise ConfigError(
            f"recipe.init={recipe.init} cannot be read: {reason_of(error)}. Give a file of weights, safetensors or a state_dict from "
            "torch.save, on storage that every node can read."
        ) from None
    check_digest(recipe.init, sha256_of(data), recipe.init_sha256)
    if form_of(data) is None:
        raise ConfigError(
            f"recipe.init={recipe.init} is neither a safetensors file nor one from torch.save; plain pickles are never read. "
            "Write the weights with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        )
    return data


def check_digest(path: str, digest: str, expected: str | None) -> None:
    """Refuse initial weights with another SHA-256 than expected; None skips the check."""
    if expected not in (None, digest):
        raise ConfigError(
            f"recipe.init={path} has SHA-256 {digest}, but {expected} was expected: it is not the file that the run "
            "began with, or that recipe.init_sha256 names. Restore that file, or start in a new folder."
        )


def form_of(data: bytes) -> str | None:
    """The format of a file of weights, from its first bytes; None if it is neither."""
    if data.startswith((_ZIP, _BEFORE_ZIP)):
        return TORCH
    length = int.from_bytes(data[:8], "little")  # safetensors: the length of a JSON header, then the header
    if len(data) < 8 or not 2 <= length <= min(len(data) - 8, _HEADER_MOST):
        return None
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return None
    return SAFETENSORS if isinstance(header, dict) else None

"""A run's configuration as functions are given it: an object, a YAML file, keywords, or the first two changed by keywords."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from unseen_ray.config.run import PruneConfig, load_yaml
from unseen_ray.errors import ConfigError

__all__ = ["config_of"]


def config_of(config: PruneConfig | str | os.PathLike[str] | None, fields: Mapping[str, Any]) -> PruneConfig:
    """The configuration that a function was given.

    Args:
        config: a configuration, or the path of a YAML file of fields; None if the keywords are all of it.
        fields: keywords; each replaces the whole field of the configuration.

    Raises:
        ConfigError: with every problem at once.
    """
    if isinstance(config, PruneConfig):
        return config.changed(**fields) if fields else config
    if config is not None and not isinstance(config, (str, os.PathLike)):
        raise ConfigError(
            f"config is of type {type(config).__name__}; it must be a PruneConfig or the path of a YAML file. Give single fields as "
            'keywords: source="digits", keep=0.7.'
        )
    return PruneConfig(**{**({} if config is None else load_yaml(os.path.expanduser(config))), **fields})

"""The last layer of a model."""

from __future__ import annotations

from torch import nn

__all__ = ["head_of"]


def head_of(model: nn.Module) -> tuple[str, nn.Linear | None]:
    """Name and module of the last linear layer in module order, the classifier in the models of torchvision and ours."""
    name, found = "", None
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            name, found = path, module
    return name, found

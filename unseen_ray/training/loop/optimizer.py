"""The optimiser of a recipe: what it decays, how fast each layer learns, and its state by the names of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch._dynamo  # every optimizer imports it, for seconds that are not to count as the first training's
from torch import Tensor, nn

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Recipe

__all__ = ["layers_of", "make_optimizer", "optimizer_tensors", "restore_optimizer", "set_rate"]

_SLOTS = {"momentum.": "momentum_buffer", "exp_avg.": "exp_avg", "exp_avg_sq.": "exp_avg_sq", "adam_step.": "step"}
"""What a checkpoint calls the tensors that an optimiser keeps for a weight."""
_SEQUENCES = (nn.Sequential, nn.ModuleList)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, with all the state that its steps will need."""
    groups = _groups(model, recipe)
    if recipe.optimizer == "adamw":
        betas = (recipe.momentum, 0.999)
        made: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, fused=True)
    else:
        nesterov = recipe.momentum > 0
        made = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=True)
    # Allocated now, the state does not fragment the memory between the activations of the first step.
    for weight in model.parameters():
        if recipe.optimizer == "adamw":
            moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            made.state[weight] = {"step": torch.zeros((), device=weight.device), **moments}
        elif recipe.momentum:
            made.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return made


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the last layer; the others have their share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def layers_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """The trained weights in layers, from the input on: the model's children in their order, and those of its sequences one by one.

    A child with more than half of all weights and sequences in it, as the encoder of a transformer, counts as its own children do. Weights
    of the model or of such a child itself, as a class token or the embedding of positions, are part of the first layer.
    """
    bodies = list(_bodies(model))
    own = [weight for body in bodies for weight in body.parameters(recurse=False) if weight.requires_grad]
    layers: list[list[nn.Parameter]] = []
    known = set(own)
    for block in _blocks(model, bodies):
        new = [weight for weight in block.parameters() if weight.requires_grad and weight not in known]
        known.update(new)
        if new:
            layers.append(new)
    first = own + (layers[0] if layers else [])
    return [first, *layers[1:]] if first else []


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of each weight, by its name in a checkpoint."""
    return {
        prefix + name: value
        for prefix, slot in _SLOTS.items()
        for name, weight in model.named_parameters()
        if (value := optimizer.state.get(weight, {}).get(slot)) is not None
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `optimizer_tensors` returned."""
    for name, value in optimizer_tensors(model, optimizer).items():
        if name in tensors:
            value.copy_(tensors[name])


def _bodies(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and within it one after the other the child that holds most of its weights in sequences."""
    body: nn.Module | None = model
    while body is not None:
        yield body
        half = sum(weight.numel() for weight in body.parameters()) / 2
        body = next(
            (
                child
                for child in body.children()
                if not isinstance(child, _SEQUENCES)
                and any(isinstance(part, _SEQUENCES) for part in child.children())
                and sum(weight.numel() for weight in child.parameters()) > half
            ),
            None,
        )


def _blocks(model: nn.Module, bodies: Sequence[nn.Module]) -> Iterator[nn.Module]:
    for child in model.children():
        if isinstance(child, _SEQUENCES):
            yield from child
        elif child in bodies:
            yield from _blocks(child, bodies)
        yield child  # a sequence may have weights beside those of its modules


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Weights that share decay and learning rate."""
    shares = {
        weight: recipe.layer_decay**depth for depth, layer in enumerate(reversed(layers_of(model))) for weight in layer
    }
    biases = {module.bias for module in model.modules() if isinstance(module, _NORMS)}
    kinds: dict[tuple[float, float], list[Tensor]] = {(1.0, recipe.weight_decay): []}
    for weight, share in shares.items():
        faster = recipe.bias_lr if weight in biases else 1.0
        # Norms and biases have one dimension; decaying them costs accuracy (He et al., Bag of Tricks, CVPR 2019).
        decay = recipe.weight_decay / faster if weight.ndim > 1 or recipe.decay_norms else 0.0
        kinds.setdefault((share * faster, decay), []).append(weight)
    return [{"params": weights, "share": share, "weight_decay": decay} for (share, decay), weights in kinds.items()]

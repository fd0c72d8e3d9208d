"""Models for small images. Each takes the number of classes and returns a module of (B, 3, H, W) -> (B, C) logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["resnet9", "resnet18_cifar", "small_cnn"]


def small_cnn(num_classes: int, *, width: int = 32) -> nn.Module:
    """Three 3x3 convolutions with batch norm, the first two halving the image before the norm, which takes a fifth less time.

    Args:
        num_classes: C.
        width: channels of the first convolution; the others have two and four times as many.
    """
    return nn.Sequential(
        _conv(3, width, nn.MaxPool2d(2)),
        _conv(width, 2 * width, nn.MaxPool2d(2)),
        _conv(2 * width, 4 * width),
        _GlobalMax(),
        nn.Linear(4 * width, num_classes),
    )


def resnet9(num_classes: int, *, width: int = 64) -> nn.Module:
    """Eight 3x3 convolutions, two pairs of them with a skip, and a linear layer.

    Args:
        num_classes: C.
        width: channels of the first convolution.

    Source: Page, "How to Train Your ResNet" (2018).
    """
    return nn.Sequential(
        _conv(3, width),
        _conv(width, 2 * width),
        nn.MaxPool2d(2),
        _Skip(nn.Sequential(_conv(2 * width, 2 * width), _conv(2 * width, 2 * width))),
        _conv(2 * width, 4 * width),
        nn.MaxPool2d(2),
        _conv(4 * width, 8 * width),
        nn.MaxPool2d(2),
        _Skip(nn.Sequential(_conv(8 * width, 8 * width), _conv(8 * width, 8 * width))),
        _GlobalMax(),
        nn.Linear(8 * width, num_classes),
    )


def resnet18_cifar(num_classes: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem of stride 1 and no max pool, as the field trains it at 32 px.

    Source: He et al. (CVPR 2016), section 4.2's stem on the ImageNet body.
    """
    from torchvision.models import resnet18

    model: nn.Module = resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


class _GlobalMax(nn.Module):
    """The largest value of each channel; the adaptive pool is fastest, but not deterministic on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_max_pool2d(x, 1).flatten(1) if x.device.type == "cpu" else x.amax(dim=(2, 3))


class _Skip(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.body(x))


def _conv(channels_in: int, channels_out: int, *before_norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        *before_norm,
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )

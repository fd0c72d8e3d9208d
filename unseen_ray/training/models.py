"""Models for small images. Each takes the number of classes and returns a module of (B, 3, H, W) -> (B, C) logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unseen_ray.errors import ConfigError

__all__ = ["airbench", "resnet9", "resnet18_cifar", "small_cnn"]

_LEAST_PX = 9  # one pixel less is halved three times


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


def airbench(num_classes: int, *, width: int = 64, depth: int = 2) -> nn.Module:
    """Whitened patches, three blocks of convolutions that begin as the identity, and a linear layer.

    Args:
        num_classes: C.
        width: channels of the first block; the other two have four times as many.
        depth: convolutions of a block; where there are more than two, those after the first have a skip.

    Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), with a global pool, which is its own at 32 px, and the
    factor of its output before the last layer, so that features and gradients are those of the layer itself.

    Raises:
        ConfigError: when it is given images of less than 9 px.
    """
    patches = 2 * _Whitening.patch
    return _Whitened(
        _Whitening(),
        nn.GELU(),
        _block(patches, width, depth),
        _block(width, 4 * width, depth),
        _block(4 * width, 4 * width, depth),
        _GlobalMax(),
        _Scaled(1 / 9),
        nn.Linear(4 * width, num_classes, bias=False),
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


class _Whitened(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        if (size_px := min(x.shape[2:])) < _LEAST_PX:
            raise ConfigError(
                f"model airbench halves images of {size_px} px to nothing; it takes {_LEAST_PX} px or more. Set model: small_cnn."
            )
        logits: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return logits

    def fit_to_images(self, batches: Iterator[Tensor]) -> None:
        whitening = self[0]
        assert isinstance(whitening, _Whitening)
        whitening.fit_to_images(batches)


class _Whitening(nn.Conv2d):
    """Frozen 2x2 filters that make patches of the training images uncorrelated and of one variance, and their negatives.

    Before `fit_to_images` they are the pixels of a patch.
    """

    patch = 3 * 2 * 2
    weight: Tensor

    def __init__(self) -> None:
        super().__init__(3, 2 * self.patch, 2)
        del self.weight
        self.register_buffer("weight", torch.empty(2 * self.patch, 3, 2, 2))
        self._set(torch.eye(self.patch))
        self.bias = nn.Parameter(torch.zeros(2 * self.patch))

    def fit_to_images(self, batches: Iterator[Tensor]) -> None:
        """Set the filters from the covariance of all patches of (B, 3, H, W) batches, in double precision."""
        total, count = torch.zeros(self.patch, self.patch, dtype=torch.float64, device=self.weight.device), 0
        for images in batches:
            patches = nn.functional.unfold(images, 2).transpose(0, 1).flatten(1).double()
            total += patches @ patches.T
            count += patches.shape[1]
        # one decomposition for all devices: its vectors' signs are the library's
        variances, vectors = torch.linalg.eigh(total.cpu() / count)
        self._set((vectors / torch.sqrt(variances + 5e-4)).T.flip(0))

    def _set(self, filters: Tensor) -> None:
        self.weight.copy_(torch.cat([filters, -filters]).view(self.weight.shape))


class _Identity(nn.Conv2d):
    """A 3x3 convolution whose first channels begin as its inputs."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, bias=False)
        nn.init.dirac_(self.weight[:channels_in])


class _Norm(nn.BatchNorm2d):
    """Without a scale, and with statistics that follow within few steps, as a short training needs them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=0.4)
        del self.weight
        # a buffer of ones, because cuDNN wants a scale
        self.register_buffer("weight", torch.ones(channels), persistent=False)


class _Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _block(channels_in: int, channels_out: int, depth: int) -> nn.Sequential:
    rest = [
        layer
        for _ in range(depth - 1)
        for layer in (_Identity(channels_out, channels_out), _Norm(channels_out), nn.GELU())
    ]
    body = nn.Sequential(*rest[:-1])
    first = _Identity(channels_in, channels_out), nn.MaxPool2d(2), _Norm(channels_out), nn.GELU()
    return nn.Sequential(*first, _Skip(body) if depth > 2 else body, nn.GELU())

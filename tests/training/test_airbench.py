"""Model and recipe airbench: its steps by their formulas, what it is fitted to, and over interruptions and workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.training.test_share import both, met
from unseen_ray.config.models import model_builder
from unseen_ray.config.named_recipes import RECIPES
from unseen_ray.config.recipe import Recipe
from unseen_ray.core.seeds import rng_for
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.errors import ConfigError
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.hardware import numerics
from unseen_ray.training.loop.batches import BatchLoader, WorkerShare, hold_pixels, measure
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.fit import FitPlan, fit
from unseen_ray.training.loop.predict import predict

CPU = torch.device("cpu")
NARROW = {"use": "airbench", "width": 8}


def short(**fields: Any) -> Recipe:
    """The recipe in little."""
    return RECIPES["airbench-94"][0].model_copy(
        update={"precision": "float32", "epochs": 2, "batch_size": 32, "warmup": 1.0, **fields}
    )


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of 16 px on the ramp of its class, one of 10: a colour, from left to right or from top to bottom."""
    rng = np.random.default_rng(0)
    labels, colours = np.arange(count) % 10, rng.uniform(0, 150, (10, 3))
    ramps = np.linspace(0, 1, 16)[:, None] * colours[:, None, None, :]
    ramps = np.broadcast_to(ramps, (10, 16, 16, 3)).copy()
    ramps[::2] = ramps[::2].transpose(0, 2, 1, 3)
    return (ramps[labels] + rng.uniform(0, 100, (count, 16, 16, 3))).astype(np.uint8), labels


def prepare(
    given: Recipe, pixels: np.ndarray, labels: np.ndarray, model: Any = NARROW, shard: WorkerShare | None = None
) -> tuple[nn.Module, BatchLoader, FitPlan]:
    ids = np.arange(len(labels))
    store = MemoryPixelStore(pixels)
    plan = FitPlan(ids_M=ids, labels_M=labels, num_classes=10, recipe=given, seed=3, shard=shard or WorkerShare())
    torch.manual_seed(2)
    net = model_builder(model)(num_classes=10).to(memory_format=torch.channels_last)
    return net, BatchLoader(hold_pixels(store, CPU), measure(store, ids)), plan


def whitening(inputs: Tensor) -> Tensor:
    """(24, 3, 2, 2) filters by numpy's decomposition, and of every image alone."""
    patches = np.concatenate(
        [
            np.lib.stride_tricks.sliding_window_view(image, (3, 2, 2)).reshape(-1, 12)
            for image in inputs.double().numpy()
        ]
    )
    variances, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / np.sqrt(variances + 5e-4)).T[::-1].reshape(12, 3, 2, 2)
    return torch.from_numpy(np.concatenate([filters, -filters])).float()


def forward(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network, on the batch's statistics."""

    def norm(x: Tensor, bias: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-12) + bias[:, None, None]

    x = functional.gelu(functional.conv2d(x, w["0.weight"], w["0.bias"]))
    for block in (2, 3, 4):
        x = functional.max_pool2d(functional.conv2d(x, w[f"{block}.0.weight"], padding=1), 2)
        x = functional.gelu(norm(x, w[f"{block}.2.bias"]))
        x = functional.conv2d(x, w[f"{block}.4.0.weight"], padding=1)
        x = functional.gelu(norm(x, w[f"{block}.4.1.bias"]))
    return x.amax(dim=(2, 3)) @ w["7.weight"].T / 9


def plain_losses(given: Recipe, net: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> list[float]:
    """Losses of a loop without any of our training code: Nesterov, decay, rates, Lookahead and loss by their formulas."""
    w = {name: value.detach().clone() for name, value in net.state_dict().items() if "running" not in name}
    trained = {name for name, _ in net.named_parameters()}
    velocity = {name: torch.zeros_like(w[name]) for name in trained}
    slow: dict[str, Tensor] = {}
    warm, losses = min(given.warmup * steps / given.epochs, steps / 5), []  # type: ignore[operator]
    for step, (inputs, labels) in enumerate(batches):
        fallen = (step - warm) / (steps - warm)
        rate = given.lr * (step + 1) / (warm + 1) if step < warm else given.lr + (given.min_lr - given.lr) * fallen
        for name in trained:
            w[name].requires_grad_()
        log_probs = functional.log_softmax(forward(w, inputs), dim=1)
        loss = -0.8 * log_probs.gather(1, labels[:, None]).mean() - 0.2 * log_probs.mean()
        gradients = torch.autograd.grad(loss, [w[name] for name in sorted(trained)])
        losses.append(loss.item())
        with torch.no_grad():
            for name, gradient in zip(sorted(trained), gradients, strict=True):
                factor = 64 if name in norm_biases(w) else 1
                gradient = gradient + given.weight_decay / factor * w[name]
                velocity[name] = given.momentum * velocity[name] + gradient
                w[name] = w[name].detach() - factor * rate * (gradient + given.momentum * velocity[name])
            if (step + 1) % 5 == 0 or step + 1 == steps:
                held = 0.95**5 * ((step + 1) / steps) ** 3 if slow else 0.0
                slow = {name: held * slow.get(name, w[name]) + (1 - held) * w[name] for name in trained}
                w |= {name: value.clone() for name, value in slow.items()}
    return losses


def norm_biases(w: dict[str, Tensor]) -> set[str]:
    return {name for name in w if name.endswith(".bias") and name != "0.bias"}


def batches_of(loader: BatchLoader, plan: FitPlan) -> Iterator[tuple[Tensor, Tensor]]:
    """Those that the fit trains on."""
    batch, per_epoch, total = plan.sizes()
    for epoch in range(total // per_epoch):
        yield from loader.epoch(
            plan.ids_M,
            plan.labels_M,
            plan.recipe,
            shape=(per_epoch, batch),
            rng=rng_for(plan.seed, epoch),
            shard=plan.shard,
            mirrored_M=plan.mirrored(plan.ids_M, epoch),
        )


def curves(given: Recipe, pixels: np.ndarray, labels: np.ndarray, model: Any) -> tuple[list[float], list[float]]:
    """Mean losses of the epochs: of our fit, and of the plain loop."""
    net, loader, plan = prepare(given, pixels, labels, model)
    other, _, _ = prepare(given, pixels, labels, model)
    other.fit_to_images(loader.first_look(plan.ids_M, 64))
    _, per_epoch, steps = plan.sizes()
    plain = plain_losses(given, other, batches_of(loader, plan), steps)
    ours = [stats.loss for stats in fit(net, loader, plan)]
    return ours, np.mean(np.reshape(plain, (-1, per_epoch)), axis=1).tolist()


def test_the_losses_are_those_of_a_plain_loop() -> None:
    with numerics(1, False, CPU):
        ours, plain = curves(short(), *images(200), NARROW)
    assert ours == pytest.approx(plain, rel=1e-4)
    assert ours[1] < ours[0]


def test_filters_whiten_the_patches_of_the_training_images_alone() -> None:
    pixels, labels = images(200)
    net, loader, plan = prepare(short(), pixels, labels)
    given = list(loader.first_look(plan.ids_M[:100], 64))
    net.fit_to_images(iter(given))
    seen = torch.cat(given)
    assert len(seen) == 100
    torch.testing.assert_close(net[0].weight.abs(), whitening(seen).abs(), rtol=1e-3, atol=1e-4)
    whitened = functional.conv2d(seen, net[0].weight).transpose(0, 1).flatten(1)
    covariance = whitened @ whitened.T / whitened.shape[1]
    torch.testing.assert_close(covariance[:12, :12], torch.eye(12), atol=0.02, rtol=0)
    torch.testing.assert_close(covariance[:12, 12:], -torch.eye(12), atol=0.02, rtol=0)


def test_a_training_keeps_the_filters_and_begins_as_the_identity() -> None:
    net, loader, plan = prepare(short(), *images(64))
    inputs = torch.randn(2, 24, 6, 6)
    torch.testing.assert_close(net[2][0](inputs), inputs[:, :8])
    assert sum(weight.requires_grad for weight in net.parameters()) == len(list(net.parameters())) == 14
    list(fit(net, loader, plan))
    fresh, _, _ = prepare(short(), *images(64))
    fresh.fit_to_images(loader.first_look(plan.ids_M, 32))
    assert torch.equal(net[0].weight, fresh[0].weight)
    assert not torch.equal(net[0].bias, fresh[0].bias)


def test_depth_adds_convolutions_with_a_skip() -> None:
    for depth in (2, 3):
        net = model_builder({**NARROW, "depth": depth})(num_classes=4).eval()
        assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 1 + 3 * depth
        assert net(torch.zeros(2, 3, 40, 40)).shape == (2, 4)


def test_images_that_are_halved_to_nothing_are_refused() -> None:
    net = model_builder(NARROW)(num_classes=4).eval()
    assert net(torch.zeros(2, 3, 9, 9)).shape == (2, 4)
    with pytest.raises(
        ConfigError, match=r"airbench halves images of 8 px to nothing; it takes 9 px or more.*small_cnn"
    ):
        net(torch.zeros(2, 3, 8, 8))


def mirrored(count: int, given: Recipe, epochs: int, ids: np.ndarray | None = None) -> np.ndarray:
    """(epochs, M) whether an epoch's images come mirrored, in the order of ids; images are dark on their left half."""
    stack = np.zeros((count, 16, 16, 3), np.uint8)
    stack[:, :, 8:] = 255
    ids = np.arange(count) if ids is None else ids
    _, loader, plan = prepare(given, stack, np.arange(count))
    plan = FitPlan(ids_M=ids, labels_M=ids, num_classes=count, recipe=given, seed=3)
    labels, flips = [], []
    for inputs, batch in batches_of(loader, plan):
        labels.append(batch)
        flips.append(inputs[:, 0, 0, 0] > inputs[:, 0, 0, -1])
    order, flags = torch.cat(labels).view(epochs, -1), torch.cat(flips).view(epochs, -1)
    return flags.gather(1, order.argsort(dim=1)).numpy()


def test_alternating_mirrors_an_image_every_other_epoch_whatever_else_is_trained_on() -> None:
    given = short(epochs=4, batch_size=50)
    found = mirrored(400, given, 4)
    assert (found[1:] != found[:-1]).all()
    assert 150 < found[0].sum() < 250
    some = np.arange(0, 400, 4)
    assert np.array_equal(mirrored(400, given, 4, some), found[:, some])
    drawn = mirrored(400, short(epochs=4, batch_size=50, flip="random"), 4)
    assert 150 < (drawn[1] != drawn[0]).sum() < 250


def state_of(folder: Path | None, *, stop_after: int | None = None, net: nn.Module | None = None) -> dict[str, Tensor]:
    """Of a fit of four epochs, which goes on from its checkpoint in `folder`."""
    with numerics(1, True, CPU):
        own, loader, plan = prepare(short(epochs=4, deterministic=True), *images(100))
        model = net or own
        checkpoints = None if folder is None else Checkpoints(Folder(str(folder)), "a" * 64)
        for stats in fit(model, loader, plan, checkpoints):
            if stats.epoch == stop_after:
                break
    return dict(model.state_dict())


class Forgetful(nn.Sequential):
    """Fits itself to something else."""

    def fit_to_images(self, batches: Iterator[Tensor]) -> None:
        self[0].weight.copy_(torch.randn(self[0].weight.shape))


def test_an_interrupted_fit_has_its_filters_from_the_checkpoint_and_comes_to_the_same_bits(tmp_path: Path) -> None:
    whole = state_of(None)
    state_of(tmp_path, stop_after=2)
    other, _, _ = prepare(short(), *images(100))
    for found in (state_of(tmp_path, net=Forgetful(*other)), state_of(None)):
        assert all(torch.equal(value, whole[name]) for name, value in found.items())


class Looking(nn.Sequential):
    """A user's model that is shown the images."""

    seen: Tensor | None = None

    def fit_to_images(self, batches: Iterator[Tensor]) -> None:
        self.seen = torch.cat(list(batches))


def test_any_model_may_look_at_its_training_images_unless_its_weights_are_given() -> None:
    pixels, labels = images(90)
    ids = np.arange(10, 90)
    for given, shape in (
        (Recipe(epochs=1, min_steps=0), (80, 3, 16, 16)),
        (Recipe(epochs=1, min_steps=0, init="x"), None),
    ):
        _, loader, _ = prepare(given, pixels, labels)
        net = Looking(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
        list(fit(net, loader, FitPlan(ids_M=ids, labels_M=labels[ids], num_classes=10, recipe=given, seed=1)))
        assert (None if net.seen is None else tuple(net.seen.shape)) == shape
        if net.seen is not None:
            torch.testing.assert_close(net.seen, torch.cat([each for _, each in loader.scoring(ids, 64)]))


def test_of_many_images_a_model_sees_5000_of_all_parts() -> None:
    _, loader, plan = prepare(short(), np.zeros((12_000, 2, 2, 3), np.uint8), np.zeros(12_000, np.int64))
    loader.scoring = lambda ids, _: ((ids, torch.from_numpy(ids)) for _ in range(1))  # type: ignore[method-assign]
    (seen,) = loader.first_look(plan.ids_M, 64)
    assert (len(seen), int(seen[0]), int(seen[-1])) == (5000, 0, 11_999)
    assert set(seen.diff().tolist()) == {2, 3}


def test_its_features_are_the_scaled_inputs_of_the_last_layer() -> None:
    net, loader, plan = prepare(short(), *images(64))
    list(fit(net, loader, plan))
    (found,) = predict(net, loader, plan.ids_M, plan.recipe, features=True)
    assert found.features_BD is not None and found.features_BD.shape == (64, 32)
    logits = torch.from_numpy(found.features_BD).float() @ net[7].weight.detach().T
    torch.testing.assert_close(logits.log_softmax(1), torch.from_numpy(found.log_probs_BC), atol=5e-3, rtol=0)


def work(rank: int, folder: str) -> None:
    with met(rank, folder), numerics(1, False, CPU):
        net, loader, plan = prepare(short(), *images(100), shard=WorkerShare(rank, 2))
        list(fit(net, loader, plan))
        save_file(
            {name: value.contiguous() for name, value in net.state_dict().items()}, f"{folder}/{rank}.safetensors"
        )


@pytest.mark.slow
def test_two_workers_have_the_same_weights_and_the_filters_of_one(tmp_path: Path) -> None:
    assert both(tmp_path, work) == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    net, loader, plan = prepare(short(), *images(100))
    net.fit_to_images(loader.first_look(plan.ids_M, 32))
    assert torch.equal(first["0.weight"], net[0].weight)
    assert all(torch.equal(value, second[name]) for name, value in first.items() if "running" not in name)

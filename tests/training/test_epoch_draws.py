"""A fit whose epochs draw anew trains on the samples that the rule draws, and as much as one on a set of their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.training.fitting import CPU, DRAW, prepare, recipe
from unseen_ray.training.hardware import numerics
from unseen_ray.training.loop.batches import BatchLoader
from unseen_ray.training.loop.epochs import EpochStats
from unseen_ray.training.loop.fit import FitPlan, fit


class Noting(BatchLoader):
    """Notes the ids of each epoch."""

    def epoch(self, ids_M: np.ndarray, labels_M: np.ndarray, *args: Any, **options: Any) -> Iterator[Any]:
        self.asked = [*getattr(self, "asked", []), (ids_M, labels_M)]
        return super().epoch(ids_M, labels_M, *args, **options)


def trained(loader: BatchLoader, plan: FitPlan) -> tuple[nn.Module, list[EpochStats]]:
    with numerics(1, False, CPU):
        model = prepare(None, plan.recipe, CPU)[0]
        return model, list(fit(model, loader, plan))


def test_each_epoch_is_what_the_rule_draws() -> None:
    _, given, plan, _ = prepare(None, recipe(4), CPU, samples=1200, draw=DRAW)
    loader = Noting(given.pixels, given.norm)
    _, stats = trained(loader, plan)
    assert (plan.samples, plan.sizes()) == (600, (64, 9, 36))
    assert [one.epoch for one in stats] == [1, 2, 3, 4]
    assert len(loader.asked) == 4
    for epoch, (ids, labels) in enumerate(loader.asked):
        assert ids.tolist() == DRAW.positions(np.arange(1200), epoch).tolist()
        assert labels.tolist() == plan.labels_M[ids].tolist()
    assert len({tuple(ids) for ids, _ in loader.asked}) == 4


def test_a_draw_that_is_fixed_throughout_is_a_training_on_these_ids() -> None:
    _, loader, plan, _ = prepare(None, recipe(2), CPU, samples=1200)
    fixed = np.arange(400) * 3
    drawn, stats = trained(loader, replace(plan, draw=replace(DRAW, fixed_ids=fixed, size=400)))
    alone, expected = trained(loader, replace(plan, ids_M=fixed, labels_M=plan.labels_M[fixed]))
    assert [one.loss for one in stats] == [one.loss for one in expected]
    for name, value in alone.state_dict().items():
        assert torch.equal(value, drawn.state_dict()[name]), name

"""A fit that is stopped within an epoch goes on from there, to the same bits, without its batches being read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.fitting import prepare, recipe, train
from unseen_ray.storage import Folder
from unseen_ray.training import standing
from unseen_ray.training.checkpoint import Checkpoints
from unseen_ray.training.feed import Feed
from unseen_ray.training.fit import fit
from unseen_ray.training.hardware import numerics

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 9  # of 64 of 600 samples


class StoppedError(Exception):
    pass


@pytest.fixture(autouse=True)
def kept_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_WITHIN_S", -1.0)
    monkeypatch.setattr(Checkpoints, "due", lambda self, trained_s: True)


def stop_in(folder: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until so many batches were given, over all epochs."""
    given = 0
    epoch = Feed.epoch

    def counted(self: Feed, *args: Any, **options: Any) -> Any:
        nonlocal given
        for batch in epoch(self, *args, **options):
            if given == stop_at:
                raise StoppedError
            given += 1
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "epoch", counted)
        with pytest.raises(StoppedError):
            train(folder, recipe(EPOCHS))


@pytest.mark.parametrize("stop_at", [1, 5, STEPS, STEPS + 4, 2 * STEPS + 8])
def test_it_ends_in_the_same_weights_and_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    clean, expected = train(None, recipe(EPOCHS))
    stop_in(tmp_path, stop_at, monkeypatch)
    saved = Checkpoints(Folder(str(tmp_path)), "a" * 64).read()
    assert saved is not None
    assert saved.position["epoch"] * STEPS + saved.position["steps"] == stop_at
    model, stats = train(tmp_path, recipe(EPOCHS))
    for name, value in clean.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert stats[-1].loss == expected[-1].loss and stats[-1].accuracy == expected[-1].accuracy
    assert stats[-1].seconds >= saved.position["seconds"] > 0


def test_batches_that_were_done_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in(tmp_path, STEPS + 4, monkeypatch)
    asked: list[int] = []
    with numerics(1, False, CPU):
        model, feed, plan, checkpoints = prepare(tmp_path, recipe(EPOCHS), CPU)
        plane = feed.pixels.plane
        beyond = Feed(type(feed.pixels)(Noting(plane, asked), CPU, None), feed.norm)
        list(fit(model, beyond, plan, checkpoints))
    assert len(asked) == 64 * (STEPS - 4 + STEPS)


class Noting:
    """A plane that notes how many images were asked for."""

    def __init__(self, plane: Any, asked: list[int]) -> None:
        self._plane, self._asked = plane, asked
        self.size_px = plane.size_px

    def images(self, ids_B: Any) -> Any:
        self._asked += ids_B.tolist()
        return self._plane.images(ids_B)

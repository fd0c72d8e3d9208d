"""A fit that is stopped within an epoch goes on from there, to the same bits, without its batches being read again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

import unseen_ray as ur
from tests.training.fitting import TUNED, prepare, recipe, train
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training import host
from unseen_ray.training.hardware import numerics
from unseen_ray.training.host import PreemptedError, leave_node
from unseen_ray.training.loop import resume as standing
from unseen_ray.training.loop.batches import BatchLoader
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.fit import fit

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 9  # of 64 of 600 samples


class StoppedError(Exception):
    pass


@pytest.fixture
def kept_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_WITHIN_S", -1.0)
    monkeypatch.setattr(Checkpoints, "due", lambda self, trained_s: True)


def stop_in(folder: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch, *, draws: bool = False, **fields: Any) -> None:
    """Train until so many batches were given, over all epochs."""
    given = 0
    epoch = BatchLoader.epoch

    def counted(self: BatchLoader, *args: Any, **options: Any) -> Any:
        nonlocal given
        for batch in epoch(self, *args, **options):
            if given == stop_at:
                raise StoppedError
            given += 1
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "epoch", counted)
        with pytest.raises(StoppedError):
            train(folder, recipe(EPOCHS, **fields), draws=draws)


@pytest.mark.usefixtures("kept_at_every_step")
@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("fields", [{}, TUNED])
@pytest.mark.parametrize("stop_at", [1, 5, STEPS, STEPS + 4, 2 * STEPS + 8])
def test_it_ends_in_the_same_weights_and_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, fields: dict[str, Any], draws: bool
) -> None:
    clean, expected = train(None, recipe(EPOCHS, **fields), draws=draws)
    stop_in(tmp_path, stop_at, monkeypatch, draws=draws, **fields)
    saved = Checkpoints(Folder(str(tmp_path)), "a" * 64).read()
    assert saved is not None
    assert saved.position["epoch"] * STEPS + saved.position["steps"] == stop_at
    model, stats = train(tmp_path, recipe(EPOCHS, **fields), draws=draws)
    for name, value in clean.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert stats[-1].loss == expected[-1].loss and stats[-1].accuracy == expected[-1].accuracy
    assert stats[-1].seconds >= saved.position["seconds"] > 0


@pytest.mark.parametrize("leave_at", [1, 5, STEPS, STEPS + 4])
def test_a_fit_whose_node_is_taken_away_stops_after_a_checkpoint_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave_at: int
) -> None:
    clean, _ = train(None, recipe(EPOCHS))
    given, epoch = 0, BatchLoader.epoch

    def counted(self: BatchLoader, *args: Any, **options: Any) -> Any:
        nonlocal given
        for batch in epoch(self, *args, **options):
            given += 1
            if given == leave_at:
                leave_node()
            yield batch

    monkeypatch.setattr(BatchLoader, "epoch", counted)
    monkeypatch.setattr(host, "_leaving", threading.Event())
    with pytest.raises(PreemptedError):
        train(tmp_path, recipe(EPOCHS))
    assert given == leave_at
    host._leaving.clear()
    model, _ = train(tmp_path, recipe(EPOCHS))
    assert given == EPOCHS * STEPS
    for name, value in clean.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.usefixtures("kept_at_every_step")
def test_batches_that_were_done_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in(tmp_path, STEPS + 4, monkeypatch)
    asked: list[int] = []
    with numerics(1, False, CPU):
        model, feed, plan, checkpoints = prepare(tmp_path, recipe(EPOCHS), CPU)
        pixel_store = feed.pixels.pixel_store
        beyond = BatchLoader(type(feed.pixels)(Noting(pixel_store, asked), CPU, None), feed.norm)
        list(fit(model, beyond, plan, checkpoints))
    assert len(asked) == 64 * (STEPS - 4 + STEPS)


class Noting:
    """A pixel store that notes how many images were asked for."""

    def __init__(self, pixel_store: Any, asked: list[int]) -> None:
        self._pixel_store, self._asked = pixel_store, asked
        self.size_px = pixel_store.size_px

    def images(self, ids_B: Any, out: Any = None) -> Any:
        self._asked += ids_B.tolist()
        return self._pixel_store.images(ids_B, out)


def heads(out: Path) -> list[dict[str, Any]]:
    """What the checkpoints of a run say of where its fits stand."""
    found = []
    for path in out.glob("checkpoints/*/checkpoint.json"):
        with contextlib.suppress(FileNotFoundError):
            found.append(json.loads(path.read_text())["position"])
    return found


def fold_workers(driver: int) -> list[psutil.Process]:
    return [each for each in psutil.Process(driver).children(recursive=True) if "FoldWorker.score" in each.name()]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("killed", ["driver", "fold actor"])
def test_killed_within_an_epoch_a_run_beyond_memory_keeps_the_same_ids(tmp_path: Path, killed: str) -> None:
    executor = "local" if killed == "driver" else "ray"
    fields = {"source": {"use": "digits", "limit": 500}, "keep": 0.5, "folds": 2, "pixel_memory_gb": 0}
    fields |= {"recipe": {"epochs": 1, "min_steps": 0, "batch_size": 32}, "executor": executor}
    plain = ur.prune(ur.PruneConfig(**fields, model={"use": "tests.plugs:dozing", "seconds": 0}, out=tmp_path / "a"))
    config, out = tmp_path / "run.yaml", tmp_path / "b"
    config.write_text(yaml.safe_dump({**fields, "model": {"use": "tests.plugs:dozing", "seconds": 2}}))
    line = [sys.executable, "-m", "unseen_ray", "prune", str(config), "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 120
        while not any(head["steps"] for head in heads(out)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None
        victim = process.pid if killed == "driver" else fold_workers(process.pid)[0].pid
        os.kill(victim, signal.SIGKILL)
        if killed == "driver":
            process.wait()
            process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=log)
        assert process.wait(timeout=300) == 0
    if killed == "driver":
        assert re.search(r"resuming after epoch 0 of 1, \d+ steps into the next one", (tmp_path / "log").read_text())
    assert ur.load(out).coreset.ids.tolist() == plain.coreset.ids.tolist()
    assert ur.load(out).scores == plain.scores

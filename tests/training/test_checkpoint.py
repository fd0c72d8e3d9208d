"""A fit that is killed and started again ends in the same weights, bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unseen_ray as ur
from tests.training.fitting import fetch, recipe, train, train_and_save
from unseen_ray.errors import StorageError
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.loop.batches import WorkerShare
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.resume import _sums

EPOCHS, KILLS = 120, 20


def start(folder: Path, out: Path) -> multiprocessing.process.BaseProcess:
    """A process that has just begun the fit, and had all that it needs loaded before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.fitting", "sklearn.datasets", "torch._dynamo"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=train_and_save, args=(str(folder), EPOCHS, str(out), there))
    process.start()
    there.close()
    here.recv()
    return process


def weights_differ(a: Path, b: Path) -> list[str]:
    left, right = load_file(a), load_file(b)
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fit_killed_at_20_random_moments_ends_in_the_same_weights(tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    whole = start(tmp_path / "a", undisturbed)
    began = time.monotonic()
    whole.join()
    whole_s = time.monotonic() - began
    rng = np.random.default_rng(3)
    stood = []
    for _ in range(KILLS):
        process = start(tmp_path / "b", disturbed)
        process.join(rng.uniform(0, whole_s / 20))
        assert process.is_alive(), "the fit ended before it could be killed 20 times"
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        saved = Checkpoints(Folder(str(tmp_path / "b")), "a" * 64).read()
        stood.append(saved.position["epoch"] if saved else 0)
    assert stood == sorted(stood)
    assert 0 < stood[-1] < EPOCHS, stood
    start(tmp_path / "b", disturbed).join()
    assert weights_differ(undisturbed, disturbed) == []


def test_checkpoints_change_nothing(tmp_path: Path) -> None:
    without, _ = train(None, recipe(4))
    with_them, _ = train(tmp_path, recipe(4))
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_them.state_dict()[name]), name


def test_a_finished_fit_is_not_trained_again(tmp_path: Path) -> None:
    first, stats = train(tmp_path, recipe(3))
    again, known = train(tmp_path, recipe(3))
    assert [s.epoch for s in stats] == [1, 2, 3]
    assert [s.epoch for s in known] == [3]
    assert known[0].accuracy == stats[-1].accuracy
    assert known[0].earlier_s == stats[-1].seconds
    assert torch.equal(first[6].weight, again[6].weight)


def test_one_checkpoint_is_kept_and_it_is_no_pickle(tmp_path: Path) -> None:
    train(tmp_path, recipe(5))
    files = sorted(path.name for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    assert [name[:12] for name in files] == ["checkpoint.j", "epoch-00005-"]
    saved = Checkpoints(Folder(str(tmp_path)), "a" * 64).read()
    assert saved is not None
    assert {name.split(".")[0] for name in saved.tensors} == {"model", "momentum"}
    assert saved.position["epoch"] == 5


@pytest.mark.parametrize("damage", ["flip a byte", "cut short", "remove the tensors", "no JSON", "another key"])
def test_a_damaged_checkpoint_costs_time_and_nothing_else(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    clean, _ = train(None, recipe(3))
    train(tmp_path, recipe(3))
    folder = next((tmp_path / "checkpoints").iterdir())
    tensors, head = next(folder.glob("epoch-00003-*.safetensors")), folder / "checkpoint.json"
    data = bytearray(tensors.read_bytes())
    if damage == "flip a byte":
        data[-5] ^= 1
        tensors.write_bytes(data)
    elif damage == "cut short":
        tensors.write_bytes(data[:100])
    elif damage == "remove the tensors":
        tensors.unlink()
    elif damage == "no JSON":
        head.write_text("{")
    else:
        head.write_text(json.dumps({**json.loads(head.read_text()), "key": "b" * 64}))
    model, stats = train(tmp_path, recipe(3))
    assert [s.epoch for s in stats] == [1, 2, 3]
    assert "cannot be used" in caplog.text
    assert torch.equal(model[6].weight, clean[6].weight)


def test_a_checkpoint_of_another_model_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.training import fitting

    train(tmp_path, recipe(2))
    smaller = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    monkeypatch.setattr(fitting, "net", lambda: smaller)
    _, stats = train(tmp_path, recipe(2))
    assert [s.epoch for s in stats] == [1, 2]
    assert "cannot be used (it holds the weights of another model)" in caplog.text


def test_storage_that_fails_costs_the_checkpoint_and_not_the_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    _, stats = train(tmp_path, recipe(2))
    assert [s.epoch for s in stats] == [1, 2]
    assert "no checkpoint after epoch 1" in caplog.text


def test_checkpoints_that_fail_alike_are_logged_once_and_counted_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), "a" * 64, task="fold 0")
    blocked = tmp_path / "checkpoints"
    for epoch in range(1, 7):
        if epoch in (1, 5):
            blocked.write_text("a file where the folder should be")
        elif epoch == 4:
            blocked.unlink()
        checkpoints.write({"model.w": torch.zeros(2)}, {"epoch": epoch})
        if epoch == 4:
            shutil.rmtree(blocked)
    blocked.unlink()
    checkpoints.clear()
    assert [message.split(":")[0] for message in caplog.messages] == [
        "no checkpoint after epoch 1",
        "no checkpoint after epoch 5",
        "fold 0",
    ]
    assert caplog.messages[-1] == "fold 0: checkpoints that could not be written: 5"


def test_a_finished_run_leaves_no_checkpoint(tmp_path: Path) -> None:
    config = ur.PruneConfig(
        source={"use": "digits", "limit": 300},
        keep=0.5,
        out=str(tmp_path),
        executor="local",
        recipe={"epochs": 2, "min_steps": 0},
    )
    ur.prune(config)
    ur.evaluate(ur.load(tmp_path), test="digits", seeds=1, against=())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_tied_weights_are_held_by_each_of_their_names(tmp_path: Path) -> None:
    checkpoints, weight = Checkpoints(Folder(str(tmp_path)), "a" * 64), torch.arange(6.0).view(2, 3)
    checkpoints.write({"model.a": weight, "model.b": weight, "model.c": weight.T}, {"epoch": 1})
    saved = checkpoints.read()
    assert saved is not None
    assert saved.tensors["model.b"].tolist() == saved.tensors["model.a"].tolist() == weight.tolist()
    assert saved.tensors["model.c"].tolist() == weight.T.tolist()


def test_a_large_model_lies_in_several_files_of_which_a_later_checkpoint_leaves_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), "a" * 64)
    for epoch in (1, 2):
        weights = {f"model.{place}": torch.full((3 << 20,), float(epoch + place)) for place in range(3)}  # 12 MiB each
        checkpoints.write(weights, {"epoch": epoch})
    files = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
    assert [(name[:12], name[-15:]) for name in files] == [("epoch-00002-", f"{k:03d}.safetensors") for k in range(3)]
    saved = Checkpoints(Folder(str(tmp_path)), "a" * 64).read()
    assert saved is not None
    assert {name: (len(value), value[0].item()) for name, value in saved.tensors.items()} == {
        "model.0": (3 << 20, 2.0),
        "model.1": (3 << 20, 3.0),
        "model.2": (3 << 20, 4.0),
    }


@pytest.mark.parametrize("beside", [False, True])
def test_writing_takes_a_small_share_of_short_epochs(tmp_path: Path, beside: bool) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), "a" * 64, beside=beside)
    assert checkpoints.due(0.0)
    checkpoints.write({"model.w": torch.zeros(1_000_000)}, {"epoch": 1})
    checkpoints.flush()
    assert not checkpoints.due(1e-4)
    assert checkpoints.due(60.0)


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_written_is_the_state_at_that_moment(tmp_path: Path, beside: bool) -> None:
    checkpoints, weight = Checkpoints(Folder(str(tmp_path)), "a" * 64, beside=beside), torch.zeros(1_000_000)
    checkpoints.write({"model.w": weight}, {"epoch": 1})
    weight.fill_(1)
    saved = checkpoints.read()
    assert saved is not None
    assert not saved.tensors["model.w"].any()


def test_a_deletion_that_fails_costs_disk_and_not_the_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), "a" * 64)
    checkpoints.write({"model.w": torch.zeros(3)}, {"epoch": 1})
    checkpoints.flush()
    first = next(tmp_path.rglob("epoch-00001-*.safetensors"))
    first.unlink()
    first.mkdir()  # a file cannot be deleted where a folder stands
    checkpoints.write({"model.w": torch.ones(3)}, {"epoch": 2})
    checkpoints.check_written()
    assert "a checkpoint that is no longer needed remains" in caplog.text
    saved = checkpoints.read()
    assert saved is not None
    assert saved.position["epoch"] == 2


@pytest.mark.parametrize("beside", [False, True])
def test_a_checkpoint_that_must_be_in_place_and_is_not_is_an_error(tmp_path: Path, beside: bool) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    checkpoints = Checkpoints(Folder(str(tmp_path)), "a" * 64, beside=beside)
    checkpoints.write({"model.w": torch.zeros(3)}, {"epoch": 1})
    with pytest.raises(StorageError, match="cannot be written"):
        checkpoints.check_written()


def test_two_writers_do_not_take_each_others_files(tmp_path: Path) -> None:
    one, other = (Checkpoints(Folder(str(tmp_path)), "a" * 64) for _ in range(2))
    one.write({"model.w": torch.zeros(3)}, {"epoch": 7})
    one.flush()
    for epoch in (7, 8):
        other.write({"model.w": torch.ones(3)}, {"epoch": epoch})
        other.flush()
    one.write({"model.w": torch.full((3,), 2.0)}, {"epoch": 8})
    saved = one.read()
    assert saved is not None
    assert saved.tensors["model.w"].tolist() == [2.0, 2.0, 2.0]


def test_a_model_that_was_trained_elsewhere_and_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the model that several workers trained is not in .*checkpoint.json"):
        fetch(tmp_path, recipe(3))
    trained, _ = train(tmp_path, recipe(3))
    fetched, stats = fetch(tmp_path, recipe(3))
    assert stats.epoch == 3
    assert torch.equal(trained[6].weight, fetched[6].weight)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_what_workers_had_counted_is_kept_with_fewer_or_more_of_them(workers: int) -> None:
    """Within an epoch each holds its own sums: those of workers that are gone go to the first one, a new one begins at zero."""
    saved = {f"within.sums{f'.{rank}' if rank else ''}": torch.tensor([1.0, 10.0]) * 2**rank for rank in range(4)}
    found = torch.stack([_sums(saved, WorkerShare(rank, workers)) for rank in range(workers)])
    assert found.sum(0).tolist() == [15.0, 150.0]
    assert [found[rank, 0].item() for rank in range(1, workers)] == [2.0, 4.0, 8.0, 0.0, 0.0, 0.0, 0.0][: workers - 1]

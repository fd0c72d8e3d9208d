"""What must hold on GPUs, as far as a machine without one can show it: errors, costs, what pixels take, which GPUs compute alike."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import unseen_ray as ur
from tests.test_merge import job_of
from unseen_ray.config.recipe import Recipe
from unseen_ray.core.samples.id_sets import ArrayIds
from unseen_ray.core.tasks import EvalTask, ScoreTask
from unseen_ray.data.images.pixel_files import FilePixelStore, PixelFiles, write_file
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import FitError, FoldFailedError
from unseen_ray.execution.local import _fold_errors
from unseen_ray.runs.manifest import read_manifest, write_manifest
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.host import cpu_precision, is_gpu_fault
from unseen_ray.training.loop import batches
from unseen_ray.training.loop.batches import BatchLoader, Normalisation, Pixels, WorkerShare, hold_pixels

FAULT = "CUDA error: an illegal memory access was encountered"


def run(out: Path, **fields: object) -> ur.PruneResult:
    given = {"source": {"use": "digits", "limit": 100}, "keep": 0.5, "folds": 2, "executor": "local", "out": str(out)}
    return ur.prune(ur.PruneConfig(**given, model={"use": "tests.plugs:greedy"}, **fields))


def test_a_gpu_without_memory_names_the_batch_and_the_share(tmp_path: Path) -> None:
    said = r"the GPU ran out of memory. Lower recipe.batch_size \(it is 32\)\. Torch says: CUDA out of memory.*79.11 GiB\.$"
    with pytest.raises(FitError, match=said):
        run(tmp_path / "whole", recipe={"batch_size": 32})


def test_a_shared_gpu_without_memory_is_told_to_be_shared_by_fewer() -> None:
    from unseen_ray.training.hardware import memory_explained

    config = ur.PruneConfig(source="digits", keep=0.5, gpus_per_fold=0.25)
    for error in (torch.OutOfMemoryError("CUDA out of memory."), torch.AcceleratorError("CUDA error: out of memory")):
        with pytest.raises(FitError, match=r"or raise gpus_per_fold \(it is 0.25\)"), memory_explained(config):
            raise error
    with pytest.raises(RuntimeError, match="another"), memory_explained(config):
        raise RuntimeError("another")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_without_memory_says_so(tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"the GPU ran out of memory.*Tried to allocate"):
        run(tmp_path)


def test_a_fault_of_the_gpu_is_neither_an_assertion_nor_an_error_of_the_code() -> None:
    assert is_gpu_fault(torch.AcceleratorError(FAULT))
    assert is_gpu_fault(RuntimeError(f"Traceback ...\ntorch.AcceleratorError: {FAULT}"))
    assert not is_gpu_fault(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert not is_gpu_fault(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_in_one_process_a_fault_of_the_gpu_is_told_without_a_traceback() -> None:
    with (
        pytest.raises(FoldFailedError, match="its GPU failed: CUDA error: an illegal") as failed,
        _fold_errors("stage 0 fold 0"),
    ):
        raise torch.AcceleratorError(FAULT)
    assert "Traceback" not in str(failed.value)


def test_folds_that_share_a_gpu_cost_their_part_of_it_and_a_fit_on_several_all_of_each(tmp_path: Path) -> None:
    ids = ArrayIds(np.arange(4))
    fold = ScoreTask(stage=0, index=0, fold=0, repeat=0, train=ids, scored=ids)
    later = ScoreTask(stage=1, index=0, fold=None, repeat=0, train=ids, scored=ids)
    measured = EvalTask(index=0, arm="coreset", selection=0, repeat=0, train=ids)
    shared = job_of(tmp_path, gpus_per_fold=0.25)
    assert [shared.worker_seconds(task, 100, 20, 0) for task in (fold, later, measured)] == [30, 30, 30]
    together = job_of(tmp_path, gpus_per_fold=0.25, gpus_per_fit=2)
    assert [together.worker_seconds(task, 100, 20, 40) for task in (fold, later, measured)] == [30, 65, 65]
    on_cpus = job_of(tmp_path, gpus_per_fold=0)
    assert on_cpus.worker_seconds(fold, 100, 20, 20) == 120


def test_a_deterministic_run_that_goes_on_on_another_device_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {
        "source": {"use": "digits", "limit": 100},
        "keep": 0.5,
        "folds": 2,
        "executor": "local",
        "out": str(tmp_path),
    }
    config = ur.PruneConfig(**given, recipe={"epochs": 1, "min_steps": 0, "deterministic": True})

    def interrupt(event: object) -> None:
        if isinstance(event, Receipt):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ur.prune(config, on_event=interrupt)
    manifest = read_manifest(Folder(str(tmp_path)))
    assert manifest is not None
    elsewhere = {**manifest.environment, "device": "NVIDIA A100-SXM4-80GB"}
    write_manifest(Folder(str(tmp_path)), manifest.model_copy(update={"environment": elsewhere}))
    ur.prune(config)
    assert "the run began on NVIDIA A100-SXM4-80GB and goes on on cpu" in caplog.text


def test_an_evaluation_computes_in_the_precision_of_where_it_runs(tmp_path: Path) -> None:
    """What a run pruned on an older GPU left could not be measured on a CPU, nor at full speed on a newer GPU."""
    given = {"source": {"use": "digits", "limit": 100}, "keep": 0.5, "folds": 2, "executor": "local", "holdout": 0.2}
    ur.prune(ur.PruneConfig(**given, out=str(tmp_path), recipe={"epochs": 1, "min_steps": 0}))
    manifest = read_manifest(Folder(str(tmp_path)))
    assert manifest is not None
    manifest.config["recipe"]["precision"] = "fp16"
    write_manifest(Folder(str(tmp_path)), manifest)
    assert ur.evaluate(str(tmp_path), seeds=1, against=["random"]).recipe["precision"] == cpu_precision("auto")


GPU = torch.device("cuda", 0)


def in_files(folder: Path, count: int, size_px: int = 8) -> FilePixelStore:
    files = PixelFiles(folder=str(folder), num_samples=count, size_px=size_px)
    source = open_source(source_ref({"use": "digits", "limit": count}))
    for start, _ in files.ranges():
        write_file(files, source, start)
    return FilePixelStore(files)


def memory(monkeypatch: pytest.MonkeyPatch, *, free: int, total: int, reserved: int = 0, allocated: int = 0) -> None:
    """What CUDA and torch say of a GPU's memory, in bytes."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)


def test_pixels_in_files_go_to_a_gpu_that_has_room_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = in_files(tmp_path, 100)
    needed = 100 * 8 * 8 * 3
    memory(monkeypatch, free=2 * needed, total=10 * needed)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for pixels in (store, MemoryPixelStore(store.images(np.arange(100)))):
            held = hold_pixels(pixels, GPU).all_NHWC
            assert held is not None
            assert (held.device, held.shape, held.dtype) == (GPU, (100, 8, 8, 3), torch.uint8)


@pytest.mark.parametrize(
    ("state", "share", "fits"),
    [
        ({"free": 200, "total": 1000}, 1.0, True),
        ({"free": 199, "total": 1000}, 1.0, False),
        ({"free": 50, "total": 1000, "reserved": 250, "allocated": 100}, 1.0, True),  # 150 lie unused in torch's cache
        ({"free": 1000, "total": 1000}, 0.25, True),
        ({"free": 1000, "total": 1000}, 0.15, False),  # the rest is the other processes'
        ({"free": 900, "total": 1000, "reserved": 100, "allocated": 100}, 0.25, False),
    ],
)
def test_pixels_take_half_of_what_a_process_may_use_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, state: dict[str, int], share: float, fits: bool
) -> None:
    store = MemoryPixelStore(np.zeros((1, 10, 10, 3), np.uint8))  # 300 bytes; a state counts hundredths of it
    memory(monkeypatch, **{name: 3 * value for name, value in state.items()})
    caplog.set_level("INFO")
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = hold_pixels(store, GPU, gpu_share=share).all_NHWC
    assert (held is not None) == fits
    assert ("batches are copied to the GPU" in caplog.text) != fits


def test_batches_are_copied_beside_the_computing_and_their_memory_is_left_alone_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls that CUDA gets, noted: there is no GPU that could show a batch overwritten while it is copied."""
    noted: list[str] = []

    class Stream:
        def __init__(self, name: object = "aside") -> None:
            self.name = name

        def synchronize(self) -> None:
            noted.append("copied")

        def wait_stream(self, other: Stream) -> None:
            noted.append(f"computing waits for {other.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: noted.append(f"used by {stream.name}"))
    monkeypatch.setattr(batches, "_page_locked", lambda shape: np.empty(shape, np.uint8))
    pixels = Pixels(in_files(tmp_path, 100), GPU, None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for stack, places in pixels.stacks(np.arange(60), [slice(0, 40), slice(40, 60)]):
            assert (stack.device, len(stack)) == (places.device, len(places)) == (GPU, len(places))
            noted.append("trained on")
    assert noted == ["computing waits for aside", "used by computing", "trained on", "copied"] * 2


class Steps(TorchDispatchMode):
    """Counts the operations that would each start a kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not operation.is_view and operation._schema.name != "aten::_unsafe_view":
            self.names.append(operation._schema.name)
        return operation(*args, **(kwargs or {}))


def test_a_batch_takes_few_kernels() -> None:
    """A small model's step is about sixty: its GPU waits for the host to start them, not for its numbers."""
    stack, ids = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8), np.arange(256)
    held = hold_pixels(MemoryPixelStore(stack), torch.device("cpu"))
    loader = BatchLoader(held, Normalisation((100.0, 110.0, 120.0), (50.0, 60.0, 70.0)))
    rng = np.random.default_rng(1)
    stream = loader.epoch(ids, ids, Recipe(augment="crop_flip"), shape=(4, 64), rng=rng, shard=WorkerShare())
    next(stream)
    with Steps() as steps:
        next(stream)
    assert len(steps.names) <= 11, steps.names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_gets_every_batch_whole_however_long_it_computes(tmp_path: Path) -> None:
    store, busy = in_files(tmp_path, 1500), torch.rand(4096, 4096, device=GPU)
    ids = np.random.default_rng(0).permutation(1500)
    parts = [slice(start, start + 50) for start in range(0, 1500, 50)]
    sums = []
    for stack, places in Pixels(store, GPU, None).stacks(ids, parts):
        for _ in range(20):
            busy = busy @ busy / 4096
        sums.append(stack.index_select(0, places).long().sum())
    assert [int(each) for each in sums] == [int(store.images(ids[part]).sum(dtype=np.int64)) for part in parts]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_holds_the_pixels_of_files(tmp_path: Path) -> None:
    store = in_files(tmp_path, 1500)
    held = hold_pixels(store, GPU).all_NHWC
    assert held is not None
    assert np.array_equal(held.cpu().numpy(), store.images(np.arange(1500)))

"""What must hold on GPUs, as far as a machine without one can show it: errors, costs, what pixels take, which GPUs compute alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import unseen_ray as ur
from tests.test_merge import job_of
from unseen_ray.core.samples.id_sets import ArrayIds
from unseen_ray.core.tasks import EvalTask, ScoreTask
from unseen_ray.errors import FitError, FoldFailedError
from unseen_ray.execution.local import _fold_errors
from unseen_ray.runs.manifest import read_manifest, write_manifest
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.host import cpu_precision, is_gpu_fault

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
    assert [shared.worker_seconds(task, 100, 20) for task in (fold, later, measured)] == [30, 30, 30]
    together = job_of(tmp_path, gpus_per_fold=0.25, gpus_per_fit=2)
    assert [together.worker_seconds(task, 100, 20) for task in (fold, later, measured)] == [30, 65, 65]
    on_cpus = job_of(tmp_path, gpus_per_fold=0)
    assert on_cpus.worker_seconds(fold, 100, 20) == 120


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

"""Devices and number formats, and the torch settings that decide a fit's bits and speed."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from unseen_ray.errors import ConfigError, FitError
from unseen_ray.training.host import describe_machine, freed_memory_kept

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Precision
    from unseen_ray.config.run import PruneConfig

__all__ = [
    "check_precision",
    "describe_hardware",
    "device_name",
    "first_gpu",
    "memory_explained",
    "numerics",
    "resolve_precision",
    "seed_generators",
    "supported_precisions",
    "synchronize",
]

_COMPILER = "TORCHINDUCTOR_DETERMINISTIC"  # read by torch's compiler when it is imported


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of one device; those of other GPUs are unchanged."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked for: a GPU's kernels run on while Python does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision that `auto` resolves to: bf16 where the hardware has it, fp16 on an older GPU, else float32.

    Raises:
        ConfigError: if fp16 is set for a CPU, where nothing scales the loss.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("recipe.precision=fp16 is for GPUs; this fit would run on a CPU. Set bf16, float32 or auto.")
    if precision != "auto":
        return precision
    if _has_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "float32"


def supported_precisions(device: torch.device) -> list[Precision]:
    """Number formats that the device has in hardware, rather than emulates."""
    half: list[Precision] = ["bf16"] if _has_bf16(device) else []
    scaled: list[Precision] = ["fp16"] if device.type == "cuda" else []
    return ["float32", *half, *scaled]


def check_precision(precision: Precision, device: torch.device) -> None:
    """FitError if the device lacks the precision that the run was started with."""
    if precision == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise FitError(
            f"{torch.cuda.get_device_name(device)} has no bf16, with which this run computes. "
            "Keep such nodes out, or start a run with recipe.precision: fp16."
        )


def first_gpu() -> torch.device:
    """The first GPU that this process sees.

    Raises:
        ConfigError: if torch cannot compute on it, with what torch says.
    """
    device = torch.device("cuda", 0)
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # a build of torch without CUDA fails an assertion
        raise ConfigError(
            f"a training on node {platform.node()} is to use a GPU, and torch cannot. Install a torch that fits the GPU and its driver, "
            f"or set gpus_per_fold=0 to train on CPUs. Torch says: {str(error).strip().splitlines()[0]}"
        ) from error
    return device


@contextlib.contextmanager
def memory_explained(config: PruneConfig) -> Iterator[None]:
    """Within, a GPU that runs out of memory is a FitError that names what a training takes of it: the same again would fail again."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in str(error)):
            raise
        share = config.gpus_per_fold or 1
        other = f", or raise gpus_per_fold (it is {share:g}), so that fewer trainings share a GPU" if share < 1 else ""
        raise FitError(
            f"the GPU ran out of memory. Lower recipe.batch_size (it is {config.recipe.batch_size}){other}. "
            f"Torch says: {str(error).strip().splitlines()[0]}"
        ) from error


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Names and versions, for the manifest."""
    return {**describe_machine(device_name(device)), "torch": str(torch.__version__)}


@contextlib.contextmanager
def numerics(threads: int, deterministic: bool, device: torch.device) -> Iterator[None]:
    """Set what decides the bits and the speed of a fit; restore the settings and torch's generators afterwards.

    Args:
        threads: of torch, and of the BLAS libraries that a user's own training may call.
        deterministic: whether to refuse algorithms whose bits differ from run to run.
        device: whose generator is restored beside the CPU's; other GPUs are unchanged.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads(), torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    compiler = os.environ.get(_COMPILER)
    torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    _set_deterministic(2 if deterministic else 0)
    # cuDNN's benchmark may time its way to another algorithm, and other bits, each run
    torch.backends.cudnn.benchmark = not deterministic
    try:
        with (
            freed_memory_kept() if device.type == "cpu" else contextlib.nullcontext(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            threadpool_limits(threads),
        ):
            yield
    finally:
        torch.set_num_threads(before[0])
        _set_deterministic(before[1])
        if compiler is None:
            del os.environ[_COMPILER]
        else:
            os.environ[_COMPILER] = compiler
        torch.backends.cudnn.benchmark = before[2]


def _set_deterministic(debug_mode: int) -> None:
    """Do as torch.use_deterministic_algorithms does, by torch's debug mode: 0 for any algorithm, 1 to warn, 2 to refuse.

    Torch's own function imports its compiler, which takes a process two seconds. A compiler that is imported later
    reads the mode from the environment.
    """
    os.environ[_COMPILER] = "1" if debug_mode else "0"
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(debug_mode > 0, warn_only=debug_mode == 1)
    else:
        torch.set_deterministic_debug_mode(debug_mode)


def device_name(device: torch.device) -> str:
    """The model of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())

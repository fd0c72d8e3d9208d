"""The machine and this process, as far as they can be described and set without torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Precision

__all__ = [
    "PreemptedError",
    "claim_process",
    "cpu_precision",
    "cpu_precisions",
    "describe_machine",
    "freed_memory_kept",
    "is_gpu_fault",
    "is_leaving",
    "leave_node",
    "may_have_gpu",
]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MOST_MMAP_THRESHOLD = 32 << 20  # the most that glibc takes
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, the same under WSL, AMD
_BF16 = "avx512_bf16"

_is_own = False
_leaving = threading.Event()


class PreemptedError(Exception):
    """A training stopped after a checkpoint, as its node is about to be taken away: it goes on elsewhere, and has not failed."""


def leave_node() -> None:
    """Have the training of this process write a checkpoint at once and stop, as its node is about to be taken away."""
    _leaving.set()


def is_leaving() -> bool:
    """Whether this process is to leave its node."""
    return _leaving.is_set()


def may_have_gpu() -> bool:
    """Whether a GPU driver is installed; without one torch finds no GPU."""
    return any(os.path.exists(path) for path in _GPU_FILES)


def is_gpu_fault(error: BaseException) -> bool:
    """Whether an error, or the traceback that is its text, is CUDA's own, so that another GPU may do the same work.

    An assertion in a kernel is not: the numbers that it was given fail on every GPU.
    """
    text = f"{type(error).__name__}: {error}"
    return "AcceleratorError: CUDA error" in text and "device-side assert" not in text


def describe_machine(device: str) -> dict[str, Any]:
    """Names and versions, for the manifest; `device` is the model of the GPU, or `cpu`."""
    return {
        "device": device,
        "machine": platform.machine(),
        "processor": _cpu_line("model name") or platform.processor(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "numpy": version("numpy"),
        "pyarrow": version("pyarrow"),
        "unseen_ray": version("unseen_ray"),
    }


def cpu_precisions() -> list[Precision]:
    """Number formats that this CPU has in hardware."""
    return ["float32", "bf16"] if _BF16 in _cpu_line("flags").split() else ["float32"]


def cpu_precision(precision: Precision) -> Precision:
    """The precision that `auto` resolves to on this CPU."""
    return cpu_precisions()[-1] if precision == "auto" else precision


def claim_process() -> None:
    """Mark this process as the package's own: a worker, or the `unseen-ray` command. A user's Python is not."""
    global _is_own
    _is_own = True


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within a process of our own, have glibc keep what a training step on a CPU frees for the next step.

    By default glibc returns large blocks to the system and faults them in again, which costs 2 to 8 % of a step. Its thresholds
    can be set but neither read nor reset to adapt by themselves, so the allocator of a user's Python stays as it is.
    """
    libc = ctypes.CDLL(None)
    if not (_is_own and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _MOST_MMAP_THRESHOLD)  # what glibc arrives at by itself
        libc.malloc_trim(0)


def _cpu_line(name: str) -> str:
    """The value of a name in /proc/cpuinfo, for the first CPU; empty if it has none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
    except OSError:
        return ""

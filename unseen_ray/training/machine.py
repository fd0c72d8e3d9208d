"""What can be told of a machine, and set on it, without torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unseen_ray.config.recipe import Precision

__all__ = ["cpu_precision", "cpu_precisions", "describe_machine", "freed_memory_kept", "may_have_gpu"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, the same under WSL, AMD
_BF16 = "avx512_bf16"


def may_have_gpu() -> bool:
    """Whether a driver of GPUs is there; where it is not, torch would find none."""
    return any(os.path.exists(path) for path in _GPU_FILES)


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
    """Number formats that this CPU computes in, rather than emulates."""
    return ["float32", "bf16"] if _BF16 in _cpu_line("flags").split() else ["float32"]


def cpu_precision(precision: Precision) -> Precision:
    """What `auto` means on this CPU."""
    return cpu_precisions()[-1] if precision == "auto" else precision


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have glibc keep what a step on a CPU frees for the next step, and give it back in the end.

    Left alone it returns large parts to the system and faults them in again, for 2 to 8 % of a step. Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes, and what it comes to by itself
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


def _cpu_line(name: str) -> str:
    """What /proc/cpuinfo says of the first CPU under a name; nothing where it does not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
    except OSError:
        return ""

"""What a machine can do: devices and number formats."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch

from unseen_ray.errors import FitError
from unseen_ray.recipe import Precision

__all__ = ["check_precision", "describe_hardware", "numerics", "resolve_precision"]


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What `auto` means on this device: bf16 where the hardware has it, fp16 on an older GPU, else float32."""
    if precision != "auto":
        return precision
    if _has_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "float32"


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a device that lacks what the run was started with; FitError says so."""
    if precision == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise FitError(
            f"{torch.cuda.get_device_name(device)} has no bf16, with which this run computes. "
            "Keep such nodes out, or start a run with recipe.precision: fp16."
        )


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Names and versions, for the manifest."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": platform.machine(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
    }


@contextlib.contextmanager
def numerics(threads: int, deterministic: bool) -> Iterator[None]:
    """Set what decides the bits of a fit, keep torch's generators apart, and put everything back.

    Args:
        threads: of torch and of the BLAS libraries that a user's own training may call.
        deterministic: whether to refuse algorithms that give other bits from run to run.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        with torch.random.fork_rng(), threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()

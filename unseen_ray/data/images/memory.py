"""How much memory pixels may take; kept apart from the decoders, so that `plan` need not import them."""

from __future__ import annotations

__all__ = ["PIXEL_MEMORY_GB", "fits_in_memory"]

PIXEL_MEMORY_GB = 4.0


def fits_in_memory(num_samples: int, size_px: int, memory_gb: float = PIXEL_MEMORY_GB) -> bool:
    """Whether the pixels of a source take at most `memory_gb` GiB, so that they are held in memory."""
    return num_samples * size_px * size_px * 3 <= memory_gb * 2**30

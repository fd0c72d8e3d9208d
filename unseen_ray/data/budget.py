"""How much memory pixels may take; apart from the decoders, so that a plan need not load them."""

from __future__ import annotations

__all__ = ["MEMORY_BYTES", "fits_in_memory"]

MEMORY_BYTES = 4 * 2**30
"""Sets whose pixels take more than this are not held in memory."""


def fits_in_memory(num_samples: int, size_px: int) -> bool:
    """Whether the pixels of a set are held in memory."""
    return num_samples * size_px * size_px * 3 <= MEMORY_BYTES

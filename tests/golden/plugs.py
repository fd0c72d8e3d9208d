"""What the golden runs plug in by name, and what tells whether a machine computes the same bits.

`exact` is a training whose answers are read from a table, with no arithmetic that differs between CPUs: the
exponentials of these constants round to the same float32 in every numpy code path (AVX-512, AVX2 and neither were
tried). Do not change anything here: the stored runs name it and depend on its bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

LOGS = {
    0.903: -0.10203273,
    0.814: -0.20579492,
    0.741: -0.29975465,
    0.676: -0.3915622,
    0.603: -0.5058381,
    0.55: -0.597837,
    0.5: -0.6931472,
    0.463: -0.77002823,
    0.43: -0.84397006,
    0.375: -0.98082924,
    0.329: -1.1116976,
    0.288: -1.2447948,
    0.25: -1.3862944,
    0.218: -1.5232602,
    0.18: -1.7147985,
    0.157: -1.8515095,
    0.125: -2.0794415,
    0.098: -2.3227878,
    0.07: -2.65926,
    0.047: -3.0576077,
    0.033: -3.4112477,
    0.018: -4.0173836,
    0.009: -4.7105308,
    0.004: -5.521461,
    0.001: -6.9077554,
}
"""Natural logs of some probabilities, as float32."""

ROWS = (  # probabilities of the true class, the next one, and so on
    (0.903, 0.001, 0.018, 0.001, 0.047, 0.009, 0.004, 0.004, 0.009, 0.004),
    (0.814, 0.004, 0.033, 0.001, 0.047, 0.001, 0.047, 0.004, 0.004, 0.047),
    (0.741, 0.004, 0.098, 0.07, 0.001, 0.009, 0.004, 0.009, 0.047, 0.018),
    (0.098, 0.033, 0.001, 0.004, 0.018, 0.676, 0.009, 0.098, 0.018, 0.047),
    (0.047, 0.009, 0.603, 0.047, 0.009, 0.004, 0.18, 0.047, 0.047, 0.004),
    (0.55, 0.018, 0.098, 0.07, 0.18, 0.004, 0.001, 0.07, 0.009, 0.001),
    (0.5, 0.18, 0.004, 0.047, 0.001, 0.018, 0.18, 0.033, 0.033, 0.004),
    (0.009, 0.001, 0.463, 0.375, 0.001, 0.018, 0.07, 0.009, 0.009, 0.047),
    (0.375, 0.001, 0.25, 0.033, 0.07, 0.218, 0.018, 0.001, 0.004, 0.033),
    (0.329, 0.125, 0.018, 0.018, 0.18, 0.125, 0.125, 0.047, 0.001, 0.033),
    (0.288, 0.009, 0.001, 0.009, 0.033, 0.047, 0.18, 0.07, 0.18, 0.18),
    (0.741, 0.033, 0.098, 0.033, 0.001, 0.001, 0.004, 0.009, 0.009, 0.07),
    (0.676, 0.009, 0.004, 0.004, 0.098, 0.001, 0.018, 0.004, 0.18, 0.004),
    (0.603, 0.009, 0.004, 0.033, 0.001, 0.018, 0.07, 0.25, 0.004, 0.009),
    (0.463, 0.047, 0.001, 0.033, 0.157, 0.009, 0.001, 0.098, 0.009, 0.18),
    (0.43, 0.009, 0.047, 0.098, 0.07, 0.004, 0.157, 0.001, 0.001, 0.18),
    (0.218, 0.004, 0.018, 0.018, 0.07, 0.001, 0.157, 0.18, 0.157, 0.18),
)

CALLS: list[tuple[int, int | None, int]] = []
"""Stage, fold and repeat of each training that `exact` was asked for in this process."""


def exact(task: Any, *, source: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Answers from the table; which row a sample gets depends on its id, and on the task's seed and training ids."""
    CALLS.append((task.stage, task.fold, task.repeat))
    table_RC = np.array([[LOGS[p] for p in row] for row in ROWS], np.float32)
    start = task.seed + sum(task.train_ids.tolist())
    for ids in np.array_split(task.unseen_ids, 3):
        numbers = [(start + 7 * number) % len(ROWS) for number in ids.tolist()]
        shifts = source.labels[ids].tolist()
        yield ids, np.stack([np.roll(table_RC[row], shift) for row, shift in zip(numbers, shifts, strict=True)])


def cpu_kind() -> dict[str, str]:
    """What decides the bits of a model trained on a CPU: where all of it is the same, so are they."""
    import torch

    with open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = [line.partition(":") for line in file]
    said = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    return {
        "processor": said.get("model name", ""),
        "flags": hashlib.sha256(" ".join(sorted(said.get("flags", "").split())).encode()).hexdigest()[:16],
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "numpy": np.__version__,
    }

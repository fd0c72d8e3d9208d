"""Functions that sweeps plug in by name, as a user's module would."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np


def refuses_budget(scores_M, labels_M, ids_M, budget, *, kept_C, seed, above):  # type: ignore[no-untyped-def]
    """Gives too little where much is asked for."""
    return np.argsort(-scores_M, kind="stable")[: min(budget, above)]


def dies_in_the_driver(scores_M, labels_M, ids_M, budget, *, kept_C, seed, marker):  # type: ignore[no-untyped-def]
    """Kills the process that chooses, the first time; then it is `top`."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    from unseen_ray.core.select import top

    return top(scores_M, labels_M, ids_M, budget, kept_C=kept_C, seed=seed)


def one_class_first(scores_M, labels_M, ids_M, budget, *, kept_C, seed, first):  # type: ignore[no-untyped-def]
    """One class before all others."""
    return np.argsort(labels_M != first, kind="stable")[:budget]


def noted_cnn(num_classes: int, *, log: str, seconds: float) -> Any:
    """A small net that takes its time, and notes where it was trained, and from when to when."""
    import ray
    import torch

    from unseen_ray.training.models import small_cnn

    class Noted(torch.nn.Sequential):
        def forward(self, images: Any) -> Any:
            self.note["ended"] = time.time()
            (Path(log) / f"{self.note['id']}.json").write_text(json.dumps(self.note))
            return super().forward(images)

    model = Noted(*small_cnn(num_classes, width=8))
    gpu, node = os.environ.get("CUDA_VISIBLE_DEVICES"), ray.get_runtime_context().get_node_id()
    model.note = {"id": uuid.uuid4().hex, "pid": os.getpid(), "node": node, "gpu": gpu, "began": time.time()}
    time.sleep(seconds)
    return model


class squares:  # noqa: N801
    """Black squares of 256 px, of ten classes."""

    def __init__(self) -> None:
        self.labels, self.keys = np.arange(2000) % 10, list(map(str, range(2000)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> np.ndarray:
        return np.zeros((256, 256, 3), np.uint8)

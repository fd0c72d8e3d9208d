"""Functions that tests plug in by name, as a user's module would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Predictions = Iterator[tuple[np.ndarray, np.ndarray]]


def centroids(task: Any, *, source: Any) -> Predictions:
    """Distance to each class's mean image, as a softmax."""
    pixels = source.images(task.train_ids).reshape(len(task.train_ids), -1) / 255
    labels = source.labels[task.train_ids]
    nothing = np.zeros(pixels.shape[1])
    classes = range(task.num_classes)
    means = np.stack([pixels[labels == c].mean(axis=0) if (labels == c).any() else nothing for c in classes])
    for ids in np.array_split(task.unseen_ids, 4):
        flat = source.images(ids).reshape(len(ids), -1) / 255
        logits = -((flat[:, None, :] - means) ** 2).sum(axis=2)
        yield ids, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def slow_centroids(task: Any, *, source: Any, seconds: float) -> Predictions:
    """`centroids`, after a while."""
    time.sleep(seconds)
    yield from centroids(task, source=source)


def waiting_centroids(task: Any, *, source: Any, until: str, limit_s: float = 120.0) -> Predictions:
    """`centroids`, once a file is there."""
    end = time.monotonic() + limit_s
    while not Path(until).exists() and time.monotonic() < end:
        time.sleep(0.02)
    yield from centroids(task, source=source)


def noted_centroids(
    task: Any, *, source: Any, log: str, together: int, limit_s: float = 120.0, seconds: float = 0.0
) -> Predictions:
    """`centroids` in so many seconds from when `together` tasks have begun, noting when, on which Ray node and on which GPU it ran."""
    import ray

    began = time.time()
    (Path(log) / f"begun-{task.fold}").touch()
    while len(list(Path(log).glob("begun-*"))) < together and time.time() < began + limit_s:
        time.sleep(0.02)
    time.sleep(seconds)
    yield from centroids(task, source=source)
    note = {
        "fold": task.fold,
        "node": ray.get_runtime_context().get_node_id(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "began": began,
        "ended": time.time(),
    }
    (Path(log) / f"{task.stage}-{task.fold}.json").write_text(json.dumps(note))


def leaking(task: Any, *, source: Any) -> Predictions:
    """Predictions for a sample that it trained on."""
    yield from centroids(task, source=source)
    yield task.train_ids[:1], np.log(np.full((1, task.num_classes), 1 / task.num_classes))


def forgetful(task: Any, *, source: Any) -> Predictions:
    """Leaves the last quarter unanswered."""
    answers = list(centroids(task, source=source))
    yield from answers[:-1]


def repeating(task: Any, *, source: Any) -> Predictions:
    """Predictions twice for the first quarter."""
    answers = list(centroids(task, source=source))
    yield from [*answers, answers[0]]


def logits(task: Any, *, source: Any) -> Predictions:
    """Predictions with logits where log-probabilities are due."""
    for ids, log_probs in centroids(task, source=source):
        yield ids, log_probs - 3


def not_numbers(task: Any, *, source: Any) -> Predictions:
    """Predictions with NaN."""
    for ids, log_probs in centroids(task, source=source):
        yield ids, log_probs * np.nan


def narrow(task: Any, *, source: Any) -> Predictions:
    """Predictions for one class too few."""
    for ids, log_probs in centroids(task, source=source):
        yield ids, log_probs[:, 1:]


def returns_none(task: Any, *, source: Any) -> None:
    """Yields nothing at all."""


def buggy(task: Any, *, source: Any, log: str) -> Predictions:
    """Raises an error of its own, noting each time it was called."""
    with (Path(log) / "calls").open("a") as stream:
        stream.write("x")
    raise KeyError("a bug of the user's")
    yield


def dies_once(task: Any, *, source: Any, log: str) -> Predictions:
    """The process of fold 1 dies in the middle of its first try."""
    marker = Path(log) / "died"
    if task.fold == 1 and not marker.exists():
        marker.write_text("")
        os._exit(1)
    yield from centroids(task, source=source)


def dies_always(task: Any, *, source: Any) -> Predictions:
    """The process of fold 1 dies whenever it is tried."""
    if task.fold == 1:
        os._exit(1)
    yield from centroids(task, source=source)


def gini(log_probs_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """A score of the user's own."""
    return 1.0 - np.square(np.exp(log_probs_NC)).sum(axis=1)


def bad_score(log_probs_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """One number in all, where one a sample is due."""
    return log_probs_NC.sum()


def skip_hardest(scores_M, labels_M, ids_M, budget, *, kept_C, seed, skip=0.1):  # type: ignore[no-untyped-def]
    """A policy of the user's own."""
    start = min(round(skip * len(ids_M)), len(ids_M) - budget)
    return np.argsort(-scores_M, kind="stable")[start : start + budget]


def greedy_policy(scores_M, labels_M, ids_M, budget, *, kept_C, seed):  # type: ignore[no-untyped-def]
    """Picks one more than it may."""
    return np.arange(budget + 1)


class Noise:
    """Images of noise with random labels: nothing to learn, everything to memorise."""

    def __init__(self, count: int, classes: int) -> None:
        rng = np.random.default_rng(7)
        self.pixels = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        self.labels = rng.integers(0, classes, count)
        self.keys = [f"noise-{place}" for place in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> np.ndarray:
        return self.pixels[place]


def noise(count: int = 600, classes: int = 4) -> Noise:
    """A source of the user's own."""
    return Noise(count, classes)


def tiny_model(num_classes: int, *, hidden: int = 16) -> Any:
    """A model of the user's own."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(192, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))


def needy_score(log_probs_NC: np.ndarray, labels_N: np.ndarray, *, weight: float) -> np.ndarray:
    """A score with an option that must be given."""
    return weight * log_probs_NC.max(axis=1)


def label(log_probs_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """A score named like a column of the score table."""
    return log_probs_NC.max(axis=1)


def entropy(log_probs_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """A score named like one of the package."""
    return log_probs_NC.max(axis=1)


def flat(log_probs_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """A score that is the same for all."""
    return np.ones(len(labels_N), np.float32)


def last_labels(scores_M, labels_M, ids_M, budget, *, kept_C, seed):  # type: ignore[no-untyped-def]
    """Keeps the classes with the highest numbers."""
    return np.argsort(-labels_M, kind="stable")[:budget]


class _Sender:
    """Sends its process SIGTERM as it is destroyed, where Python drops whatever the signal's handler raises."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def terminating(log_probs_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """A score during which its process is told to end."""
    _Sender()
    return -log_probs_NC.max(axis=1)


def lowest(
    scores: np.ndarray, labels: np.ndarray, ids: np.ndarray, budget: int, *, kept_C: Any, seed: int
) -> np.ndarray:
    """A policy."""
    return np.lexsort((ids, scores))[:budget]


class rows:  # noqa: N801
    """A source of striped images in two classes."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count) % 2
        self.keys = [f"row-{place}" for place in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> np.ndarray:
        image = np.full((8, 8, 3), place % 90, np.uint8)
        image[self.labels[place] * 4] += 150
        return image


def waver() -> Any:
    """A score over epochs of the user's own."""
    from unseen_ray.core.trajectory import Mean, Trajectory

    return Trajectory(series=lambda view: np.abs(np.exp(view.log_p_label_B) - 0.5), reduce=Mean)


def one_number() -> Any:
    """A score over epochs whose series is one number for all."""
    from unseen_ray.core.trajectory import Mean, Trajectory

    return Trajectory(series=lambda view: view.log_p_label_B.mean(), reduce=Mean)


def returns_nothing() -> None:
    """No score at all."""


class doubled_digits:  # noqa: N801
    """The first digits, each twice."""

    def __init__(self, count: int) -> None:
        from unseen_ray.data.sources.registry import open_source, source_ref

        self._digits = open_source(source_ref("digits"))
        self.labels = np.concatenate([self._digits.info.labels_N[:count]] * 2)
        self.keys = [f"digit-{place}" for place in range(2 * count)]
        self._images = [image for _, image in self._digits.read(list(range(count)))]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> np.ndarray:
        return np.asarray(self._images[place % len(self._images)])


def far_from_kept(  # type: ignore[no-untyped-def]
    scores_M, labels_M, ids_M, budget, *, kept_C, seed, features_MD, kept_features_KD, kept_labels_K
):
    """A policy over features: the farthest from what is kept, of each two copies the first."""
    assert kept_C.sum() == len(kept_features_KD) == len(kept_labels_K)
    order = np.argsort(ids_M % 150, kind="stable")
    if len(kept_features_KD):
        gaps = (features_MD.astype(np.float64)[:, None] - kept_features_KD[None]) ** 2
        order = np.argsort(-gaps.sum(axis=2).min(axis=1), kind="stable")
    return order[:budget]


class noted_rows:  # noqa: N801
    """A source of striped images in two classes, which notes on which Ray nodes a worker read them."""

    def __init__(self, count: int, log: str, seconds: float = 0.0, broken: int | None = None) -> None:
        self._rows, self._log, self._seconds, self._broken = rows(count), Path(log), seconds, broken
        self.labels, self.keys = self._rows.labels, self._rows.keys

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> np.ndarray:
        import ray

        if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
            self._note(place, ray.get_runtime_context().get_node_id())
            if place == self._broken:
                return np.zeros(3)
        return self._rows[place]

    def _note(self, place: int, node: str) -> None:
        time.sleep(self._seconds if place % 1000 == 0 else 0.0)
        with (self._log / node).open("a") as stream:
            stream.write(f"{place}\n")


def noted_torch(task: Any, *, source: Any, log: str, late: bool) -> Predictions:
    """`centroids`, noting whether there is a torch yet, and how a torch that it imports itself is set."""
    note: dict[str, Any] = {"torch": "torch" in sys.modules, "pid": os.getpid()}
    if late:
        import torch

        note["threads"], note["drawn"] = torch.get_num_threads(), torch.rand(3).tolist()
    (Path(log) / f"{task.stage}-{task.fold}.json").write_text(json.dumps(note))
    yield from centroids(task, source=source)


def stand_in() -> Noise:
    """Samples that say what they stand for."""
    samples: Any = Noise(count=40, classes=2)
    samples.note, samples.encoded_bytes = "counts alone, no image was read", 1000
    return samples  # type: ignore[no-any-return]


def dozing(num_classes: int, seconds: float) -> Any:
    """A small net that sleeps before each answer while it is trained."""
    import torch
    from torch import nn

    class Dozing(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                time.sleep(seconds)
            return super().forward(images)

    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)]
    return Dozing(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes))


def greedy(num_classes: int, device: str = "cpu") -> Any:
    """A small net that needs more memory than a GPU has; where there is none, it raises what torch does."""
    import torch
    from torch import nn

    class Greedy(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.is_cuda:
                torch.empty(1 << 44, device=images.device)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 TiB. GPU 0 has 79.11 GiB.\nMore.")

    return Greedy(nn.Flatten(), nn.Linear(192, num_classes))


def fails_on_one_gpu(task: Any, *, source: Any, log: str) -> Predictions:
    """`centroids`, except on the GPU that is used first, which fails whatever it does."""
    import ray
    import torch

    used = f"{ray.get_runtime_context().get_node_id()} {os.environ.get('CUDA_VISIBLE_DEVICES')}"
    with contextlib.suppress(FileExistsError), open(Path(log) / "faulty", "x", encoding="utf-8") as file:
        file.write(used)
    with (Path(log) / "used").open("a", encoding="utf-8") as file:
        file.write(f"{used}\n")
    while not (bad := (Path(log) / "faulty").read_text()):
        time.sleep(0.01)
    if used == bad:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    yield from centroids(task, source=source)


def noted_steps(num_classes: int, *, log: str, seconds: float) -> Any:
    """A small net that notes each training step that it begins, by its Ray node, and takes its time over it."""
    import ray
    import torch

    from unseen_ray.training.models import small_cnn

    class Noted(torch.nn.Sequential):
        def forward(self, images: Any) -> Any:
            if self.training and ray.is_initialized():
                with Path(log).open("a") as steps:
                    steps.write(f"{ray.get_runtime_context().get_node_id()} {time.time()}\n")
                time.sleep(seconds)
            return super().forward(images)

    return Noted(*small_cnn(num_classes, width=8))

"""Checkpoints of fits on the run's storage: tensors as safetensors, the rest as JSON. No pickle.

    checkpoints/KEY/epoch-00012-1f2e3d4c-000.safetensors    weights, statistics and momentum, 16 MiB per file
    checkpoints/KEY/checkpoint.json                         names these files with their SHA-256, and the epoch

The JSON is written last, so it always names complete files: the new ones, or still the previous ones.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from unseen_ray.errors import StorageError
from unseen_ray.runs.layout import checkpoint_file, fit_folder, is_ours, tensors_file
from unseen_ray.storage.filesystem import Folder, sha256_of

__all__ = ["Checkpoints", "Saved"]

logger = logging.getLogger(__name__)

_FORMAT = 2
_READS = 2
_SHARD = 16 << 20
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError, SafetensorError)
_NUMBERS = ("epoch", "epochs", "loss", "accuracy", "images_per_s", "seconds", "steps")
_BLOCKED = 0.02  # share of its time that a fit may wait for checkpoints
_BESIDE = 0.1  # weight of a second in the writing thread, compared with a second of waiting


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A checkpoint that was read.

    Attributes:
        tensors: tensors by name.
        position: the `position` given to `Checkpoints.write`.
    """

    tensors: dict[str, Tensor]
    position: dict[str, Any]


class Checkpoints:
    """The checkpoints of one fit, of which only the last is kept.

    Args:
        folder: the run's folder.
        key: digest of everything that determines the fit, so that it never finds the state of another one.
        beside: whether a thread writes from a copy while the fit continues. This is best on a GPU or with remote storage;
            on a CPU with a local disk it would take the fit's core, and memory for the copy.
        task: the task's name, stored for monitoring.
    """

    def __init__(self, folder: Folder, key: str, *, beside: bool = False, task: str = "") -> None:
        self.folder, self.key, self._beside, self._task = folder, key, beside, task
        self._stands: list[str] = []  # the files of tensors that the head names
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._blocked_s = self._beside_s = 0.0
        self._failure: StorageError | None = None
        self._reason: object = None  # why the last checkpoint failed, if it did
        self._missing = 0

    def read(self) -> Saved | None:
        """The last checkpoint; None if there is no complete one.

        Raises:
            StorageError: if the storage cannot be read. This is no damage: the checkpoint may be intact.
        """
        self.flush()
        for _ in range(_READS):  # another process may replace the checkpoint between reading the JSON and the tensors
            try:
                saved = self._read()
            except _DAMAGE as error:
                damage = error
            else:
                return saved
        logger.warning("%s cannot be used (%s); training from the start", self.path(), damage)
        return None

    def path(self) -> str:
        """Path or URI of the file that names the last checkpoint."""
        return self.folder.path(checkpoint_file(self.key))

    def due(self, trained_s: float) -> bool:
        """Whether to write another checkpoint: after every epoch, unless epochs are so short that writing would slow them down.

        Args:
            trained_s: seconds that the fit has trained since this object was created.
        """
        if self._pending is not None and not self._pending.done():
            return False
        return self._blocked_s + _BESIDE * self._beside_s <= _BLOCKED * trained_s

    def write(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Replace the previous checkpoint; if the storage fails, the fit continues without the new one.

        Args:
            tensors: tensors by name, on any device.
            position: other JSON values, including `epoch`.
        """
        self.flush()
        began = time.monotonic()
        if self._beside:
            copied = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            self._pending = self._thread.submit(self._put, copied, position)
        else:
            self._put(tensors, position)
        self._blocked_s += time.monotonic() - began

    def flush(self) -> None:
        """Wait until the last checkpoint was written or failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def check_written(self) -> None:
        """Wait for the last checkpoint; StorageError if it failed."""
        self.flush()
        if self._failure is not None:
            raise self._failure

    def clear(self) -> None:
        """Remove the fit's folder, after its result was stored."""
        self.flush()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._stands = []
        if self._missing:
            logger.warning("%s: checkpoints that could not be written: %d", self._task or self.key[:8], self._missing)
            self._missing = 0
        try:
            self.folder.delete_folder(fit_folder(self.key))
        except StorageError as error:
            logger.warning("a checkpoint that is no longer needed remains: %s", error)

    def _put(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        began, before = time.monotonic(), self._stands
        writer = uuid.uuid4().hex[:8]  # two processes may write the same epoch, but never the same file
        files: dict[str, str] = {}
        head: dict[str, Any] = {}
        self._failure = None
        try:
            for number, shard in enumerate(_shards(tensors)):
                path = tensors_file(self.key, position["epoch"], writer, number)
                files[path.rpartition("/")[2]] = self.folder.write(path, save(shard))
            head = {"format": _FORMAT, "key": self.key, "files": files, "position": dict(position), "task": self._task}
            self.folder.write(checkpoint_file(self.key), json.dumps(head).encode())
            self._stands = list(files)
        except (StorageError, *_DAMAGE) as error:  # the latter for tensors that safetensors cannot hold
            self._failure = error if isinstance(error, StorageError) else StorageError(f"it cannot be stored: {error}.")
            self._warn(position["epoch"], getattr(error.__context__, "errno", None) or type(error))
        if self._failure is None:
            self._reason = None
            self._delete(before)
        elif not head:  # once the JSON was attempted, it may be in place although the storage reported a failure
            self._delete(list(files))
        if self._beside:
            self._beside_s += time.monotonic() - began

    def _warn(self, epoch: int, reason: object) -> None:
        """Log a failure, unless the checkpoint before failed for the same reason."""
        self._missing += 1
        if reason != self._reason:
            logger.warning("no checkpoint after epoch %d: %s The training goes on without.", epoch, self._failure)
        self._reason = reason

    def _delete(self, names: list[str]) -> None:
        for name in names:
            try:
                self.folder.delete(self._file(name))
            except StorageError as error:
                logger.warning("a checkpoint that is no longer needed remains: %s", error)

    def _read(self) -> Saved | None:
        from safetensors.torch import load

        head = self._head()
        if head is None:
            return None
        tensors: dict[str, Tensor] = {}
        for name, digest in head["files"].items():
            if not is_ours(f"{fit_folder(self.key)}/{name}"):
                raise ValueError(f"{name!r} is not a file of a checkpoint")
            data = self.folder.read(self._file(name))
            if data is None or sha256_of(data) != digest:
                raise ValueError(f"{name} is missing or damaged")
            tensors |= load(data)
        self._stands = list(head["files"])
        return Saved(tensors, head["position"])

    def _head(self) -> dict[str, Any] | None:
        data = self.folder.read(checkpoint_file(self.key))
        if data is None:
            return None
        head: dict[str, Any] = json.loads(data)
        if head["format"] != _FORMAT or head["key"] != self.key:
            raise ValueError(f"it has format {head['format']} and key {str(head['key'])[:8]}")
        if odd := [name for name in _NUMBERS if not isinstance(head["position"].get(name, 0), (int, float))]:
            raise ValueError(f"its {odd[0]} is not a number")
        return head

    def _file(self, name: str) -> str:
        return f"{fit_folder(self.key)}/{name}"


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Split tensors into files of about 16 MiB, which bounds the memory for serialising them; all contiguous."""
    shard: dict[str, Tensor] = {}
    taken: set[int] = set()
    size = 0
    for name, value in tensors.items():
        if shard and size + value.nbytes > _SHARD:
            yield shard
            shard, taken, size = {}, set(), 0
        # safetensors refuses tensors that share memory, such as tied weights: each name gets its own copy
        flat = value.detach().contiguous()
        shard[name] = flat.clone() if flat.untyped_storage().data_ptr() in taken else flat
        taken.add(shard[name].untyped_storage().data_ptr())
        size += value.nbytes
    yield shard

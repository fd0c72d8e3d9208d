"""Where a fit stands after an epoch, on the run's storage: tensors as safetensors, the rest as JSON. No pickle.

    checkpoints/KEY/epoch-00012.safetensors     weights, statistics and momentum
    checkpoints/KEY/checkpoint.json             names that file with its SHA-256, and says where the fit stands

The JSON is written last: it names a whole file, or the one before it still.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unseen_ray.errors import StorageError
from unseen_ray.run import CHECKPOINTS
from unseen_ray.storage import Folder, sha256_of

__all__ = ["Checkpoints", "Saved", "fit_folder"]

logger = logging.getLogger(__name__)

_FORMAT = 1
_HEAD = "checkpoint.json"
_SHARE = 0.02  # of the time of a fit that writing may take, beyond the first checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A checkpoint as it was read.

    Attributes:
        tensors: by name.
        position: what `Checkpoints.save` was told of it.
    """

    tensors: dict[str, Tensor]
    position: dict[str, Any]


def fit_folder(key: str) -> str:
    """Where a fit keeps its checkpoints within the run's folder, named by all that determines the fit."""
    return f"{CHECKPOINTS}/{key[:32]}"


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints of one fit, of which only the last is kept.

    Args:
        folder: the run's.
        key: digest of all that determines the fit, so that it never finds the state of another one.
    """

    folder: Folder
    key: str
    _name: str | None = None
    _spent_s: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def read(self) -> Saved | None:
        """The last checkpoint; None where there is none, or none that is whole."""
        from safetensors.torch import load

        try:
            head = self._head()
            if head is None:
                return None
            data = self.folder.read(self._file(head["file"]))
            if data is None or sha256_of(data) != head["sha256"]:
                raise ValueError(f"{head['file']} is missing or damaged")
            tensors = load(data)
        except Exception as error:  # whatever is wrong with a checkpoint, the fit can do without it
            logger.warning("%s cannot be used (%s); training from the start", self.path(), error)
            return None
        self._name = head["file"]
        return Saved(tensors, head["position"])

    def path(self) -> str:
        """Path or URI of the file that names the last checkpoint."""
        return self.folder.path(self._file(_HEAD))

    def due(self) -> bool:
        """Whether another one may be written: always, but for fits whose epochs take less time than that."""
        return self._spent_s <= _SHARE * (time.monotonic() - self._began)

    def write(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Put a checkpoint in place of the one before it; a fit goes on without it where storage fails.

        Args:
            tensors: what to keep, on any device.
            position: what else to keep, as JSON can hold it, with `epoch` among it.
        """
        from safetensors.torch import save

        began = time.monotonic()
        name = f"epoch-{position['epoch']:05d}.safetensors"
        data = save({tensor: value.detach().to("cpu", copy=True).contiguous() for tensor, value in tensors.items()})
        head = {"format": _FORMAT, "key": self.key, "file": name, "sha256": sha256_of(data), "position": dict(position)}
        try:
            self.folder.write(self._file(name), data)
            self.folder.write(self._file(_HEAD), json.dumps(head).encode())
            if self._name not in (None, name):
                self.folder.delete(self._file(str(self._name)))
            self._name = name
        except StorageError as error:
            logger.warning("no checkpoint after epoch %d: %s", position["epoch"], error)
        self._spent_s += time.monotonic() - began

    def clear(self) -> None:
        """Remove the fit's folder, once what came of it is on storage."""
        self.folder.delete_folder(fit_folder(self.key))
        self._name = None

    def _head(self) -> dict[str, Any] | None:
        data = self.folder.read(self._file(_HEAD))
        if data is None:
            return None
        head: dict[str, Any] = json.loads(data)
        if head["format"] != _FORMAT or head["key"] != self.key:
            raise ValueError(f"it is of format {head['format']} and key {head['key'][:8]}")
        return head

    def _file(self, name: str) -> str:
        return f"{fit_folder(self.key)}/{name}"

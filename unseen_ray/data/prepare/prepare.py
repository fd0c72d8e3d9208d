"""Packs a source once into Parquet files whose images decode fast: in parallel, with checksums, and resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from unseen_ray.data.images.pixel_store import BadSample, bad_sample_error, usable_cores
from unseen_ray.data.prepare.shards import Form, Shard, ShardJob, ShardReceipt
from unseen_ray.data.prepare.state import Begun, begin, finish
from unseen_ray.data.prepare.workers import made_by
from unseen_ray.data.sources.registry import SourceRef, open_source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import did_you_mean
from unseen_ray.storage.filesystem import Folder, absolute_path
from unseen_ray.storage.lock import held
from unseen_ray.storage.patterns import covers

__all__ = ["KINDS", "PrepareProgress", "Prepared", "prepare"]

KINDS = {
    "jpeg": "short side scaled, aspect kept, encoded again",
    "raw": "uncompressed pixels of a square, which need no decoding",
}
_QUALITY = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareProgress:
    """The progress of `prepare`.

    Attributes:
        shards_done, shards: files, finished and in all.
        rows_done, rows: samples in them.
        rows_made: finished samples that this call made.
        seconds: time since the call.
    """

    shards_done: int
    shards: int
    rows_done: int
    rows: int
    rows_made: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared folder.

    Attributes:
        path: the folder, a source for `prune`.
        source: the name of the original source.
        num_samples, num_classes: N and C.
        form: the form of its images.
        receipts: the receipts of its files, in the order of their rows.
        workers: number of processes that made them.
        seconds: duration of the call.
    """

    path: str
    source: str
    num_samples: int
    num_classes: int
    form: Form
    receipts: tuple[ShardReceipt, ...]
    workers: int
    seconds: float

    @property
    def bad(self) -> list[BadSample]:
        """Samples that cannot be decoded; their rows have no bytes."""
        return [sample for receipt in self.receipts for sample in receipt.bad]


def prepare(
    source: Any,
    out: str | os.PathLike[str],
    *,
    size: int = 256,
    kind: str = "jpeg",
    quality: int | None = None,
    shard_mb: float = 128,
    workers: int | None = None,
    on_bad_sample: str = "error",
    on_event: Callable[[PrepareProgress], None] = lambda event: None,
) -> Prepared:
    """Pack a source into Parquet files whose images decode fast; call it again to resume.

    Rows keep their order, so ids stay the same. With several workers, call this under `if __name__ == "__main__":`,
    since the worker processes import your script.

    Args:
        source: any source that a run takes.
        out: a new folder or URI, or one that was begun with the same arguments.
        size: short side of a JPEG in pixels, never enlarged; height and width of a `raw` square.
        kind: `jpeg`: upright, RGB, scaled with its aspect ratio; a small upright baseline RGB JPEG keeps its bytes.
            `raw`: exactly the pixels that a run of this size makes of the source, as a binary PPM.
        quality: JPEG quality, 1 to 100; None for 90.
        shard_mb: approximate size of a file in MB.
        workers: number of processes; None for one per core.
        on_bad_sample: `error`, or `skip`: the row stays, without bytes, and runs skip it.
        on_event: called with the progress.

    Raises:
        ConfigError: if an argument is not allowed, or the folder holds anything else.
        DataError: if the source cannot be read, or has changed since the folder was begun.
        BadSampleError: if a sample cannot be decoded and `on_bad_sample` is `error`.
        StorageError: if the folder cannot be written.
        RunInUseError: if another process prepares it.
    """
    began = time.monotonic()
    form = _checked(size, kind, quality, shard_mb, workers, on_bad_sample)
    ref, folder = source_ref(source).absolute(), Folder(absolute_path(os.fspath(out)))
    _check_place(folder, ref)
    info = (opened := open_source(ref)).info
    with held(folder) as lock:
        begun = begin(lock.folder, opened, form, shard_mb)
        skip = on_bad_sample == "skip"
        work = ShardJob(ref=ref, fingerprint=info.fingerprint, form=form, folder=lock.folder, skip=skip)
        count = min(workers or usable_cores(), len(begun.shards))
        receipts = _make_shards(begun, work, count, lambda made: on_event(_progress(made, begun.shards, began)))
        finish(lock.folder, begun, receipts)
    return Prepared(
        path=folder.root,
        source=info.name,
        num_samples=len(info),
        num_classes=info.num_classes,
        form=form,
        receipts=receipts,
        workers=count,
        seconds=time.monotonic() - began,
    )


def _make_shards(
    begun: Begun, work: ShardJob, workers: int, on_made: Callable[[Collection[ShardReceipt]], None]
) -> tuple[ShardReceipt, ...]:
    """Make the missing shards and return all receipts, in the order of their rows."""
    receipts: dict[str, ShardReceipt] = {}
    for receipt in made_by(workers, work, [(shard, begun.receipts.get(shard.name)) for shard in begun.shards]):
        if receipt.bad and not work.skip:
            raise bad_sample_error(receipt.bad)
        receipts[receipt.name] = receipt
        on_made(receipts.values())
    return tuple(receipts[shard.name] for shard in begun.shards)


def _checked(size: Any, kind: Any, quality: Any, shard_mb: Any, workers: Any, on_bad_sample: Any) -> Form:
    problems = []
    if not _is_whole(size, 65_500):
        problems.append(f"size={size!r} must be a whole number of pixels, 1 to 65500.")
    if kind not in KINDS:
        known = ", ".join(f"{name} ({what})" for name, what in KINDS.items())
        problems.append(f"as={kind!r} is none of {known}.{did_you_mean(str(kind), KINDS)}")
    if quality is not None and not _is_whole(quality, 100):
        problems.append(f"quality={quality!r} must be a whole number, 1 to 100.")
    if quality is not None and kind == "raw":
        problems.append(f"quality={quality!r} has no effect on raw pixels. Leave it out, or choose jpeg.")
    if isinstance(shard_mb, bool) or not isinstance(shard_mb, (int, float)) or not 0 < shard_mb <= 1024:
        problems.append(f"shard_mb={shard_mb!r} must be a number above 0, at most 1024: the MB of a file.")
    if workers is not None and not _is_whole(workers, 4096):
        problems.append(f"workers={workers!r} must be a whole number of processes, 1 or more.")
    if on_bad_sample not in ("error", "skip"):
        problems.append(f"on_bad_sample={on_bad_sample!r} must be error or skip.")
    if problems:
        raise ConfigError(problems)
    return Form(kind=kind, size_px=size, quality=None if kind == "raw" else quality or _QUALITY)


def _is_whole(value: Any, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= high


def _check_place(folder: Folder, ref: SourceRef) -> None:
    if os.path.isfile(folder.root):
        raise ConfigError(f"out={folder.root} is a file. Name a folder.")
    for place in ref.places:
        if covers(place, folder.root):
            raise ConfigError(
                f"out={folder.root} lies in the source {place} and would change it. Name a folder elsewhere."
            )


def _progress(done: Collection[ShardReceipt], shards: list[Shard], began: float) -> PrepareProgress:
    return PrepareProgress(
        shards_done=len(done),
        shards=len(shards),
        rows_done=sum(receipt.rows for receipt in done),
        rows=shards[-1].stop,
        rows_made=sum(receipt.rows for receipt in done if not receipt.reused),
        seconds=time.monotonic() - began,
    )

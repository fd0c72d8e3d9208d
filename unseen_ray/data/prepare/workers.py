"""The processes that make shards, which outlive neither their work nor the process that began it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from unseen_ray.data.prepare.shards import Shard, ShardJob, ShardReceipt, settled
from unseen_ray.errors import ConfigError, UnseenError

__all__ = ["made_by"]


def made_by(workers: int, work: ShardJob, tasks: Sequence[tuple[Shard, ShardReceipt | None]]) -> Iterator[ShardReceipt]:
    """Have shards in place, in whatever order they come.

    Args:
        workers: processes; 1 for this very one.
        work: what the shards share.
        tasks: each shard with what is known of it.

    Raises:
        ConfigError: if the source is a function that no other process can import.
        UnseenError: of a shard, as it was raised there; or if a process died.
    """
    if workers == 1:
        yield from (settled(work, *task) for task in tasks)
        return
    try:
        pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the source cannot be sent to other processes: {error}. Name it as package.module:function, or set workers: 1."
        ) from None
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        for future in as_completed([pool.submit(settled, work, *task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise UnseenError(
            "a process that prepares images died. If memory ran out, set fewer workers or a smaller shard_mb; in a script, "
            'call this below `if __name__ == "__main__":`. What was finished is kept: run the same line again.'
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the process that waits for this one, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

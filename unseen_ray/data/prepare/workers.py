"""Makes shards in worker processes, which end with their work and with their parent."""

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
    """Make the missing shards and yield each shard's receipt, in the order in which they finish.

    Args:
        workers: number of processes; 1 to work in this one.
        work: what the shards share.
        tasks: each shard with its receipt, if it has one.

    Raises:
        ConfigError: if the source is a function that no other process can import.
        UnseenError: if a shard fails, or a process dies.
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
            'call this under `if __name__ == "__main__":`. Finished files are kept: run the same line again.'
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

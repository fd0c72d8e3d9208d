"""A run on a Ray cluster: fold actors, aggregator actors, and a driver that can be restarted at any time."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from unseen_ray.data.images.loading import Held, load_pixel_store, settle_bad
from unseen_ray.data.images.memory import fits_in_memory
from unseen_ray.data.images.pixel_store import BadSample, MemoryPixelStore, chunks_of
from unseen_ray.execution.pixel_cache import plan_files
from unseen_ray.execution.ray.actor_pool import FoldPool, PoolTask
from unseen_ray.execution.ray.capacity import check_fits, fit_selectors, survey, this_machine
from unseen_ray.execution.ray.connect import ray_session, starts_private
from unseen_ray.execution.ray.data_parallel import train_together
from unseen_ray.execution.ray.decoding import Wanted, decode_spread
from unseen_ray.execution.ray.merge_actors import Aggregators
from unseen_ray.execution.ray.metrics import Meter
from unseen_ray.pruning.executor import ExecutorSetup, Observer
from unseen_ray.pruning.merge import Merged, Merger, MergeRequest
from unseen_ray.runs.manifest_entries import Receipt

if TYPE_CHECKING:
    from unseen_ray.core.arrays import IdArray
    from unseen_ray.core.tasks import EvalTask, ScoreTask
    from unseen_ray.data.sources.registry import Source
    from unseen_ray.runs.manifest_entries import Receipt
    from unseen_ray.runs.tasks import EvalResult, Job

__all__ = ["ClusterContext", "RayExecutor"]

logger = logging.getLogger(__name__)

_DECODED_BY_DRIVER = 4096  # images: with fewer, actors take longer to start than the driver to decode
_CHUNK = 2048  # images that an actor decodes at a time
_LOG_EVERY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterContext:
    """What an executor knows about the cluster and has put into the object store, for other executors on the same data.

    Attributes:
        out: its run's folder, which every actor must see.
        worker_info: hardware and precision of its first actor; all others must compute alike.
        skipped_ids: rows that cannot be read.
        size_px: of the source's images.
        labels, pixels: references to the labels, and to the pixels if they fit in memory, else to the description of their files.
    """

    out: str
    worker_info: dict[str, Any]
    skipped_ids: IdArray
    size_px: int
    labels: Any
    pixels: Any


class RayExecutor:
    """Spreads a run over a Ray cluster.

    Args:
        address: the cluster to join; None for RAY_ADDRESS, else a private one.
        tasks: how many tasks the largest step has, for which it requests actors at the start.
        context: of another executor; saves the wait for a first actor, and the decoding.
    """

    def __init__(self, *, address: str | None, tasks: int, context: ClusterContext | None = None) -> None:
        self._address, self._tasks = address, tasks
        self._given, self._context = context, context
        self._shares_pool = False
        self._open = contextlib.ExitStack()
        self._pool: FoldPool | None = None
        self._shared: tuple[Any, ...] = ()
        self._job: Job | None = None
        self._aggregators: Aggregators | None = None
        self._meter = Meter("")
        self._later_tasks = 1
        self._is_private = False

    def prepare(self, job: Job, source: Source) -> ExecutorSetup:
        """Connect, request actors, put the pixels into the object store once, and resolve the precision."""
        self._is_private = starts_private(self._address)
        if self._is_private:
            check_fits(job.config, this_machine())  # a refusal needs no cluster
        self._open.enter_context(ray_session(self._address))
        self._meter = Meter(job.out, waited_s=self.waited_s)
        pool = self._make_pool(job)
        if self._tasks:  # an executor that shares a pool requests nothing yet, which would kill the pool's actors
            pool.request_actors(self._tasks)
        self._later_tasks = job.config.repeats if job.config.gpus_per_fit == 1 else 0
        if self._given is not None:
            requested = job.config.recipe.precision
            known = self._given.worker_info
            pool.worker_infos[:] = [known if requested == "auto" else {**known, "precision": requested}]
            return self._prepared(job, self._given, pool)
        # the first comes up while folds train
        self._aggregators = Aggregators(job.config)
        held, skipped = self._load(job, source, pool)
        self._context = ClusterContext(
            out=job.out,
            worker_info=pool.first_worker(),
            skipped_ids=skipped,
            size_px=job.size_px,
            labels=ray.put(np.asarray(source.info.labels_N)),
            pixels=None if held is None else ray.put(held),
        )
        return self._prepared(job, self._context, pool)

    def context(self) -> ClusterContext:
        """What `prepare` resolved, for other executors while this one is open."""
        assert self._context is not None, "prepare comes first"
        return self._context

    def sharing_pool(self) -> RayExecutor:
        """An executor for another job of the same source, which uses this one's actors while this one does not."""
        other = RayExecutor(address=None, tasks=0, context=self.context())
        other._pool, other._shares_pool = self._pool, True
        return other

    def _prepared(self, job: Job, context: ClusterContext, pool: FoldPool) -> ExecutorSetup:
        info, skipped = pool.worker_infos[0], context.skipped_ids
        self._meter.gpu_share = pool.request["GPU"] or 1.0
        resolved = job.resolved.with_hardware(
            precision=info["precision"], cpus_per_fold=pool.request["CPU"], gpus_per_fold=pool.request["GPU"]
        )
        self._job = job.prepared(resolved, skipped)
        self._shared = uuid.uuid4().hex, ray.put(self._job), context.labels, context.pixels
        nodes = len([node for node in ray.nodes() if node["Alive"]])
        environment = {
            "executor": "ray",
            "ray": ray.__version__,
            "nodes": nodes,
            **{name: value for name, value in info.items() if name != "precision"},
        }
        return ExecutorSetup(job=self._job, environment=environment)

    def score(self, tasks: list[ScoreTask], on_event: Observer) -> list[Receipt]:
        """Train and score on the fold actors; models that several workers share are trained first."""
        return self._run("score", tasks, on_event, keep=self._later_tasks)

    def merge(self, request: MergeRequest) -> Merged:
        """Merge on aggregator actors. With another executor's context this process merges: it is a trial, an actor itself."""
        assert self._job is not None, "prepare comes first"
        if self._given is not None:
            return Merger(self._job, ray.get(self._given.labels)).merge(request)
        assert self._aggregators is not None, "prepare started them"
        if request.num_ranges > 1:  # which may take minutes
            self.rest()
        return self._aggregators.merge(self._shared[:3], self._job, request)

    def evaluate(self, tasks: list[EvalTask], on_event: Observer) -> list[EvalResult]:
        """Train and measure on the fold actors; models that several workers share are trained first."""
        return self._run("evaluate", tasks, on_event, keep=0)

    def _train_together(self, tasks: Sequence[ScoreTask | EvalTask], on_event: Observer) -> None:
        """Train the models that several workers share, one after the other, on the resources of the idle fold actors."""
        pool, job = self._pool, self._job
        assert pool is not None and job is not None, "prepare comes first"
        for task in tasks:
            if job.workers_of(task) > 1:
                train_together(job, self._shared, task, pool, on_event)

    def rest(self) -> None:
        """Kill the actors that wait for work."""
        if self._pool is not None:
            self._pool.request_actors(0)

    def waited_s(self) -> float:
        """Seconds in which other work held all workers that the cluster has for this run, or it had none."""
        return 0.0 if self._pool is None else self._pool.waited_s

    def close(self) -> None:
        """Kill the actors, and end the cluster if it is private."""
        self._meter.close()
        if ray.is_initialized():
            for actors in (None if self._shares_pool else self._pool, self._aggregators):
                if actors is not None:
                    actors.close()
        self._open.close()

    def _make_pool(self, job: Job) -> FoldPool:
        config, capacity = job.config, survey()
        request, selectors = check_fits(config, capacity), fit_selectors(config)
        capacity = capacity.having(selectors)
        logger.info(
            "each fold takes %g CPU and %g GPU%s; folds may use %s",
            request["CPU"],
            request["GPU"],
            "" if config.gpus_per_fold is not None else " by default",
            "1 node" if len(capacity.nodes) == 1 else f"{len(capacity.nodes)} nodes",
        )
        if (
            self._shares_pool
            and self._pool is not None
            and ((dict(self._pool.request), self._pool.selectors) == (dict(request), selectors))
        ):
            return self._pool
        self._shares_pool = False
        self._pool = FoldPool(
            request=request,
            capacity=capacity,
            precision=config.recipe.precision,
            max_retries=config.max_retries,
            max_preemptions=config.max_preemptions,
            wait_s=config.wait_s,
            out=job.out if self._given is None else self._given.out,
            deterministic=config.recipe.deterministic,
            selectors=selectors,
            user_fit=config.fit is not None,
            is_private=self._is_private,
            on_retry=self._meter.retried,
        )
        return self._pool

    def _load(self, job: Job, source: Source, pool: FoldPool) -> tuple[Held, IdArray]:
        """The pixels, in memory or in files, and the bad ids; decoded once, by the driver if they are few, else by the cluster."""
        config, total = job.config, len(source.info)
        files, held = plan_files(job, source.info), fits_in_memory(total, job.size_px, config.pixel_memory_gb)
        as_read = files is None and not held and config.on_bad_sample == "error"
        if total <= _DECODED_BY_DRIVER or as_read:
            pixel_store, skipped = load_pixel_store(
                source, job.size_px, on_bad_sample=config.on_bad_sample, memory_gb=config.pixel_memory_gb, files=files
            )
            return pixel_store.pixels_NHWC if isinstance(pixel_store, MemoryPixelStore) else files, skipped
        pixels = np.empty((total, job.size_px, job.size_px, 3), np.uint8) if held else None
        ranges = chunks_of(total, _CHUNK) if files is None else files.ranges()
        wanted = Wanted(size_px=job.size_px, held=held, files=files)
        bad: list[BadSample] = []
        progress = _DecodingProgress(total)
        for place, (chunk, failed) in decode_spread(pool, job.source, ranges, wanted, keep=self._tasks):
            bad += failed
            progress.add(ranges[place][1] - ranges[place][0])
            if pixels is not None:
                start, stop = ranges[place]
                pixels[start:stop] = chunk
        return files or pixels, settle_bad(sorted(bad, key=lambda sample: sample.id), job.config.on_bad_sample)

    def _run(self, method: str, tasks: list[Any], on_event: Observer, *, keep: int) -> list[Any]:
        assert self._pool is not None, "prepare comes first"
        self._meter.begin(tasks)
        on_event = self._meter.observing(on_event)
        self._train_together(tasks, on_event)
        queue = [PoolTask(name=task.name, start=_starter(method, *self._shared, task)) for task in tasks]
        return self._pool.run(queue, on_event, keep=keep)


@dataclass(slots=True)
class _DecodingProgress:
    """Logs every half minute how many images are decoded."""

    total: int
    done: int = 0
    # When the first images were done, and how many: the rate must not include the start of the workers.
    _began: tuple[float, int] | None = None
    _last_log: float = field(default_factory=time.monotonic)

    def add(self, images: int) -> None:
        """Count images that were decoded."""
        self.done += images
        now = time.monotonic()
        began, first = self._began = self._began or (now, self.done)
        if now - self._last_log >= _LOG_EVERY_S and first < self.done < self.total:
            self._last_log, rate = now, (self.done - first) / (now - began)
            left_min = (self.total - self.done) / rate / 60
            logger.info("decoded %d of %d images, %.0f a second: %.0f min left", self.done, self.total, rate, left_min)


def _starter(method: str, *args: Any) -> Any:
    return lambda actor: getattr(actor, method).options(num_returns="streaming").remote(*args)

"""Estimates what a run takes on a cluster, from the user's or measured rates. Imports torch only to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unseen_ray.config.models import SCORING_SPEEDUP
from unseen_ray.data.images.memory import fits_in_memory
from unseen_ray.data.sources.registry import Source, SourceInfo, encoded_of
from unseen_ray.errors import ConfigError
from unseen_ray.execution.estimate.cluster import ClusterCost, Rates, cluster_cost
from unseen_ray.execution.estimate.resources import Need, Needs, PixelPlace
from unseen_ray.storage.filesystem import is_uri
from unseen_ray.storage.throughput import storage_speed

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.pruning.plan import RunPlan

__all__ = ["Estimate", "check_asked", "estimate", "where_pixels_are"]

FLAGS = {"training": "images_per_s", "scoring": "scoring_images_per_s", "decode": "decode_images_per_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run takes.

    Attributes:
        rates: the given, measured or assumed rates.
        cluster: what it takes on the cluster; None if none is given.
        needs: cores, reads, network and disk; empty without a cluster, a decode rate or a measurement.
    """

    rates: Rates
    cluster: ClusterCost | None
    needs: tuple[Need, ...]


def check_asked(workers: int | None, given: Mapping[str, float | None]) -> None:
    """Check the number of workers and the rates; ConfigError names every problem."""
    problems = [
        f"{FLAGS[name]}={rate} must be above 0: images per second."
        for name, rate in given.items()
        if rate is not None and not 0 < rate < float("inf")
    ]
    if workers is not None and workers < 1:
        problems.append(f"workers={workers} must be 1 or more: the GPUs, or CPU workers, of the cluster.")
    if problems:
        raise ConfigError(problems)


def estimate(
    plan: RunPlan,
    source: Source,
    config: PruneConfig,
    *,
    workers: int | None,
    given: Mapping[str, float | None],
    measure: bool,
) -> Estimate:
    """Estimate what a run takes.

    Args:
        plan: its tasks and stages.
        source: sampled for the size of its images, and to measure rates.
        config: the configuration with its model; to measure storage, temporary files are written to `out`.
        workers: number of workers of the cluster.
        given: rates by name: training, scoring, decode.
        measure: whether to measure the rates that are not given.
    """
    rates, checkpoint, more = _rates(source, config, given, measure=measure)
    cluster = None if workers is None else cluster_cost(plan, config, rates, workers)
    needs: tuple[Need, ...] = ()
    if cluster is not None or measure or given["decode"] is not None:
        work = Needs(
            plan=plan,
            config=config,
            info=source.info,
            encoded=encoded_of(source),
            rates=rates,
            pixels=where_pixels_are(config, source.info),
            cluster=cluster,
            checkpoint_bytes=checkpoint,
        )
        needs = (*work.rows(), *more)
    return Estimate(rates=rates, cluster=cluster, needs=needs)


def where_pixels_are(config: PruneConfig, info: SourceInfo) -> PixelPlace:
    """Where a run will hold its decoded pixels, if the disk has room for their files."""
    if fits_in_memory(len(info), info.size_px, config.pixel_memory_gb):
        return "memory"
    folder = config.pixel_folder
    # by default pixels go to local or shared disks only, and not for a user's fit
    by_default = config.fit is None and (config.out is None or not is_uri(config.out))
    return "none" if folder == "none" or (folder is None and not by_default) else "files"


def _rates(
    source: Source, config: PruneConfig, given: Mapping[str, float | None], *, measure: bool
) -> tuple[Rates, float | None, list[Need]]:
    """Rates, bytes of the model's checkpoint if it was built, and measurements of the storage."""
    values = dict(given)
    how = {name: "given" for name, rate in given.items() if rate is not None}
    checkpoint: float | None = None
    more: list[Need] = []
    if measure:
        from unseen_ray.execution.estimate.rates import measure_rates

        found = measure_rates(config, source)
        checkpoint = found.checkpoint_bytes
        cores = "" if found.device != "cpu" else f" with {config.threads} thread{'s' if config.threads > 1 else ''}"
        origin = f"measured here on {found.device}{cores}, {found.precision}, batches of {found.batch_size}"
        for name, rate in (("training", found.training), ("scoring", found.scoring), ("decode", found.decode)):
            if values[name] is None and rate is not None:
                values[name] = rate
                how[name] = origin if name != "decode" else "measured here"
        more = _of_storage(config)
    if values["scoring"] is None and values["training"] is not None:
        values["scoring"] = SCORING_SPEEDUP * values["training"]
        how["scoring"] = f"{SCORING_SPEEDUP:g} x training, as is usual"
    if config.fit is not None:
        values |= {"training": None, "scoring": None}
    return Rates(**values, how=how), checkpoint, more


def _of_storage(config: PruneConfig) -> list[Need]:
    if not config.out:
        return []
    speed = storage_speed(config.out)
    how = "= measured here: 32 MiB {}, the median of three; the files are deleted"
    return [
        Need(name="out_write", value=speed.write, unit="B/s", how=how.format("written and synced")),
        Need(name="out_read", value=speed.read, unit="B/s", how=how.format("read back")),
    ]

"""A sampler for your own training loop: each epoch takes the samples that a run picked first, and others drawn anew."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from numbers import Integral, Real

import numpy as np

from unseen_ray.core.samples.epoch_draw import EpochDraw
from unseen_ray.core.seeds import derive, tie_keys
from unseen_ray.errors import ConfigError
from unseen_ray.execution.api import PruneResult, run_of
from unseen_ray.reporting.sampling_pool import SamplingPool

__all__ = ["KeptSampler"]


class KeptSampler:
    """Ids of a run's source, as many an epoch as the coreset has, drawn anew but for a fixed part of the coreset, shuffled.

    For `torch.utils.data.DataLoader(dataset, sampler=...)` over the whole source, in which id i is row i:

        loader = DataLoader(ur.torch_subset(result, transform).dataset, sampler=ur.KeptSampler(result), batch_size=256)

    `round(fixed * size)` ids are the same in every epoch: those of the coreset that were picked first, by stage, then by score. The others
    are drawn uniformly from all other samples of the run, never from its holdout, unreadable rows or suspects that its guard kept out.
    `fixed=0` draws all of them anew (RS2), the default as no fixed part was better (benchmarks/README.md), and `fixed=1` with the run's
    keep is the coreset. To fix what a policy picks in other numbers, choose it with `ur.select` first.

    Every iteration is the next epoch, and `set_epoch` says which. Draw and order are functions of (seed, epoch, id), so that all
    ranks and every restart agree. `state_dict` and `load_state_dict` resume within an epoch.

    Args:
        result: a finished run, its folder, or the .json file that `export` wrote of it; all three draw the same epochs. Nothing
            that a file names is imported.
        keep: samples of an epoch as a fraction of the run's N, above 0 and up to 1; None for as many as the coreset has.
        fixed: share of an epoch that is fixed, 0 to 1.
        seed: selects the draws; non-negative.
        num_replicas: number of processes that share each epoch; each takes as many, and the remainder is left out.
        rank: this process among them, from 0. Neither is taken from torch.distributed.

    Raises:
        ConfigError: if a value is outside its range, or the coreset or the samples are fewer than asked for; lists every problem.
        StorageError: if a file of the run, or the .json file, is damaged.

    Source: Okanovic et al., Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning (arXiv 2305.18424).
    """

    def __init__(
        self,
        result: PruneResult | str | os.PathLike[str],
        *,
        keep: float | None = None,
        fixed: float = 0.0,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        _check_ranges(keep, fixed, seed, num_replicas, rank)
        pool = _pool_of(result)
        self._ids_L, kept = pool.ids_L, len(pool.picked_M)
        size = kept if keep is None else round(keep * pool.num_samples)
        count = round(fixed * size)
        problems = []
        if count > kept:
            problems.append(
                f"fixed={fixed:g} of {size} samples an epoch is {count}, and {pool.place} keeps {kept}. Lower fixed or "
                "keep, or choose more first: unseen-ray select."
            )
        if not num_replicas <= size <= len(self._ids_L):
            problems.append(
                f"keep={keep} is {size} samples an epoch; it must be {num_replicas} to {len(self._ids_L)}: at least one for each of "
                "num_replicas, and at most the samples of the run that its guard did not keep out."
            )
        if problems:
            raise ConfigError(problems)
        self._draw = EpochDraw(fixed_ids=np.sort(pool.picked_M[:count]), size=size, seed=seed)
        self._num_replicas, self._rank = num_replicas, rank
        self._now = self._next = 0, 0  # epoch and ids given: of the iteration under way, and where the next one begins

    def __repr__(self) -> str:
        draw, pool = self._draw, len(self._ids_L)
        shared = f", rank {self._rank} of {self._num_replicas}" if self._num_replicas > 1 else ""
        return f"KeptSampler({draw.size:,} of {pool:,} samples an epoch, {len(draw.fixed_ids):,} fixed, seed {draw.seed}{shared})"

    def __len__(self) -> int:
        """Ids of an epoch for this rank."""
        return self._draw.size // self._num_replicas

    def __iter__(self) -> Iterator[int]:
        """The ids of an epoch for this rank; the next iteration gives those of the next epoch."""
        epoch, given = self._now = self._next
        if given == len(self):  # torchdata drops the iterator in which it finds this, and begins another
            self._next = epoch + 1, 0
        ids = self._ids_L[self._draw.positions(self._ids_L, epoch)]
        order = np.argsort(tie_keys(ids, derive(self._draw.seed, f"order {epoch}")))
        left = ids[order][self._rank :: self._num_replicas][given : len(self)].tolist()
        return self._give(left, epoch, given)

    def _give(self, ids: list[int], epoch: int, given: int) -> Iterator[int]:
        # Only now: loaders with workers begin an iteration twice before they take its first id.
        if self._next == (epoch, given):
            self._next = epoch + 1, 0
        for count, number in enumerate(ids, given + 1):
            self._now = epoch, count
            yield number

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is, from 0, as torch's DistributedSampler does: after a restart, or on every rank.

        An epoch within which `load_state_dict` resumes goes on there.
        """
        if not isinstance(epoch, Integral) or epoch < 0:
            raise ConfigError(f"epoch={epoch!r} must be a whole number, 0 or more.")
        if epoch != self._next[0]:
            self._now = self._next = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch under way, and how many of its ids this rank was given: all of them until the next iteration begins.

        A loader with workers is given ids ahead of the batches that it yields. torchdata's `StatefulDataLoader` keeps the state that
        belongs to each batch, so use its `state_dict`; this one fits `num_workers=0` and loops of your own.
        """
        epoch, given = self._now
        return {"epoch": epoch, "given": given}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next iteration give what was left of an epoch; then come the following epochs.

        After a whole epoch nothing was left: call `set_epoch` with the next one, so that the next iteration is not empty. A
        `StatefulDataLoader` needs no such call.

        Args:
            state: from `state_dict` of a sampler with the same arguments, on any rank that was given as many.

        Raises:
            ConfigError: if it is of none.
        """
        epoch, given = state.get("epoch", -1), state.get("given", -1)
        whole = isinstance(epoch, Integral) and isinstance(given, Integral)
        if not whole or epoch < 0 or not 0 <= given <= len(self):
            raise ConfigError(
                f"state {dict(state)} is not of this sampler: it must have an `epoch` of 0 or more, and as `given` 0 to {len(self)}, the "
                "ids of an epoch. Load what `state_dict` of a sampler with the same arguments returned."
            )
        self._now = self._next = epoch, given


def _pool_of(result: PruneResult | str | os.PathLike[str]) -> SamplingPool:
    if not isinstance(result, PruneResult):
        path = os.fspath(result)
        if path.lower().endswith(".json") and not os.path.isdir(path):
            return SamplingPool.of_file(path)
    return SamplingPool.of_run(run_of(result))


def _check_ranges(keep: float | None, fixed: float, seed: int, num_replicas: int, rank: int) -> None:
    numbers = {"keep": 1 if keep is None else keep, "fixed": fixed}
    problems = [f"{name}={value!r} must be a number." for name, value in numbers.items() if not isinstance(value, Real)]
    counts = {"seed": seed, "num_replicas": num_replicas, "rank": rank}
    problems += [
        f"{name}={value!r} must be a whole number." for name, value in counts.items() if not isinstance(value, Integral)
    ]
    if problems:
        raise ConfigError(problems)
    if keep is not None and not 0 < keep <= 1:
        problems.append(f"keep={keep} must be above 0 and at most 1: the fraction of the run's samples in an epoch.")
    if not 0 <= fixed <= 1:
        problems.append(
            f"fixed={fixed} must be 0 to 1: the share of an epoch that is the same in each; 0 draws all anew."
        )
    if seed < 0:
        problems.append(f"seed={seed} must be 0 or more.")
    if num_replicas < 1:
        problems.append(f"num_replicas={num_replicas} must be 1 or more: the number of processes that share an epoch.")
    elif not 0 <= rank < num_replicas:
        problems.append(f"rank={rank} must be 0 to {num_replicas - 1}, below num_replicas={num_replicas}.")
    if problems:
        raise ConfigError(problems)

"""Cores, reads, network and disk that a run needs, each with its formula. Needs neither torch nor ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unseen_ray.config.models import entry_of

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig
    from unseen_ray.data.sources.registry import Encoded, SourceInfo
    from unseen_ray.execution.estimate.cluster import ClusterCost, Rates
    from unseen_ray.pruning.plan import RunPlan

__all__ = ["Need", "Needs", "PixelPlace", "disk_bytes_of", "weights_of"]

PixelPlace = Literal["memory", "files", "none"]

_VOTE_BYTES = 8 + 8 + 4 + 4  # id, pred, p_top, p_label
_HOUR_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One resource that a run needs.

    Attributes:
        name: the resource.
        value: how much of it; None if an input is unknown.
        unit: the unit of the value.
        how: how it was computed, or which input is missing.
    """

    name: str
    value: float | None
    unit: str
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Computes what a run needs.

    Args:
        plan: its tasks and stages.
        config: the configuration with its model.
        info: the source.
        encoded: the stored size of its images.
        rates: images per second.
        pixels: where decoded pixels are held: in `memory`, in `files`, or not at all (`none`): decoded at every read.
        cluster: what the run takes on a cluster, if one is given.
        checkpoint_bytes: bytes of a model's checkpoint, if they were measured.
    """

    plan: RunPlan
    config: PruneConfig
    info: SourceInfo
    encoded: Encoded
    rates: Rates
    pixels: PixelPlace
    cluster: ClusterCost | None = None
    checkpoint_bytes: float | None = None

    def rows(self) -> list[Need]:
        """All resources, in the order in which they are shown."""
        return [*self._decoding(), *self._reading(), *self._network(), *self._disk()]

    def _decoding(self) -> list[Need]:
        training, scoring, decode = self.rates.training, self.rates.scoring, self.rates.decode
        if self.pixels != "none":
            hours = None if decode is None else len(self.info) / decode / _HOUR_S
            how = f"= images / decode rate / 3600, once: pixels stay in {self.pixels}, and no training decodes"
            return [_need("decode_core_hours", hours, "h", how, "decode_images_per_s")]
        rows = [
            _need(
                f"decode_cores_{name}",
                _over(rate, decode),
                "cores",
                f"= {name} rate / decode rate of a core",
                "both rates",
            )
            for name, rate in (("training", training), ("scoring", scoring))
        ]
        if self.cluster is not None:
            rows.append(self._in_all("decode_cores_in_all", rows[0].value, rows[1].value, "cores", "both rates"))
        return rows

    def _reading(self) -> list[Need]:
        each, whole = self.encoded.bytes_each, len(self.info) * self.encoded.bytes_each
        once = Need(
            name="read_encoded", value=whole, unit="B", how="= images x bytes of an image, once, to decode them"
        )
        rows = [Need(name="encoded_bytes", value=each, unit="B", how=self.encoded.how)]
        if self.pixels == "memory":
            return [*rows, once]
        training, scoring = (self._read_by(kind) for kind in ("training", "scoring"))
        rows = [*rows, *([once] if self.pixels == "files" else []), training, scoring]
        if self.cluster is not None:
            rows.append(self._in_all("read_in_all", training.value, scoring.value, "B/s", "images_per_s"))
        random, in_order = self._bytes_of("training"), self._bytes_of("scoring")
        total = sum(t.models * (t.image_passes * random + t.scored * t.passes * in_order) for t in self.plan.tasks)
        how = "= images trained and scored x bytes read for each"
        return [*rows, Need(name="read_bytes", value=total, unit="B", how=how)]

    def _bytes_of(self, kind: str) -> float:
        """Bytes that are read for each image in training or in scoring."""
        if self.pixels == "files":
            return float(self.info.size_px**2 * 3)
        if kind == "scoring":
            return self.encoded.bytes_each
        return self.encoded.read_bytes(self.config.recipe.batch_size, len(self.info))

    def _read_by(self, kind: str) -> Need:
        """Bytes that one worker reads per second."""
        rate, count, batch = getattr(self.rates, kind), self._bytes_of(kind), self.config.recipe.batch_size
        how = f"= {kind} rate x {count:,.0f} bytes of an image" + (" as pixels" if self.pixels == "files" else "")
        if self.pixels == "none" and kind == "training" and self.encoded.groups:
            how += f": a random batch of {batch} reads whole row groups, of {self.encoded.groups:,} in all"
        return _need(f"read_{kind}", None if rate is None else rate * count, "B/s", how, "images_per_s")

    def _network(self) -> list[Need]:
        votes, scores, checkpoint = *disk_bytes_of(self.plan), self._checkpoint()
        rows = [
            Need(
                name="network_pixels",
                value=0.0 if self.pixels == "none" else float(self._pixels()),
                unit="B",
                how={
                    "memory": "= images x px^2 x 3, to each node once",
                    "files": "= images x px^2 x 3, written once; they are read as above",
                    "none": "none: workers read encoded images from the source",
                }[self.pixels],
            ),
            Need(
                name="network_votes",
                value=2.0 * votes + scores,
                unit="B",
                how="= votes written and read once, and scores written",
            ),
        ]
        epochs = sum(task.models * task.epochs for task in self.plan.tasks)
        moved = None if checkpoint is None else checkpoint * epochs
        how = f"= {_megabytes(checkpoint)} of a checkpoint x {epochs:,} epochs, at most: short epochs share one"
        rows.append(_need("network_checkpoints", moved, "B", how, "the model's size: --measure finds it"))
        shared = self.config.gpus_per_fit
        weights = weights_of(self.config, self.plan.num_classes)
        if shared > 1 and weights is not None:
            steps = sum(task.models * task.steps for task in self.plan.tasks if task.workers > 1)
            # a ring all-reduce sends 2 (g - 1) / g of the gradients from each of g workers
            moved = 2 * (shared - 1) / shared * 4 * weights * steps
            how = f"= 2 (g - 1) / g x 4 bytes x {weights:,} weights x {steps:,} steps, of each of g = {shared} workers"
            rows.append(Need(name="network_gradients", value=moved, unit="B", how=how))
        return rows

    def _disk(self) -> list[Need]:
        votes, scores, checkpoint = *disk_bytes_of(self.plan), self._checkpoint()
        if self.cluster is not None:
            at_once = max(stage.at_once for stage in self.cluster.stages)
        else:
            by_stage = [[task.models for task in self.plan.tasks if task.stage == s.index] for s in self.plan.stages]
            at_once = max(map(sum, by_stage))
        where = {
            "memory": "in memory, on no disk",
            "files": "in pixel_folder, or in out until the run ends",
            "none": "if they were stored, which they are not",
        }
        pixels = f"= images x {self.info.size_px}^2 x 3, {where[self.pixels]}"
        held = None if checkpoint is None else 2 * checkpoint * at_once
        return [
            Need(name="decoded_pixels", value=float(self._pixels()), unit="B", how=pixels),
            Need(
                name="disk_votes",
                value=float(votes),
                unit="B",
                how="= votes x 24 bytes and 4 a score" + _and_probs(self.plan),
            ),
            Need(name="disk_scores", value=float(scores), unit="B", how="= images x (32 bytes and 8 a score) x stages"),
            _need(
                "disk_checkpoints",
                held,
                "B",
                f"= 2 x {_megabytes(checkpoint)} x {at_once} models: a new one is complete before the old one is deleted",
                "the model's size: --measure finds it",
            ),
        ]

    def _in_all(self, name: str, training: float | None, scoring: float | None, unit: str, missing: str) -> Need:
        """The most that any stage takes, in training or in scoring, from what one worker takes."""
        assert self.cluster is not None
        busy, scorers = (max(getattr(stage, kind) for stage in self.cluster.stages) for kind in ("busy", "scoring"))
        known = None if training is None or scoring is None else max(training * busy, scoring * scorers)
        how = f"= the larger of {busy} workers in training and {scorers} in scoring, the most at once, x what one takes"
        return _need(name, known, unit, how, missing)

    def _pixels(self) -> int:
        return int(len(self.info) * self.info.size_px**2 * 3)

    def _checkpoint(self) -> float | None:
        if self.checkpoint_bytes is not None or self.config.fit is not None:
            return self.checkpoint_bytes
        entry = entry_of(self.config.model)
        return None if entry is None else float(entry.checkpoint_bytes(self.plan.num_classes, self.config.recipe))


def weights_of(config: PruneConfig, num_classes: int) -> int | None:
    """Number of weights of a configuration's model; None if only building it would tell."""
    entry = entry_of(config.model)
    return None if entry is None or config.fit is not None else entry.weights(num_classes)


def disk_bytes_of(plan: RunPlan) -> tuple[int, int]:
    """Bytes of the votes and of the tables of scores, before compression."""
    columns = len(plan.resolved.scores.named)
    scored = sum(task.models * task.scored for task in plan.tasks if not task.is_trial)
    votes = scored * (_VOTE_BYTES + 4 * columns)
    if plan.resolved.keeps_probs:
        votes += scored * plan.num_classes * 4
    # 32: id, label, votes, pred and p_label; 8: a score and its deviation
    return votes, plan.num_samples * (32 + 8 * columns) * len(plan.stages)


def _need(name: str, value: float | None, unit: str, how: str, missing: str) -> Need:
    return Need(name=name, value=value, unit=unit, how=how if value is not None else f"needs {missing}")


def _over(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first / second


def _megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f} MB"


def _and_probs(plan: RunPlan) -> str:
    return ", and 4 a class" if plan.resolved.keeps_probs else ""

"""What a run would do and cost, before anything starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from unseen_ray.config.fields.given import config_of
from unseen_ray.config.fields.keywords import RunFields, with_keywords
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.score_columns import score_name
from unseen_ray.config.scoring import scored_by
from unseen_ray.core.samples.population import make_population
from unseen_ray.data.related.grouping import with_groups
from unseen_ray.data.sources.registry import Source, SourceInfo, open_source, source_ref
from unseen_ray.execution.cards import html_card, placement_texts, stages_text, text_card
from unseen_ray.execution.estimate.estimate import check_asked, estimate
from unseen_ray.execution.estimate.plan_json import values_of
from unseen_ray.pruning.plan import RunPlan, plan_run
from unseen_ray.pruning.validate import check_functions

if TYPE_CHECKING:
    from unseen_ray.config.run import PruneConfig

__all__ = ["Plan", "plan", "plan_values"]


class Plan(NamedTuple):
    """What a run would do.

    Attributes:
        run: its sizes, stage by stage.
        source: what is known of the source.
        config: the configuration with its model named.
    """

    run: RunPlan
    source: SourceInfo
    config: PruneConfig

    def __repr__(self) -> str:
        return text_card(f"Plan({self._kept})", self._facts())

    def _repr_html_(self) -> str:
        return html_card(f"Plan: {self._kept}", self._facts())

    @property
    def _kept(self) -> str:
        keep = self.config.keep
        return f"keeps {self.run.budget:,} of {self.run.num_samples:,} samples of {self.source.name}, keep={keep:g}"

    def _facts(self) -> dict[str, str]:
        bill, config, run = self.run.bill(), self.config, self.run
        facts = {
            "chosen by": f"{score_name(config.score)}, policy {score_name(config.policy)}",
            "folds": str(config.folds) if config.mode == "unseen" else "",
            "stages": stages_text([stage.target for stage in run.stages]),
            "trainings": f"{sum(task.models for task in run.tasks):,}, of {scored_by(config.to_json())}",
            "cost": "" if bill is None else f"{bill:.1%} of one training on all samples",
            "holdout": f"{run.num_holdout:,} samples, in neither number above" if run.num_holdout else "",
            "placement": "; ".join(placement_texts(config.placement)),
            "folder": config.out or "none yet: set out",
            "warnings": "; ".join(run.warnings),
        }
        return {name: value for name, value in facts.items() if value}


@with_keywords(RunFields)
def plan(config: PruneConfig | str | os.PathLike[str] | None = None, **fields: Unpack[RunFields]) -> Plan:
    """Work out what a run would do; starts nothing and loads neither torch nor ray.

    Args:
        config: the run: a configuration or the path of a YAML file; None if `fields` say it all.
        fields: the fields of `PruneConfig`, each in place of that of `config`.

    Returns:
        The plan, what is known of the source, and the configuration with its model named.

    Raises:
        ConfigError: if the run cannot be done on this data.
        DataError: if the data cannot be read.
    """
    planned, _, info, used = _planned(config_of(config, fields))
    return Plan(planned, info, used)


@with_keywords(RunFields)
def plan_values(
    config: PruneConfig | str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    images_per_s: float | None = None,
    scoring_images_per_s: float | None = None,
    decode_images_per_s: float | None = None,
    measure: bool = False,
    **fields: Unpack[RunFields],
) -> dict[str, Any]:
    """What `unseen-ray plan --json` prints: sizes, and the time and resources of the run, in all and for each stage.

    Args:
        config: the run, as in `plan`.
        workers: GPUs, or CPU workers, that the cluster has; None to leave it open.
        images_per_s: that one worker trains.
        scoring_images_per_s: that one worker scores; None for three times as many.
        decode_images_per_s: that one core decodes.
        measure: whether to measure the rates that are not given, and the throughput of `out`, on this machine; loads torch.
        fields: as in `plan`.

    Raises:
        ConfigError, DataError: as `plan`; also if a rate is not above 0.
    """
    given = {"training": images_per_s, "scoring": scoring_images_per_s, "decode": decode_images_per_s}
    check_asked(workers, given)
    planned, source, info, used = _planned(config_of(config, fields))
    scoring = planned.resolved.config
    taken = estimate(planned, source, scoring, workers=workers, given=given, measure=measure)
    return values_of(planned, info, used, taken.rates, cluster=taken.cluster, needs=taken.needs)


def _planned(config: PruneConfig) -> tuple[RunPlan, Source, SourceInfo, PruneConfig]:
    source = open_source(source_ref(config.source))
    info = with_groups(source, config.group)
    resolved = ResolvedRun.of(config, info.size_px)
    check_functions(resolved)
    population = make_population(
        info.labels_N, info.num_classes, holdout=config.holdout, seed=config.seed, groups=info.groups
    )
    return plan_run(resolved, population), source, info, resolved.config

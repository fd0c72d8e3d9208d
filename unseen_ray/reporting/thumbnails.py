"""Sample images of each class: the easiest, the hardest, the lowest kept, the highest dropped, the suspected wrong labels."""

from __future__ import annotations

import base64
import io
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from unseen_ray.config.score_columns import SUSPECT
from unseen_ray.core.guard import are_unlikely
from unseen_ray.reporting.score_tables import Rows, extremes_of, rows_of

if TYPE_CHECKING:
    from unseen_ray.core.arrays import IdArray
    from unseen_ray.data.sources.registry import Source
    from unseen_ray.reporting.facts import ReportFacts
    from unseen_ray.runs.run import Run

__all__ = ["GROUPS", "Shots", "Thumbnail", "picked", "shown_classes", "thumbnails", "with_extremes"]

logger = logging.getLogger(__name__)

_CLASSES = 20
_EACH = 4
_SIDE_PX, _BLOCKY_PX = 112, 48
GROUPS = {
    "easiest": ("easiest", "lowest score, whether predicted right or wrong"),
    "hardest": ("hardest", "highest score"),
    "kept last": ("lowest kept", "lowest score, by the last stage's models, among the samples that this stage kept"),
    "dropped first": (
        "highest dropped",
        "highest score, by the last stage's models, among the samples that were not kept",
    ),
    "suspected mislabelled": (
        "suspected mislabelled",
        "by the guard; without one: predicted as another class, with the label less than half as probable as chance",
    ),
}
"""By the name of a group: its caption on the page, and what it shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """One small image.

    Attributes:
        id, key: the sample's row in the source, and its portable name.
        label, pred: names of its class and of the class that most models predict.
        score: its score in stage 0.
        p_label: probability of its class, mean over models.
        data: a `data:` address of a JPEG.
        blocky: whether it has so few pixels that they are better seen than blurred.
    """

    id: int
    key: str
    label: str
    pred: str
    score: float
    p_label: float
    data: str
    blocky: bool


Shots: TypeAlias = dict[int, dict[str, list[Thumbnail]]]
"""Thumbnails by class and group."""


def shown_classes(facts: ReportFacts) -> list[int]:
    """At most 20 classes whose share kept differs most from that of the whole set, largest share first."""
    share = np.array([np.nan if value is None else value for value in facts.values["classes"]["share"]], float)
    present = np.flatnonzero(np.isfinite(share))
    mean = facts.values["kept"] / facts.values["samples"]
    changed = present[np.argsort(-np.abs(share[present] - mean), kind="stable")[:_CLASSES]]
    return [int(number) for number in changed[np.argsort(-share[changed], kind="stable")]]


def thumbnails(facts: ReportFacts, source: Source) -> Shots:
    """Small images by class and group, without those that cannot be decoded."""
    chosen = {number: _groups(facts, number) for number in shown_classes(facts)}
    wanted = np.unique(
        np.concatenate([facts.rows.ids_M[places] for groups in chosen.values() for places in groups.values()])
    )
    images = _images(source, wanted.tolist())
    keys = dict(zip(images, source.keys(list(images)), strict=True))
    return {
        number: {name: _described(facts, images, keys, places) for name, places in groups.items()}
        for number, groups in chosen.items()
    }


def with_extremes(run: Run, facts: ReportFacts) -> ReportFacts:
    """Facts whose rows are those worth a look: of a sample, the extremes of all candidates in its place."""
    if "sampled" not in facts.values:
        return facts
    classes, found = shown_classes(facts), []
    for rows in rows_of(run, facts.values["score"], facts.last_stage):
        piece = replace(facts, rows=rows)
        groups = [places for number in classes for places in _groups(piece, number).values()]
        found.append(rows.take(np.unique(np.concatenate(groups))))
    return replace(facts, rows=Rows.joined(found))


def _groups(facts: ReportFacts, number: int) -> dict[str, IdArray]:
    """Places of the candidates of a class in each group."""
    names = ("label", "pred", "p_label", facts.values["score"])
    labels_M, preds_M, p_label_M, score_M = (facts.rows.table.column(name).to_numpy() for name in names)
    if SUSPECT in facts.rows.table.column_names:
        suspects_M = facts.rows.table.column(SUSPECT).to_numpy()
    else:  # by the rule of the warning that points here
        suspects_M = are_unlikely(labels_M, preds_M, p_label_M, np.array(facts.values["classes"]["samples"]))
    stage_M, last_M = facts.rows.stage_M, facts.rows.last_M
    here, last = labels_M == number, stage_M == facts.last_stage
    return {
        "easiest": extremes_of(score_M, here, _EACH, lowest=True),
        "hardest": extremes_of(score_M, here, _EACH),
        "kept last": extremes_of(last_M, here & last, _EACH, lowest=True),
        "dropped first": extremes_of(last_M, here & (stage_M < 0), _EACH),
        "suspected mislabelled": extremes_of(p_label_M, here & suspects_M, _EACH, lowest=True),
    }


def picked(facts: ReportFacts) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What the thumbnails show, by class and group, ready for JSON."""
    return {
        facts.values["classes"]["names"][number]: {
            name: _rows(facts, places) for name, places in _groups(facts, number).items()
        }
        for number in shown_classes(facts)
    }


def _images(source: Source, ids: list[int]) -> dict[int, tuple[str, bool]]:
    """`data:` addresses of small JPEGs, and whether each has few pixels."""
    from unseen_ray.data.images.decode import open_image
    from unseen_ray.data.images.opening import UndecodableError

    found = {}
    for number, raw in source.read(ids):
        try:
            image = open_image(raw, draft_px=_SIDE_PX)
        # The run may have skipped it; a report is no place to fail.
        except UndecodableError as error:
            logger.warning("%s is not shown: %s", source.keys([number])[0], error)
            continue
        image.thumbnail((_SIDE_PX, _SIDE_PX))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=80)
        address = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
        found[number] = address, max(image.size) <= _BLOCKY_PX
    return found


def _described(
    facts: ReportFacts, images: dict[int, tuple[str, bool]], keys: dict[int, str], places: IdArray
) -> list[Thumbnail]:
    rows = [row for row in _rows(facts, places) if row["id"] in images]
    return [
        Thumbnail(**row, key=keys[row["id"]], data=images[row["id"]][0], blocky=images[row["id"]][1]) for row in rows
    ]


def _rows(facts: ReportFacts, places: IdArray) -> list[dict[str, Any]]:
    names, score = facts.values["classes"]["names"], facts.values["score"]
    return [
        {
            "id": row["id"],
            "label": names[row["label"]],
            "pred": names[row["pred"]],
            "score": row[score],
            "p_label": row["p_label"],
        }
        for row in facts.rows.table.take(pa.array(places)).to_pylist()
    ]

"""The report of a finished run: a page in its folder, or its numbers."""

from __future__ import annotations

import contextlib
import html
import logging
import os
from typing import TYPE_CHECKING, Any

from unseen_ray.config.fields.keywords import PathLike
from unseen_ray.errors import ConfigError, UnseenError
from unseen_ray.execution.api import PruneResult, run_of
from unseen_ray.reporting.dataset import source_of
from unseen_ray.reporting.facts import gather
from unseen_ray.reporting.page import render
from unseen_ray.reporting.thumbnails import Shots, picked, thumbnails, with_extremes
from unseen_ray.runs.layout import REPORT
from unseen_ray.storage.checked_json import without_nan
from unseen_ray.storage.filesystem import Folder, absolute_path, is_uri
from unseen_ray.storage.lock import held
from unseen_ray.storage.path_validation import path_problem

if TYPE_CHECKING:
    from unseen_ray.reporting.facts import ReportFacts
    from unseen_ray.runs.run import Run

__all__ = ["ReportPath", "report", "report_values"]

logger = logging.getLogger(__name__)


class ReportPath(str):
    """The path of a report's page, which a notebook shows."""

    def _repr_html_(self) -> str:
        folder, name = self.rsplit("/", 1)
        page = (Folder(folder).read(name) or b"").decode()
        return (
            f'<iframe srcdoc="{html.escape(page)}" width="100%" height="700" style="border: 1px solid #ccc"></iframe>'
        )


def report(
    result: PruneResult | PathLike, *, source: Any = None, images: bool = True, to: PathLike | None = None
) -> ReportPath:
    """Write one self-contained HTML page about a finished run.

    The page shows the evaluations, the fitting baseline and the further selections that `evaluate` stored in the folder.
    It shows images if the source can be opened without importing anything that the folder names; else it says why there are none.

    Args:
        result: a finished run, or its folder.
        source: where the data is now, as in `PruneConfig`; None if it has not moved.
        images: whether the page shows images.
        to: the path or URI of the page, ending in .html; None for `report.html` in the run's folder.

    Returns:
        The path of the page; a notebook shows the page itself.

    Raises:
        ConfigError: if the folder holds no finished run; if its page has images, and a new one would have none though `images` is
            True; if `source` is given without `images`; or if `to` is no .html.
        DataError: if `source` is missing, or is not the data that the run chose from.
        StorageError, RunInUseError: if the page cannot be written, or another command works on the run's folder, where it goes.
    """
    if source is not None and not images:
        raise ConfigError("source= is where the images are, and images=False shows none. Leave one of the two out.")
    run = run_of(result)
    folder, name = (run.folder, REPORT) if to is None else _page_at(os.fspath(to))
    facts = gather(run)
    shots: Shots = {}
    reason = ""
    if images:
        place = _place_of(result) if source is None else source
        shots, reason = _shots(run, facts, place, folder.path(name), is_moved=source is not None)
    page = render(run, facts, shots, reason).encode()
    with held(run.folder) if to is None else contextlib.nullcontext() as lock:
        (lock.folder if lock else folder).write(name, page)
    return ReportPath(folder.path(name))


def report_values(result: PruneResult | str | os.PathLike[str]) -> dict[str, Any]:
    """Every number of the report, ready for JSON.

    Args:
        result: a finished run, or its folder.

    Raises:
        ConfigError: if the folder holds no finished run.
    """
    run = run_of(result)
    facts = gather(run)
    return {**facts.values, "images": without_nan(picked(with_extremes(run, facts)))}


def _page_at(to: str) -> tuple[Folder, str]:
    """The folder and the name of a page; ConfigError if it is none."""
    if problem := path_problem("--to", to):
        raise ConfigError(problem)
    if not to.endswith(".html"):
        raise ConfigError(f"--to {to} is not a page. Name a file that ends in .html.")
    above, _, name = (to if is_uri(to) else absolute_path(to)).rpartition("/")
    return Folder(above or "/"), name


def _shots(run: Run, facts: ReportFacts, place: Any, page: str, *, is_moved: bool) -> tuple[Shots, str]:
    """The images of a page, and why there are none."""
    try:
        return thumbnails(with_extremes(run, facts), source_of(run, place)), ""
    except UnseenError as error:
        if is_moved:  # who says where the images are wants them
            raise
        _check_replaced(page, str(error))
        logger.warning("the page has no images: %s", error)
        return {}, str(error)


def _place_of(result: PruneResult | str | os.PathLike[str]) -> Any:
    """The source as this process gave it; None for a run that was read from its folder."""
    return result.config.source if isinstance(result, PruneResult) and result.in_hand else None


def _check_replaced(page: str, reason: str) -> None:
    """Refuse to replace a page with images by one without."""
    above, _, name = page.rpartition("/")
    if b"<img " in (Folder(above).read(name) or b""):
        raise ConfigError(
            f"{page} has images, and a new page would have none: {reason} "
            "Say where the data is now (--source PLACE; in Python source=...), or ask for a page without images "
            "(--no_images; images=False)."
        )

"""The report of a finished run: a page in its folder, or its numbers."""

from __future__ import annotations

import html
import os
from typing import TYPE_CHECKING, Any

from unseen_ray.errors import UnseenError
from unseen_ray.execution.api import PruneResult, run_of
from unseen_ray.reporting.dataset import source_of
from unseen_ray.reporting.facts import gather
from unseen_ray.reporting.page import render
from unseen_ray.reporting.thumbnails import picked, thumbnails, with_extremes
from unseen_ray.runs.layout import REPORT
from unseen_ray.storage.checked_json import without_nan
from unseen_ray.storage.filesystem import Folder

if TYPE_CHECKING:
    from unseen_ray.data.sources.registry import Source
    from unseen_ray.runs.run import Run

__all__ = ["ReportPath", "report", "report_values"]


class ReportPath(str):
    """The path of a report's page, which a notebook shows."""

    def _repr_html_(self) -> str:
        folder, name = self.rsplit("/", 1)
        page = (Folder(folder).read(name) or b"").decode()
        return (
            f'<iframe srcdoc="{html.escape(page)}" width="100%" height="700" style="border: 1px solid #ccc"></iframe>'
        )


def report(result: PruneResult | str | os.PathLike[str]) -> ReportPath:
    """Write one self-contained HTML page about a finished run into its folder.

    The page shows the evaluations, the fitting baseline and the further selections that `evaluate` stored in the folder.
    It shows images if the source can be opened without importing anything that the folder names.

    Args:
        result: a finished run, or its folder.

    Returns:
        The path of the page; a notebook shows the page itself.

    Raises:
        ConfigError: if the folder holds no finished run.
    """
    run = run_of(result)
    facts = gather(run)
    source, reason = _source_to_show(run)
    shots = {} if source is None else thumbnails(with_extremes(run, facts), source)
    run.folder.write(REPORT, render(facts, shots, reason).encode())
    return ReportPath(run.folder.path(REPORT))


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


def _source_to_show(run: Run) -> tuple[Source | None, str]:
    """The run's source, or why its images are not shown."""
    try:
        return source_of(run), ""
    # The page is still worth having without its images.
    except UnseenError as error:
        return None, f"Images are not shown: {error}"

"""The summary of a prepared folder, and the progress while it is made."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from unseen_ray.cli.live_log import logging_above
from unseen_ray.cli.summary.text import several

if TYPE_CHECKING:
    from unseen_ray.data.prepare.prepare import Prepared, PrepareProgress

__all__ = ["prepare_lines", "prepare_progress", "prepare_values"]

_LINE_EVERY_S = 10.0


def prepare_values(prepared: Prepared) -> dict[str, Any]:
    """What was made, ready for JSON."""
    made = [receipt for receipt in prepared.receipts if not receipt.reused]
    return {
        "out": prepared.path,
        "source": prepared.source,
        "num_samples": prepared.num_samples,
        "num_classes": prepared.num_classes,
        "as": prepared.form.kind,
        "size": prepared.form.size_px,
        "quality": prepared.form.quality,
        "bytes": sum(receipt.size for receipt in prepared.receipts),
        "shards": len(prepared.receipts),
        "shards_made": len(made),
        "samples_made": sum(receipt.rows for receipt in made),
        "bad": [{"id": sample.id, "key": sample.key, "reason": sample.reason} for sample in prepared.bad],
        "workers": prepared.workers,
        "seconds": round(prepared.seconds, 3),
    }


def prepare_lines(values: dict[str, Any]) -> list[str]:
    """The same in sentences."""
    quality = "" if values["quality"] is None else f", quality {values['quality']}"
    there = values["shards"] - values["shards_made"]
    made = f"{several(values['shards'], 'file')}, {values['bytes'] / 1e6:,.1f} MB"
    lines = [
        f"Prepared {values['num_samples']:,} samples of {values['num_classes']} classes of {values['source']} as {values['as']} "
        f"of {values['size']} px{quality}: {made}{f', {there:,} of them made earlier' if there else ''}, "
        f"{values['seconds']:.1f} s."
    ]
    if values["bad"]:
        lines.append(
            f"{several(len(values['bad']), 'sample')} cannot be decoded, such as {values['bad'][0]['key']}; prune with "
            "--on_bad_sample skip."
        )
    size = f" --source.size {values['size']}" if values["as"] == "raw" else ""
    lines.append(f"Use it: unseen-ray prune --source {shlex.quote(values['out'])}{size} --keep 0.7 --out NEW")
    return lines


@contextmanager
def prepare_progress(console: Console) -> Iterator[Callable[[PrepareProgress], None]]:
    """An observer that shows the progress: one live line on a terminal, else a line every ten seconds."""
    if console.is_terminal:
        # Transient: the summary that follows says the same.
        with Live(console=console, refresh_per_second=4, transient=True) as live, logging_above(live):
            yield lambda event: live.update(Text(_sentence(event)))
        return
    said = time.monotonic()

    def tell(event: PrepareProgress) -> None:
        nonlocal said
        if time.monotonic() - said >= _LINE_EVERY_S:
            said = time.monotonic()
            console.print(_sentence(event), highlight=False, markup=False, soft_wrap=True)

    yield tell


def _sentence(event: PrepareProgress) -> str:
    a_second = event.rows_made / event.seconds
    left = f", {(event.rows - event.rows_done) / a_second:,.0f} s left" if a_second else ""
    return (
        f"prepared {event.rows_done:,} of {event.rows:,} samples, {event.shards_done:,} of {several(event.shards, 'file')}, "
        f"{a_second:,.0f} images/s{left}"
    )

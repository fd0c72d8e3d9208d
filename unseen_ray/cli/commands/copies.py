"""`unseen-ray copies`: samples that show the same pixels, or nearly the same."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from unseen_ray.cli.flags import FieldCommand, field_options, merged_fields, with_place
from unseen_ray.cli.output import console_of, print_answer, print_json
from unseen_ray.cli.signals import interruption
from unseen_ray.cli.summary.text import several
from unseen_ray.errors import ConfigError
from unseen_ray.storage.filesystem import is_uri
from unseen_ray.storage.path_validation import path_problem
from unseen_ray.storage.plain_text import reason_of

if TYPE_CHECKING:
    from unseen_ray.cli.tables import Table
    from unseen_ray.data.related.copies import Copies

__all__ = ["copies"]

_SHOWN = 10
_MANY = 0.1  # of all samples in one group: no copies any more


@click.command(cls=FieldCommand)
@click.argument("place", metavar="SOURCE", required=False)
@field_options(only=("source",))
@click.option("--to", metavar="FILE", help="write a .npy file for `--group`: for each row, the first row of its group")
@click.option(
    "--near",
    type=float,
    metavar="NUMBER",
    help="also group images that look alike: cosine similarity of thumbnails, such as 0.97  [default: identical pixels only]",
)
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def copies(place: str | None, to: str | None, near: float | None, as_json: bool, **flags: Any) -> None:
    """Find samples that show the same pixels. Kept in one fold, they leak nothing into the scores.

    \b
    unseen-ray copies photos/ --to copies.npy
    unseen-ray copies photos/ --to copies.npy --near 0.97
    unseen-ray prune --source photos/ --group copies.npy --keep 0.7 --out runs/photos
    """
    from rich.progress import Progress

    import unseen_ray as ur

    source = merged_fields(None, with_place(place, flags)).get("source")
    problems = [] if source is not None else ["source is missing: name it, such as a folder of class folders."]
    if to is not None:
        problems += [problem] if (problem := path_problem("--to", to)) else []
        if is_uri(to) or not to.endswith(".npy"):
            problems.append(f"--to {to} must be a local path that ends in .npy.")
        elif not os.path.isdir(folder := os.path.dirname(os.path.abspath(to))):
            problems.append(f"--to {to}: there is no folder {folder}. Make it first.")
    if problems:
        raise ConfigError(problems)
    with Progress(console=console_of(stderr=True), transient=True) as progress:
        task = progress.add_task("reading images", total=None)

        def show(done: tuple[int, int]) -> None:
            progress.update(task, completed=done[0], total=done[1])

        found = ur.find_copies(source, near=near, on_progress=interruption.interruptible(show))
    if to is not None:
        try:
            found.save(to)
        except OSError as error:
            raise ConfigError(f"--to {to} cannot be written: {reason_of(error)}.") from None
    return print_json(_values(found, near, to)) if as_json else print_answer(*_parts(found, near, to))


def _values(found: Copies, near: float | None, to: str | None) -> dict[str, Any]:
    return {
        "samples": len(found.groups_R),
        "near": near,
        "copies": len(found.copy_ids),
        "groups": len(found.sizes_G),
        "largest": int(found.sizes_G.max(initial=0)),
        "with_another_label": len(found.conflicting_ids),
        "unreadable": found.keys(found.unreadable_ids.tolist()),
        "pairs": found.pairs(found.copy_ids),
        "to": to,
    }


def _parts(found: Copies, near: float | None, to: str | None) -> tuple[list[str], Table, list[str]]:
    """The lines above the table, the first copies, and the lines below."""
    from unseen_ray.cli.tables import Column, Table

    count, largest = len(found.copy_ids), int(found.sizes_G.max(initial=0))
    lines = [f"{count:,} of {several(len(found.groups_R), 'sample')} are copies of earlier ones."]
    if count:
        lines[0] = f"{lines[0][:-1]}, in {several(len(found.sizes_G), 'group')}, the largest of {largest:,}."
    if near is not None and largest > max(_MANY * len(found.groups_R), 2):
        lines.append(
            f"One group holds {largest:,} samples, which only look alike. Give a higher --near than {near:g}, below 1."
        )
    wrong = found.conflicting_ids
    if len(wrong):
        doubt = "check which is right, or whether they only look alike" if near else "check which is right"
        lines.append(f"With another label than the first: {len(wrong):,} ({doubt}).")
    shown = wrong if len(wrong) else found.copy_ids
    table = Table([Column("first", left=True), Column("copy", left=True)])
    for pair in found.pairs(shown[:_SHOWN]):
        table.add(*pair)
    rest = []
    if len(shown) > _SHOWN or len(shown) < count:
        rest.append(f"and {count - min(len(shown), _SHOWN):,} more; --json names all")
    if len(found.unreadable_ids):
        some = ", ".join(found.keys(found.unreadable_ids[:_SHOWN].tolist()))
        rest.append(f"{several(len(found.unreadable_ids), 'sample')} cannot be decoded and counted as unique: {some}.")
    if to is not None and count:
        place = shlex.quote(to)
        rest.append(
            f"Keep copies in one fold: prune --group {place}. Use only one of each: --group {place} --group.drop true."
        )
    return lines, table, rest

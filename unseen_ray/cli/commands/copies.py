"""`unseen-ray copies`: samples that show the same pixels, or nearly the same."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from unseen_ray.cli.flags import FieldCommand, field_options, merged_fields
from unseen_ray.cli.output import print_json, print_lines
from unseen_ray.cli.signals import interruption
from unseen_ray.errors import ConfigError
from unseen_ray.storage.filesystem import is_uri
from unseen_ray.storage.path_validation import path_problem

if TYPE_CHECKING:
    from unseen_ray.data.related.copies import Copies

__all__ = ["copies"]

_SHOWN = 10


@click.command(cls=FieldCommand)
@click.argument("place", metavar="SOURCE", required=False)
@field_options(only=("source",))
@click.option("--to", default=None, metavar="FILE", help="a .npy file for `--group`: the first row of each row's group")
@click.option(
    "--near",
    type=float,
    default=None,
    metavar="NUMBER",
    help="also images whose thumbnails have this cosine similarity, such as 0.97  [default: only the same pixels]",
)
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def copies(place: str | None, to: str | None, near: float | None, as_json: bool, **flags: Any) -> None:
    """Find samples that show the same pixels, so that folds do not share them.

    \b
    unseen-ray copies photos/ --to copies.npy
    unseen-ray copies photos/ --to copies.npy --near 0.97
    unseen-ray prune --source photos/ --group copies.npy --keep 0.7 --out runs/photos
    """
    from rich.console import Console
    from rich.progress import Progress

    import unseen_ray as ur

    if place is not None and flags["source"] is not None:
        raise ConfigError(f"SOURCE {place} and --source {flags['source']} are two sources. Give one.")
    source = merged_fields(None, {**flags, "source": place or flags["source"]}).get("source")
    problems = [] if source is not None else ["source is missing: name it, such as a folder of class folders."]
    if to is not None:
        problems += [problem] if (problem := path_problem("--to", to)) else []
        if is_uri(to) or not to.endswith(".npy"):
            problems.append(f"--to {to} must be a local path that ends in .npy.")
        elif not os.path.isdir(folder := os.path.dirname(os.path.abspath(to))):
            problems.append(f"--to {to}: there is no folder {folder}. Make it first.")
    if problems:
        raise ConfigError(problems)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading images", total=None)

        def show(done: tuple[int, int]) -> None:
            progress.update(task, completed=done[0], total=done[1])

        found = ur.find_copies(source, near=near, on_progress=interruption.interruptible(show))
    if to is not None:
        try:
            found.save(to)
        except OSError as error:
            raise ConfigError(f"--to {to} cannot be written: {error}.") from None
    return print_json(_values(found, to)) if as_json else print_lines(_lines(found, to, near))


def _values(found: Copies, to: str | None) -> dict[str, Any]:
    return {
        "samples": len(found.groups_R),
        "copies": len(found.copy_ids),
        "groups": len(found.sizes_G),
        "largest": int(found.sizes_G.max(initial=0)),
        "with_another_label": len(found.conflicting_ids),
        "unreadable": len(found.unreadable_ids),
        "to": to,
    }


def _lines(found: Copies, to: str | None, near: float | None) -> list[str]:
    values = _values(found, to)
    lines = [f"{values['copies']:,} of {values['samples']:,} samples are copies of earlier ones."]
    if values["copies"]:
        lines[0] = lines[0][:-1] + f", in {values['groups']:,} groups, the largest of {values['largest']:,}."
    if values["with_another_label"]:
        doubt = "check which is right, or whether they only look alike" if near else "check which is right"
        lines.append(f"With another label than the first: {values['with_another_label']:,} ({doubt}).")
    shown = found.conflicting_ids if values["with_another_label"] else found.copy_ids
    lines += [f"  {first}  {copy}" for first, copy in found.pairs(shown[:_SHOWN])]
    if len(shown) > _SHOWN:
        lines.append(f"  and {len(shown) - _SHOWN:,} more")
    if values["unreadable"]:
        lines.append(f"Cannot be decoded, and count as no copies: {values['unreadable']:,}.")
    if to is not None:
        place = shlex.quote(to)
        lines.append(
            f"Keep copies in one fold with --group {place}; --group.drop true beside it uses only one of each."
        )
    return lines

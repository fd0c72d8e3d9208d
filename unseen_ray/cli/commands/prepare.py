"""`unseen-ray prepare`: a source packed once into Parquet that decodes fast."""

from __future__ import annotations

from typing import Any

import click

from unseen_ray.cli.flags import FieldCommand, field_options, merged_fields, with_place
from unseen_ray.cli.output import console_of, print_json, print_lines
from unseen_ray.cli.signals import interruption
from unseen_ray.errors import ConfigError

__all__ = ["prepare"]

_NEEDED = {"source": "name what to pack, such as a folder of class folders", "out": "name a new folder for it"}


@click.command(cls=FieldCommand)
@click.argument("place", metavar="SOURCE", required=False)
@field_options(only=("source",))
@click.option("--out", metavar="DIR", help="a new folder or URI; an unfinished one is resumed")
@click.option(
    "--size",
    type=int,
    metavar="INT",
    help="jpeg: pixels of the short side, images are never enlarged; raw: side of the square  [default: 256]",
)
@click.option(
    "--as",
    "kind",
    metavar="jpeg|raw",
    help="jpeg: upright, RGB, scaled; raw: the decoded pixels that a run of this size uses  [default: jpeg]",
)
@click.option("--quality", type=int, metavar="INT", help="JPEG quality, 1 to 100  [default: 90]")
@click.option("--shard_mb", type=float, metavar="NUMBER", help="approximate size of a file in MB  [default: 128]")
@click.option("--workers", type=int, metavar="INT", help="number of processes  [default: one per core]")
@field_options(only=("on_bad_sample",))
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def prepare(place: str | None, as_json: bool, **flags: Any) -> None:
    """Pack a source once into Parquet that decodes fast. The ids stay the same. Run the same line again to resume.

    \b
    unseen-ray prepare imagenet --source.root /data/imagenet --out /data/imagenet-256
    unseen-ray prepare photos/ --out photos-64 --size 64 --as raw
    """

    import unseen_ray as ur
    from unseen_ray.cli.summary import prepare as summary

    flags = with_place(place, flags)
    options = {name: flags.pop(name) for name in ("out", "size", "kind", "quality", "shard_mb", "workers")}
    fields = merged_fields(None, flags)
    missing = [f"{name} is missing: {what}." for name, what in _NEEDED.items() if not {**options, **fields}.get(name)]
    if missing:
        raise ConfigError(missing)
    given = {name: value for name, value in {**options, **fields}.items() if value is not None}
    with summary.prepare_progress(console_of(stderr=True)) as show:
        prepared = ur.prepare(**given, on_event=interruption.interruptible(show))
    values = summary.prepare_values(prepared)
    return print_json(values) if as_json else print_lines(summary.prepare_lines(values))

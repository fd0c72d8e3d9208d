"""`unseen-ray report`: one page on a finished run."""

from __future__ import annotations

import click

from unseen_ray.cli.flags import FieldCommand, with_flags
from unseen_ray.cli.output import print_json, print_lines

__all__ = ["report"]


@click.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option("--source", metavar="PLACE", help="where the data is now, if it has moved since the run")
@click.option("--no_images", is_flag=True, help="write the page without images")
@click.option("--to", metavar="FILE", help="the page, ending in .html  [default: RUN_DIR/report.html]")
@click.option(
    "--json", "as_json", is_flag=True, help="print the numbers of the page as JSON instead of writing the page"
)
def report(run_dir: str, source: str | None, no_images: bool, to: str | None, as_json: bool) -> None:
    """Write one self-contained HTML page on a finished run.

    \b
    unseen-ray evaluate runs/digits --against random,full,fitting
    unseen-ray report runs/digits
    unseen-ray report runs/photos --source /new/place/photos
    unseen-ray report /archive/digits --to digits.html
    """
    import unseen_ray as ur

    if as_json:
        return print_json(ur.report_values(run_dir))
    place = with_flags({}, {"source": source}).get("source")
    print_lines([f"Wrote {ur.report(run_dir, source=place, images=not no_images, to=to)}."])
    return None

"""`unseen-ray report`: one page on a finished run."""

from __future__ import annotations

import click

from unseen_ray.cli.flags import FieldCommand
from unseen_ray.cli.output import print_json, print_lines

__all__ = ["report"]


@click.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option(
    "--json", "as_json", is_flag=True, help="print the numbers of the page as JSON instead of writing the page"
)
def report(run_dir: str, as_json: bool) -> None:
    """Write one self-contained HTML page on a finished run: RUN_DIR/report.html.

    \b
    unseen-ray evaluate runs/digits --against random,full,fitting
    unseen-ray report runs/digits
    """
    import unseen_ray as ur

    if as_json:
        return print_json(ur.report_values(run_dir))
    print_lines([f"Wrote {ur.report(run_dir)}."])
    return None

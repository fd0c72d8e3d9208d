"""`unseen-ray export`: the coreset as files, or the pruned data set."""

from __future__ import annotations

import os
from typing import Any

import click

from unseen_ray.cli.flags import FieldCommand, merged_fields
from unseen_ray.cli.output import print_lines

__all__ = ["export"]


@click.command(cls=FieldCommand)
@click.argument("run_dir")
@click.option(
    "--to",
    required=True,
    metavar="FILE",
    help=".npy: ids, .txt: keys, .csv, .parquet: all columns, .json: for KeptSampler; a folder: the pruned data",
)
@click.option(
    "--as",
    "form",
    type=click.Choice(["webdataset", "weights", "holdout", "sampler"]),
    help="webdataset: a folder of tars, weights: .npy of 1 or 0 for each row of the source, holdout: .npy of the ids set aside, "
    "sampler: .json  [default: as the source is, or as the ending says]",
)
@click.option("--source", metavar="PLACE", help="where the data is now, if it has moved; only where --to is a folder")
def export(run_dir: str, to: str, form: Any, source: str | None) -> None:
    """Write the kept ids, keys or weights, or the pruned data set. --as, or the ending of --to, says which.

    \b
    unseen-ray export runs/digits --to kept.npy
    unseen-ray export runs/digits --to weights.npy --as weights
    unseen-ray export runs/digits --to holdout.npy --as holdout
    unseen-ray export runs/digits --to sampler.json
    unseen-ray export runs/digits --to data/digits-pruned/
    unseen-ray export runs/digits --to data/digits-tars/ --as webdataset
    """
    import unseen_ray as ur

    count = ur.export(run_dir, to, form=form, **merged_fields(None, {"source": source}))
    ending = ".json" if form == "sampler" else os.path.splitext(to)[1]
    what = {
        "weights": f"the weights of all rows (1 for {count:,} kept samples, 0 for the others)",
        "holdout": f"the ids of the {count:,} samples that were set aside",
        ".json": f"what KeptSampler draws from ({count:,} kept samples)",
    }
    print_lines([f"Wrote {what.get(form if form in what else ending, f'{count:,} samples')} to {to}."])

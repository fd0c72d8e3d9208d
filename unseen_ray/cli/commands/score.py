"""`unseen-ray score`: scores from your own probabilities."""

from __future__ import annotations

import click

from unseen_ray.cli.flags import FieldCommand, field_options, merged_fields
from unseen_ray.cli.output import print_json, print_lines
from unseen_ray.config.run import SCORE_FIELDS
from unseen_ray.errors import ConfigError

__all__ = ["score"]


@click.command(cls=FieldCommand)
@click.option(
    "--probs",
    multiple=True,
    required=True,
    metavar="FILE",
    help="(N, C) probabilities: a .npy or a Parquet file, or a folder of such files in parts; one per model",
)
@click.option("--labels", required=True, metavar="FILE", help=".npy of (N,) integer labels")
@click.option(
    "--folds", metavar="FILE", help=".npy of (N,) fold numbers, if one file holds the predictions of all folds"
)
@click.option(
    "--save_probs",
    type=bool,
    metavar="true|false",
    default=True,
    show_default=True,
    help="store the mean probabilities, by which `select` can combine and guard in other ways",
)
@field_options(only=("out",))
@field_options(
    only=("source",),
    text="the data that the rows are of, in their order, for export and report  [default: labels alone]",
)
@field_options(only=SCORE_FIELDS)
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def score(
    probs: tuple[str, ...], labels: str, folds: str | None, save_probs: bool, as_json: bool, **flags: str | None
) -> None:
    """Score samples by your own out-of-fold probabilities. `select` then chooses a coreset.

    \b
    unseen-ray score --probs oof.npy --labels labels.npy --out runs/scores
    unseen-ray score --probs a.npy --probs b.npy --labels labels.npy --out runs/scores
    """
    import unseen_ray as ur
    from unseen_ray.cli.summary.text import several

    fields = merged_fields(None, flags)
    if "out" not in fields:
        raise ConfigError("--out is missing: name a new folder for the scores.")
    values = ur.score(probs, labels, folds=folds, save_probs=save_probs, **fields)
    if as_json:
        return print_json(values)
    print_lines(
        [
            f"Scored {values['samples']:,} samples of {values['classes']} classes, each by {several(values['votes'], 'model')}; "
            f"{values['accuracy']:.1%} are classified correctly.",
            f"Choose a coreset: unseen-ray select {values['out']} --keep 0.7 --score {values['score']} --out NEW",
        ]
    )
    return None

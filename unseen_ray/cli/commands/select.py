"""`unseen-ray select`: choose another coreset without training."""

from __future__ import annotations

import click

from unseen_ray.cli.flags import FieldCommand, field_options, merged_fields
from unseen_ray.cli.output import print_answer, print_hint, print_json
from unseen_ray.config.run import PruneConfig
from unseen_ray.errors import ConfigError

__all__ = ["select"]


@click.command(cls=FieldCommand)
@click.argument("run_dir")
@field_options(only=("keep", "out", "score", "policy", "guard", "combine"), inherited=True)
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON")
def select(run_dir: str, as_json: bool, **flags: str | None) -> None:
    """Choose another coreset from stored scores, without training. They are those of stage 0 of a finished run.

    \b
    unseen-ray select runs/digits --keep 0.5 --score margin --out runs/half
    """
    import unseen_ray as ur
    from unseen_ray.cli.summary import run as summary

    fields = merged_fields(None, flags)
    missing = [
        f"--{name} is missing: {PruneConfig.model_fields[name].description}."
        for name in ("keep", "out")
        if name not in fields
    ]
    if missing:
        raise ConfigError(missing)
    result = ur.select(run_dir, **fields)
    values = summary.prune_values(result)
    if as_json:
        return print_json(values)
    first, *rest = summary.prune_lines(values)
    print_answer([first], summary.class_table(values), rest)
    return print_hint(*summary.next_step(result))

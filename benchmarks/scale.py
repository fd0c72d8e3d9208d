"""What works at a size that memory does not hold: `python benchmarks/scale.py SUBCOMMAND`, each in a module of its own."""

from __future__ import annotations

import argparse

import scale_after
import scale_cluster
import scale_dataset
import scale_imagenet
import scale_run
import scale_selection
import scale_votes

SUBCOMMANDS = [
    scale_imagenet,
    scale_run,
    scale_after,
    scale_dataset,
    scale_selection,
    scale_cluster,
    scale_votes,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="SUBCOMMAND")
    for module in SUBCOMMANDS:
        module.add_to(subparsers)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

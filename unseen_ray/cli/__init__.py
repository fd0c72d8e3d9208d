"""The command line, a client of the public names of `unseen_ray`."""

from unseen_ray.cli.app import entry, main

__all__ = ["entry", "main"]

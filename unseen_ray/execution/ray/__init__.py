"""What is spread out: a Ray session, fold actors, the aggregator actor. Needs ray; torch stays with the workers."""

import os
import sys

from unseen_ray.execution.ray.internals import is_worker
from unseen_ray.storage.environment import variable


def _put_libraries_first() -> None:
    """In a worker, move the driver's folders, which Ray puts first on its path, behind the libraries.

    A numpy.py in the working folder would hide numpy; functions of the user's own are found there all the same.
    """
    ray = sys.modules.get("ray")  # imported by a worker already; a driver must set variables before
    if ray is None or not is_worker():
        return
    libraries = os.path.dirname(os.__file__)
    named = [os.path.abspath(path) for path in (variable("PYTHONPATH") or "").split(os.pathsep) if path]
    rays = ray.__path__[0]
    ahead = sys.path[: sys.path.index(libraries)] if libraries in sys.path else []
    moved = [path for path in ahead if path not in named and not path.startswith(rays)]
    sys.path[:] = [path for path in sys.path if path not in moved] + moved


_put_libraries_first()  # this is what a worker imports of this package before numpy and torch

"""The kept ids in the form that the next tool wants."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.execution.session import PruneResult, load, run_of
from unseen_ray.plugins import did_you_mean
from unseen_ray.reporting.dataset import check_file, own_function, pack, source_of
from unseen_ray.runs.layout import CORESET
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.path_text import path_problem

if TYPE_CHECKING:
    from torch.utils.data import Subset

__all__ = ["ENDINGS", "export", "torch_subset"]

ENDINGS = {
    ".npy": "ids, int64, sorted",
    ".txt": "keys, one a line",
    ".csv": "id, key, label, stage, score",
    ".parquet": "id, key, label, stage, score",
}


def export(result: PruneResult | str | os.PathLike[str], to: str | os.PathLike[str]) -> int:
    """Write the coreset of a finished run; what it holds follows from the file's ending.

    Args:
        result: a finished run, or its folder.
        to: a path or URI ending in .npy (ids), .txt (keys), .csv or .parquet (all columns); without an ending, or with a
            slash, a folder for the pruned data set itself, see `dataset.pack`.

    Returns:
        How many samples were written.

    Raises:
        ConfigError: if the ending is none of these, or the file or folder cannot be written.
        DataError: if the data set cannot be read.
    """
    run, to = run_of(result), os.fspath(to)
    if problem := path_problem("--to", to):
        raise ConfigError(problem)
    ending = os.path.splitext(to)[1].lower()
    if not ending or to.endswith("/"):
        return pack(run, to)
    if ending not in ENDINGS:
        known = "; ".join(f"{name} ({what})" for name, what in ENDINGS.items())
        raise ConfigError(
            f"--to {to} ends in {ending!r}. Allowed are {known}, and a folder, without an ending or with a slash, for the "
            f"pruned data set.{did_you_mean(ending, ENDINGS)}"
        )
    check_file(to, run)
    table = run.table(CORESET)
    parent, _, name = to.replace(os.sep, "/").rpartition("/")
    try:
        Folder(parent or ("/" if to.startswith("/") else ".")).write(name, _bytes_of(table, ending))
    except StorageError as error:
        raise ConfigError(f"--to {to} cannot be written: {error}") from None
    return int(table.num_rows)


def torch_subset(
    result: PruneResult | str | os.PathLike[str],
    transform: Callable[[Any], Any] | None = None,
    *,
    source: Any = None,
) -> Subset[tuple[Any, int]]:
    """The coreset as a torch Subset of the source's (PIL image, label) pairs.

    Args:
        result: a finished run, or its folder.
        transform: applied to each image.
        source: where the data is now, as `PruneConfig` takes it; None for where it was. A run that was read from its folder and
            whose source is a function of your own needs it: nothing that a folder names is imported.

    Raises:
        ConfigError: if such a function is not given.
        DataError: if the data is missing, or is not what the run chose from.
    """
    from unseen_ray.data.torch_dataset import subset_of

    done = result if isinstance(result, PruneResult) else load(result)
    if source is None and done.in_hand:
        source = done.config.source
    if source is None and (name := own_function(done.run)):
        raise ConfigError(
            f"the run's source is {name}, a function of its user's own, and nothing that a run folder names is imported. "
            f'Give it yourself: torch_subset(result, source="{name}"), or the function itself.'
        )
    return subset_of(source_of(done.run, source), done.coreset.ids, transform)


def _bytes_of(table: pa.Table, ending: str) -> bytes:
    if ending == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, table.column("id").to_numpy(), allow_pickle=False)
        return buffer.getvalue()
    if ending == ".txt":
        keys = table.column("key").to_pylist()
        broken = next((key for key in keys if "\n" in key or "\r" in key), None)
        if broken is not None:
            raise ConfigError(
                f"key {broken!r} holds a line break, so that one key a line cannot hold it. Export to .csv or .parquet."
            )
        return "".join(f"{key}\n" for key in keys).encode()
    sink = pa.BufferOutputStream()
    if ending == ".csv":
        import pyarrow.csv

        pyarrow.csv.write_csv(table, sink)
    else:
        import pyarrow.parquet as pq

        pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())

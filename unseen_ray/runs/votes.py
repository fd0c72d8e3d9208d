"""Files of votes, `stage-NN/votes/FF.parquet`: written, found again by a resumed run, copied to other runs, read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from unseen_ray.core.arrays import FloatArray
from unseen_ray.core.tasks import VotePart
from unseen_ray.errors import StorageError
from unseen_ray.runs.layout import FEATURES, probs_beside, vote_file
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.storage.filesystem import Folder, filesystem_of
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import answers_still, is_transient, retried_inline
from unseen_ray.storage.tables import sha256_of_file, sha256_of_stream

__all__ = [
    "ROW_GROUP",
    "check_content",
    "columns_of",
    "content_of",
    "copy_votes",
    "find_receipt",
    "part_of",
    "probs_of",
    "read_key",
    "read_receipt",
    "read_votes",
    "write_votes",
]

ROW_GROUP = 2**17
"""Rows that are read at once: a merge holds one such group of each of perhaps a thousand models."""

_KEY = b"unseen_ray.task"
_RECEIPT = b"unseen_ray.receipt"
_SHA256 = b"unseen_ray.sha256"
_FIXED = ("id", "pred", "p_top", "p_label")


def write_votes(folder: Folder, stage: int, key: str, part: VotePart, receipt: Receipt) -> Receipt:
    """Write one model's votes unless they are there already; returns the receipt with the files' checksums.

    Args:
        folder: the run.
        stage: the task's.
        key: `Job.task_key`, by which a resumed run recognises finished work.
        part: the votes.
        receipt: of the work, stored in the file's footer.
    """
    name = vote_file(stage, part.index)
    # A worker that was taken for dead may still finish, before or after its replacement. The first whole file stays, because a
    # merge may be using it; so the write is exclusive, unless there is a damaged file to replace.
    fresh = folder.read(name) is None
    if (present := find_receipt(folder, stage, part.index, key)) is not None:
        return present
    files = {}
    if part.probs_MC is not None:
        probs = probs_beside(name)
        files[probs] = folder.write_array(probs, part.probs_MC)
    if part.features_ND is not None:
        files[FEATURES] = folder.write_array(FEATURES, part.features_ND)
    columns = {
        "id": pa.array(part.ids_M),
        "pred": pa.array(part.pred_M),
        "p_top": pa.array(part.p_top_M, pa.float32()),
        "p_label": pa.array(part.p_label_M, pa.float32()),
        **{score: pa.array(values, pa.float32()) for score, values in part.scores.items()},
    }
    receipt = receipt.model_copy(update={"files": files})
    metadata = {_KEY: key.encode(), _RECEIPT: json.dumps(receipt.to_json()).encode()}
    table = pa.table(columns).replace_schema_metadata(metadata)
    table = table.replace_schema_metadata({**metadata, _SHA256: _content_of(table)})
    try:
        digest = folder.write_table(name, table, new=fresh, row_group=ROW_GROUP)
    except FileExistsError:
        if (present := find_receipt(folder, stage, part.index, key)) is not None:
            return present
        digest = folder.write_table(name, table, row_group=ROW_GROUP)  # replaces a damaged file, or one of other work
    return _as_stored(folder, stage, key, receipt.model_copy(update={"files": {**files, name: digest}}))


def _as_stored(folder: Folder, stage: int, key: str, receipt: Receipt) -> Receipt:
    """The receipt of the file that is on storage now."""
    # On an object store pyarrow cannot write exclusively: another worker's file may have replaced this one.
    if filesystem_of(folder.root)[0].type_name == "local":
        return receipt
    present = find_receipt(folder, stage, receipt.index, key)
    return receipt if present is None or present.files == receipt.files else present


def find_receipt(folder: Folder, stage: int, index: int, key: str) -> Receipt | None:
    """The receipt of a task whose votes are on storage, undamaged and with this key; else None."""
    name = vote_file(stage, index)
    path = folder.path(name)
    fs, inner = filesystem_of(path)
    try:
        found = retried_inline(path, lambda: _whole_of(fs, inner, key), fs)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {reason_of(error)}.") from None
    if found is None:
        return None
    receipt, digest = found
    if not receipt.files.keys() <= {probs_beside(name), FEATURES}:
        return None  # no task of ours writes another
    if any(sha256_of_file(folder, beside) != said for beside, said in receipt.files.items()):
        return None
    return receipt.model_copy(update={"files": {**receipt.files, name: digest}, "reused": True})


def _whole_of(fs: FileSystem, inner: str, key: str) -> tuple[Receipt, str] | None:
    """The receipt in a file of votes and the file's SHA-256; None if it is damaged or has another key."""
    with fs.open_input_file(inner) as stream:
        try:
            with pq.ParquetFile(stream, page_checksum_verification=True) as file:
                schema, metadata = file.schema_arrow, file.schema_arrow.metadata or {}
                if metadata.get(_KEY) != key.encode() or metadata.get(_SHA256) != content_of(schema, columns_of(file)):
                    return None
                receipt = Receipt.from_json(json.loads(metadata[_RECEIPT]))
                stream.seek(0)
                return receipt, sha256_of_stream(stream)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, OSError) and is_transient(error):
                raise
            return None


def columns_of(file: pq.ParquetFile) -> Callable[[str], Iterator[pa.ChunkedArray]]:
    """A function that reads a column by row groups."""
    return lambda name: (file.read_row_group(g, columns=[name]).column(0) for g in range(file.num_row_groups))


def read_receipt(folder: Folder, name: str) -> Receipt | None:
    """The receipt in the footer of a file of votes; None if there is none."""
    try:
        return Receipt.from_json(json.loads(_footer(folder, name)[_RECEIPT]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def read_key(folder: Folder, name: str) -> str | None:
    """The task key in the footer of a file of votes; None if there is none."""
    try:
        return _footer(folder, name)[_KEY].decode()
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None


def _footer(folder: Folder, name: str) -> dict[bytes, bytes]:
    fs, path = filesystem_of(folder.path(name))

    def read() -> dict[bytes, bytes]:
        with fs.open_input_file(path) as stream:
            return dict(pq.read_schema(stream).metadata or {})

    return retried_inline(path, read, fs)


def copy_votes(
    origin: Folder,
    folder: Folder,
    stage: int,
    index: int,
    key: str,
    *,
    at: tuple[int, int] | None = None,
    name: str = "",
) -> Receipt | None:
    """Copy a task's votes from a folder that holds the same work; None if it does not.

    Args:
        origin: another run, or an entry of the result cache.
        folder: the run that needs them.
        stage, index: the task's in that run.
        key: `Job.task_key`.
        at: stage and index in `origin`, where they differ: the same work may be another task of another run.
        name: the task's name in the run that needs it, where it differs.
    """
    receipt = find_receipt(origin, *(at or (stage, index)), key)
    if receipt is None:
        return None
    if at is None or at == (stage, index):
        # `files` names the votes last; once they are there, the work counts as done.
        for file in receipt.files:
            data = origin.read(file)
            if data is None:
                return None
            folder.write(file, data)
        return receipt.model_copy(update={"task": name or receipt.task})
    part = replace(read_votes(origin, *at, receipt.files), index=index)
    for file in receipt.files.keys() & {FEATURES}:
        part = replace(part, features_ND=origin.read_array(file, receipt.files[file]))
    moved = receipt.model_copy(update={"index": index, "task": name or receipt.task, "reused": False})
    return write_votes(folder, stage, key, part, moved).model_copy(update={"reused": True})


def read_votes(
    folder: Folder, stage: int, index: int, digests: Mapping[str, str] | None = None, *, probs: bool = True
) -> VotePart:
    """The votes of a task.

    Args:
        folder: the run.
        stage, index: the task's.
        digests: SHA-256 by file name, as far as they are known.
        probs: whether to read the probabilities too, if they are stored.

    Raises:
        StorageError: if they are missing or damaged.
    """
    name, digests = vote_file(stage, index), digests or {}
    table = folder.read_table(name, digests.get(name))
    check_content(folder, name, table.schema, lambda: _content_of(table))
    _check_columns(table, folder.path(name))
    beside = probs_of(name, table.schema) if probs else None
    return part_of(index, table, None if beside is None else folder.read_array(*beside))


def check_content(folder: Folder, name: str, schema: pa.Schema, content: Callable[[], bytes]) -> None:
    """StorageError if a file holds no votes, or others than were written."""
    missing = [column for column in _FIXED if column not in schema.names]
    if missing:
        raise StorageError(f"{folder.path(name)} has no column {', '.join(missing)}: it is not a file of votes.")
    if twice := [column for column in schema.names if schema.names.count(column) > 1]:
        raise StorageError(f"{folder.path(name)} is damaged or forged: its column {twice[0]} is there twice.")
    said = (schema.metadata or {}).get(_SHA256)
    if said is not None and said != content():
        raise StorageError(f"{folder.path(name)} is damaged: its checksum differs. Run the same line again.")


def _check_columns(table: pa.Table, where: str) -> None:
    for column in table.schema:
        wanted = pa.types.is_integer if column.name in ("id", "pred") else pa.types.is_floating
        if not wanted(column.type) or table.column(column.name).null_count:
            raise StorageError(
                f"{where} is damaged or forged: its column {column.name} is {column.type}, or lacks values."
            )


def probs_of(name: str, schema: pa.Schema) -> tuple[str, str] | None:
    """Name and SHA-256 of the file of probabilities that belongs to a file of votes; None if there is none."""
    try:
        receipt = json.loads((schema.metadata or {}).get(_RECEIPT, b"{}"))
        digest = receipt.get("files", {}).get(probs_beside(name))
    except (ValueError, AttributeError, RecursionError):
        raise StorageError(f"{name} is damaged or forged: its receipt cannot be read.") from None
    return None if digest is None else (probs_beside(name), digest)


def part_of(index: int, table: pa.Table, probs_MC: FloatArray | None) -> VotePart:
    """Votes from the columns of their file."""
    columns = {column: table.column(column).to_numpy() for column in table.column_names}
    return VotePart(
        index=index,
        ids_M=columns["id"],
        pred_M=columns["pred"],
        p_top_M=columns["p_top"],
        p_label_M=columns["p_label"],
        scores={column: values for column, values in columns.items() if column not in _FIXED},
        probs_MC=probs_MC,
    )


def _content_of(table: pa.Table) -> bytes:
    """SHA-256 of the votes and their receipt, in hexadecimal."""
    # Stored in the file itself: the manifest lists it only once its stage is finished.
    return content_of(table.schema, lambda name: [table.column(name)])


def content_of(schema: pa.Schema, column: Callable[[str], Iterable[pa.ChunkedArray]]) -> bytes:
    """The same for a file whose columns are read in pieces."""
    content = hashlib.sha256()
    for said in (_KEY, _RECEIPT):
        content.update((schema.metadata or {}).get(said, b""))
    for field in schema:
        content.update(f"{field.name} {field.type}".encode())
        for piece in column(field.name):
            answers_still()
            content.update(piece.to_numpy().tobytes())
    return content.hexdigest().encode()

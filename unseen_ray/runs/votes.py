"""Votes as files, `stage-NN/votes/FF.parquet`: written, found again, lent to other runs, read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from unseen_ray.core.arrays import FloatArray
from unseen_ray.core.tasks import VotePart
from unseen_ray.errors import StorageError
from unseen_ray.runs.layout import FEATURES, probs_beside, vote_file
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.storage.filesystem import Folder, filesystem_of
from unseen_ray.storage.retry import is_transient, retried_inline
from unseen_ray.storage.tables import sha256_of_file, sha256_of_stream

__all__ = [
    "ROW_GROUP",
    "borrow_votes",
    "check_content",
    "columns_of",
    "content_of",
    "find_receipt",
    "part_of",
    "probs_of",
    "read_key",
    "read_receipt",
    "read_votes",
    "write_votes",
]

ROW_GROUP = 2**17
"""Votes that are read at once: of a thousand models, all of a range of ids must fit in memory."""

_KEY = b"unseen_ray.task"
_RECEIPT = b"unseen_ray.receipt"
_SHA256 = b"unseen_ray.sha256"
_FIXED = ("id", "pred", "p_top", "p_label")


def write_votes(folder: Folder, stage: int, key: str, part: VotePart, receipt: Receipt) -> Receipt:
    """Put one model's votes on storage, unless they stand there; returns the receipt with the files' checksums.

    A worker that was given up for dead may be faster than whoever took over, or come after it: its votes may be in use already.

    Args:
        folder: the run.
        stage: the task's.
        key: `Job.task_key`, by which a later start of the run knows the work as done.
        part: the votes.
        receipt: what to say of the work.
    """
    name = vote_file(stage, part.index)
    fresh = folder.read(name) is None  # else what was there before we looked is whole, or damaged and gives way
    if (stands := find_receipt(folder, stage, part.index, key)) is not None:
        return stands
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
        if (stands := find_receipt(folder, stage, part.index, key)) is not None:
            return stands
        digest = folder.write_table(name, table, row_group=ROW_GROUP)  # in place of what is damaged, or of other work
    return _as_it_stands(folder, stage, key, receipt.model_copy(update={"files": {**files, name: digest}}))


def _as_it_stands(folder: Folder, stage: int, key: str, receipt: Receipt) -> Receipt:
    """The receipt of the votes that an object store holds now: there, another worker's may have come in between."""
    if filesystem_of(folder.root)[0].type_name == "local":
        return receipt
    stands = find_receipt(folder, stage, receipt.index, key)
    return receipt if stands is None or stands.files == receipt.files else stands


def find_receipt(folder: Folder, stage: int, index: int, key: str) -> Receipt | None:
    """The receipt of a task whose votes are on storage already, whole and of this very work; else None."""
    name = vote_file(stage, index)
    path = folder.path(name)
    try:
        found = retried_inline(path, lambda: _whole_of(path, key))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}.") from None
    if found is None:
        return None
    receipt, digest = found
    if not receipt.files.keys() <= {probs_beside(name), FEATURES}:
        return None  # no task of ours writes another
    if any(sha256_of_file(folder, beside) != said for beside, said in receipt.files.items()):
        return None
    return receipt.model_copy(update={"files": {**receipt.files, name: digest}, "reused": True})


def _whole_of(path: str, key: str) -> tuple[Receipt, str] | None:
    """The receipt in a file of votes and the SHA-256 of the file; None where it is damaged or of other work."""
    fs, inner = filesystem_of(path)
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
    """Reads a column piece by piece."""
    return lambda name: (file.read_row_group(g, columns=[name]).column(0) for g in range(file.num_row_groups))


def read_receipt(folder: Folder, name: str) -> Receipt | None:
    """What a file of votes says of the work behind it, from its footer alone; None where it says nothing."""
    try:
        return Receipt.from_json(json.loads(_footer(folder, name)[_RECEIPT]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def read_key(folder: Folder, name: str) -> str | None:
    """What names the work behind a file of votes, from its footer alone; None where it says nothing."""
    try:
        return _footer(folder, name)[_KEY].decode()
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None


def _footer(folder: Folder, name: str) -> dict[bytes, bytes]:
    fs, path = filesystem_of(folder.path(name))
    with fs.open_input_file(path) as stream:
        return dict(pq.read_schema(stream).metadata or {})


def borrow_votes(
    lender: Folder,
    folder: Folder,
    stage: int,
    index: int,
    key: str,
    *,
    at: tuple[int, int] | None = None,
    name: str = "",
) -> Receipt | None:
    """Copy the votes of a task from a folder where this very work was done; None where it was not.

    Args:
        lender: another run, or a place of a shelf of finished work.
        folder: the run that needs them.
        stage, index: the task's in that run.
        key: `Job.task_key`.
        at: stage and index in the lender, if they are others there: the same work may be another task of another run.
        name: how the task is called in the run that needs it, if it is another one.
    """
    receipt = find_receipt(lender, *(at or (stage, index)), key)
    if receipt is None:
        return None
    if at is None or at == (stage, index):
        for file in receipt.files:  # the votes last: with them the work counts as done
            data = lender.read(file)
            if data is None:
                return None
            folder.write(file, data)
        return receipt.model_copy(update={"task": name or receipt.task})
    part = replace(read_votes(lender, *at, receipt.files), index=index)
    for file in receipt.files.keys() & {FEATURES}:
        part = replace(part, features_ND=lender.read_array(file, receipt.files[file]))
    moved = receipt.model_copy(update={"index": index, "task": name or receipt.task, "reused": False})
    return write_votes(folder, stage, key, part, moved).model_copy(update={"reused": True})


def read_votes(folder: Folder, stage: int, index: int, digests: Mapping[str, str] | None = None) -> VotePart:
    """The votes of a task.

    Args:
        folder: the run.
        stage, index: the task's.
        digests: SHA-256 by file name, as far as they are known.

    Raises:
        StorageError: if they are missing or damaged.
    """
    name, digests = vote_file(stage, index), digests or {}
    table = folder.read_table(name, digests.get(name))
    check_content(folder, name, table.schema, lambda: _content_of(table))
    beside = probs_of(name, table.schema)
    return part_of(index, table, None if beside is None else folder.read_array(*beside))


def check_content(folder: Folder, name: str, schema: pa.Schema, content: Callable[[], bytes]) -> None:
    """Refuse a file that is none of votes, or says something else than was written; StorageError says which."""
    missing = [column for column in _FIXED if column not in schema.names]
    if missing:
        raise StorageError(f"{folder.path(name)} has no column {', '.join(missing)}: it is no file of votes.")
    said = (schema.metadata or {}).get(_SHA256)
    if said is not None and said != content():
        raise StorageError(f"{folder.path(name)} is damaged: its checksum is another. Run the same line again.")


def probs_of(name: str, schema: pa.Schema) -> tuple[str, str] | None:
    """The file of probabilities beside a file of votes, and its SHA-256; None where it has none."""
    receipt = json.loads((schema.metadata or {}).get(_RECEIPT, b"{}"))
    digest = receipt.get("files", {}).get(probs_beside(name))
    return None if digest is None else (probs_beside(name), digest)


def part_of(index: int, table: pa.Table, probs_MC: FloatArray | None) -> VotePart:
    """The votes in the columns of a file of them."""
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
    """SHA-256 of what a file of votes says, in hexadecimal: no manifest vouches for it before its stage is finished."""
    return content_of(table.schema, lambda name: [table.column(name)])


def content_of(schema: pa.Schema, column: Callable[[str], Iterable[pa.ChunkedArray]]) -> bytes:
    """The same of a file whose columns are read piece by piece."""
    content = hashlib.sha256()
    for said in (_KEY, _RECEIPT):
        content.update((schema.metadata or {}).get(said, b""))
    for field in schema:
        content.update(f"{field.name} {field.type}".encode())
        for piece in column(field.name):
            content.update(piece.to_numpy().tobytes())
    return content.hexdigest().encode()

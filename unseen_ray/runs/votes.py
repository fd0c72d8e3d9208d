"""A task's votes on storage, `stage-NN/votes/FF.parquet`: written, found again by a resumed run, copied to other runs, read.

They are one file, or parts in a folder of that name, each of a range of the task's ids. What is written last, the file or the last
part, has the task's receipt, which names all other files with their SHA-256: once it is there, the task is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FileType

from unseen_ray.core.arrays import FloatArray, IdArray, IntArray
from unseen_ray.core.tasks import VotePart, join_votes
from unseen_ray.errors import StorageError
from unseen_ray.runs.layout import FEATURES, probs_beside, vote_file
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.storage.filesystem import Folder, filesystem_of
from unseen_ray.storage.plain_text import reason_of
from unseen_ray.storage.retry import answers_still, is_transient, retried_inline
from unseen_ray.storage.tables import part_file, sha256_of_file, sha256_of_stream, with_parquet

__all__ = [
    "ROW_GROUP",
    "check_content",
    "columns_of",
    "content_of",
    "copy_votes",
    "files_in",
    "files_of",
    "find_part",
    "find_receipt",
    "part_of",
    "parts_before",
    "probs_of",
    "read_key",
    "read_receipt",
    "read_votes",
    "write_part",
    "write_votes",
]

ROW_GROUP = 2**17
"""Rows that are read at once: a merge holds one such group of each of perhaps a thousand models."""

_KEY = b"unseen_ray.task"
_RECEIPT = b"unseen_ray.receipt"
_SHA256 = b"unseen_ray.sha256"
_FIXED = ("id", "pred", "p_top", "p_label")


def write_votes(
    folder: Folder, stage: int, key: str, part: VotePart, receipt: Receipt, earlier: Mapping[str, str] | None = None
) -> Receipt:
    """Write one model's votes, or their last part, unless they are there already; returns the receipt with the files' checksums.

    Args:
        folder: the run.
        stage: the task's.
        key: `Job.task_key`, by which a resumed run recognises finished work.
        part: the votes.
        receipt: of the work, stored in the file's footer.
        earlier: SHA-256 of all files of the parts before, as `write_part` gave them; none where the votes are one file.
    """
    base, earlier = vote_file(stage, part.index), earlier or {}
    name = part_file(base, sum(file.startswith(base) for file in earlier)) if earlier else base
    for left in set(files_of(folder, base)) - {base, name, *earlier}:  # by a version that cut votes elsewhere
        folder.delete(left) if earlier else folder.delete_folder(base)
    receipt = receipt.model_copy(update={"files": dict(earlier)})
    written = _write(folder, name, key, part, receipt, lambda: find_receipt(folder, stage, part.index, key))
    return written if written.reused else _as_stored(folder, stage, key, written)


def write_part(folder: Folder, stage: int, key: str, number: int, part: VotePart) -> dict[str, str]:
    """Write a part of one model's votes, not the last one, unless it is there already; returns the SHA-256 of its files."""
    base = vote_file(stage, part.index)
    if _type_of(folder, base) == FileType.File:
        folder.delete(base)  # a damaged file, where the folder will be
    name = part_file(base, number)
    return _write(folder, name, key, part, Receipt(index=part.index), lambda: _find(folder, name, key)).files


def _write(
    folder: Folder, name: str, key: str, part: VotePart, receipt: Receipt, find: Callable[[], Receipt | None]
) -> Receipt:
    # A worker that was taken for dead may still finish, before or after its replacement. The first whole file stays, because a
    # merge may be using it; so the write is exclusive, unless there is a damaged file to replace.
    fresh = _type_of(folder, name) == FileType.NotFound
    if not fresh and (present := find()) is not None:
        return present
    files = dict(receipt.files)
    if part.probs_MC is not None:
        probs = probs_beside(name)
        files[probs] = folder.write_array(probs, part.probs_MC)
    if part.features_ND is not None:
        files[FEATURES] = folder.write_array(FEATURES, part.features_ND)
    table = _table_of(part, key, receipt.model_copy(update={"files": files}))
    try:
        digest = folder.write_table(name, table, new=fresh, row_group=ROW_GROUP)
    except FileExistsError:
        if (present := find()) is not None:
            return present
        digest = folder.write_table(name, table, row_group=ROW_GROUP)  # replaces a damaged file, or one of other work
    return receipt.model_copy(update={"files": {**files, name: digest}})


def _table_of(part: VotePart, key: str, receipt: Receipt) -> pa.Table:
    columns = {
        "id": pa.array(part.ids_M),
        "pred": pa.array(part.pred_M),
        "p_top": pa.array(part.p_top_M, pa.float32()),
        "p_label": pa.array(part.p_label_M, pa.float32()),
        **{score: pa.array(values, pa.float32()) for score, values in part.scores.items()},
    }
    # A part before the last one names its files alone, so that nothing takes it for a finished task.
    said = receipt.to_json() if receipt.task else {"files": receipt.files}
    metadata = {_KEY: key.encode(), _RECEIPT: json.dumps(said).encode()}
    table = pa.table(columns).replace_schema_metadata(metadata)
    return table.replace_schema_metadata({**metadata, _SHA256: _content_of(table)})


def _as_stored(folder: Folder, stage: int, key: str, receipt: Receipt) -> Receipt:
    """The receipt of the file that is on storage now."""
    # On an object store pyarrow cannot write exclusively: another worker's file may have replaced this one.
    if filesystem_of(folder.root)[0].type_name == "local":
        return receipt
    present = find_receipt(folder, stage, receipt.index, key)
    return receipt if present is None or present.files == receipt.files else present


def files_of(folder: Folder, name: str) -> list[str]:
    """The files of votes on storage, in order: their parts, or the one file called `name`, whether it is there or not.

    Raises:
        StorageError: if storage fails.
    """
    if _type_of(folder, name) != FileType.Directory:
        return [name]
    return [f"{name}/{part}" for part in folder.within(name).names() if part.endswith(".parquet")] or [name]


def _type_of(folder: Folder, name: str) -> FileType:
    path = folder.path(name)
    fs, inner = filesystem_of(path)
    try:
        return retried_inline(path, lambda: fs.get_file_info(inner).type, fs)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {reason_of(error)}.") from None


def find_receipt(folder: Folder, stage: int, index: int, key: str) -> Receipt | None:
    """The receipt of a task whose votes are on storage, undamaged and with this key; else None."""
    receipt = _find(folder, files_of(folder, vote_file(stage, index))[-1], key)
    return receipt if receipt is not None and receipt.task else None


def find_part(
    folder: Folder, stage: int, index: int, number: int, key: str
) -> tuple[IdArray, IntArray, dict[str, str]] | None:
    """Ids and predicted classes of a part of a task's votes, but not of the last one, and its files; None as for `find_receipt`."""
    name = part_file(vote_file(stage, index), number)
    receipt = _find(folder, name, key)
    if receipt is None or receipt.task:
        return None
    table = with_parquet(folder, name, lambda file: file.read(columns=["id", "pred"]))
    return table.column("id").to_numpy(), table.column("pred").to_numpy(), receipt.files


def _find(folder: Folder, name: str, key: str) -> Receipt | None:
    """The receipt in a file of votes, if it and all that it names are undamaged."""
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
    before = _all_before(name) if receipt.task else []
    if not set(before) <= receipt.files.keys() <= {*before, FEATURES, *map(probs_beside, [*before, name])}:
        return None  # no task of ours writes another
    if any(sha256_of_file(folder, other) != said for other, said in receipt.files.items()):
        return None
    return receipt.model_copy(update={"files": {**receipt.files, name: digest}, "reused": True})


def _all_before(name: str) -> list[str]:
    base, _, last = name.rpartition("/part-")
    return [part_file(base, number) for number in range(int(last.removesuffix(".parquet")))] if base else []


def _whole_of(fs: FileSystem, inner: str, key: str) -> tuple[Receipt, str] | None:
    """The receipt in a file of votes and the file's SHA-256; None if it is damaged or has another key."""
    with fs.open_input_file(inner) as stream:
        try:
            with pq.ParquetFile(stream, page_checksum_verification=True) as file:
                schema, metadata = file.schema_arrow, file.schema_arrow.metadata or {}
                if metadata.get(_KEY) != key.encode() or metadata.get(_SHA256) != content_of(schema, columns_of(file)):
                    return None
                receipt = _receipt_of(json.loads(metadata[_RECEIPT]))
                stream.seek(0)
                return receipt, sha256_of_stream(stream)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, OSError) and is_transient(error):
                raise
            return None


def _receipt_of(said: dict[str, Any]) -> Receipt:
    return Receipt(index=0, files=said["files"]) if said.keys() == {"files"} else Receipt.from_json(said)


def columns_of(file: pq.ParquetFile) -> Callable[[str], Iterator[pa.ChunkedArray]]:
    """A function that reads a column by row groups."""
    return lambda name: (file.read_row_group(g, columns=[name]).column(0) for g in range(file.num_row_groups))


def read_receipt(folder: Folder, name: str) -> Receipt | None:
    """The receipt of the votes called `name`; None if there is none, as long as they are not complete."""
    try:
        return Receipt.from_json(json.loads(_footer(folder, name)[_RECEIPT]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, StorageError):
        return None


def read_key(folder: Folder, name: str) -> str | None:
    """The task key of the votes called `name`; None if there is none."""
    try:
        return _footer(folder, name)[_KEY].decode()
    except (pa.ArrowException, OSError, ValueError, KeyError, StorageError):
        return None


def _footer(folder: Folder, name: str) -> dict[bytes, bytes]:
    fs, path = filesystem_of(folder.path(files_of(folder, name)[-1]))

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
    place = at or (stage, index)
    receipt = find_receipt(origin, *place, key)
    if receipt is None:
        return None
    if place == (stage, index):
        # `files` names last what has the receipt; once it is there, the work counts as done.
        for file in receipt.files:
            data = origin.read(file)
            if data is None:
                return None
            folder.write(file, data)
        return receipt.model_copy(update={"task": name or receipt.task})
    moved = receipt.model_copy(update={"index": index, "task": name or receipt.task, "reused": False})
    return _moved(origin, vote_file(*place), folder, stage, key, moved)


def _moved(origin: Folder, base: str, folder: Folder, stage: int, key: str, receipt: Receipt) -> Receipt:
    """The votes called `base` of another folder, written as those of another task."""
    earlier: dict[str, str] = {}
    *before, last = [file for file in receipt.files if file.startswith(base)]
    for number, file in enumerate(before):
        earlier |= write_part(folder, stage, key, number, _part(origin, receipt.index, file, receipt.files))
    part = _part(origin, receipt.index, last, receipt.files)
    for file in receipt.files.keys() & {FEATURES}:
        part = replace(part, features_ND=origin.read_array(file, receipt.files[file]))
    return write_votes(folder, stage, key, part, receipt, earlier).model_copy(update={"reused": True})


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
    last = files_of(folder, vote_file(stage, index))[-1]
    table = _table(folder, last, digests or {})
    named = files_in(last, table.schema)
    parts = [_part(folder, index, name, named, probs=probs) for name in parts_before(last, named)]
    return join_votes([*parts, _with_probs(folder, index, last, table, probs=probs)])


def _part(folder: Folder, index: int, name: str, digests: Mapping[str, str], *, probs: bool = True) -> VotePart:
    return _with_probs(folder, index, name, _table(folder, name, digests), probs=probs)


def _table(folder: Folder, name: str, digests: Mapping[str, str]) -> pa.Table:
    table = folder.read_table(name, digests.get(name))
    check_content(folder, name, table.schema, lambda: _content_of(table))
    _check_columns(table, folder.path(name))
    return table


def _with_probs(folder: Folder, index: int, name: str, table: pa.Table, *, probs: bool) -> VotePart:
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
    beside = probs_beside(name)
    digest = files_in(name, schema).get(beside)
    return None if digest is None else (beside, digest)


def parts_before(name: str, files: Mapping[str, str]) -> list[str]:
    """The parts that the last part of votes names; none for votes that are one file."""
    return sorted(file for file in files if file.startswith(f"{name.rpartition('/')[0]}/part-"))


def files_in(name: str, schema: pa.Schema) -> dict[str, str]:
    """SHA-256 by name of the files that a file of votes names in its receipt."""
    try:
        return dict(json.loads((schema.metadata or {}).get(_RECEIPT, b"{}")).get("files", {}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise StorageError(f"{name} is damaged or forged: its receipt cannot be read.") from None


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

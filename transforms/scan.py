"""Rows of committed outputs as tables, file by file, in bounded memory.

What a run has checked before its commit is not taken for granted here: `verify` reads through
this, so a row may lack anything. `to_matrix` tells whole vectors from others.
"""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from transforms import storage
from transforms.committed import CommittedFile
from transforms.errors import InputError
from transforms.readers.base import FileBrokenError
from transforms.readers.tfrecord import read_examples
from transforms.records import BoolArray, FloatArray

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")

# 4,096 rows of 768 floats are 12 MiB: in a cache's reach, and long enough for a matrix product.
BATCH_ROWS = 4096
_READ_BYTES = 1 << 20

_OWN_TYPES = {
    "id": pa.string(),
    "document_id": pa.string(),
    "chunk": pa.int32(),
    "char_start": pa.int32(),
    "char_end": pa.int32(),
    "n_tokens": pa.int32(),
    "truncated": pa.bool_(),
    "text_sha256": pa.string(),
    "text": pa.string(),
    "pair": pa.string(),
}
_VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a file that are read in one go: row group `number`, or all of a TFRecord file.

    `rows` is None where only reading tells.
    """

    number: int
    first_row: int
    rows: int | None


def embedding_column(manifest: Mapping[str, Any]) -> tuple[str, int]:
    """Name and width of the column of vectors.

    Raises: InputError if there is none, or several.
    """
    found = [
        (str(column["name"]), _width_of(column["type"]))
        for column in manifest["columns"]
        if str(column["name"]).split("_")[0] == "embedding" and _width_of(column["type"])
    ]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise InputError(
            f"the manifest names these columns of vectors: {names}; wanted one. Make the output "
            "again with this version, or use the version that wrote it"
        )
    return found[0]


def _width_of(type_name: object) -> int:
    head, _, width = str(type_name).rstrip("]").rpartition("[")
    fits = head == "fixed_size_list<element: float not null>" and width.isdigit()
    return int(width) if fits else 0


def list_blocks(file: CommittedFile) -> list[Block]:
    """The blocks of a file, in order. Raises: InputError if it cannot be read."""
    if file.format != "parquet":
        return [Block(0, 0, None)]
    with _explained(file.path), storage.open_seekable(file.path) as source:
        metadata = pq.ParquetFile(source).metadata
        blocks: list[Block] = []
        first = 0
        for number in range(metadata.num_row_groups):
            rows = metadata.row_group(number).num_rows
            blocks.append(Block(number, first, rows))
            first += rows
        return blocks


def read_block(
    file: CommittedFile, block: Block, *, columns: Sequence[str], embedding: str
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (first row, table) of some rows of a block at a time.

    Args:
      columns: names of the product's own columns; one that the file lacks is a column of nulls.
      embedding: the name of the column of vectors.
    Raises: InputError at the row from which on it cannot be read.
    """
    if file.format == "parquet":
        yield from _read_row_group(file, block, columns=columns)
    else:
        yield from _read_records(file, columns=columns, embedding=embedding)


class _explained:  # noqa: N801 - used as a function
    """Turns what a damaged file raises into an InputError that names file and rows."""

    def __init__(self, path: str, rows: str = "") -> None:
        self._path = path
        self._rows = rows

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, InputError) or not isinstance(error, Exception):
            return
        if isinstance(error, FileBrokenError):
            raise InputError(error.message) from error
        if isinstance(error, (OSError, pa.ArrowException, ValueError, DecodeError)):
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"{self._path}{self._rows} cannot be read: {lines[0][:300]}; restore the file, or "
                "make the output again"
            ) from error


def _read_row_group(
    file: CommittedFile, block: Block, *, columns: Sequence[str]
) -> Iterator[tuple[int, pa.Table]]:
    rows = block.rows or 0
    where = f" rows {block.first_row:,} to {block.first_row + rows - 1:,}"
    with _explained(file.path, where), storage.open_seekable(file.path) as source:
        parquet = pq.ParquetFile(source, buffer_size=_READ_BYTES)
        there = [name for name in columns if name in parquet.schema_arrow.names]
        first = block.first_row
        # A row group as a whole took 2.5 times as long and three times the memory.
        for batch in parquet.iter_batches(
            BATCH_ROWS, row_groups=[block.number], columns=there, use_threads=False
        ):
            table = pa.Table.from_batches([batch])
            for name in columns:
                if name not in there:
                    nulls = pa.nulls(len(table), _OWN_TYPES.get(name, _VECTOR))
                    table = table.append_column(name, nulls)
            yield first, table
            first += len(table)


def _read_records(
    file: CommittedFile, *, columns: Sequence[str], embedding: str
) -> Iterator[tuple[int, pa.Table]]:
    first = 0
    rows: list[list[Any]] = []
    records = read_examples(file.path)
    while True:
        features, broken = None, None
        try:
            with _explained(file.path, f" row {first + len(rows):,}"):
                features = next(records, None)
        except InputError as error:
            broken = error  # raised once the rows before it are out
        if features is not None:
            rows.append([_read_feature(features, name, embedding) for name in columns])
        if rows and (features is None or len(rows) == BATCH_ROWS):
            yield first, _make_table(rows, columns=columns, embedding=embedding)
            first += len(rows)
            rows = []
        if broken is not None:
            raise broken
        if features is None:
            return


def _read_feature(features: Any, name: str, embedding: str) -> Any:
    """A feature of an own column as a Python value, a vector as its packed bytes; None if absent.

    A feature of another kind than the column's counts as absent.
    """
    if name not in features:  # a look-up would put an empty feature there
        return None
    feature = features[name]
    if name == embedding:
        count = len(feature.float_list.value)
        # Packed floats end the serialised list; NumPy reads them without a Python float each.
        packed: bytes = feature.float_list.SerializeToString()
        return packed[len(packed) - 4 * count :]
    kind = _OWN_TYPES[name]
    values = (feature.bytes_list if kind == pa.string() else feature.int64_list).value
    if len(values) != 1:
        return None
    if kind == pa.bool_():
        return bool(values[0])
    return values[0].decode("utf-8", "replace") if kind == pa.string() else values[0]


def _make_table(rows: list[list[Any]], *, columns: Sequence[str], embedding: str) -> pa.Table:
    made: dict[str, Any] = {}
    for name, values in zip(columns, zip(*rows, strict=True), strict=True):
        if name != embedding:
            made[name] = pa.array(values, _OWN_TYPES[name])
            continue
        flat = np.frombuffer(b"".join(value or b"" for value in values), "<f4")
        ends = np.cumsum([0, *(len(value or b"") // 4 for value in values)]).astype(np.int32)
        made[name] = pa.ListArray.from_arrays(pa.array(ends), pa.array(flat), type=_VECTOR)
    return pa.table(made)


def to_matrix(column: pa.ChunkedArray, *, width: int) -> tuple[FloatArray, BoolArray]:
    """A column of vectors as float32 [B, W], and bool [B]: which rows have W numbers and no null.

    The others are zeros. No copy where every row is whole.
    """
    kind = column.type
    if not _is_float_list(kind):
        return np.zeros((len(column), width), np.float32), np.zeros(len(column), np.bool_)
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no or several chunks
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], kind)
    flat = array.flatten()
    counts = np.asarray(pc.fill_null(pc.list_value_length(array), -1)).astype(np.int64)
    whole = counts == width
    if whole.all() and not flat.null_count:
        matrix = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
        return matrix.astype(np.float32, copy=False), whole
    starts = np.cumsum(np.maximum(counts, 0)) - np.maximum(counts, 0)
    if flat.null_count:
        holes = np.flatnonzero(np.asarray(flat.is_null()))
        whole[np.searchsorted(starts, holes, side="right") - 1] = False
    matrix = np.zeros((len(array), width), np.float32)
    values = np.asarray(flat.fill_null(0.0), np.float32)
    places = starts[whole][:, np.newaxis] + np.arange(width)
    matrix[whole] = values[places]
    return matrix, whole


def _is_float_list(kind: pa.DataType) -> bool:
    types = pa.types
    is_list = any(
        test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list)
    )
    return bool(is_list and types.is_floating(kind.value_type))


def read_ahead(
    items: Sequence[_Item], read: Callable[[_Item], _Made], *, threads: int
) -> Iterator[_Made]:
    """Yield read(item) in order, with so many read ahead in threads."""
    if threads < 1:
        yield from map(read, items)
        return
    waiting: deque[concurrent.futures.Future[_Made]] = deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_rows(
    file: CommittedFile, rows: Sequence[int], *, columns: Sequence[str], embedding: str
) -> dict[int, dict[str, Any]]:
    """Some rows of a file, whatever their columns, as Python values.

    In a TFRecord a column's Arrow type is gone: a time is its number, a bool of the metadata 0
    or 1.
    Raises: InputError.
    """
    if file.format == "parquet":
        return _pick_parquet_rows(file, rows, columns=columns)
    wanted = set(rows)
    found: dict[int, dict[str, Any]] = {}
    with _explained(file.path):
        for row, features in enumerate(read_examples(file.path)):
            if row in wanted:
                found[row] = {name: _plain_feature(features, name, embedding) for name in columns}
                if len(found) == len(wanted):
                    break
    return found


def _pick_parquet_rows(
    file: CommittedFile, rows: Sequence[int], *, columns: Sequence[str]
) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for block in list_blocks(file):
        stop = block.first_row + (block.rows or 0)
        inside = [row for row in rows if block.first_row <= row < stop]
        if not inside:
            continue
        with _explained(file.path), storage.open_seekable(file.path) as source:
            table = pq.ParquetFile(source).read_row_group(block.number, columns=list(columns))
        picked = table.take(pa.array([row - block.first_row for row in inside]))
        found.update(zip(inside, picked.select(list(columns)).to_pylist(), strict=True))
    return found


def _plain_feature(features: Any, name: str, embedding: str) -> Any:
    if name not in features:
        return None
    if name == embedding:
        return np.frombuffer(_read_feature(features, name, embedding), "<f4").tolist()
    if name == "truncated":
        return _read_feature(features, name, embedding)
    kind = features[name].WhichOneof("kind")
    values: list[Any] = list(getattr(features[name], kind).value) if kind else []
    if kind == "bytes_list":
        values = [_as_text(value) for value in values]
    return values[0] if len(values) == 1 else (values or None)


def _as_text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value

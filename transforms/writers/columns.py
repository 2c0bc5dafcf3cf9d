"""The columns of an output file, and vectors as Arrow columns without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from transforms.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, BinaryIO

    from transforms.records import FloatArray

# Writes the field's number in its source file, which means nothing in ours.
_FIELD_ID = b"PARQUET:field_id"


def vector_type(width: int) -> pa.DataType:
    """Return the Arrow type of an embedding column; see transforms/writers/parquet.py for why."""
    return pa.list_(pa.field("element", pa.float32(), nullable=False), width)


def vector_array(matrix: FloatArray) -> pa.Array:
    """View float32 [B, W] as a column of B vectors; no copy where the matrix is contiguous.

    Raises: ValueError if the matrix is not float32 or not of two dimensions, or W is 0.
    """
    if matrix.ndim != 2 or matrix.dtype != np.float32 or not matrix.shape[1]:
        raise ValueError(f"a vector column is float32 [B, W], not {matrix.dtype} {matrix.shape}")
    rows, width = matrix.shape
    values = pa.Array.from_buffers(
        pa.float32(), rows * width, [None, pa.py_buffer(np.ascontiguousarray(matrix))]
    )
    return pa.FixedSizeListArray.from_arrays(values, type=vector_type(width))


def vector_matrix(column: pa.Array | pa.ChunkedArray) -> FloatArray:
    """View a vector column as float32 [B, W]; copies only where there are several chunks.

    Raises: ValueError if it is no column of fixed-width float32 vectors, or has a null.
    """
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) and pa.types.is_float32(kind.value_type)):
        raise ValueError(f"column of type {kind} holds no float32 vectors of one width")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    # flatten() leaves out null rows and heeds a slice's offset; .values does neither.
    parts = [chunk.flatten() for chunk in chunks if len(chunk)]
    nulls = column.null_count + sum(part.null_count for part in parts)
    if nulls:
        raise ValueError(f"column of vectors has {nulls} nulls; every row needs a whole vector")
    arrays = [part.to_numpy(zero_copy_only=True) for part in parts]
    if not arrays:
        return np.empty((0, kind.list_size), np.float32)
    flat = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return flat.reshape(-1, kind.list_size)


def reserved_columns(
    *,
    embedding_columns: Mapping[str, int],
    chunked: bool = False,
    keep_text: bool = False,
    pair: bool = False,
) -> tuple[str, ...]:
    """Name the product's own columns of an output, in order; no metadata field may bear one."""
    own = _own_fields(
        embedding_columns=embedding_columns, chunked=chunked, keep_text=keep_text, pair=pair
    )
    return tuple(field.name for field in own)


def output_schema(
    *,
    embedding_columns: Mapping[str, int],
    metadata: pa.Schema,
    chunked: bool = False,
    keep_text: bool = False,
    pair: bool = False,
) -> pa.Schema:
    """Lay out the columns of an output file.

    Args:
      embedding_columns: name → width, in the order of the columns.
      metadata: fields to carry through, as the source has them.
      chunked: with the columns that place a chunk in its document.
      keep_text: with the text, and with `pair` the second text.
      pair: rows have a second text.
    Raises: ConfigError if two columns would have one name.
    """
    own = _own_fields(
        embedding_columns=embedding_columns, chunked=chunked, keep_text=keep_text, pair=pair
    )
    # Spark and DuckDB do not tell `ID` from `id`; Spark refuses to read a file that has both.
    taken = {field.name.casefold(): field.name for field in own}
    for field in metadata:
        other = taken.setdefault(field.name.casefold(), field.name)
        if other != field.name or metadata.names.count(field.name) > 1 or other in _names(own):
            raise ConfigError(
                f"metadata field {field.name!r} has the name of the output's column {other!r} "
                "(upper and lower case count as one); leave it out of --metadata_fields or "
                "rename it in the source"
            )
    return pa.schema([*own, *(_without_field_id(field) for field in metadata)])


def conform_table(table: pa.Table, *, schema: pa.Schema) -> pa.Table:
    """Hold a table to the schema of its file; only nullability may be wider, and no null be there.

    Raises: ValueError naming the first column that differs.
    """
    if table.schema.names != schema.names:
        raise ValueError(f"table has columns {table.schema.names}, the file {schema.names}")
    for field, column in zip(schema, table.columns, strict=True):
        if column.type != field.type:
            raise ValueError(f"column {field.name!r} is {column.type}, in the file {field.type}")
        if not field.nullable and _count_nulls(column):
            raise ValueError(f"column {field.name!r} has nulls; in the file it may have none")
    return pa.Table.from_arrays(table.columns, schema=schema)


class SequentialSink:
    """A file object that can only be appended to, and that can be abandoned.

    Arrow's writer writes its footer when it is collected, also after an error, which would make
    half a file look whole; once abandoned, nothing reaches the file any more. Closing leaves the
    file open: it belongs to the caller.
    """

    closed = False

    def __init__(self, sink: BinaryIO) -> None:
        self._sink: Any = sink  # BinaryIO.write returns an int; Beam's CompressedFile.write None
        self._abandoned = False

    def abandon(self) -> None:
        self._abandoned = True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while len(view) and not self._abandoned:
            written = self._sink.write(view)
            # A raw file may take a part; a handle that returns nothing took all.
            view = view[len(view) if written is None else written :]
        return size

    def flush(self) -> None:
        if not self._abandoned:
            self._sink.flush()

    def close(self) -> None:
        """Leave the caller's file open."""


def _own_fields(
    *, embedding_columns: Mapping[str, int], chunked: bool, keep_text: bool, pair: bool
) -> list[pa.Field]:
    def field(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    fields = [field("id", pa.string())]
    fields += [field(name, vector_type(width)) for name, width in embedding_columns.items()]
    if chunked:
        fields += [
            field("document_id", pa.string()),
            field("chunk", pa.int32()),
            field("char_start", pa.int32()),
            field("char_end", pa.int32()),
        ]
    fields += [
        field("n_tokens", pa.int32()),
        field("truncated", pa.bool_()),
        field("text_sha256", pa.string()),
    ]
    if keep_text:
        fields.append(field("text", pa.string()))
        if pair:
            fields.append(pa.field("pair", pa.string()))
    return fields


def _names(fields: list[pa.Field]) -> set[str]:
    return {field.name for field in fields}


def _without_field_id(field: pa.Field) -> pa.Field:
    kept = {key: value for key, value in (field.metadata or {}).items() if key != _FIELD_ID}
    return field.with_metadata(kept) if kept else field.remove_metadata()


def _count_nulls(column: pa.ChunkedArray) -> int:
    nulls = int(column.null_count)
    if pa.types.is_fixed_size_list(column.type):
        nulls += sum(chunk.flatten().null_count for chunk in column.chunks)
    return nulls

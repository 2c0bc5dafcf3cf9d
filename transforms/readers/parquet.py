"""Parquet: row groups in order, a few thousand rows at a time, column by column."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.readers.base import (
    FileBrokenError,
    ReadSettings,
    Sample,
    TableBlock,
    used_names,
)
from transforms.readers.compression import open_raw
from transforms.records import InputFile, RowFields, RowLimits, Segment

BATCH_BYTES = 4 << 20


@contextlib.contextmanager
def open_parquet(file: InputFile) -> Iterator[pq.ParquetFile]:
    """Open a file and read its footer.

    Raises: FileBrokenError if it cannot be opened or has no valid footer.
    """
    with open_raw(file.path) as raw:
        try:
            # Not pre-buffered: that would hold a whole row group in memory.
            found = pq.ParquetFile(
                raw, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:
            raise _broken(file, error, what="its footer cannot be read") from error
        yield found


def _broken(file: InputFile, error: Exception, *, what: str) -> FileBrokenError:
    if isinstance(error, ConnectionError | TimeoutError):
        raise error  # may pass: the runner retries the bundle
    cut = "magic bytes not found in footer" in str(error) or file.size_bytes < 12
    reason = "truncated_file" if cut else "corrupt_file"
    mend = "it was cut short, or is no Parquet" if cut else "it is damaged, or is no Parquet"
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return FileBrokenError(
        reason, f"{file.path}: {what} ({detail}); {mend}: fetch or write the file again"
    )


def check_column_types(schema: pa.Schema, *, fields: RowFields, path: str) -> None:
    """Check that the used columns are there, text is text, and an id is text or an integer.

    Raises: FileBrokenError with reason schema_mismatch.
    """
    known = ", ".join(schema.names[:20])
    for name in used_names(fields):
        if len(schema.get_all_field_indices(name)) != 1:
            count = len(schema.get_all_field_indices(name)) or "no"
            raise FileBrokenError(
                "schema_mismatch",
                f"{path}: has {count} columns {name!r}; it has {known}; name another field or "
                "write the file again",
            )
    for role, is_id in ((fields.text, False), (fields.pair, False), (fields.id, True)):
        if role is None:
            continue
        kind = schema.field(role).type
        if not (is_text(kind) or (is_id and pa.types.is_integer(kind))):
            wanted = "a string or an integer" if is_id else "a string"
            raise FileBrokenError(
                "schema_mismatch",
                f"{path}: column {role!r} is {kind}; wanted {wanted}; name another field or "
                "write the file again with the column cast",
            )


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold texts; one of nothing but nulls can."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _batch_rows(group: Any, *, limits: RowLimits) -> int:
    """How many rows make a batch of a few MiB, by what the footer says of the row group."""
    row_bytes = group.total_byte_size / max(1, group.num_rows)
    return max(1, min(limits.chunk_rows, int(BATCH_BYTES / max(1.0, row_bytes))))


class ParquetReader:
    """Parquet files; the used columns alone are read."""

    split: Literal["bytes", "row_groups", "none"] = "row_groups"
    compressible = False
    has_fields = True

    def read(
        self, segment: Segment, *, fields: RowFields, limits: RowLimits, settings: ReadSettings
    ) -> Iterator[TableBlock]:
        file = segment.file
        names = list(used_names(fields))
        with open_parquet(file) as source:
            check_column_types(source.schema_arrow, fields=fields, path=file.path)
            footer = source.metadata
            stop = footer.num_row_groups if segment.stop is None else segment.stop
            position = sum(footer.row_group(k).num_rows for k in range(segment.start))
            for k in range(segment.start, stop):
                group = footer.row_group(k)
                first = position
                batches = source.iter_batches(
                    batch_size=_batch_rows(group, limits=limits),
                    row_groups=[k],
                    columns=names,
                    use_threads=False,
                )
                while True:
                    try:
                        batch = next(batches, None)
                    except (pa.ArrowException, OSError) as error:
                        broken = _broken(file, error, what=f"row group {k} cannot be read")
                        broken.position = position
                        raise broken from error
                    if batch is None:
                        break
                    yield TableBlock(pa.Table.from_batches([batch]).select(names), position)
                    position += batch.num_rows
                if position - first != group.num_rows:
                    raise FileBrokenError(
                        "corrupt_file",
                        f"{file.path}: row group {k} gives {position - first} rows; its footer "
                        f"says {group.num_rows}; fetch or write the file again",
                        position=position,
                    )

    def sample(self, file: InputFile, *, settings: ReadSettings) -> Sample:
        with open_parquet(file) as source:
            return Sample(tuple(source.schema_arrow.names), source.metadata.num_rows > 0)

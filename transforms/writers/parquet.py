"""Parquet files whose vectors six tools read as vectors.

The type of a vector is `fixed_size_list<element: float not null>[W]`. In Parquet itself it is the
same LIST of required floats as `list<element: float not null>`; the width stands in the Arrow
schema of the footer, for readers that look there. What each reader makes of the two (pyarrow 25,
DuckDB 2.0, Polars 2.1, pandas 3.1, datasets 5.2, pyspark 4.3, Beam 2.77):

| reader | fixed_size_list | list |
| --- | --- | --- |
| pyarrow | fixed_size_list, width known | list |
| DuckDB | FLOAT[], list_cosine_similarity as it is | the same |
| DuckDB, array_cosine_similarity | after a cast to FLOAT[W] | the same |
| Polars | Array(Float32, W), to_numpy() is [N, W] | List(Float32), to_numpy() an array of objects |
| pandas | float32 [W] in each row | the same |
| Hugging Face datasets | List(float32, length=W) | List(float32), width lost |
| Spark | array<float>, array_to_vector as it is | the same |
| Beam ReadFromParquet | dict rows as they are; as_rows=True refuses | both |

So all six know the vector, its element type and its values with either; only the fixed size tells
the three that ask its width, and costs Beam's `as_rows=True`, for which dict rows stand in.
ClickHouse reads it since #73654, Milvus since #49683. tests/test_consumers.py holds the column of
the type chosen.

A metadata column keeps its type, also one that a reader lacks: Spark 4.3 refuses a whole file for a
timestamp in nanoseconds, which DuckDB and Polars read.
"""

from __future__ import annotations

import io
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.errors import ConfigError
from transforms.writers.columns import SequentialSink, conform_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, BinaryIO

# A row group is the unit that readers skip, read in parallel, and hold in memory. The last of a
# file is between half and one and a half of this.
_ROW_GROUP_BYTES = 80 << 20
_MAX_ROW_GROUP_ROWS = 128 << 10
# Kept texts may be any size; no row group grows beyond this much by them.
_FULL_BYTES = 192 << 20
# Rows are gathered in slabs, so that the tables they came in leave no trace in the file.
_SLAB_ROWS = 256
# Columns of which no two rows are alike, and which nobody compares with < or >.
_UNIQUE = frozenset({"id", "text_sha256", "text", "pair"})
_WITHOUT_STATISTICS = frozenset({"text_sha256", "text", "pair"})


@dataclass(frozen=True, slots=True)
class ParquetWriter:
    """Writes Parquet: zstd, byte stream split on vectors, statistics where they help.

    Args:
      row_group_rows: rows of a row group, or None to compute it from the schema.
      compression_level: of zstd. A vector's mantissas do not compress: levels 1, 3, 6, 9 wrote
        0.846, 0.856, 0.851, 0.851 of 10,000 random vectors of width 768, and 0.847, 0.857,
        0.853, 0.852 of the demo expert's vectors of 2,000 sentences, ever more slowly (270, 156,
        118, 83 MB/s on two cores with AVX2). Without byte stream split level 1 leaves 0.926.
    Raises: ConfigError if row_group_rows is less than 1.
    """

    row_group_rows: int | None = None
    compression_level: int = 1
    extension: str = ".parquet"

    def __post_init__(self) -> None:
        if self.row_group_rows is not None and self.row_group_rows < 1:
            raise ConfigError(
                f"row_group_rows={self.row_group_rows}; a row group has 1 row or more"
            )

    def check_schema(self, schema: pa.Schema) -> None:
        """Raise ConfigError if Parquet cannot carry a column."""
        for field in schema:
            _leaf_paths(field)

    @contextmanager
    def open(
        self, sink: BinaryIO, *, schema: pa.Schema, footer: Mapping[str, str]
    ) -> Iterator[_ParquetFile]:
        """Begin a file; `footer` becomes the key-value metadata of its footer."""
        self.check_schema(schema)
        guarded = SequentialSink(sink)
        writer = pq.ParquetWriter(
            guarded,
            schema.with_metadata(dict(footer)),
            compression="zstd",
            compression_level=self.compression_level,
            **_column_settings(schema),
        )
        try:
            file = _ParquetFile(
                writer, schema, self.row_group_rows or choose_row_group_rows(schema)
            )
            yield file
            file.finish()
            writer.close()
        except BaseException:
            guarded.abandon()
            with suppress(pa.ArrowException, OSError):
                writer.close()
            raise


class _ParquetFile:
    """Gathers rows into row groups; holds at most one and a half of them."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema, group_rows: int) -> None:
        self._writer = writer
        self._schema = schema
        self._group_rows = group_rows
        self._pieces: list[pa.Table] = []
        self._pieces_rows = 0
        self._slabs: list[pa.Table] = []
        self._slabs_rows = 0
        self._slabs_bytes = 0

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        table = conform_table(table, schema=self._schema)
        start = 0
        while start < len(table):
            piece = table.slice(start, _SLAB_ROWS - self._pieces_rows)
            start += len(piece)
            self._pieces.append(piece)
            self._pieces_rows += len(piece)
            if self._pieces_rows == _SLAB_ROWS:
                self._close_slab()
                self._write_full_groups()
                if self._slabs_bytes >= _FULL_BYTES:
                    self._write_group(self._slabs_rows)

    def finish(self) -> None:
        """Write the rows that are left."""
        self._close_slab()
        self._write_full_groups()
        self._write_group(self._slabs_rows)

    def _close_slab(self) -> None:
        if self._pieces:
            slab = pa.concat_tables(self._pieces).combine_chunks()
            self._slabs.append(slab)
            self._slabs_rows += len(slab)
            self._slabs_bytes += slab.nbytes
        self._pieces, self._pieces_rows = [], 0

    def _write_full_groups(self) -> None:
        # Half a group stays behind, lest the last group of a file be a handful of rows.
        while self._slabs_rows >= self._group_rows + self._group_rows // 2:
            self._write_group(self._group_rows)

    def _write_group(self, rows: int) -> None:
        if not rows:
            return
        table = pa.concat_tables(self._slabs)
        self._writer.write_table(table.slice(0, rows), row_group_size=rows)
        rest = table.slice(rows)
        self._slabs = [rest] if len(rest) else []
        self._slabs_rows, self._slabs_bytes = len(rest), rest.nbytes


def choose_row_group_rows(schema: pa.Schema) -> int:
    """Choose the rows of a row group so that its vectors take about 80 MiB before compression."""
    widths = (field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type))
    row_bytes = 4 * sum(widths) or 1
    rows = min(_ROW_GROUP_BYTES // row_bytes, _MAX_ROW_GROUP_ROWS)
    return max(rows // _SLAB_ROWS * _SLAB_ROWS, _SLAB_ROWS)


def _column_settings(schema: pa.Schema) -> dict[str, Any]:
    """Choose encoding, dictionary and statistics of each column."""
    vectors, dictionary, statistics = [], [], []
    for field in schema:
        paths = _leaf_paths(field)
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_float32(field.type.value_type):
            vectors += paths
            continue
        dictionary += [] if field.name in _UNIQUE else paths
        statistics += [] if field.name in _WITHOUT_STATISTICS else paths
    return {
        "use_dictionary": dictionary,
        "write_statistics": statistics,
        "column_encoding": dict.fromkeys(vectors, "BYTE_STREAM_SPLIT"),
    }


def _leaf_paths(field: pa.Field) -> list[str]:
    """List the paths of a field's leaf columns as Parquet names them.

    Raises: ConfigError if Parquet cannot carry its type.
    """
    # Only the writer knows them, and what it can write, so it writes an empty file.
    empty = io.BytesIO()
    try:
        pq.write_table(pa.schema([field]).empty_table(), empty)
    except (pa.ArrowException, NotImplementedError) as error:
        raise ConfigError(
            f"column {field.name!r} of type {field.type} does not fit --output_format=parquet "
            f"({error}); give it another type in --metadata_fields or leave it out"
        ) from error
    columns = pq.ParquetFile(empty).schema
    return [columns.column(number).path for number in range(len(columns))]

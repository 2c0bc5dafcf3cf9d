"""Writers: ordered Arrow tables to one output file of a format; one entry in a table a format.

A writer appends to any binary file object, a handle of Beam's FileSystems on a bucket as well, and
never seeks. A Parquet file that is left by an exception gets no footer, so nothing takes it for
whole; a TFRecord file has none, and its manifest's row count and sha256 tell.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Protocol

from transforms.errors import ConfigError
from transforms.writers.columns import (
    output_schema,
    reserved_columns,
    vector_array,
    vector_matrix,
    vector_type,
)
from transforms.writers.parquet import ParquetWriter
from transforms.writers.tfrecord import TFRecordWriter, example_spec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    import pyarrow as pa

__all__ = [
    "WRITERS",
    "ParquetWriter",
    "TFRecordWriter",
    "TableFile",
    "Writer",
    "example_spec",
    "find_writer",
    "output_schema",
    "reserved_columns",
    "vector_array",
    "vector_matrix",
    "vector_type",
]


class TableFile(Protocol):
    """A file being written."""

    def write(self, table: pa.Table) -> None:
        """Append rows; how they are cut into tables leaves no trace in the file.

        Raises: ValueError if the table's columns are not the file's.
        """


class Writer(Protocol):
    """A file format."""

    @property
    def extension(self) -> str:
        """The end of a file's name, with its dot."""

    def check_schema(self, schema: pa.Schema) -> None:
        """Raise ConfigError, naming column, type and remedy, if the format cannot carry one."""

    def open(
        self, sink: BinaryIO, *, schema: pa.Schema, footer: Mapping[str, str]
    ) -> AbstractContextManager[TableFile]:
        """Begin a file; leaving the context without an exception ends it, and leaves `sink` open.

        Args:
          sink: a binary file object, written from its present position on.
          schema: the file's columns, from `output_schema`.
          footer: notes for the file's footer, where the format has one.
        Raises: ConfigError as `check_schema` does.
        """


WRITERS: dict[str, Writer] = {"parquet": ParquetWriter(), "tfrecord": TFRecordWriter()}


def find_writer(name: str) -> Writer:
    """Look up a writer by its format's name.

    Raises: ConfigError that lists the known formats.
    """
    if name in WRITERS:
        return WRITERS[name]
    near = difflib.get_close_matches(name, WRITERS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"--output_format={name} is unknown; the known formats are {', '.join(WRITERS)}{hint}"
    )

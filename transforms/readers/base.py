"""What every reader shares: the protocol, the rows it yields, and how a file breaks off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from transforms.errors import ConfigError
from transforms.records import InputFile, RowFields, RowLimits, Segment

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_ROWS = 1000


class FileBrokenError(Exception):
    """A file that cannot be read on; becomes a `FileFault`, never a stack trace."""

    def __init__(self, reason: str, message: str, *, position: int = 0) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
        self.position = position


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How files are read, beside which fields and which bounds.

    csv_delimiter: one character, or None: tab for .tsv, else comma;
    csv_quote_bytes: a quoted field that runs over more than this counts as never closed, so that
    one stray quote costs one row and not the rest of the file;
    block_bytes: how much is read from a file at once.
    """

    csv_delimiter: str | None = None
    csv_quote_bytes: int = 1 << 20
    block_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        delimiter = self.csv_delimiter
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
            raise ConfigError(
                f"csv_delimiter={delimiter!r} cannot separate fields; give one character other "
                "than a quote, a line end or NUL, such as ',' ';' or a tab"
            )
        if self.csv_quote_bytes < 1 or self.block_bytes < 1:
            raise ConfigError(
                f"csv_quote_bytes={self.csv_quote_bytes} and block_bytes={self.block_bytes} "
                "must both be at least 1"
            )


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that the reader itself could not take apart, as it stood in the file.

    `raw` may be cut already, where the row is too long to hold; then `raw_cut`.
    """

    reason: str
    message: str
    raw: bytes
    raw_cut: bool = False


class SourceRow(NamedTuple):
    """One row of a row-wise format; a tuple, because one is made for every row read.

    n_bytes is the row's size in the (decompressed) file; record maps source fields to values.
    """

    position: int
    line: int | None
    n_bytes: int
    record: Mapping[str, object] | BadRow


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Some consecutive rows of a row-wise format."""

    rows: list[SourceRow]

    def __len__(self) -> int:
        return len(self.rows)

    def head(self, count: int) -> RowBlock:
        """The first `count` rows."""
        return RowBlock(self.rows[:count])


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Some consecutive rows of a columnar format; `table` has the used columns by source name."""

    table: pa.Table
    first_position: int

    def __len__(self) -> int:
        return len(self.table)

    def head(self, count: int) -> TableBlock:
        """The first `count` rows."""
        return TableBlock(self.table.slice(0, count), self.first_position)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the head of a file shows: its fields, and whether it has a row at all."""

    fields: tuple[str, ...]
    has_rows: bool


class Reader(Protocol):
    """How one format is read. A new format is a class with these members and a READERS entry."""

    split: Literal["bytes", "row_groups", "none"]
    """What `Segment.start` and `Segment.stop` count where a large file may be split."""
    compressible: bool
    """Whether a codec may lie around the whole file."""
    has_fields: bool
    """Whether a row has named fields; else it is a text and nothing more."""

    def read(
        self, segment: Segment, *, fields: RowFields, limits: RowLimits, settings: ReadSettings
    ) -> Iterator[RowBlock | TableBlock]:
        """Yield the segment's rows in order; may be called again and yields the same.

        Raises: FileBrokenError where the file cannot be read on, after the rows before it.
        """

    def sample(self, file: InputFile, *, settings: ReadSettings) -> Sample:
        """Look at the head of a file.

        Raises: FileBrokenError if not even that can be read.
        """


def used_names(fields: RowFields) -> tuple[str, ...]:
    """The source fields that are used, each once, text first."""
    names = [fields.text, fields.pair, fields.id, *(field.name for field in fields.metadata)]
    return tuple(dict.fromkeys(name for name in names if name is not None))

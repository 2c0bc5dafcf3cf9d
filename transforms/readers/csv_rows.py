"""CSV and TSV: a header row, then records; a stray quote costs one row, not the rest."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa

from transforms.readers.base import (
    BadRow,
    FileBrokenError,
    ReadSettings,
    RowBlock,
    Sample,
    SourceRow,
    used_names,
)
from transforms.readers.compression import SUFFIXES
from transforms.readers.lines import Line, read_segment_lines, too_long
from transforms.records import InputFile, RowFields, RowLimits, Segment

BLOCK_ROWS = 512


def choose_delimiter(name: str, *, settings: ReadSettings) -> str:
    """The setting, or a tab for .tsv and .tab files, or a comma."""
    if settings.csv_delimiter is not None:
        return settings.csv_delimiter
    stem = name.lower()
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    return "\t" if stem.endswith((".tsv", ".tab")) else ","


class _Lines:
    """Lines with a way back, and with a break of the file held until they are used up."""

    def __init__(self, blocks: Iterator[list[Line]]) -> None:
        self._blocks = blocks
        self._ready: deque[tuple[int, Line]] = deque()
        self._number = 0
        self.broken: FileBrokenError | None = None

    def take(self) -> tuple[int, Line] | None:
        while not self._ready:
            if self.broken is not None:
                return None
            try:
                block = next(self._blocks, None)
            except FileBrokenError as broken:
                self.broken = broken
                return None
            if block is None:
                return None
            self._ready.extend(enumerate(block, self._number + 1))
            self._number += len(block)
        return self._ready.popleft()

    def put_back(self, lines: list[tuple[int, Line]]) -> None:
        self._ready.extendleft(reversed(lines))


class CsvReader:
    """Comma- or tab-separated rows; the first row names the fields; values are strings."""

    split: Literal["bytes", "row_groups", "none"] = "none"
    compressible = True
    has_fields = True

    def read(
        self, segment: Segment, *, fields: RowFields, limits: RowLimits, settings: ReadSettings
    ) -> Iterator[RowBlock]:
        lines = _Lines(read_segment_lines(segment, limits=limits, settings=settings))
        records = _Records(lines, file=segment.file, limits=limits, settings=settings)
        position = -1
        try:
            header = records.read_header()
            if header is None:
                return
            columns = _find_columns(header, fields=fields, file=segment.file)
            rows: list[SourceRow] = []
            rows_bytes = 0
            for position, (number, n_bytes, found) in enumerate(records):
                record: dict[str, Any] | BadRow
                if isinstance(found, BadRow):
                    record = found
                else:
                    values, raw = found
                    record = _pick(values, columns, raw=raw)
                rows.append(SourceRow(position, number, n_bytes, record))
                rows_bytes += n_bytes
                if len(rows) >= BLOCK_ROWS or rows_bytes >= settings.block_bytes:
                    yield RowBlock(rows)
                    rows, rows_bytes = [], 0
            if rows:
                yield RowBlock(rows)
            if lines.broken is not None:
                raise lines.broken
        except FileBrokenError as broken:
            broken.position = position + 1
            raise

    def sample(self, file: InputFile, *, settings: ReadSettings) -> Sample:
        limits = RowLimits()
        lines = _Lines(read_segment_lines(Segment(file), limits=limits, settings=settings))
        records = _Records(lines, file=file, limits=limits, settings=settings)
        header = records.read_header()
        if header is None:
            return Sample((), False)
        return Sample(tuple(header), next(iter(records), None) is not None)


class _Records:
    """The records of one file, each with its line number and size, after `read_header`."""

    def __init__(
        self, lines: _Lines, *, file: InputFile, limits: RowLimits, settings: ReadSettings
    ) -> None:
        # The default of 128 KiB is below a long article. The limit belongs to the process, so it
        # is only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), 2 * limits.max_row_bytes))
        self._lines = lines
        self._file = file
        self._limits = limits
        self._quote_bytes = settings.csv_quote_bytes
        self._delimiter = choose_delimiter(file.path, settings=settings)
        self._width = 0

    def read_header(self) -> list[str] | None:
        """Read the first record, or return None if the file has none.

        Raises: FileBrokenError if the first record cannot name the fields.
        """
        taken = self._lines.take()
        if taken is None:
            if self._lines.broken is not None:
                raise self._lines.broken
            return None
        found = self._parse(*taken)
        if isinstance(found, BadRow):
            raise FileBrokenError(
                "corrupt_file",
                f"{self._file.path}: its first row cannot be read as the names of the columns "
                f"({found.message}); write a header row",
            )
        values, _, _ = found
        self._width = len(values)
        # A name that is not UTF-8 must not break the messages that list the names.
        return [name.encode("utf-8", "surrogateescape").decode(errors="replace") for name in values]

    def __iter__(self) -> Iterator[tuple[int, int, BadRow | tuple[list[str], bytes]]]:
        while (taken := self._lines.take()) is not None:
            number, line = taken
            found = self._parse(number, line)
            if isinstance(found, BadRow):
                yield number, line[2] + 1, found
            else:
                values, raw, n_bytes = found
                yield number, n_bytes, (values, raw)

    def _parse(self, number: int, line: Line) -> BadRow | tuple[list[str], bytes, int]:
        """Parse the record that begins with a line, taking more lines where a quote asks for it."""
        _, data, length = line
        if length > self._limits.max_row_bytes:
            return too_long(length, data, limits=self._limits)
        if b"\0" in data:
            return BadRow("nul_byte", "the row holds a NUL byte", data)
        if b'"' not in data:
            values = _decode(data.removesuffix(b"\r")).split(self._delimiter)
            taken: list[tuple[int, Line]] = []
        else:
            taken = []
            try:
                values = next(
                    csv.reader(self._feed(data, taken), delimiter=self._delimiter, strict=True)
                )
            except csv.Error as error:
                self._lines.put_back(taken)
                return BadRow("malformed_csv", f"a quote is out of place: {error}", data)
        if self._width and len(values) != self._width:
            # A stray quote may have joined good rows up to the next quote: only the row where
            # it opened is given up.
            self._lines.put_back(taken)
            return BadRow(
                "malformed_csv",
                "the line is empty"
                if not data.strip()
                else f"the row has {len(values)} fields; the header has {self._width}",
                data,
            )
        if not taken:
            return values, data, length + 1
        whole = b"\n".join([data, *(more for _, (_, more, _) in taken)])
        return values, whole, len(whole) + 1

    def _feed(self, data: bytes, taken: list[tuple[int, Line]]) -> Iterator[str]:
        """Give the csv module one line after another, up to a bound; `taken` notes which."""
        yield _decode(data) + "\n"
        budget = self._quote_bytes - len(data)
        while budget > 0 and (more := self._lines.take()) is not None:
            _, (_, text, length) = more
            if length > self._limits.max_row_bytes or b"\0" in text:
                # Such a line is a reject of its own, so it cannot be the inside of a field.
                self._lines.put_back([more])
                return
            taken.append(more)
            budget -= length
            yield _decode(text) + "\n"


def _decode(data: bytes) -> str:
    """Decode; bytes that are not UTF-8 become surrogates, which `_pick` looks for."""
    return data.decode("utf-8", "surrogateescape")


def _find_columns(
    header: list[str], *, fields: RowFields, file: InputFile
) -> list[tuple[str, int, bool]]:
    """Where each used field stands, and whether an empty value of it means null."""
    typed = {
        field.name
        for field in fields.metadata
        if field.type is not None and not pa.types.is_string(pa.type_for_alias(field.type))
    }
    columns = []
    for name in used_names(fields):
        count = header.count(name)
        if count != 1:
            raise FileBrokenError(
                "schema_mismatch",
                f"{file.path}: its header has {count or 'no'} columns {name!r}; it has "
                f"{', '.join(header[:20])}; mend the header or name another field",
            )
        columns.append((name, header.index(name), name in typed))
    return columns


def _pick(
    values: list[str], columns: list[tuple[str, int, bool]], *, raw: bytes
) -> dict[str, Any] | BadRow:
    """Take the used fields out of a record."""
    record: dict[str, Any] = {}
    for name, index, empty_is_null in columns:
        value = values[index]
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return BadRow("invalid_utf8", f"field {name!r} is not UTF-8", raw)
        record[name] = None if empty_is_null and not value else value
    return record

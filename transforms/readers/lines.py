"""Lines of a byte stream, and the two formats that are a row a line: text and JSON lines."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, Literal

import orjson

from transforms.readers.base import (
    SAMPLE_ROWS,
    BadRow,
    FileBrokenError,
    ReadSettings,
    RowBlock,
    Sample,
    SourceRow,
    used_names,
)
from transforms.readers.compression import ByteStream, open_stream
from transforms.records import InputFile, RowFields, RowLimits, Segment

BOM = b"\xef\xbb\xbf"
SAMPLE_BYTES = 1 << 20

Line = tuple[int, bytes, int]
"""Offset of a line, its bytes without the line feed, its whole length; the bytes are cut at
`keep_bytes` where the length is over `max_line_bytes`."""


def split_lines(
    stream: ByteStream,
    *,
    offset: int = 0,
    stop: int | None = None,
    skip_first: bool = False,
    max_line_bytes: int,
    keep_bytes: int,
    block_bytes: int,
) -> Iterator[list[Line]]:
    """Split a stream at line feeds, holding no more than a block and one line.

    A byte order mark at offset 0 is taken off; the first line keeps the offset 0.

    Args:
      stream: stands at `offset`.
      stop: lines that begin at or after it are not returned.
      skip_first: drop what stands before the first line feed.
      max_line_bytes: a longer line is passed over in pieces; only its head is kept.
    Raises: FileBrokenError from the stream, its position the start of the line it broke.
    """
    held: list[bytes] = []
    held_bytes = 0
    mark_bytes = 0
    at_start = offset == 0
    while True:
        try:
            block = _read_first_block(stream, block_bytes) if at_start else stream.read(block_bytes)
        except FileBrokenError as broken:
            broken.position = offset
            raise
        if not block:
            break
        if at_start:
            at_start = False
            if block.startswith(BOM):
                mark_bytes, block = len(BOM), block[len(BOM) :]
        parts = block.split(b"\n")
        last = parts.pop()
        if parts:
            held.append(parts[0])
            length = held_bytes + len(parts[0])
            data = b"".join(held) if len(held) > 1 else held[0]
            lines = [(offset, data if length <= max_line_bytes else data[:keep_bytes], length)]
            offset += mark_bytes + length + 1
            held, held_bytes, mark_bytes = [], 0, 0
            for part in parts[1:]:
                length = len(part)
                lines.append(
                    (offset, part if length <= max_line_bytes else part[:keep_bytes], length)
                )
                offset += length + 1
            if skip_first:
                del lines[0]
                skip_first = False
            if stop is not None and offset >= stop:
                yield [line for line in lines if line[0] < stop]
                return
            yield lines
        held_bytes += len(last)
        held.append(last)
        if held_bytes > max_line_bytes:
            # The line is lost as a row; from here on only its length and its head matter.
            held = [b"".join(held)[:keep_bytes]]
        if skip_first and stop is not None and offset + held_bytes >= stop:
            return
    if held_bytes and not skip_first:
        data = b"".join(held)
        yield [(offset, data if held_bytes <= max_line_bytes else data[:keep_bytes], held_bytes)]


def _read_first_block(stream: ByteStream, block_bytes: int) -> bytes:
    """Read a block that is long enough to show a byte order mark, if the stream is."""
    block = stream.read(block_bytes)
    while block and len(block) < len(BOM) and BOM.startswith(block):
        more = stream.read(block_bytes)
        if not more:
            break
        block += more
    return block


def read_segment_lines(
    segment: Segment, *, limits: RowLimits, settings: ReadSettings
) -> Iterator[list[Line]]:
    """The lines that begin in a segment.

    A segment that does not begin the file begins to read one byte before itself, so that a line
    that starts exactly on the border is told from the tail of one that does not.
    """
    offset = max(0, segment.start - 1)
    file = segment.file
    with open_stream(file.path, compression=file.compression, offset=offset) as stream:
        yield from split_lines(
            stream,
            offset=offset,
            stop=segment.stop,
            skip_first=segment.start > 0,
            max_line_bytes=limits.max_row_bytes,
            keep_bytes=limits.max_raw_bytes,
            block_bytes=settings.block_bytes,
        )


def too_long(length: int, head: bytes, *, limits: RowLimits) -> BadRow:
    """The bad row for a line or record over the limit, of which only the head was kept."""
    return BadRow(
        "row_too_long",
        f"the row has {length} bytes; at most {limits.max_row_bytes} are read",
        head[: limits.max_raw_bytes],
        raw_cut=True,
    )


def bad_utf8(error: UnicodeDecodeError, data: bytes) -> BadRow:
    """The bad row for bytes that are not UTF-8."""
    return BadRow(
        "invalid_utf8", f"byte {error.start} of the row is not UTF-8 ({error.reason})", data
    )


# The key under which a row carries an id that it had before; no source field can have a NUL.
KEPT_ID = "\0id"


class LineReader:
    """A row a line; what a line means is `parse_line`, the one method of a subclass."""

    split: Literal["bytes", "row_groups", "none"] = "bytes"
    compressible = True
    has_fields = True

    def parse_line(
        self, data: bytes, *, text: str, used: tuple[str, ...]
    ) -> dict[str, Any] | BadRow:
        """Take a line apart.

        Args:
          text: name of the text field.
          used: names of all fields that are used.
        """
        raise NotImplementedError

    def read(
        self, segment: Segment, *, fields: RowFields, limits: RowLimits, settings: ReadSettings
    ) -> Iterator[RowBlock]:
        # Line numbers are known only where the reading began at the first line.
        number = 0 if segment.start == 0 else None
        parse_line, text, used = self.parse_line, fields.text, used_names(fields)
        record: dict[str, Any] | BadRow
        for lines in read_segment_lines(segment, limits=limits, settings=settings):
            rows = []
            for offset, data, length in lines:
                if number is not None:
                    number += 1
                if length > limits.max_row_bytes:
                    record = too_long(length, data, limits=limits)
                else:
                    record = parse_line(data, text=text, used=used)
                rows.append(SourceRow(offset, number, length, record))
            yield RowBlock(rows)

    def sample(self, file: InputFile, *, settings: ReadSettings) -> Sample:
        head = Segment(file, 0, SAMPLE_BYTES)
        names: dict[str, None] = {}
        seen = 0
        for block in self.read(head, fields=RowFields(), limits=RowLimits(), settings=settings):
            for row in block.rows:
                seen += 1
                if not isinstance(row.record, BadRow):
                    names.update(dict.fromkeys(row.record))
                if seen >= SAMPLE_ROWS:
                    return Sample(tuple(names), True)
        return Sample(tuple(names), seen > 0)


class TextReader(LineReader):
    """Plain text: a line is a row is a text. LF or CRLF ends a line."""

    has_fields = False

    def parse_line(
        self, data: bytes, *, text: str, used: tuple[str, ...]
    ) -> dict[str, Any] | BadRow:
        if data.endswith(b"\r"):
            data = data[:-1]
        try:
            return {text: data.decode()}
        except UnicodeDecodeError as error:
            return bad_utf8(error, data)


class JsonLinesReader(LineReader):
    """JSON lines: a line is an object, its members are the fields."""

    def parse_line(
        self, data: bytes, *, text: str, used: tuple[str, ...]
    ) -> dict[str, Any] | BadRow:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return _parse_slowly(data, problem=str(error))
        if type(value) is not dict:
            return _not_an_object(value, data)
        for name in used:
            found = value.get(name)
            kind = type(found)
            if kind is not str and kind is not int and found is not None and _has_huge(found):
                # orjson turns an integer over 64 bits into a float, which would change an id or
                # a value without a word; the slow parser keeps it.
                return _parse_slowly(data, problem="a number out of range")
        return value


class RejectsReader(LineReader):
    """The rejects of an earlier run, to run them again: a line is a reject, its raw row the row.

    A reject keeps the id that it had.
    """

    def __init__(self) -> None:
        self._lines = JsonLinesReader()

    def parse_line(
        self, data: bytes, *, text: str, used: tuple[str, ...]
    ) -> dict[str, Any] | BadRow:
        reject = self._lines.parse_line(data, text="raw", used=())
        if isinstance(reject, BadRow):
            return reject
        raw = reject.get("raw")
        if not isinstance(raw, str) or reject.get("raw_truncated"):
            return BadRow("raw_row_missing", "the reject does not hold its whole raw row", data)
        raw_bytes = raw.encode("utf-8", "surrogatepass")
        if reject.get("raw_base64"):
            try:
                raw_bytes = base64.b64decode(raw_bytes, validate=True)
            except ValueError as error:
                return BadRow("raw_row_missing", f"the raw row is no base64: {error}", data)
        row = self._lines.parse_line(raw_bytes, text=text, used=used)
        if not isinstance(row, BadRow) and isinstance(reject.get("id"), str):
            row[KEPT_ID] = reject["id"]
        return row

    def sample(self, file: InputFile, *, settings: ReadSettings) -> Sample:
        found = super().sample(file, settings=settings)
        return Sample(tuple(name for name in found.fields if name != KEPT_ID), found.has_rows)


def _parse_slowly(data: bytes, *, problem: str) -> dict[str, Any] | BadRow:
    """Parse with Python's json: integers of any size, and surrogates told from bad syntax."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return bad_utf8(error, data)
    except (ValueError, RecursionError):
        if b"\0" in data:
            return BadRow("nul_byte", "the line holds a NUL byte and is no JSON", data)
        if not data.strip():
            problem = "the line is empty"
        return BadRow("malformed_json", f"the line is no JSON: {problem}", data)
    return value if isinstance(value, dict) else _not_an_object(value, data)


def _not_an_object(value: object, data: bytes) -> BadRow:
    kind = _JSON_KINDS.get(type(value), "a value")
    return BadRow("not_an_object", f"the line holds {kind}; wanted an object {{…}}", data)


_JSON_KINDS: dict[type, str] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _has_huge(value: object) -> bool:
    if isinstance(value, float):
        return abs(value) >= 1 << 63
    if isinstance(value, list):
        return any(map(_has_huge, value))
    if isinstance(value, dict):
        return any(map(_has_huge, value.values()))
    return False


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")

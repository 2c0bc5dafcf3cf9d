"""Readers, one for each format, and how a file's format is told.

A new format is an entry in `READERS` and, if `auto` is to find it, a suffix in `SUFFIX_FORMATS`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import google_crc32c

from transforms.readers import compression
from transforms.readers.base import Reader
from transforms.readers.csv_rows import CsvReader
from transforms.readers.lines import BOM, JsonLinesReader, RejectsReader, TextReader
from transforms.readers.parquet import ParquetReader
from transforms.readers.tfrecord import TfRecordReader, mask_crc

READERS: dict[str, Reader] = {
    "text": TextReader(),
    "jsonl": JsonLinesReader(),
    "csv": CsvReader(),
    "parquet": ParquetReader(),
    "tfrecord": TfRecordReader(),
    "rejects": RejectsReader(),
}
SUFFIX_FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
}
HEAD_BYTES = 64 << 10

# What files are that no reader reads, so that the error can say it.
_FOREIGN_MAGIC = {
    b"PK\x03\x04": ("a zip archive or an Office document", "unpack or export it"),
    b"%PDF": ("a PDF document", "extract its text"),
    b"Obj\x01": ("an Avro file", "convert it to Parquet"),
    b"ORC": ("an ORC file", "convert it to Parquet"),
    b"ARROW1": ("an Arrow IPC file", "convert it to Parquet"),
    b"\xfd7zXZ\x00": ("an xz archive", "recompress it with gzip or zstd"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    b"\x89PNG": ("a PNG image", "give text"),
    b"\xff\xd8\xff": ("a JPEG image", "give text"),
    b"SQLite format 3": ("an SQLite database", "export a table as CSV or Parquet"),
}
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")


class UnknownFormatError(ValueError):
    """Content that is of no known format; the message says what it is and how to mend it."""


class DetectedFormat(NamedTuple):
    """A key of `READERS`, and none, gzip, bzip2 or zstd."""

    format: str
    compression: str


def detect_format(name: str, head: bytes | None) -> DetectedFormat:
    """Tell format and compression of a file by its name, and by its content where that knows
    better.

    The content decides about compression and Parquet, whose first bytes are unmistakable; the
    name decides the rest, and where it says nothing, the content does.

    Args:
      name: the file's name or path.
      head: its first bytes as they are, up to `HEAD_BYTES`; None where nobody looked.
    Raises: UnknownFormatError.
    """
    stem, codec = name.lower(), "none"
    for suffix, of_name in compression.SUFFIXES.items():
        if stem.endswith(suffix):
            stem, codec = stem.removesuffix(suffix), of_name
            break
    if head is not None:
        codec = compression.sniff_compression(head)
    named = next((found for end, found in SUFFIX_FORMATS.items() if stem.endswith(end)), None)
    content = compression.expand_head(head or b"", codec)
    if content.startswith(b"PAR1"):
        if codec != "none":
            raise UnknownFormatError(
                f"is Parquet inside {codec}; decompress it (Parquet compresses by itself)"
            )
        return DetectedFormat("parquet", codec)
    if named == "parquet":
        return DetectedFormat(named, "none")
    if named is None and _is_tfrecord(content):
        return DetectedFormat("tfrecord", codec)
    if named != "tfrecord":
        _refuse_foreign(content, named=named)
    if named == "jsonl" or (named is None and content.removeprefix(BOM).lstrip()[:1] == b"{"):
        if not stem.endswith((".jsonl", ".ndjson")):
            _refuse_documents(content)
        return DetectedFormat("jsonl", codec)
    if named is None and b"\0" in content:
        raise UnknownFormatError(
            "is binary, and neither its name nor its content tells a known format; give "
            f"--input_format ({', '.join(READERS)}) or convert it"
        )
    return DetectedFormat(named or "text", codec)


def _is_tfrecord(content: bytes) -> bool:
    if len(content) < 12:
        return False
    stored: int = struct.unpack_from("<I", content, 8)[0]
    return mask_crc(google_crc32c.value(content[:8])) == stored


def _refuse_foreign(content: bytes, *, named: str | None) -> None:
    if content.startswith(_WIDE_MARKS) and b"\0" in content[:1000]:
        raise UnknownFormatError(
            "is UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8 IN > OUT)"
        )
    for magic, (what, mend) in _FOREIGN_MAGIC.items():
        # Three letters can begin a text; a known name is believed over them.
        if content.startswith(magic) and (named is None or not magic.isalnum()):
            raise UnknownFormatError(f"is {what}; {mend}")


def _refuse_documents(content: bytes) -> None:
    """Refuse one JSON document over many lines, of which every line would be a reject."""
    start = content.removeprefix(BOM).lstrip()
    if start.startswith(b"["):
        raise UnknownFormatError(
            "is a JSON array; wanted one object a line: convert it with jq -c '.[]'"
        )
    if start.split(b"\n", 1)[0].strip() == b"{":
        raise UnknownFormatError(
            "is one JSON document over many lines; wanted one object a line: convert "
            "it with jq -c ."
        )


__all__ = [
    "HEAD_BYTES",
    "READERS",
    "SUFFIX_FORMATS",
    "DetectedFormat",
    "Reader",
    "UnknownFormatError",
    "detect_format",
]

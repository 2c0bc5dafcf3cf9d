"""Files in every input format, and a task read whole, for the tests of reading."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from transforms.read import expand_inputs, plan_tasks, read_chunks
from transforms.readers.base import ReadSettings
from transforms.readers.tfrecord import example_class
from transforms.records import FileFault, ReadTask, Reject, RowFields, RowLimits, TextBatch

COMPRESS = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
SUFFIX = {"none": "", "gzip": ".gz", "bzip2": ".bz2", "zstd": ".zst"}
FORMAT_SUFFIX = {
    "text": ".txt",
    "jsonl": ".jsonl",
    "csv": ".csv",
    "parquet": ".parquet",
    "tfrecord": ".tfrecord",
}


def tfrecord_frame(data: bytes) -> bytes:
    """Frame one record, from the format's description and not by the code under test."""

    def crc(of: bytes) -> bytes:
        value = google_crc32c.value(of)
        return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + crc(length) + data + crc(data)


def example_bytes(row: dict[str, Any]) -> bytes:
    example = example_class()()
    for name, value in row.items():
        feature = example.features.feature[name]
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str | bytes):
                feature.bytes_list.value.append(one.encode() if isinstance(one, str) else one)
            elif isinstance(one, float):
                feature.float_list.value.append(one)
            elif one is None:
                feature.bytes_list.SetInParent()
            else:
                feature.int64_list.value.append(one)
    return example.SerializeToString()


def encode_rows(rows: Sequence[dict[str, Any]], kind: str) -> bytes:
    """The rows as the bytes of an uncompressed file."""
    if kind == "text":
        return "".join(row["text"] + "\n" for row in rows).encode()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().encode()
    if kind == "tfrecord":
        return b"".join(tfrecord_frame(example_bytes(row)) for row in rows)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=7)
    return sink.getvalue().to_pybytes()


def write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


class Found:
    """All that reading some tasks gave."""

    def __init__(self, items: Sequence[TextBatch | FileFault]) -> None:
        self.batches = [item for item in items if isinstance(item, TextBatch)]
        self.faults = [item for item in items if isinstance(item, FileFault)]
        for batch in self.batches:
            counts = {len(batch), len(batch.texts), len(batch.files), len(batch.positions)}
            assert counts == {batch.metadata.num_rows}
            assert batch.rows_read == len(batch) + len(batch.rejects)
            assert batch.rows_read > 0

    @property
    def rows_read(self) -> int:
        return sum(batch.rows_read for batch in self.batches)

    @property
    def ids(self) -> list[str]:
        return [one for batch in self.batches for one in batch.ids.to_pylist()]

    @property
    def texts(self) -> list[str]:
        return [one for batch in self.batches for one in batch.texts.to_pylist()]

    @property
    def positions(self) -> list[int]:
        return [one for batch in self.batches for one in batch.positions.tolist()]

    @property
    def metadata(self) -> list[dict[str, Any]]:
        return [one for batch in self.batches for one in batch.metadata.to_pylist()]

    @property
    def rejects(self) -> list[Reject]:
        return [one for batch in self.batches for one in batch.rejects]

    @property
    def reasons(self) -> list[str]:
        return [one.reason for one in self.rejects]

    @property
    def fault_reasons(self) -> list[str]:
        return [one.reason for one in self.faults]


def read_tasks(
    tasks: Sequence[ReadTask],
    *,
    fields: RowFields | None = None,
    limits: RowLimits | None = None,
    settings: ReadSettings | None = None,
) -> Found:
    items: list[TextBatch | FileFault] = []
    for task in tasks:
        found = read_chunks(task, fields=fields or RowFields(), limits=limits, settings=settings)
        items.extend(found)
    return Found(items)


def read_all(*patterns: str, input_format: str = "auto", **more: Any) -> Found:
    files = expand_inputs(patterns, input_format=input_format)
    return read_tasks(plan_tasks(files), **more)

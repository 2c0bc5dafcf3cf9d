"""TFRecord files of `tf.train.Example`, read and checked without TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import google_crc32c
import numpy as np
import pyarrow as pa
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

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
from transforms.readers.lines import too_long
from transforms.records import InputFile, RowFields, RowLimits, Segment

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
SAMPLE_BYTES = 1 << 20
# What a protocol buffer may be.
_MAX_EXAMPLE_BYTES = (2 << 30) - 1


def mask_crc(crc: int) -> int:
    """The checksum as TFRecord stores it. Source: tensorflow/core/lib/hash/crc32c.h."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def example_class() -> Any:
    """The message class of `tf.train.Example`, from a descriptor in a pool of its own.

    Its own pool, because TensorFlow registers the same names in the default one.
    Source: tensorflow/core/example/{example,feature}.proto.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="example.proto", package="tensorflow", syntax="proto3"
    )

    def add(message: Any, name: str, number: int, kind: Any, **more: Any) -> None:
        label = more.pop("label", kinds.LABEL_OPTIONAL)
        message.field.add(name=name, number=number, type=kind, label=label, **more)

    for name, kind in (
        ("BytesList", kinds.TYPE_BYTES),
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    ):
        add(file.message_type.add(name=name), "value", 1, kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind_name) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        type_name = f".tensorflow.{kind_name}"
        add(feature, name, number, kinds.TYPE_MESSAGE, type_name=type_name, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, kinds.TYPE_STRING)
    add(entry, "value", 2, kinds.TYPE_MESSAGE, type_name=".tensorflow.Feature")
    entry_name = ".tensorflow.Features.FeatureEntry"
    add(
        features,
        "feature",
        1,
        kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=entry_name,
    )
    example = file.message_type.add(name="Example")
    add(example, "features", 1, kinds.TYPE_MESSAGE, type_name=".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


class _Buffered:
    """Exact reads over a stream that returns what it has."""

    def __init__(self, stream: ByteStream, *, block_bytes: int) -> None:
        self._stream = stream
        self._block_bytes = block_bytes
        self._block = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return `size` bytes, or fewer only at the end."""
        data = self._block[self._at : self._at + size]
        self._at += len(data)
        if len(data) == size:
            return data
        pieces, missing = [data], size - len(data)
        while missing:
            self._block, self._at = self._stream.read(self._block_bytes), 0
            if not self._block:
                break
            pieces.append(self._block[:missing])
            self._at = len(pieces[-1])
            missing -= self._at
        return b"".join(pieces)


def _read_records(
    source: _Buffered, *, path: str, limits: RowLimits
) -> Iterator[tuple[int, bytes]]:
    """Yield each record's length and bytes; of a record over the limit only its head."""
    number = 0

    def broken(reason: str, what: str) -> FileBrokenError:
        return FileBrokenError(
            reason,
            f"{path}: record {number} {what}; what follows it cannot be read: fetch or write the "
            "file again",
            position=number,
        )

    while True:
        try:
            header = source.read(HEADER.size)
            if not header:
                return
            if len(header) < HEADER.size:
                raise broken("truncated_file", "breaks off in its header")
            length, length_crc = HEADER.unpack(header)
            if mask_crc(google_crc32c.value(header[:8])) != length_crc:
                raise broken("corrupt_file", "has a length that fails its checksum")
            head = source.read(min(length, limits.max_row_bytes))
            crc, done = google_crc32c.value(head), len(head)
            if length > limits.max_row_bytes:
                head = head[: limits.max_raw_bytes]
                while done < length and (piece := source.read(min(1 << 20, length - done))):
                    crc, done = google_crc32c.extend(crc, piece), done + len(piece)
            footer = source.read(FOOTER.size) if done == length else b""
            if len(footer) < FOOTER.size:
                raise broken("truncated_file", "breaks off before its end")
            if mask_crc(crc) != FOOTER.unpack(footer)[0]:
                raise broken("corrupt_file", "fails its checksum")
        except FileBrokenError as error:
            error.position = number
            raise
        yield length, head
        number += 1


def read_examples(path: str) -> Iterator[Any]:
    """Yield the features of each record of an uncompressed file of `tf.train.Example`.

    Records may be of any size: a row as large as a run takes has its vector beside it here.
    Raises: FileBrokenError where a record is damaged.
    """
    limits = RowLimits(max_row_bytes=_MAX_EXAMPLE_BYTES)
    with open_stream(path, compression="none") as stream:
        source = _Buffered(stream, block_bytes=1 << 20)
        for _, data in _read_records(source, path=path, limits=limits):
            yield example_class().FromString(data).features.feature


class TfRecordReader:
    """TFRecord files whose records are `tf.train.Example`.

    A feature with one value is that value, with none it is null, with several a list; bytes are
    text, unless the field's type is given as binary; floats keep their 32 bits.
    """

    split: Literal["bytes", "row_groups", "none"] = "none"
    compressible = True
    has_fields = True

    def read(
        self, segment: Segment, *, fields: RowFields, limits: RowLimits, settings: ReadSettings
    ) -> Iterator[RowBlock]:
        file, names = segment.file, used_names(fields)
        binary = frozenset(
            field.name
            for field in fields.metadata
            if field.type is not None and _is_binary(pa.type_for_alias(field.type))
        )
        example = example_class()()
        rows: list[SourceRow] = []
        rows_bytes = 0
        try:
            with open_stream(file.path, compression=file.compression) as stream:
                source = _Buffered(stream, block_bytes=settings.block_bytes)
                for position, (length, data) in enumerate(
                    _read_records(source, path=file.path, limits=limits)
                ):
                    found: dict[str, Any] | BadRow
                    if length > limits.max_row_bytes:
                        found = too_long(length, data, limits=limits)
                    else:
                        found = _pick(example, data, names=names, binary=binary)
                    rows.append(SourceRow(position, None, length, found))
                    rows_bytes += length
                    if rows_bytes >= settings.block_bytes or len(rows) >= SAMPLE_ROWS:
                        yield RowBlock(rows)
                        rows, rows_bytes = [], 0
        except FileBrokenError:
            if rows:
                yield RowBlock(rows)
            raise
        if rows:
            yield RowBlock(rows)

    def sample(self, file: InputFile, *, settings: ReadSettings) -> Sample:
        names: dict[str, None] = {}
        seen = seen_bytes = 0
        example = example_class()()
        with open_stream(file.path, compression=file.compression) as stream:
            source = _Buffered(stream, block_bytes=settings.block_bytes)
            for length, data in _read_records(source, path=file.path, limits=RowLimits()):
                seen, seen_bytes = seen + 1, seen_bytes + length
                try:
                    example.ParseFromString(data)
                except DecodeError:
                    continue
                names.update(dict.fromkeys(sorted(example.features.feature)))
                if seen >= SAMPLE_ROWS or seen_bytes >= SAMPLE_BYTES:
                    break
        return Sample(tuple(names), seen > 0)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _pick(
    example: Any, data: bytes, *, names: tuple[str, ...], binary: frozenset[str]
) -> dict[str, Any] | BadRow:
    """Take the used features out of a record."""
    try:
        example.ParseFromString(data)
    except DecodeError as error:
        return BadRow("malformed_example", f"the record is no tf.train.Example: {error}", data)
    features = example.features.feature
    record: dict[str, Any] = {}
    for name in names:
        if name not in features:  # a look-up would put an empty feature there
            continue
        feature = features[name]
        kind = feature.WhichOneof("kind")
        values: list[Any] = list(getattr(feature, kind).value) if kind else []
        if kind == "bytes_list" and name not in binary:
            try:
                values = [value.decode() for value in values]
            except UnicodeDecodeError as error:
                return BadRow("invalid_utf8", f"feature {name!r}: {error.reason}", data)
        elif kind == "float_list":
            values = [np.float32(value) for value in values]
        record[name] = values[0] if len(values) == 1 else (values or None)
    return record

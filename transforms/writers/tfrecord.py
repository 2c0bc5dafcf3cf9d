"""TFRecord files of `tf.train.Example`, serialised by hand at the speed of a memory copy.

How a column becomes a feature of the same name:

| Arrow type | feature | value |
| --- | --- | --- |
| string, binary, fixed-size binary | bytes_list | the bytes; strings as UTF-8 |
| bool | int64_list | 0 or 1 |
| int8 … int64, uint8 … uint32 | int64_list | the number |
| date32 | int64_list | days since 1970-01-01 |
| date64, timestamp | int64_list | count of the type's unit (s, ms, us, ns) since 1970-01-01 UTC |
| time, duration | int64_list | count of the type's unit; time since midnight |
| float16, float32 | float_list | the number |
| null | – | never there |
| list of one of these | the same | that many values |
| struct, map, list of lists or structs | bytes_list | JSON; NaN and infinities are null there |

A null is an absent feature; an empty list is a feature with no value. float64 and uint64 do not
fit a float_list and an int64_list, and a value is never changed in silence: such a column is
refused until its type is named (float32, string), which is the user's choice to lose digits.
A TFRecord has no footer; the manifest beside it says what one would.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import google_crc32c
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from transforms.errors import ConfigError
from transforms.writers.columns import SequentialSink, conform_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

# Small, as a row with its text may be 16 MiB.
_BATCH_ROWS = 256

# Protocol buffer tags: field number and wire type 2 (length-delimited); what follows is a length.
_FIELD_1, _FIELD_2 = b"\x0a", b"\x12"


class _Kind(NamedTuple):
    """A list of `tf.train.Feature`: its tag there, and its dtype for `tf.io.parse_example`."""

    tag: bytes
    dtype: str


_BYTES = _Kind(b"\x0a", "tf.string")
_FLOAT = _Kind(b"\x12", "tf.float32")
_INT64 = _Kind(b"\x1a", "tf.int64")


@dataclass(frozen=True, slots=True)
class TFRecordWriter:
    """Writes `tf.train.Example` records; see the module for what becomes of each type."""

    extension: str = ".tfrecord"

    def check_schema(self, schema: pa.Schema) -> None:
        """Raise ConfigError if a column does not fit a `tf.train.Example` unchanged."""
        for field in schema:
            _feature_kind(field)

    @contextmanager
    def open(
        self, sink: BinaryIO, *, schema: pa.Schema, footer: Mapping[str, str]
    ) -> Iterator[_TFRecordFile]:
        """Begin a file; the format has no footer, so `footer` is left to the manifest."""
        del footer
        self.check_schema(schema)
        yield _TFRecordFile(SequentialSink(sink), schema)


class _TFRecordFile:
    def __init__(self, sink: SequentialSink, schema: pa.Schema) -> None:
        self._sink = sink
        self._schema = schema

    def write(self, table: pa.Table) -> None:
        """Append a record for each row."""
        table = conform_table(table, schema=self._schema)
        for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
            self._sink.write(b"".join(frame_record(row) for row in encode_examples(batch)))


def encode_examples(batch: pa.RecordBatch) -> Iterator[bytes]:
    """Serialise each row of a batch as a `tf.train.Example`, features in the columns' order.

    Raises: ConfigError if a column's type or a null inside a list does not fit.
    """
    columns = [
        _encode_column(field, column)
        for field, column in zip(batch.schema, batch.columns, strict=True)
    ]
    for row in zip(*columns, strict=True):
        features = b"".join(row)
        yield _FIELD_1 + encode_varint(len(features)) + features


def frame_record(data: bytes) -> bytes:
    """Frame a record as a TFRecord file has it: length, its checksum, data, its checksum.

    Source: tensorflow/core/lib/io/record_writer.h.
    """
    length = struct.pack("<Q", len(data))
    return b"".join((length, _masked_crc(length), data, _masked_crc(data)))


def encode_varint(number: int) -> bytes:
    """Encode an integer as protocol buffers do; a negative one as its 64-bit two's complement."""
    number &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def example_spec(schema: pa.Schema) -> str:
    """Write the Python code of the feature spec that `tf.io.parse_example` takes for a schema.

    A column that may be null or has lists of any length is a ragged feature; a null gives no
    value there. The code uses the name `tf` and binds `features`.
    Raises: ConfigError as `TFRecordWriter.check_schema` does.
    """
    lines = []
    for field in schema:
        dtype = _feature_kind(field).dtype
        width = field.type.list_size if pa.types.is_fixed_size_list(field.type) else None
        if field.nullable or (_is_list(field.type) and width is None):
            feature = f"tf.io.RaggedFeature({dtype})"
        else:
            shape = "[]" if width is None or _is_json(field.type) else f"[{width}]"
            feature = f"tf.io.FixedLenFeature({shape}, {dtype})"
        lines.append(f"    {_quote(field.name)}: {feature},\n")
    return "features = {\n" + "".join(lines) + "}\n"


def _quote(name: str) -> str:
    return orjson.dumps(name).decode()


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282_EAD8) & 0xFFFF_FFFF)


def _feature_kind(field: pa.Field) -> _Kind:
    """Choose the list that carries a column, or refuse the column."""
    kind = _plain_type(field.type)
    if _is_json(kind):
        if bad := _unfit_for_json(kind):
            raise ConfigError(
                f"column {field.name!r} of type {field.type} does not fit --output_format=tfrecord:"
                f" it becomes JSON, and JSON has no {bad}; leave it out of --metadata_fields or"
                " use --output_format=parquet"
            )
        return _BYTES
    element = _plain_type(kind.value_type) if _is_list(kind) else kind
    found = _scalar_kind(element)
    if found is None:
        remedy = "int64 or string" if pa.types.is_uint64(element) else "string"
        if pa.types.is_float64(element):
            remedy = "float32 (which rounds it) or string (which does not)"
        if _is_list(kind):
            remedy = f"list of {remedy}"
        raise ConfigError(
            f"column {field.name!r} of type {field.type} does not fit --output_format=tfrecord"
            f" unchanged; give it the type {remedy} in --metadata_fields, leave it out, or use"
            " --output_format=parquet"
        )
    return found


def _scalar_kind(kind: pa.DataType) -> _Kind | None:
    types = pa.types
    if types.is_null(kind) or _is_bytes(kind):
        return _BYTES
    if types.is_float32(kind) or types.is_float16(kind):
        return _FLOAT
    fits = types.is_integer(kind) and not types.is_uint64(kind)
    if fits or types.is_boolean(kind) or _is_time(kind):
        return _INT64
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_binary_view,
        types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)


def _is_time(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        test(kind) for test in (types.is_date, types.is_time, types.is_timestamp, types.is_duration)
    )


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list)
    )


def _is_json(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_struct(kind) or types.is_map(kind):
        return True
    return _is_list(kind) and (_is_list(kind.value_type) or _is_json(kind.value_type))


def _unfit_for_json(kind: pa.DataType) -> str | None:
    """Name the first type within that JSON cannot carry, or None."""
    types = pa.types
    if types.is_map(kind):
        inner = [kind.key_type, kind.item_type]
    elif types.is_struct(kind):
        inner = [field.type for field in kind]
    elif _is_list(kind):
        inner = [kind.value_type]
    else:
        string = types.is_string(kind) or types.is_large_string(kind)
        number = types.is_integer(kind) or types.is_floating(kind)
        fits = string or number or types.is_boolean(kind) or types.is_null(kind)
        return None if fits else str(kind)
    return next((bad for bad in map(_unfit_for_json, inner) if bad), None)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Look through dictionaries and extension types to the type of the values."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    return _plain_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _plain_array(array: pa.Array) -> pa.Array:
    if isinstance(array.type, pa.BaseExtensionType):
        return _plain_array(array.storage)
    if pa.types.is_dictionary(array.type):
        return _plain_array(array.dictionary_decode())
    return array


def _encode_column(field: pa.Field, column: pa.Array) -> Sequence[bytes]:
    """Serialise a column as one map entry a row, nothing for a null."""
    kind = _feature_kind(field)
    column = _plain_array(column)
    if pa.types.is_null(column.type):
        return [b""] * len(column)
    header = _EntryHeader(field.name, kind)
    if _is_json(column.type):
        rows = column.to_pylist()
        return [b"" if row is None else header.bytes_entry(orjson.dumps(row)) for row in rows]
    if _is_list(column.type):
        return _encode_lists(field, column, header)
    if kind is _BYTES:
        values = column.cast(pa.large_binary()).to_pylist()
        return [b"" if value is None else header.bytes_entry(value) for value in values]
    if kind is _FLOAT:
        values = column.cast(pa.float32()).to_pylist()
        pack = struct.Struct("<f").pack
        return [b"" if value is None else header.packed_entry(pack(value)) for value in values]
    # Most integer columns (n_tokens, flags, labels) have few values, so each is packed once.
    numbers = _as_int64(column).to_pylist()
    entries = {
        number: header.packed_entry(encode_varint(number)) for number in set(numbers) - {None}
    }
    entries[None] = b""
    return [entries[number] for number in numbers]


def _encode_lists(field: pa.Field, column: pa.Array, header: _EntryHeader) -> Sequence[bytes]:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    stops = np.cumsum(lengths, dtype=np.int64)
    bounds = list(zip((stops - lengths).tolist(), stops.tolist(), strict=True))
    values = _plain_array(pc.list_flatten(column))
    if values.null_count:
        raise ConfigError(
            f"column {field.name!r} of type {field.type} has a null inside a list, which does not "
            "fit --output_format=tfrecord; remove the null from the source, leave the column out "
            "of --metadata_fields, or use --output_format=parquet"
        )
    entry: Callable[[int, int], bytes]
    if header.kind is _BYTES:
        texts = values.cast(pa.large_binary()).to_pylist()

        def entry(start: int, stop: int) -> bytes:
            return header.bytes_entry(*texts[start:stop])
    elif header.kind is _FLOAT:
        floats = values.cast(pa.float32()).to_numpy(zero_copy_only=False)
        packed = memoryview(floats.astype("<f4", copy=False)).cast("B")

        def entry(start: int, stop: int) -> bytes:
            return header.packed_entry(packed[4 * start : 4 * stop])
    else:
        numbers = list(map(encode_varint, _as_int64(values).to_pylist()))

        def entry(start: int, stop: int) -> bytes:
            return header.packed_entry(b"".join(numbers[start:stop]))

    if not column.null_count:
        return [entry(start, stop) for start, stop in bounds]
    valid = column.is_valid().to_pylist()
    return [
        entry(start, stop) if there else b""
        for (start, stop), there in zip(bounds, valid, strict=True)
    ]


def _as_int64(array: pa.Array) -> pa.Array:
    """Cast to int64; a time becomes the count of its own unit."""
    if pa.types.is_time32(array.type) or pa.types.is_date32(array.type):
        array = array.cast(pa.int32())  # 32-bit times have no cast to int64
    return array.cast(pa.int64())


class _EntryHeader:
    """Makes entries `name → list` of the feature map of a `tf.train.Example`.

    What precedes the values depends on their length only, and is made once for each length.
    """

    def __init__(self, name: str, kind: _Kind) -> None:
        self.kind = kind
        key = name.encode()
        self._key = _FIELD_1 + encode_varint(len(key)) + key
        self._headers: dict[int, bytes] = {}
        self._value_headers: dict[int, bytes] = {}

    def packed_entry(self, values: bytes | memoryview) -> bytes:
        """Make an entry of numbers that are already packed."""
        size = len(values)
        if not size:
            return self._header(0)
        header = self._value_headers.get(size)
        if header is None:
            tag = _FIELD_1 + encode_varint(size)
            header = self._value_headers[size] = self._header(len(tag) + size) + tag
        return header + values

    def bytes_entry(self, *values: bytes) -> bytes:
        """Make an entry of strings."""
        if len(values) == 1:  # one string looks on the wire as packed numbers do
            return self.packed_entry(values[0]) if values[0] else self._header(2) + b"\x0a\x00"
        body = b"".join(_FIELD_1 + encode_varint(len(value)) + value for value in values)
        return self._header(len(body)) + body

    def _header(self, size: int) -> bytes:
        """Make what precedes a list of `size` bytes: map entry, key, feature and list."""
        header = self._headers.get(size)
        if header is None:
            in_feature = self.kind.tag + encode_varint(size)
            in_entry = self._key + _FIELD_2 + encode_varint(len(in_feature) + size) + in_feature
            header = _FIELD_1 + encode_varint(len(in_entry) + size) + in_entry
            self._headers[size] = header
        return header

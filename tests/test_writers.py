from __future__ import annotations

import datetime
import gc
import io
import itertools
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import writers
from transforms.errors import ConfigError
from transforms.writers import parquet, tfrecord

WIDTH = 8


class AppendOnly(io.RawIOBase):
    """A sink that takes at most 1,000 bytes at a time, as a raw file may, and nothing else."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data):
        taken = memoryview(data)[:1000]
        self.data += taken
        return len(taken)

    def seek(self, *args):
        raise AssertionError("a writer never seeks")

    def tell(self):
        raise AssertionError("a writer never asks for its position")


def make_matrix(rows: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((rows, width), dtype=np.float32)


def make_schema(metadata: pa.Schema | None = None, **flags: bool) -> pa.Schema:
    return writers.output_schema(
        embedding_columns={"embedding": WIDTH}, metadata=metadata or pa.schema([]), **flags
    )


def make_table(rows: int, metadata: pa.Table | None = None) -> pa.Table:
    metadata = pa.table({"source": ["wiki"] * rows}) if metadata is None else metadata
    columns = [
        pa.array([f"row-{row}" for row in range(rows)], pa.string()),
        writers.vector_array(make_matrix(rows)),
        pa.array(range(3, 3 + rows), pa.int32()),
        pa.array([row % 3 == 0 for row in range(rows)], pa.bool_()),
        pa.array([f"{row:064x}" for row in range(rows)], pa.string()),
        *metadata.columns,
    ]
    return pa.Table.from_arrays(columns, schema=make_schema(metadata.schema))


def write_bytes(writer: writers.Writer, table: pa.Table, *, cuts=(), footer=None) -> bytes:
    sink = AppendOnly()
    bounds = [0, *sorted(cuts), len(table)]
    with writer.open(sink, schema=table.schema, footer=footer or {}) as file:
        for start, stop in itertools.pairwise(bounds):
            file.write(table.slice(start, stop - start))
    return bytes(sink.data)


# Vectors


def test_vector_array_of_contiguous_matrix_shares_its_memory():
    matrix = make_matrix(5)
    column = writers.vector_array(matrix)
    assert column.type == writers.vector_type(WIDTH)
    assert column.values.buffers()[1].address == matrix.ctypes.data


def test_vector_array_of_strided_matrix_keeps_values():
    matrix = make_matrix(6, 2 * WIDTH)[::2, ::2]
    assert writers.vector_array(matrix).to_pylist() == matrix.tolist()


@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(np.zeros((2, 3)), id="float64"),
        pytest.param(np.zeros(3, np.float32), id="one-dimension"),
        pytest.param(np.zeros((2, 0), np.float32), id="no-width"),
    ],
)
def test_vector_array_of_other_matrix_raises(matrix):
    with pytest.raises(ValueError, match=r"float32 \[B, W\]"):
        writers.vector_array(matrix)


def test_vector_matrix_of_one_chunk_shares_memory():
    matrix = make_matrix(5)
    column = pa.chunked_array([writers.vector_array(matrix)])
    assert np.shares_memory(writers.vector_matrix(column), matrix)


@given(start=st.integers(0, 9), length=st.integers(0, 9))
def test_vector_matrix_of_slice_gives_its_rows(start, length):
    matrix = make_matrix(9)
    column = writers.vector_array(matrix).slice(start, length)
    np.testing.assert_array_equal(writers.vector_matrix(column), matrix[start : start + length])


def test_vector_matrix_of_several_chunks_joins_them():
    matrix = make_matrix(5)
    column = writers.vector_array(matrix)
    chunks = pa.chunked_array([column.slice(0, 2), column.slice(2, 0), column.slice(2)])
    np.testing.assert_array_equal(writers.vector_matrix(chunks), matrix)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        pytest.param(pa.array([[1.0]], pa.list_(pa.float32())), "one width", id="ragged"),
        pytest.param(pa.array([[1.0]], pa.list_(pa.float64(), 1)), "one width", id="float64"),
        pytest.param(pa.array([None], pa.list_(pa.float32(), 1)), "1 nulls", id="null-row"),
        pytest.param(pa.array([[None]], pa.list_(pa.float32(), 1)), "1 nulls", id="null-number"),
    ],
)
def test_vector_matrix_of_other_column_raises(column, message):
    with pytest.raises(ValueError, match=message):
        writers.vector_matrix(column)


# Columns


def test_output_schema_with_every_option_has_the_contracts_columns():
    schema = writers.output_schema(
        embedding_columns={"embedding_pubmed": 768, "embedding_wiki_books": 512},
        metadata=pa.schema([("year", pa.int16()), ("tags", pa.list_(pa.string()))]),
        chunked=True,
        keep_text=True,
        pair=True,
    )
    assert [(field.name, field.type, field.nullable) for field in schema] == [
        ("id", pa.string(), False),
        ("embedding_pubmed", writers.vector_type(768), False),
        ("embedding_wiki_books", writers.vector_type(512), False),
        ("document_id", pa.string(), False),
        ("chunk", pa.int32(), False),
        ("char_start", pa.int32(), False),
        ("char_end", pa.int32(), False),
        ("n_tokens", pa.int32(), False),
        ("truncated", pa.bool_(), False),
        ("text_sha256", pa.string(), False),
        ("text", pa.string(), False),
        ("pair", pa.string(), True),
        ("year", pa.int16(), True),
        ("tags", pa.list_(pa.string()), True),
    ]


def test_output_schema_without_options_leaves_text_and_chunks_out():
    names = ["id", "embedding", "n_tokens", "truncated", "text_sha256"]
    assert make_schema(pair=True).names == names


def test_output_schema_metadata_drops_field_numbers_and_keeps_other_notes():
    field = pa.field("a", pa.int8(), metadata={"PARQUET:field_id": "1", "unit": "kg"})
    found = make_schema(pa.schema([field], metadata={"pandas": "{}"}))
    assert found.field("a").metadata == {b"unit": b"kg"}
    assert found.metadata is None


@pytest.mark.parametrize("name", ["id", "ID", "embedding", "n_tokens", "Text_SHA256", "text"])
def test_output_schema_metadata_named_as_own_column_raises(name):
    with pytest.raises(ConfigError, match=f"metadata field '{name}'.*--metadata_fields"):
        make_schema(pa.schema([(name, pa.string())]), keep_text=True)


@pytest.mark.parametrize("names", [("a", "a"), ("a", "A")])
def test_output_schema_two_metadata_fields_of_one_name_raises(names):
    with pytest.raises(ConfigError, match=f"metadata field '{names[1]}'"):
        make_schema(pa.schema([(name, pa.string()) for name in names]))


def test_output_schema_metadata_named_text_without_keep_text_is_kept():
    assert "text" in make_schema(pa.schema([("text", pa.string())])).names


def test_reserved_columns_are_the_schemas_without_metadata():
    flags = {"chunked": True, "keep_text": True, "pair": True}
    reserved = writers.reserved_columns(embedding_columns={"embedding": WIDTH}, **flags)
    assert list(reserved) == make_schema(**flags).names


def test_find_writer_unknown_name_lists_known_and_nearest():
    with pytest.raises(ConfigError, match="parquet, tfrecord; did you mean 'parquet'"):
        writers.find_writer("parquett")


@pytest.mark.parametrize("name", writers.WRITERS)
def test_find_writer_known_name_gives_its_extension(name):
    assert writers.find_writer(name).extension == f".{name}"


# Every format


@pytest.mark.parametrize("name", writers.WRITERS)
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=12))
def test_writer_any_cuts_into_tables_write_the_same_bytes(name, cuts):
    writer = (
        parquet.ParquetWriter(row_group_rows=300) if name == "parquet" else writers.WRITERS[name]
    )
    table = make_table(900)
    assert write_bytes(writer, table, cuts=cuts) == write_bytes(writer, table)


@pytest.mark.parametrize("name", writers.WRITERS)
def test_writer_to_beam_file_writes_the_same_bytes(name, tmp_path):
    path = tmp_path / "file"
    table = make_table(50)
    writer = writers.WRITERS[name]
    with FileSystems.create(str(path)) as sink:
        with writer.open(sink, schema=table.schema, footer={"a": "b"}) as file:
            file.write(table)
        assert not sink.closed
    assert path.read_bytes() == write_bytes(writer, table, footer={"a": "b"})


@pytest.mark.parametrize("name", writers.WRITERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda t: t.drop_columns("source"), "has columns", id="missing"),
        pytest.param(lambda t: t.select(t.column_names[::-1]), "has columns", id="order"),
        pytest.param(
            lambda t: t.set_column(2, "n_tokens", t["n_tokens"].cast(pa.int64())),
            "'n_tokens' is int64, in the file int32",
            id="type",
        ),
        pytest.param(
            lambda t: t.set_column(0, "id", pa.array([None] * len(t), pa.string())),
            "'id' has nulls",
            id="null-id",
        ),
        pytest.param(
            lambda t: t.set_column(
                1, "embedding", pa.array([None] * len(t), writers.vector_type(WIDTH))
            ),
            "'embedding' has nulls",
            id="null-vector",
        ),
    ],
)
def test_writer_table_of_other_columns_raises(name, change, message):
    table = make_table(4)
    with (
        pytest.raises(ValueError, match=message),
        writers.WRITERS[name].open(AppendOnly(), schema=table.schema, footer={}) as file,
    ):
        file.write(change(table))


@pytest.mark.parametrize("name", writers.WRITERS)
@pytest.mark.parametrize("type_name", ["month_day_nano_interval", "run_end_encoded"])
def test_writer_open_with_type_of_no_format_raises_before_writing(name, type_name):
    kind = {
        "month_day_nano_interval": pa.month_day_nano_interval(),
        "run_end_encoded": pa.run_end_encoded(pa.int32(), pa.string()),
    }[type_name]
    sink = AppendOnly()
    file = writers.WRITERS[name].open(sink, schema=make_schema(pa.schema([("m", kind)])), footer={})
    with pytest.raises(ConfigError, match=f"column 'm' of type {type_name}.*={name}"), file:
        pass
    assert not sink.data


# Parquet


def test_parquet_writer_file_reads_back_equal_with_footer():
    table = make_table(700)
    writer = parquet.ParquetWriter(row_group_rows=256)
    file = pq.ParquetFile(io.BytesIO(write_bytes(writer, table, footer={"expert": "pübmed"})))
    assert file.read().equals(table)
    assert file.schema_arrow.remove_metadata() == table.schema
    assert file.metadata.metadata[b"expert"] == "pübmed".encode()
    matrix = writers.vector_matrix(file.read()["embedding"])
    np.testing.assert_array_equal(matrix.view(np.uint32), make_matrix(700).view(np.uint32))


def test_parquet_writer_odd_floats_keep_their_bits():
    bits = [0x80000000, 0x00000001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFC00000, 0]
    matrix = np.array([bits], np.uint32).view(np.float32)
    table = make_table(1).set_column(
        1, make_table(1).schema.field("embedding"), writers.vector_array(matrix)
    )
    read = pq.read_table(io.BytesIO(write_bytes(parquet.ParquetWriter(), table)))
    assert writers.vector_matrix(read["embedding"]).view(np.uint32).tolist() == [bits]


def test_parquet_writer_columns_are_encoded_by_what_they_hold():
    metadata = pa.table({"source": ["a"] * 40, "tags": [["x", "y"]] * 40})
    data = write_bytes(parquet.ParquetWriter(), make_table(40, metadata))
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    found = {}
    for number in range(group.num_columns):
        column = group.column(number)
        assert column.compression == "ZSTD"
        found[column.path_in_schema] = (
            "BYTE_STREAM_SPLIT" in column.encodings,
            column.has_dictionary_page,
            column.is_stats_set,
        )
    assert found == {
        "id": (False, False, True),
        "embedding.list.element": (True, False, False),
        "n_tokens": (False, True, True),
        "truncated": (False, False, True),  # Parquet has no dictionaries of booleans
        "text_sha256": (False, False, False),
        "source": (False, True, True),
        "tags.list.element": (False, True, True),
    }


def test_parquet_writer_vector_in_parquet_is_a_list_of_required_elements():
    schema = pq.ParquetFile(io.BytesIO(write_bytes(parquet.ParquetWriter(), make_table(3)))).schema
    leaf = schema.column(1)
    assert leaf.path == "embedding.list.element"
    assert (leaf.max_definition_level, leaf.max_repetition_level) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "groups"),
    [(0, []), (1, [1]), (383, [383]), (384, [256, 128]), (640, [256, 256, 128]), (500, [256, 244])],
)
def test_parquet_writer_row_groups_are_never_small(rows, groups):
    data = write_bytes(parquet.ParquetWriter(row_group_rows=256), make_table(rows), cuts=(rows,))
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == groups


def test_parquet_writer_wide_text_ends_a_row_group_by_bytes(monkeypatch):
    monkeypatch.setattr(parquet, "_FULL_BYTES", 1 << 20)
    table = make_table(1100, pa.table({"note": ["x" * 2500] * 1100}))
    metadata = pq.ParquetFile(io.BytesIO(write_bytes(parquet.ParquetWriter(), table))).metadata
    rows = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert rows == [512, 512, 76]


def write_then_fail(sink: AppendOnly, table: pa.Table) -> None:
    writer = parquet.ParquetWriter(row_group_rows=256)
    with writer.open(sink, schema=table.schema, footer={}) as file:
        file.write(table)
        assert len(sink.data) > 4  # a row group is there already
        raise RuntimeError("killed")


def test_parquet_writer_left_by_exception_leaves_no_readable_file():
    sink = AppendOnly()
    with pytest.raises(RuntimeError, match="killed"):
        write_then_fail(sink, make_table(600))
    gc.collect()  # Arrow's writer ends its file when it is collected
    assert sink.data[:4] == b"PAR1"
    assert sink.data[-4:] != b"PAR1"
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(io.BytesIO(bytes(sink.data)))


def test_parquet_writer_failing_sink_raises_its_error():
    class Full(AppendOnly):
        def write(self, data):
            raise OSError(28, "No space left on device")

    table = make_table(3)
    with (
        pytest.raises(OSError, match="No space left"),
        parquet.ParquetWriter().open(Full(), schema=table.schema, footer={}) as file,
    ):
        file.write(table)


def test_parquet_writer_without_rows_in_a_group_raises():
    with pytest.raises(ConfigError, match="row_group_rows=0"):
        parquet.ParquetWriter(row_group_rows=0)


@pytest.mark.parametrize("width", [256, 384, 512, 768, 1024, 4096])
def test_choose_row_group_rows_of_any_width_is_64_to_128_mib(width):
    schema = writers.output_schema(
        embedding_columns={"embedding": width}, metadata=pa.schema([("a", pa.int8())])
    )
    megabytes = parquet.choose_row_group_rows(schema) * width * 4 / 2**20
    assert 64 <= megabytes <= 128


def test_choose_row_group_rows_of_two_experts_counts_both():
    schema = writers.output_schema(
        embedding_columns={"embedding_a": 768, "embedding_b": 768}, metadata=pa.schema([])
    )
    assert parquet.choose_row_group_rows(schema) == 13568


# TFRecord


@given(st.integers(-(2**63), 2**63 - 1))
def test_encode_varint_any_int64_decodes_to_itself(number):
    data = tfrecord.encode_varint(number)
    decoded = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data))
    assert [byte >> 7 for byte in data] == [1] * (len(data) - 1) + [0]
    assert decoded == number % 2**64


def decode_examples(batch: pa.RecordBatch) -> list[dict[str, list]]:
    import tensorflow as tf

    rows = []
    for data in tfrecord.encode_examples(batch):
        features = tf.train.Example.FromString(data).features.feature
        row = {}
        for name, feature in features.items():
            row[name] = list(getattr(feature, feature.WhichOneof("kind")).value)
        rows.append(row)
    return rows


FLOATS = st.floats(width=32, allow_nan=False)
INTS = st.integers(-(2**63), 2**63 - 1)
ROWS = st.fixed_dictionaries(
    {
        "text": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        "bytes": st.none() | st.binary(max_size=300),
        "int": st.none() | INTS,
        "float": st.none() | FLOATS,
        "flag": st.none() | st.booleans(),
        "texts": st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
        "ints": st.none() | st.lists(INTS),
        "floats": st.none() | st.lists(FLOATS),
    }
)
ROW_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("bytes", pa.binary()),
        ("int", pa.int64()),
        ("float", pa.float32()),
        ("flag", pa.bool_()),
        ("texts", pa.large_list(pa.large_string())),
        ("ints", pa.list_(pa.int64())),
        ("floats", pa.list_(pa.float32())),
    ]
)


def as_example_values(value) -> list:
    values = value if isinstance(value, list) else [value]
    values = [int(item) if isinstance(item, bool) else item for item in values]
    return [item.encode() if isinstance(item, str) else item for item in values]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=6), skip=st.integers(0, 2))
def test_encode_examples_any_rows_decode_to_themselves(rows, skip):
    batch = pa.RecordBatch.from_pylist(rows, schema=ROW_SCHEMA).slice(skip)
    assert decode_examples(batch) == [
        {name: as_example_values(value) for name, value in row.items() if value is not None}
        for row in rows[skip:]
    ]


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=3))
def test_encode_examples_any_rows_equal_tensorflows_message(rows):
    import tensorflow as tf

    batch = pa.RecordBatch.from_pylist(rows, schema=ROW_SCHEMA)
    for row, data in zip(rows, tfrecord.encode_examples(batch), strict=True):
        example = tf.train.Example()
        example.features.SetInParent()  # a row of nulls has features, none of them
        for name, value in row.items():
            if value is None:
                continue
            feature = example.features.feature[name]
            values = as_example_values(value)
            if name in {"text", "bytes", "texts"}:
                feature.bytes_list.CopyFrom(tf.train.BytesList(value=values))
            elif name in {"float", "floats"}:
                feature.float_list.CopyFrom(tf.train.FloatList(value=values))
            else:
                feature.int64_list.CopyFrom(tf.train.Int64List(value=values))
        assert tf.train.Example.FromString(data) == example
        # As many bytes as TensorFlow writes: every list is packed, no field stands twice.
        assert len(data) == len(example.SerializeToString())


DAY = datetime.date(2026, 11, 23)
NOON = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.timezone.utc)
UTC_SECONDS = int(NOON.timestamp())


@pytest.mark.parametrize(
    ("array", "values"),
    [
        pytest.param(pa.array(["é"], pa.large_string()), [b"\xc3\xa9"], id="large-string"),
        pytest.param(pa.array(["é"], pa.string_view()), [b"\xc3\xa9"], id="string-view"),
        pytest.param(pa.array([""]), [b""], id="empty-string"),
        pytest.param(pa.array([b"ab"], pa.binary(2)), [b"ab"], id="fixed-size-binary"),
        pytest.param(pa.array(["a"]).dictionary_encode(), [b"a"], id="dictionary"),
        pytest.param(pa.array([-5], pa.int8()), [-5], id="int8"),
        pytest.param(pa.array([2**32 - 1], pa.uint32()), [2**32 - 1], id="uint32"),
        pytest.param(pa.array([1.5], pa.float16()), [1.5], id="float16"),
        pytest.param(pa.array([DAY], pa.date32()), [DAY.toordinal() - 719163], id="date32"),
        pytest.param(pa.array([DAY], pa.date64()), [(UTC_SECONDS - 43200) * 1000], id="date64"),
        pytest.param(
            pa.array([NOON], pa.timestamp("us", "Asia/Tokyo")), [UTC_SECONDS * 10**6], id="time-us"
        ),
        pytest.param(pa.array([43200], pa.time32("s")), [43200], id="time32"),
        pytest.param(pa.array([7], pa.time64("ns")), [7], id="time64"),
        pytest.param(pa.array([7], pa.duration("ms")), [7], id="duration"),
        pytest.param(pa.array([[]], pa.list_(pa.int64())), [], id="empty-list"),
        pytest.param(pa.array([[]], pa.list_(pa.null())), [], id="empty-list-of-null"),
        pytest.param(pa.array([[1.5, 2]], pa.list_(pa.float32(), 2)), [1.5, 2], id="fixed-list"),
        pytest.param(pa.array([[True, False]]), [1, 0], id="list-of-bool"),
        pytest.param(pa.array([[DAY]]), [DAY.toordinal() - 719163], id="list-of-date"),
        pytest.param(
            pa.array([["a", "a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
            [b"a", b"a"],
            id="list-of-dictionary",
        ),
    ],
)
def test_encode_examples_type_becomes_documented_values(array, values):
    batch = pa.RecordBatch.from_arrays([array], ["m"])
    assert decode_examples(batch) == [{"m": values}]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": 1, "b": [None, "é"], "c": {"d": 0.1}}, id="struct"),
        pytest.param([[1, 2], [], None], id="list-of-lists"),
        pytest.param([{"a": True}], id="list-of-structs"),
        pytest.param({"big": 2**63 - 1}, id="int64"),
    ],
)
def test_encode_examples_nested_value_becomes_its_json(value):
    [row, absent] = decode_examples(pa.RecordBatch.from_arrays([pa.array([value, None])], ["m"]))
    assert json.loads(row["m"][0]) == value
    assert absent == {}


def test_encode_examples_null_type_is_absent():
    assert decode_examples(pa.RecordBatch.from_arrays([pa.nulls(2)], ["m"])) == [{}, {}]


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        pytest.param(pa.float64(), "float32 .*string", id="float64"),
        pytest.param(pa.uint64(), "int64 or string", id="uint64"),
        pytest.param(pa.list_(pa.float64()), "list of float32", id="list-of-float64"),
        pytest.param(pa.decimal128(9, 2), "type string", id="decimal"),
        pytest.param(pa.struct([("a", pa.binary())]), "JSON has no binary", id="binary-in-struct"),
        pytest.param(
            pa.map_(pa.string(), pa.timestamp("s")), r"JSON has no timestamp\[s\]", id="time-in-map"
        ),
    ],
)
def test_tfrecord_writer_type_that_does_not_fit_raises(kind, remedy):
    schema = make_schema(pa.schema([("score", kind)]))
    with pytest.raises(ConfigError, match=f"column 'score' of type .*{remedy}"):
        writers.WRITERS["tfrecord"].check_schema(schema)


def test_tfrecord_writer_null_inside_a_list_raises_naming_the_column():
    table = make_table(1, pa.table({"tags": [["a", None]]}))
    with pytest.raises(ConfigError, match=r"column 'tags'.*null inside a list"):
        write_bytes(writers.WRITERS["tfrecord"], table)


def test_tfrecord_writer_file_equals_tensorflows_own_framing(tmp_path):
    import tensorflow as tf

    table = make_table(40)
    path = tmp_path / "file.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in table.to_batches():
            for data in tfrecord.encode_examples(batch):
                writer.write(data)
    assert write_bytes(writers.WRITERS["tfrecord"], table) == path.read_bytes()


def test_tfrecord_writer_without_rows_writes_nothing():
    assert write_bytes(writers.WRITERS["tfrecord"], make_table(0)) == b""


def test_frame_record_known_record_gives_known_checksums():
    # From the CRC-32C of eight and of no bytes, masked as record_writer.h says.
    assert tfrecord.frame_record(b"") == struct.pack("<QII", 0, 0x07980329, 0xA282EAD8)


def test_example_spec_says_which_features_may_be_absent_or_ragged():
    metadata = pa.schema(
        [
            ("year", pa.int16()),
            pa.field("rank", pa.int64(), nullable=False),
            pa.field("tags", pa.list_(pa.string()), nullable=False),
            pa.field('the "box"', pa.list_(pa.float32(), 4), nullable=False),
            pa.field("grid", pa.list_(pa.list_(pa.int64()), 2), nullable=False),
        ]
    )
    assert writers.example_spec(make_schema(metadata)) == (
        "features = {\n"
        '    "id": tf.io.FixedLenFeature([], tf.string),\n'
        '    "embedding": tf.io.FixedLenFeature([8], tf.float32),\n'
        '    "n_tokens": tf.io.FixedLenFeature([], tf.int64),\n'
        '    "truncated": tf.io.FixedLenFeature([], tf.int64),\n'
        '    "text_sha256": tf.io.FixedLenFeature([], tf.string),\n'
        '    "year": tf.io.RaggedFeature(tf.int64),\n'
        '    "rank": tf.io.FixedLenFeature([], tf.int64),\n'
        '    "tags": tf.io.RaggedFeature(tf.string),\n'
        '    "the \\"box\\"": tf.io.FixedLenFeature([4], tf.float32),\n'
        '    "grid": tf.io.FixedLenFeature([], tf.string),\n'
        "}\n"
    )

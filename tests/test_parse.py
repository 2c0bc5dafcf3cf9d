"""Rules of rows: ids, metadata types, raw rows."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import parse
from transforms.errors import ConfigError, InputError
from transforms.readers.base import BadRow, SourceRow
from transforms.records import ChunkKey, InputFile, MetadataField, RowFields, RowLimits, TextBatch

FILE = InputFile("/corpus/a.jsonl", "a.jsonl", 3, 100, "jsonl", "none")
KEY = ChunkKey(2, 5)


def check_rows(*records: Any, fields: RowFields, limits: RowLimits | None = None) -> TextBatch:
    chunk = parse.RowChunk(fields, limits=limits or RowLimits())
    for position, record in enumerate(records):
        chunk.add(FILE, SourceRow(position, position + 1, 10, record))
    return chunk.finish(KEY)


def with_year(*values: Any, kind: str | None = None) -> TextBatch:
    fields = RowFields(metadata=(MetadataField("year", kind),))
    return check_rows(*({"text": "a", "year": value} for value in values), fields=fields)


def test_derive_id_follows_the_documented_rule() -> None:
    expected = hashlib.sha256("dir/ä.txt\0".encode() + b"17\0" + "text é".encode()).hexdigest()
    paired = hashlib.sha256(b"n\x000\0one\0two").hexdigest()

    assert parse.derive_id("dir/ä.txt", position=17, text="text é") == expected[:32]
    assert parse.derive_id("n", position=0, text="one", pair="two") == paired[:32]


def test_derive_id_of_a_name_that_is_no_utf8_is_an_id() -> None:
    expected = hashlib.sha256(b"a\xff\x000\0text").hexdigest()[:32]

    assert parse.derive_id("a\udcff", position=0, text="text") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("x", "x"), (" x ", " x "), (7, "7"), (-1, "-1"), (10**30, "1" + "0" * 30), (0, "0")],
)
def test_check_id_of_string_or_integer_is_taken_as_it_is(value: object, expected: str) -> None:
    assert parse.check_id(value, name="id") == (expected, None)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing_id"),
        ("", "missing_id"),
        ("\u3000", "missing_id"),
        (True, "id_not_string"),
        (1.0, "id_not_string"),
        ([1], "id_not_string"),
        ("a\0", "nul_byte"),
    ],
)
def test_check_id_of_other_things_is_a_problem(value: object, reason: str) -> None:
    found, problem = parse.check_id(value, name="id")

    assert found is None
    assert problem is not None
    assert problem[0] == reason


def test_row_chunk_with_rejects_keeps_order_origin_and_count() -> None:
    records = [
        {"id": 1, "text": "one"},
        {"id": 2, "text": None},
        BadRow("malformed_json", "why", b"{"),
        {"id": 4, "text": "four"},
    ]

    batch = check_rows(*records, fields=RowFields(id="id"))

    assert (batch.key, batch.rows_read, batch.pairs) == (KEY, 4, None)
    assert batch.ids.to_pylist() == ["1", "4"]
    assert (batch.files.tolist(), batch.positions.tolist()) == ([3, 3], [0, 3])
    assert [(r.id, r.reason, r.position, r.line) for r in batch.rejects] == [
        ("2", "null_text", 1, 2),
        (None, "malformed_json", 2, 3),
    ]
    assert batch.rejects[0].raw == '{"id":2,"text":null}'
    assert batch.rejects[1].raw == "{"


def test_row_chunk_reject_keeps_fields_that_the_run_does_not_use() -> None:
    batch = check_rows({"text": None, "body": "another field", "n": 1}, fields=RowFields())

    assert json.loads(batch.rejects[0].raw or "") == {
        "text": None,
        "body": "another field",
        "n": 1,
    }


def test_row_chunk_without_metadata_has_a_table_of_all_rows() -> None:
    batch = check_rows({"text": "a"}, {"text": "b"}, fields=RowFields())

    assert (batch.metadata.num_rows, batch.metadata.num_columns) == (2, 0)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        pytest.param([1, None, 3], pa.int64(), id="int"),
        pytest.param([1, 2.5], pa.float64(), id="int_and_float"),
        pytest.param([True, None], pa.bool_(), id="bool"),
        pytest.param(["a", "1"], pa.string(), id="string"),
        pytest.param([None, None], pa.null(), id="null"),
        pytest.param([[1, 2], [], None], pa.list_(pa.int64()), id="list"),
        pytest.param([{"a": 1}, {"a": None}], pa.struct([("a", pa.int64())]), id="struct"),
    ],
)
def test_metadata_that_fits_keeps_type_and_values(values: list[Any], kind: pa.DataType) -> None:
    batch = with_year(*values)

    assert batch.rejects == ()
    assert batch.metadata.schema.field("year").type == kind
    assert batch.metadata.column("year").to_pylist() == values


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        pytest.param([1, "x", 2], [1], id="string_among_ints"),
        pytest.param(["x", 1, "y", True], [1, 3], id="others_among_strings"),
        pytest.param([1, 2.5, True], [2], id="bool_among_numbers"),
        pytest.param([[1], 2, [3]], [1], id="scalar_among_lists"),
        pytest.param([[1], ["a"], [2.5]], [1], id="strings_among_number_lists"),
        pytest.param([{"a": 1}, {"a": "x"}, {"a": 2}], [1], id="nested"),
        pytest.param([1, 1 << 64, 3], [1], id="integer_over_64_bits"),
        pytest.param([1.5, 2**60 + 1, 2.5], [1], id="integer_no_float_can_hold"),
        pytest.param([[1.5], [True, 2.5], [2]], [1], id="bool_among_numbers_in_a_list"),
        pytest.param([{"a": 1.5}, {"a": True}, {"a": 1}], [1], id="bool_among_nested_numbers"),
        pytest.param([5, "x"], [1], id="tie_goes_to_the_first"),
    ],
)
def test_metadata_that_does_not_fit_the_others_is_a_reject(
    values: list[Any], bad: list[int]
) -> None:
    batch = with_year(*values)

    assert [r.position for r in batch.rejects] == bad
    assert {r.reason for r in batch.rejects} == {"metadata_type"}
    good = [value for row, value in enumerate(values) if row not in bad]
    assert batch.metadata.column("year").to_pylist() == good
    assert batch.positions.tolist() == [row for row in range(len(values)) if row not in bad]
    assert json.loads(batch.rejects[0].raw or "")["year"] == values[bad[0]]


def test_metadata_with_half_a_surrogate_is_a_reject() -> None:
    batch = with_year("a", "x\ud800")

    assert [(r.position, r.reason) for r in batch.rejects] == [(1, "invalid_utf8")]
    assert json.loads(batch.rejects[0].raw or "")["year"] == "x\ud800"


@pytest.mark.parametrize(
    ("kind", "values", "expected", "bad"),
    [
        pytest.param("int64", [1, "2", 3.0], [1, 2, 3], [], id="to_int"),
        pytest.param("int64", [1, 1.5, "x", None], [1, None], [1, 2], id="lossy_to_int"),
        pytest.param("int8", [1, 300], [1], [1], id="out_of_range"),
        pytest.param("string", ["a", 1, True, 1 << 70], ["a", "1", "true", str(1 << 70)], [],
                     id="to_string"),
        pytest.param("string", ["a", [1]], ["a"], [1], id="list_to_string"),
        pytest.param("double", [1, "2.5"], [1.0, 2.5], [], id="to_double"),
        pytest.param("bool", [True, "false", "maybe"], [True, False], [2], id="to_bool"),
        pytest.param("string", [12345678, 2.5, True], ["12345678", "2.5", "true"], [],
                     id="mix_to_string"),
        pytest.param("uint64", [1 << 63, 1], [1 << 63, 1], [], id="to_uint64"),
    ],
)  # fmt: skip
def test_metadata_with_a_given_type_is_cast_or_rejected(
    kind: str, values: list[Any], expected: list[Any], bad: list[int]
) -> None:
    batch = with_year(*values, kind=kind)

    assert batch.metadata.schema.field("year").type == pa.type_for_alias(kind)
    assert batch.metadata.column("year").to_pylist() == expected
    assert [r.position for r in batch.rejects] == bad


def test_field_type_that_is_unknown_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'year': unknown type 'int46'; did you mean int"):
        parse.field_type(MetadataField("year", "int46"))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.lists(VALUES, max_size=8), st.sampled_from([None, "string", "int64", "double", "bool"]))
def test_fit_values_of_anything_gives_a_column_or_a_problem_for_each(
    values: list[Any], alias: str | None
) -> None:
    kind = None if alias is None else pa.type_for_alias(alias)

    column, problems = parse.fit_values(values, name="field", kind=kind)

    assert len(column) == len(values)
    assert kind is None or column.type == kind
    for row, value in enumerate(values):
        kept = column[row].as_py()
        if row in problems:
            assert problems[row][0] in parse.REASONS
            assert kept is None
        elif value is None:
            assert kept is None
        elif kind is None and isinstance(value, int | float | str):
            assert kept == (value.encode() if isinstance(kept, bytes) else value) or (
                isinstance(value, float) and math.isnan(value)
            )
        else:
            assert kept is not None


@given(st.lists(VALUES, max_size=6))
def test_row_chunk_of_anything_counts_every_row(values: list[Any]) -> None:
    fields = RowFields(text="t", pair="p", id="i", metadata=(MetadataField("m"),))
    records = [{"t": v, "p": "p", "i": k, "m": v} for k, v in enumerate(values)]
    records += [{"t": "t", "p": v, "i": v, "m": v} for v in values]

    batch = check_rows(*records, fields=fields)

    assert batch.rows_read == len(records) == len(batch) + len(batch.rejects)
    assert {reject.reason for reject in batch.rejects} <= set(parse.REASONS)
    assert all(reject.raw is not None for reject in batch.rejects)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        pytest.param([pa.null(), pa.int64()], pa.int64(), id="null_int"),
        pytest.param([pa.int64(), pa.null(), pa.float64()], pa.float64(), id="int_float"),
        pytest.param([pa.int32(), pa.int64()], pa.int64(), id="widths"),
        pytest.param(
            [pa.list_(pa.null()), pa.list_(pa.string())], pa.list_(pa.string()), id="lists"
        ),
        pytest.param(
            [pa.struct([("a", pa.null())]), pa.struct([("a", pa.int64()), ("b", pa.bool_())])],
            pa.struct([("a", pa.int64()), ("b", pa.bool_())]),
            id="structs",
        ),
    ],
)
def test_merge_schemas_of_types_that_go_together_gives_the_wider(
    types: list[pa.DataType], expected: pa.DataType
) -> None:
    merged = parse.merge_schemas([pa.schema([("x", kind), ("y", pa.string())]) for kind in types])

    assert merged == pa.schema([("x", expected), ("y", pa.string())])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.int64(), pa.string()),
        (pa.bool_(), pa.int64()),
        (pa.string(), pa.binary()),
        (pa.list_(pa.int64()), pa.int64()),
        (pa.struct([("a", pa.int64())]), pa.struct([("a", pa.string())])),
    ],
    ids=str,
)
def test_merge_schemas_of_types_at_odds_is_an_error_that_names_both(
    one: pa.DataType, other: pa.DataType
) -> None:
    with pytest.raises(InputError) as caught:
        parse.merge_schemas([pa.schema([("year", one)]), pa.schema([("year", other)])])

    for part in ["'year'", str(one), str(other), "--metadata_fields=year:string"]:
        assert part in str(caught.value)


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), st.integers(1, 40))
def test_encode_raw_of_any_bytes_gives_them_back(data: bytes, max_bytes: int) -> None:
    raw, is_base64, truncated = parse.encode_raw(data, max_bytes=max_bytes)

    back = base64.b64decode(raw) if is_base64 else raw.encode()
    assert truncated == (len(data) > max_bytes)
    assert data.startswith(back)
    assert len(back) >= min(len(data), max_bytes) - (3 if truncated else 0)


def test_encode_raw_cut_within_a_character_is_text() -> None:
    assert parse.encode_raw("aé".encode(), max_bytes=2) == ("a", False, True)


def test_reject_raw_that_is_long_is_cut() -> None:
    limits = RowLimits(max_raw_bytes=20)

    batch = check_rows({"text": [1] * 100}, fields=RowFields(), limits=limits)

    [reject] = batch.rejects
    assert reject.raw_truncated
    assert reject.raw == '{"text":[1,1,1,1,1,1'


def test_white_space_is_what_isspace_says() -> None:
    assert {chr(k) for k in range(0x110000) if chr(k).isspace()} == set(parse.WHITE_SPACE)

"""Every line of "bad input": a reject with its own reason, or a clear error before work."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import os
import random
import struct
import tracemalloc
from pathlib import Path

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from apache_beam.io.filesystems import FileSystems

from tests.read_helpers import (
    COMPRESS,
    SUFFIX,
    encode_rows,
    example_bytes,
    read_all,
    read_tasks,
    tfrecord_frame,
    write,
)
from transforms.errors import InputError
from transforms.parse import REASONS
from transforms.read import check_inputs, expand_inputs
from transforms.records import InputFile, MetadataField, RowFields, RowLimits, Segment
from transforms.records import ReadTask as Task

WITH_ID = RowFields(id="id")
WITH_PAIR = RowFields(pair="pair")

JSON_ROWS = [
    pytest.param(b'{"text": "a', "malformed_json", RowFields(), id="cut_line"),
    pytest.param(b"", "malformed_json", RowFields(), id="empty_line"),
    pytest.param(b'{"text": NaN}', "malformed_json", RowFields(), id="nan"),
    pytest.param(b'{"text": ' + b"[" * 3000, "malformed_json", RowFields(), id="deep_nesting"),
    pytest.param(b'["text"]', "not_an_object", RowFields(), id="array"),
    pytest.param(b'"text"', "not_an_object", RowFields(), id="string"),
    pytest.param(b"17", "not_an_object", RowFields(), id="number"),
    pytest.param(b"null", "not_an_object", RowFields(), id="null"),
    pytest.param(b"{}", "missing_text", RowFields(), id="missing_text"),
    pytest.param(b'{"text": null}', "null_text", RowFields(), id="null_text"),
    pytest.param(b'{"text": ""}', "blank_text", RowFields(), id="empty_text"),
    pytest.param(b'{"text": " \\t\\n\\u00a0\\u3000"}', "blank_text", RowFields(), id="blank"),
    pytest.param(b'{"text": 5}', "text_not_string", RowFields(), id="text_number"),
    pytest.param(b'{"text": ["a"]}', "text_not_string", RowFields(), id="text_list"),
    pytest.param(b'{"text": true}', "text_not_string", RowFields(), id="text_bool"),
    pytest.param(b'{"text": "a\\u0000b"}', "nul_byte", RowFields(), id="nul_escape"),
    pytest.param(b'{"text": "a\0b"}', "nul_byte", RowFields(), id="nul_raw"),
    pytest.param(b"\0\0\0\0", "nul_byte", RowFields(), id="nul_hole"),
    pytest.param(b'{"text": "a\xff"}', "invalid_utf8", RowFields(), id="invalid_utf8"),
    pytest.param(b'{"text": "a\\ud800"}', "invalid_utf8", RowFields(), id="lone_surrogate"),
    pytest.param(b'{"text": "a"}', "missing_id", WITH_ID, id="missing_id"),
    pytest.param(b'{"text": "a", "id": null}', "missing_id", WITH_ID, id="null_id"),
    pytest.param(b'{"text": "a", "id": " "}', "missing_id", WITH_ID, id="blank_id"),
    pytest.param(b'{"text": "a", "id": 1.5}', "id_not_string", WITH_ID, id="float_id"),
    pytest.param(b'{"text": "a", "id": true}', "id_not_string", WITH_ID, id="bool_id"),
    pytest.param(b'{"text": "a", "id": {}}', "id_not_string", WITH_ID, id="object_id"),
    pytest.param(b'{"text": "a", "id": "x\\ud800"}', "invalid_utf8", WITH_ID, id="surrogate_id"),
    pytest.param(b'{"text": "a"}', "missing_pair", WITH_PAIR, id="missing_pair"),
    pytest.param(b'{"text": "a", "pair": null}', "missing_pair", WITH_PAIR, id="null_pair"),
    pytest.param(b'{"text": "a", "pair": " "}', "blank_pair", WITH_PAIR, id="blank_pair"),
    pytest.param(b'{"text": "a", "pair": 1}', "pair_not_string", WITH_PAIR, id="number_pair"),
]
GOOD = b'{"text": "good", "id": "good", "pair": "good"}'


@pytest.mark.parametrize(("line", "reason", "fields"), JSON_ROWS)
def test_jsonl_bad_line_is_one_reject(
    tmp_path: Path, line: bytes, reason: str, fields: RowFields
) -> None:
    path = write(tmp_path / "rows.jsonl", b"\n".join([GOOD, line, GOOD, b""]))

    found = read_all(path, fields=fields)

    assert found.texts == ["good", "good"]
    [reject] = found.rejects
    assert (reject.reason, reject.position, reject.line) == (reason, len(GOOD) + 1, 2)
    assert reject.file == path
    assert reason in REASONS
    assert found.rows_read == 3


TEXT_ROWS = [
    pytest.param(b"", "blank_text", id="empty"),
    pytest.param(" \t\u3000".encode(), "blank_text", id="blank"),
    pytest.param(b"a\0b", "nul_byte", id="nul"),
    pytest.param(b"caf\xe9", "invalid_utf8", id="latin_1"),
]


@pytest.mark.parametrize(("line", "reason"), TEXT_ROWS)
def test_text_bad_line_is_one_reject(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "rows.txt", b"\n".join([b"one", line, b"two", b""]))

    found = read_all(path)

    assert found.texts == ["one", "two"]
    assert found.reasons == [reason]
    assert found.rejects[0].position == 4


CSV_ROWS = [
    pytest.param(b"1", "malformed_csv", id="too_few_fields"),
    pytest.param(b"1,b,c", "malformed_csv", id="too_many_fields"),
    pytest.param(b"", "malformed_csv", id="empty_line"),
    pytest.param(b'1,"open', "malformed_csv", id="unclosed_quote"),
    pytest.param(b'1,"a"b', "malformed_csv", id="text_after_quote"),
    pytest.param(b"1,a\0b", "nul_byte", id="nul"),
    pytest.param(b'1,"a\0b"', "nul_byte", id="nul_quoted"),
    pytest.param(b"1,caf\xe9", "invalid_utf8", id="invalid_utf8"),
    pytest.param(b"1,", "blank_text", id="empty_text"),
    pytest.param(b" ,a", "missing_id", id="blank_id"),
]


@pytest.mark.parametrize(("line", "reason"), CSV_ROWS)
def test_csv_bad_row_is_one_reject(tmp_path: Path, line: bytes, reason: str) -> None:
    rows = [b"id,text", b"g1,one", line, b'g2,"two, quoted"', b"g3,three", b""]
    path = write(tmp_path / "rows.csv", b"\n".join(rows))

    found = read_all(path, fields=WITH_ID)

    assert found.ids == ["g1", "g2", "g3"]
    assert [(r.reason, r.position, r.line) for r in found.rejects] == [(reason, 1, 3)]


PARQUET_COLUMNS = [
    pytest.param("text", None, "null_text", id="null_text"),
    pytest.param("text", "", "blank_text", id="empty_text"),
    pytest.param("text", "\u00a0\n", "blank_text", id="blank_text"),
    pytest.param("text", "a\0b", "nul_byte", id="nul"),
    pytest.param("id", None, "missing_id", id="null_id"),
    pytest.param("id", "  ", "missing_id", id="blank_id"),
    pytest.param("id", "a\0b", "nul_byte", id="nul_id"),
    pytest.param("pair", None, "missing_pair", id="null_pair"),
    pytest.param("pair", "", "blank_pair", id="blank_pair"),
    pytest.param("text", "x" * 200, "row_too_long", id="too_long"),
]


@pytest.mark.parametrize(("name", "value", "reason"), PARQUET_COLUMNS)
def test_parquet_bad_row_is_one_reject(
    tmp_path: Path, name: str, value: str | None, reason: str
) -> None:
    rows = [{"id": f"r{k}", "text": f"text {k}", "pair": "p"} for k in range(3)]
    rows[1][name] = value  # type: ignore[assignment]
    path = write(tmp_path / "rows.parquet", encode_rows(rows, "parquet"))

    found = read_all(
        path, fields=RowFields(id="id", pair="pair"), limits=RowLimits(max_row_bytes=100)
    )

    assert found.ids == ["r0", "r2"]
    [reject] = found.rejects
    assert (reject.reason, reject.position) == (reason, 1)
    assert json.loads(reject.raw or "") == rows[1]


def test_parquet_invalid_utf8_is_one_reject(tmp_path: Path) -> None:
    offsets = pa.py_buffer(struct.pack("<4i", 0, 4, 6, 10))
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, offsets, pa.py_buffer(b"good\xff\xfegood")]
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")

    found = read_all(str(tmp_path / "rows.parquet"))

    assert found.texts == ["good", "good"]
    [reject] = found.rejects
    assert (reject.reason, reject.position, reject.raw_base64) == ("invalid_utf8", 1, True)
    assert b"\xff\xfe" in base64.b64decode(reject.raw or "")


TFRECORD_ROWS = [
    pytest.param(b"\xffgarbage", "malformed_example", id="no_example"),
    pytest.param(example_bytes({"id": "a"}), "missing_text", id="missing_text"),
    pytest.param(example_bytes({"text": None}), "null_text", id="no_value"),
    pytest.param(example_bytes({"text": ["a", "b"]}), "text_not_string", id="two_values"),
    pytest.param(example_bytes({"text": 7}), "text_not_string", id="integer"),
    pytest.param(example_bytes({"text": b"\xff"}), "invalid_utf8", id="invalid_utf8"),
    pytest.param(example_bytes({"text": "a\0"}), "nul_byte", id="nul"),
    pytest.param(example_bytes({"text": "y" * 500}), "row_too_long", id="too_long"),
]


@pytest.mark.parametrize(("data", "reason"), TFRECORD_ROWS)
def test_tfrecord_bad_record_is_one_reject(tmp_path: Path, data: bytes, reason: str) -> None:
    good = tfrecord_frame(example_bytes({"text": "good"}))
    path = write(tmp_path / "rows.tfrecord", good + tfrecord_frame(data) + good)

    found = read_all(path, limits=RowLimits(max_row_bytes=200))

    assert found.texts == ["good", "good"]
    assert [(r.reason, r.position) for r in found.rejects] == [(reason, 1)]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        pytest.param("😀👩‍👩‍👧‍👦🏳️‍🌈", None, id="only_emoji"),
        pytest.param("\u0301\u0302\u0303", None, id="only_combining_marks"),
        pytest.param("w" * 100_000, None, id="word_of_100000_letters"),
        pytest.param("\ufefftext", "text", id="byte_order_mark"),
        pytest.param("carriage\r", "carriage", id="crlf"),
    ],
)
def test_odd_text_is_a_row(tmp_path: Path, line: str, text: str | None) -> None:
    path = write(tmp_path / "rows.txt", line + "\nnext\n")

    found = read_all(path)

    assert found.texts == [line if text is None else text, "next"]
    assert found.positions == [0, len(line.encode()) + 1]


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
def test_byte_order_mark_and_crlf_are_no_part_of_a_row(tmp_path: Path, kind: str) -> None:
    rows = [{"text": "ä one"}, {"text": "two"}]
    data = encode_rows(rows, kind).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    suffix = {"text": "txt"}.get(kind, kind)
    path = write(tmp_path / f"rows.{suffix}", b"\xef\xbb\xbf" + data)

    found = read_all(path)

    assert (found.texts, found.rejects) == (["ä one", "two"], [])


def test_line_of_100_mb_is_passed_over_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"before\n")
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\nafter\n")
    tracemalloc.start()

    found = read_all(str(path))

    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.texts == ["before", "after"]
    [reject] = found.rejects
    assert (reject.reason, reject.position, reject.line) == ("row_too_long", 7, 2)
    assert reject.raw_truncated
    assert len(reject.raw or "") == RowLimits().max_raw_bytes
    assert peak_bytes < 64 << 20


@pytest.mark.parametrize(
    ("compress", "suffix"),
    [
        pytest.param(gzip.compress, ".gz", id="gzip"),
        pytest.param(lambda data: bz2.compress(data, 1), ".bz2", id="bzip2"),
        pytest.param(zstandard.ZstdCompressor().compress, ".zst", id="zstd"),
    ],
)
@pytest.mark.parametrize("keep", [0.6, 0.95, -1], ids=["60_percent", "95_percent", "last_byte"])
def test_truncated_compressed_file_keeps_rows_and_is_a_fault(
    tmp_path: Path, compress, suffix: str, keep: float
) -> None:
    noise = random.Random(1)
    rows = [f"{k} {noise.getrandbits(400):x}" for k in range(20_000)]
    data = compress("\n".join([*rows, ""]).encode())
    path = write(tmp_path / f"rows.txt{suffix}", data[: -1 if keep < 0 else int(len(data) * keep)])

    found = read_all(path)

    assert found.fault_reasons == ["truncated_file"]
    assert len(found.texts) > len(rows) * (abs(keep) - 0.2)
    assert found.texts == rows[: len(found.texts)]
    [fault] = found.faults
    assert fault.position == sum(len(row) + 1 for row in found.texts)
    assert found.rejects == []


@pytest.mark.parametrize("codec", ["gzip", "bzip2", "zstd"])
def test_concatenated_members_are_read_to_the_end(tmp_path: Path, codec: str) -> None:
    members = b"".join(COMPRESS[codec](part) for part in [b"one\ntw", b"", b"o\n", b"three\n"])
    path = write(tmp_path / f"rows.txt{SUFFIX[codec]}", members + (b"\0" * 700))

    found = read_all(path)

    assert (found.texts, found.faults) == (["one", "two", "three"], [])


def test_gzip_with_a_broken_checksum_is_a_fault(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b"one\ntwo\n"))
    data[-6] ^= 1
    path = write(tmp_path / "rows.txt.gz", bytes(data))

    found = read_all(path)

    assert found.fault_reasons == ["corrupt_file"]


def test_gzip_followed_by_garbage_is_a_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.txt.gz", gzip.compress(b"one\n") + b"garbage")

    found = read_all(path)

    assert (found.texts, found.fault_reasons) == (["one"], ["corrupt_file"])


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


RECORD = tfrecord_frame(example_bytes({"text": "good"}))


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        pytest.param(_flip(RECORD, 0), "corrupt_file", id="length"),
        pytest.param(_flip(RECORD, 9), "corrupt_file", id="length_checksum"),
        pytest.param(_flip(RECORD, 15), "corrupt_file", id="data"),
        pytest.param(_flip(RECORD, len(RECORD) - 1), "corrupt_file", id="data_checksum"),
        pytest.param(RECORD[:5], "truncated_file", id="cut_header"),
        pytest.param(RECORD[:-6], "truncated_file", id="cut_data"),
        pytest.param(RECORD[:-1], "truncated_file", id="cut_checksum"),
    ],
)
def test_corrupt_tfrecord_keeps_records_before_and_is_a_fault(
    tmp_path: Path, tail: bytes, reason: str
) -> None:
    path = write(tmp_path / "rows.tfrecord", RECORD * 2 + tail + RECORD)
    if reason == "truncated_file":
        path = write(tmp_path / "rows.tfrecord", RECORD * 2 + tail)

    found = read_all(path)

    assert found.texts == ["good", "good"]
    assert [(f.reason, f.position) for f in found.faults] == [(reason, 2)]


@pytest.mark.parametrize(
    "cut",
    [pytest.param(lambda d: d[:-20], id="no_footer"), pytest.param(lambda d: b"", id="empty")],
)
def test_truncated_parquet_is_an_error_before_work(tmp_path: Path, cut) -> None:
    data = encode_rows([{"text": "a"}] * 20, "parquet")
    write(tmp_path / "a.parquet", data)
    broken = write(tmp_path / "b.parquet", cut(data))
    files = expand_inputs([str(tmp_path / "*.parquet")])

    with pytest.raises(InputError, match=r"b\.parquet: its footer cannot be read"):
        check_inputs(files, fields=RowFields())

    assert check_inputs(files, fields=RowFields(), allow_bad_files=True).files == 2
    found = read_all(str(tmp_path / "*.parquet"))
    assert found.texts == ["a"] * 20
    assert [(f.file, f.reason) for f in found.faults] == [(broken, "truncated_file")]


def test_damaged_parquet_page_is_a_fault(tmp_path: Path) -> None:
    table = pa.table({"text": [f"some text {k}" for k in range(2000)]})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=1000, write_page_checksum=True, use_dictionary=False)
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    write(path, _flip(path.read_bytes(), start + 200))

    found = read_all(str(path))

    assert len(found.texts) == 1000
    assert [(f.reason, f.position) for f in found.faults] == [("corrupt_file", 1000)]


def test_parquet_without_a_row_may_be_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    files = expand_inputs([str(tmp_path / "rows.parquet")])

    summary = check_inputs(files, fields=RowFields())

    assert summary.may_be_empty
    assert read_all(str(tmp_path / "rows.parquet")).rows_read == 0


@pytest.mark.parametrize(
    ("column", "match"),
    [
        pytest.param({"body": ["a"]}, r"no row has a field 'text'.*the fields are body", id="none"),
        pytest.param({"text": [5]}, r"column 'text' is int64; wanted a string", id="integer"),
        pytest.param({"text": [b"a"]}, r"column 'text' is binary; wanted a string", id="binary"),
        pytest.param({"text": [["a"]]}, r"column 'text' is list", id="list"),
    ],
)
def test_parquet_without_the_named_column_is_an_error(
    tmp_path: Path, column: dict[str, list[object]], match: str
) -> None:
    pq.write_table(pa.table(column), tmp_path / "rows.parquet")
    files = expand_inputs([str(tmp_path / "rows.parquet")])

    with pytest.raises(InputError, match=match):
        check_inputs(files, fields=RowFields())


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param({"id": ["x"], "text": [5], "year": [1]}, id="text_type"),
        pytest.param({"id": [1.5], "text": ["a"], "year": [1]}, id="id_type"),
        pytest.param({"id": ["x"], "text": ["a"], "year": ["1999"]}, id="metadata_type"),
        pytest.param({"id": ["x"], "text": ["a"]}, id="column_missing"),
    ],
)
def test_parquet_with_one_odd_file_of_many_is_an_error_that_names_it(
    tmp_path: Path, odd: dict[str, list[object]]
) -> None:
    for k in range(5):
        table = pa.table({"id": [f"{k}"], "text": ["a"], "year": [k]})
        pq.write_table(table, tmp_path / f"part-{k}.parquet")
    pq.write_table(pa.table(odd), tmp_path / "part-3.parquet")
    files = expand_inputs([str(tmp_path / "*.parquet")])
    fields = RowFields(id="id", metadata=(MetadataField("year"),))

    with pytest.raises(InputError, match=r"part-3\.parquet"):
        check_inputs(files, fields=fields)


def test_parquet_of_another_type_is_a_fault_on_the_worker(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")

    found = read_all(str(tmp_path / "*.parquet"))

    assert (found.texts, found.fault_reasons) == (["a"], ["schema_mismatch"])


@pytest.mark.parametrize("name", ["rows.txt", "rows.jsonl", "rows.csv", "rows.txt.gz"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"], ids=["no_bytes", "only_a_mark"])
def test_empty_file_may_be_empty(tmp_path: Path, name: str, data: bytes) -> None:
    path = write(tmp_path / name, gzip.compress(data) if data and name[-2:] == "gz" else data)

    summary = check_inputs(expand_inputs([path]), fields=RowFields())

    assert summary.may_be_empty
    assert read_all(path).rows_read == 0


def test_csv_of_a_header_alone_may_be_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "id,text\n")

    assert check_inputs(expand_inputs([path]), fields=RowFields()).may_be_empty


def _expand_error(*patterns: object, **more: str) -> str:
    with pytest.raises(InputError) as caught:
        expand_inputs([str(pattern) for pattern in patterns], **more)
    return str(caught.value)


def test_no_input_is_an_error() -> None:
    assert "give a path or a glob" in _expand_error()
    assert "input path is empty" in _expand_error("")


def test_missing_file_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", GOOD)

    message = _expand_error(tmp_path / "corpsu.jsonl")

    assert "does not exist; did you mean" in message
    assert f"{tmp_path}/corpus.jsonl?" in message


def test_glob_without_a_match_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", GOOD)

    assert "matches no file" in _expand_error(tmp_path / "*.csv")
    assert "there is no folder" in _expand_error(tmp_path / "nowhere" / "*.csv")
    assert "matches no file" in _expand_error(tmp_path / "*.jsonl", tmp_path / "*.csv")


def test_glob_with_only_hidden_matches_is_an_error_that_says_so(tmp_path: Path) -> None:
    write(tmp_path / "_rows.txt", "a")

    assert "matches only 1 files whose names begin with _" in _expand_error(tmp_path / "*.txt")


def test_folder_is_an_error_that_suggests_its_files(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", GOOD)

    for path in [str(tmp_path), f"{tmp_path}/"]:
        assert f"is a folder; give its files: --input='{tmp_path}/*'" in _expand_error(path)


def test_pipe_is_an_error_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.txt")

    assert "no regular file" in _expand_error(tmp_path / "rows.txt")
    assert "no regular file" in _expand_error(tmp_path / "*.txt")


@pytest.mark.parametrize("data", [b"text", b""], ids=["filled", "empty"])
def test_unreadable_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    path = write(tmp_path / "rows.txt", data)
    _deny_opening(monkeypatch)

    message = _expand_error(path)

    assert message.startswith(f"input {path}: cannot be read (Permission denied)")


def test_file_that_became_unreadable_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.txt", "text")
    [file] = expand_inputs([path])
    gone = InputFile(path + ".gone", "gone", 1, 4, "text", "none")
    task = Task(0, (Segment(gone), Segment(file)))

    found = read_tasks([task])
    _deny_opening(monkeypatch)
    denied = read_tasks([task])

    assert (found.texts, found.fault_reasons) == (["text"], ["unreadable_file"])
    assert denied.fault_reasons == ["unreadable_file", "unreadable_file"]


def _deny_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deny by the file system; permission bits do not hold for root, as whom tests may run."""

    def deny(path: str, **_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(FileSystems, "open", deny)


def test_unknown_format_is_an_error_with_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.txt", "a")

    message = _expand_error(path, input_format="parket")

    assert "did you mean parquet? wanted auto or one of text, jsonl, csv" in message


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        pytest.param("a.zip", b"PK\x03\x04rest", "is a zip archive", id="zip"),
        pytest.param("a.pdf", b"%PDF-1.7 rest", "is a PDF", id="pdf"),
        pytest.param("a.bin", b"\x01\x02\0\0", "is binary", id="binary"),
        pytest.param("a.txt", "text".encode("utf-16"), "is UTF-16 text", id="utf_16"),
        pytest.param("a.json", b'[\n{"text": "a"}\n]', "is a JSON array", id="json_array"),
        pytest.param("a.json", b'{\n"text": "a"\n}', "over many lines", id="json_document"),
        pytest.param(
            "a.parquet.gz", gzip.compress(b"PAR1rest"), "is Parquet inside gzip", id="zipped"
        ),
    ],
)
def test_foreign_content_is_an_error(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    assert match in _expand_error(write(tmp_path / name, data))


def test_parquet_under_another_format_flag_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", encode_rows([{"text": "a"}], "parquet"))

    assert "is Parquet; wanted jsonl" in _expand_error(path, input_format="jsonl")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(RowFields(id="id"), id="id"),
        pytest.param(RowFields(pair="pair"), id="pair"),
        pytest.param(RowFields(metadata=(MetadataField("year"),)), id="metadata"),
    ],
)
def test_fields_of_plain_text_are_an_error(tmp_path: Path, fields: RowFields) -> None:
    files = expand_inputs([write(tmp_path / "rows.txt", "a")])

    with pytest.raises(InputError, match="is plain text, whose rows have no fields"):
        check_inputs(files, fields=fields)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tfrecord"])
def test_field_that_no_row_has_is_an_error_with_the_nearest(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"rows.{kind}", encode_rows([{"id": "1", "texts": "a"}], kind))
    files = expand_inputs([path])

    with pytest.raises(InputError, match=r"no row has a field 'text'.*mean 'texts'"):
        check_inputs(files, fields=RowFields())


def test_csv_without_the_named_column_is_a_fault_on_the_worker(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text\none\n")
    write(tmp_path / "b.csv", "body\ntwo\n")

    found = read_all(str(tmp_path / "*.csv"))

    assert (found.texts, found.fault_reasons) == (["one"], ["schema_mismatch"])


def test_checksum_helper_is_the_published_one() -> None:
    # RFC 3720, B.4: 32 bytes of zeros.
    assert google_crc32c.value(b"\0" * 32) == 0x8A9136AA

"""Finding, planning and reading files, through every format and codec."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.read_helpers import (
    COMPRESS,
    FORMAT_SUFFIX,
    SUFFIX,
    encode_rows,
    example_bytes,
    read_all,
    read_tasks,
    tfrecord_frame,
    write,
)
from transforms import read
from transforms.errors import ConfigError, InputError
from transforms.readers import READERS, detect_format
from transforms.readers.base import ReadSettings
from transforms.readers.tfrecord import example_class
from transforms.records import InputFile, MetadataField, ReadTask, RowFields, RowLimits, Segment

WORDS = ["plain", "naïve", "日本語", "😀", 'quote " here', "comma, here", "tab\there", "e\u0301"]
ROWS = [
    {
        "id": f"row-{k}",
        "text": f"{WORDS[k % len(WORDS)]} number {k}",
        "source": ["a", "b", ""][k % 3],
    }
    for k in range(100)
]
FIELDS = RowFields(id="id", metadata=(MetadataField("source"),))
TINY = ReadSettings(block_bytes=7)


def make_file(name: str, size_bytes: int, *, kind: str = "text", codec: str = "none") -> InputFile:
    return InputFile(f"/corpus/{name}", name, 0, size_bytes, kind, codec)


# Formats


@pytest.mark.parametrize("codec", list(COMPRESS))
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "tfrecord"])
def test_same_rows_in_any_format_and_codec_read_the_same(
    tmp_path: Path, kind: str, codec: str
) -> None:
    if kind == "parquet" and codec != "none":
        path = str(tmp_path / "rows.parquet")
        pq.write_table(
            pa.Table.from_pylist(ROWS),
            path,
            compression={"gzip": "gzip", "bzip2": "brotli", "zstd": "zstd"}[codec],
            row_group_size=30,
            use_dictionary=["text"],
        )
    else:
        data = COMPRESS[codec](encode_rows(ROWS, kind))
        path = write(tmp_path / f"rows{FORMAT_SUFFIX[kind]}{SUFFIX[codec]}", data)

    found = read_all(path, fields=FIELDS)

    assert found.ids == [row["id"] for row in ROWS]
    assert found.texts == [row["text"] for row in ROWS]
    assert found.metadata == [{"source": row["source"]} for row in ROWS]
    assert (found.rejects, found.faults) == ([], [])


@pytest.mark.parametrize("codec", list(COMPRESS))
def test_text_in_any_codec_reads_the_same(tmp_path: Path, codec: str) -> None:
    path = write(tmp_path / f"rows.txt{SUFFIX[codec]}", COMPRESS[codec](encode_rows(ROWS, "text")))

    found = read_all(path)

    assert found.texts == [row["text"] for row in ROWS]
    assert len(set(found.ids)) == len(ROWS)


def test_ids_without_a_field_do_not_depend_on_codec_or_folder(tmp_path: Path) -> None:
    data = encode_rows(ROWS, "text")
    ids = []
    for folder, codec in [("a", "none"), ("b", "gzip")]:
        (tmp_path / folder).mkdir()
        ids.append(read_all(write(tmp_path / folder / "rows.txt", COMPRESS[codec](data))).ids)

    assert ids[0] == ids[1]


def test_ids_of_equal_texts_differ_by_place(tmp_path: Path) -> None:
    for name in ["a.txt", "b.txt"]:
        write(tmp_path / name, "same\nsame\n")

    assert len(set(read_all(str(tmp_path / "*.txt")).ids)) == 4


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pa.array(["one", "two"], pa.large_string()), id="large_string"),
        pytest.param(pa.array(["one", "two"]).dictionary_encode(), id="dictionary"),
        pytest.param(pa.array(["one", "two"], pa.string_view()), id="string_view"),
    ],
)
def test_parquet_text_of_any_string_type_is_read(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table({"text": column, "kind": pa.array(["x", "y"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "rows.parquet")

    found = read_all(
        str(tmp_path / "rows.parquet"), fields=RowFields(metadata=(MetadataField("kind"),))
    )

    assert found.texts == ["one", "two"]
    assert found.batches[0].texts.type == pa.string()
    assert found.batches[0].metadata.schema == pa.schema([("kind", pa.string())])


def test_parquet_metadata_keep_their_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "key": pa.array([7, 2**40], pa.int64()),
            "text": ["one", "two"],
            "when": pa.array([1, None], pa.timestamp("ms", "UTC")),
            "small": pa.array([1, 2], pa.int8()),
            "nested": [{"a": [1]}, None],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    names = ["when", "small", "nested"]

    found = read_all(
        str(tmp_path / "rows.parquet"),
        fields=RowFields(id="key", metadata=tuple(map(MetadataField, names))),
    )

    assert found.ids == ["7", str(2**40)]
    assert found.batches[0].metadata == table.select(names)


def test_parquet_files_of_other_metadata_types_do_not_share_a_chunk(tmp_path: Path) -> None:
    for k, kind in enumerate([pa.int32(), pa.int64()]):
        table = pa.table({"text": ["t"], "year": pa.array([k], kind)})
        pq.write_table(table, tmp_path / f"{k}.parquet")

    found = read_all(
        str(tmp_path / "*.parquet"), fields=RowFields(metadata=(MetadataField("year"),))
    )

    types = [batch.metadata.schema.field("year").type for batch in found.batches]
    assert types == [pa.int32(), pa.int64()]


def test_parquet_metadata_that_cannot_be_cast_are_rejects(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "year": ["1", "x"]}), tmp_path / "rows.parquet")
    fields = RowFields(metadata=(MetadataField("year", "int64"),))

    found = read_all(str(tmp_path / "rows.parquet"), fields=fields)

    assert (found.metadata, found.reasons) == ([{"year": 1}], ["metadata_type"])


def test_tfrecord_values_keep_their_types(tmp_path: Path) -> None:
    row = {"text": "t", "i": 2**40, "f": 0.1, "l": [1, 2], "b": b"\xff", "s": "é", "n": None}
    path = write(tmp_path / "rows.tfrecord", tfrecord_frame(example_bytes(row)))
    fields = [*map(MetadataField, "iflsn"), MetadataField("b", "binary")]

    found = read_all(path, fields=RowFields(metadata=tuple(fields)))

    [batch] = found.batches
    kinds = [pa.int64(), pa.float32(), pa.list_(pa.int64()), pa.string(), pa.null(), pa.binary()]
    assert batch.metadata.schema.types == kinds
    values = {**row, "f": float(np.float32(0.1))}
    del values["text"]
    assert found.metadata == [values]


@pytest.mark.integration
def test_example_class_reads_what_tensorflow_writes(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    feature = {
        "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"from tensorflow"])),
        "id": tf.train.Feature(int64_list=tf.train.Int64List(value=[-5])),
    }
    data = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    path = str(tmp_path / "rows.tfrecord.gz")
    with tf.io.TFRecordWriter(path, tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        writer.write(data)
        writer.write(data)
    ours = example_class()()
    ours.ParseFromString(data)

    found = read_all(path, fields=RowFields(id="id"))

    assert (found.ids, found.texts) == (["-5", "-5"], ["from tensorflow"] * 2)
    assert tf.train.Example.FromString(ours.SerializeToString()) == tf.train.Example.FromString(
        data
    )


def test_jsonl_big_integers_are_kept_to_the_digit(tmp_path: Path) -> None:
    big = 123456789012345678901234567890
    path = write(tmp_path / "rows.jsonl", f'{{"text": "a", "id": {big}, "n": [{big}]}}\n')
    fields = RowFields(id="id", metadata=(MetadataField("n"),))

    assert read_all(path, fields=RowFields(id="id")).ids == [str(big)]
    found = read_all(path, fields=fields)
    assert found.reasons == ["metadata_type"]
    assert str(big) in (found.rejects[0].raw or "")


def test_csv_quoted_newlines_and_typed_empty_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'id,text,n\r\n1,"a ""b""\r\nc",\r\n2,d,5\r\n3,"x\n\ny",6')
    fields = RowFields(id="id", metadata=(MetadataField("n", "int64"),))

    found = read_all(path, fields=fields)

    assert found.texts == ['a "b"\r\nc', "d", "x\n\ny"]
    assert found.metadata == [{"n": None}, {"n": 5}, {"n": 6}]
    assert found.positions == [0, 1, 2]


def test_csv_unclosed_quote_costs_one_row(tmp_path: Path) -> None:
    rows = [f"{k},text {k}" for k in range(200_000)]
    rows[3] = '3,"never closed'
    path = write(tmp_path / "rows.csv", "\n".join(["id,text", *rows, ""]))
    assert os.path.getsize(path) > 2 * ReadSettings().csv_quote_bytes

    found = read_all(path, fields=RowFields(id="id"))

    assert found.ids == [str(k) for k in range(200_000) if k != 3]
    assert [(r.reason, r.position, r.raw) for r in found.rejects] == [
        ("malformed_csv", 3, '3,"never closed')
    ]


def test_csv_unclosed_quote_that_the_next_one_closes_costs_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'id,text\n1,"open\n2,two\n3,"three"\n4,four\n')

    found = read_all(path, fields=RowFields(id="id"))

    assert (found.ids, found.reasons) == (["2", "3", "4"], ["malformed_csv"])


@pytest.mark.parametrize(
    ("name", "delimiter", "mark"),
    [("a.tsv", None, "\t"), ("a.tsv.gz", None, "\t"), ("a.csv", ";", ";")],
)
def test_csv_delimiter_comes_from_the_setting_or_the_name(
    tmp_path: Path, name: str, delimiter: str | None, mark: str
) -> None:
    data = f"id{mark}text\n1{mark}a, b\n".encode()
    path = write(tmp_path / name, COMPRESS["gzip"](data) if name.endswith("gz") else data)

    found = read_all(path, settings=ReadSettings(csv_delimiter=delimiter))

    assert found.texts == ["a, b"]


def test_read_settings_with_a_delimiter_that_cannot_be_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot separate fields"):
        ReadSettings(csv_delimiter="||")


# Splitting

LINES = st.lists(st.text(st.sampled_from("ab é日😀\r\t\ufeff\u2028"), max_size=6), max_size=12)


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), st.integers(1, 30))
@example(["a", "b"], "\r\n", True, False, 1)
@settings(deadline=None)
def test_any_split_of_a_file_gives_each_row_once(
    lines: list[str], end: str, last_end: bool, mark: bool, segment_bytes: int
) -> None:
    data = end.join(lines).encode() + (end.encode() if last_end else b"")
    data = (b"\xef\xbb\xbf" if mark else b"") + data
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "rows.txt", data)
        files = read.expand_inputs([path])
        whole = read_tasks([ReadTask(0, (Segment(files[0]),))])
        tasks = read.plan_tasks(files, segment_bytes=segment_bytes)
        split = read_tasks(tasks, settings=TINY)

    plain = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = plain if plain[-1] else plain[:-1]
    assert whole.rows_read == split.rows_read == len(expected)
    assert (whole.ids, whole.texts, whole.positions) == (split.ids, split.texts, split.positions)
    assert split.texts == [
        t for t in (e.removesuffix(b"\r").decode() for e in expected) if t.strip()
    ]
    assert [(r.reason, r.position) for r in whole.rejects] == [
        (r.reason, r.position) for r in split.rejects
    ]


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 50), st.integers(1, 20))
@settings(deadline=None)
def test_long_lines_at_any_split_are_each_one_reject(
    lengths: list[int], segment_bytes: int, max_row_bytes: int
) -> None:
    data = b"".join(b"x" * length + b"\n" for length in lengths)
    limits = RowLimits(max_row_bytes=max_row_bytes, max_raw_bytes=5)
    with tempfile.TemporaryDirectory() as folder:
        files = read.expand_inputs([write(Path(folder) / "rows.txt", data)])
        tasks = read.plan_tasks(files, segment_bytes=segment_bytes)
        found = read_tasks(tasks, limits=limits, settings=TINY)

    assert found.texts == ["x" * n for n in lengths if 0 < n <= max_row_bytes]
    assert found.reasons == [
        "row_too_long" if n > max_row_bytes else "blank_text"
        for n in lengths
        if n > max_row_bytes or not n
    ]
    assert all(len(r.raw or "") <= 5 for r in found.rejects)


@given(
    st.sampled_from(["text", "jsonl", "csv", "tfrecord", "parquet"]),
    st.sampled_from(list(COMPRESS)),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6),
    st.integers(0, 1 << 20),
    st.integers(1, 500),
)
@settings(deadline=None, max_examples=150)
def test_damaged_bytes_lose_no_row_without_a_count(
    kind: str, codec: str, damage: list[tuple[int, int]], cut: int, segment_bytes: int
) -> None:
    codec = "none" if kind == "parquet" else codec
    data = bytearray(COMPRESS[codec](encode_rows(ROWS[:30], kind)))
    for at, value in damage:
        data[at % len(data)] = value
    del data[len(data) - cut % (len(data) // 4) :]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "rows", bytes(data))
        file = InputFile(path, "rows", 0, len(data), kind, codec)
        tasks = read.plan_tasks([file], segment_bytes=segment_bytes)
        found = read_tasks(tasks, limits=RowLimits(chunk_rows=8))  # asserts the counts

    assert found.rows_read == len(found.ids) + len(found.rejects)
    if kind == "text" and codec == "none":
        assert found.rows_read == len(bytes(data).removesuffix(b"\n").split(b"\n"))
    if codec != "none" and cut % (len(data) // 4) and not damage:
        assert found.fault_reasons == ["truncated_file"]


def test_chunks_are_cut_at_rows_and_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.txt", "".join(f"{k:09}\n" for k in range(10)))

    by_rows = read_all(path, limits=RowLimits(chunk_rows=4))
    by_bytes = read_all(path, limits=RowLimits(chunk_bytes=30))

    assert [len(batch) for batch in by_rows.batches] == [4, 4, 2]
    assert [len(batch) for batch in by_bytes.batches] == [3, 3, 3, 1]
    assert [(b.key.task, b.key.number) for b in by_rows.batches] == [(0, 0), (0, 1), (0, 2)]


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 9), st.integers(1, 200))
@settings(deadline=None, max_examples=50)
def test_parquet_chunks_keep_bounds_and_rows(
    lengths: list[int], chunk_rows: int, chunk_bytes: int
) -> None:
    texts = ["x" * length for length in lengths]
    limits = RowLimits(chunk_rows=chunk_rows, chunk_bytes=chunk_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows.parquet")
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=7)
        found = read_all(path, limits=limits)

    assert found.texts == texts
    assert found.positions == list(range(len(texts)))
    for batch in found.batches:
        n_bytes = sum(map(len, batch.texts.to_pylist()))
        assert batch.rows_read <= chunk_rows
        assert n_bytes <= chunk_bytes or batch.rows_read == 1


def test_chunk_of_many_small_files_says_whose_each_row_is(tmp_path: Path) -> None:
    for k in range(5):
        write(tmp_path / f"{k}.txt", f"a{k}\nb{k}\n")
    files = read.expand_inputs([str(tmp_path / "*.txt")])

    tasks = read.plan_tasks(files)
    found = read_tasks(tasks)

    assert len(tasks) == 1
    [batch] = found.batches
    assert batch.files.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert batch.positions.tolist() == [0, 3] * 5


def test_chunks_of_a_task_of_several_formats_stay_in_order(tmp_path: Path) -> None:
    kinds = ["text", "parquet", "jsonl"]
    segments = []
    for k, kind in enumerate(kinds):
        path = write(tmp_path / f"{k}", encode_rows([{"text": kind}], kind))
        segments.append(Segment(InputFile(path, f"{k}", k, 1, kind, "none")))

    found = read_tasks([ReadTask(0, tuple(segments))])

    assert found.texts == kinds
    assert [batch.key.number for batch in found.batches] == [0, 1, 2]


def test_remote_heads_beyond_a_bound_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_REMOTE_HEADS", 2)
    opened: list[str] = []

    def open_nothing(path: str, **_: object) -> io.BytesIO:
        opened.append(path)
        return io.BytesIO(b"{}")

    monkeypatch.setattr(FileSystems, "open", open_nothing)
    paths = [f"gs://bucket/{k}.jsonl" for k in range(5)]

    heads = read._look_at_heads(paths, dict.fromkeys(paths, 2))

    assert [head is None for head in heads] == [False, True, True, False, True]
    assert sorted(opened) == [paths[0], paths[3]]


# Planning


@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.sampled_from(["text", "jsonl", "csv"]), st.booleans()),
        max_size=30,
    ),
    st.integers(1, 3000),
    st.integers(1, 5),
)
def test_plan_tasks_covers_each_byte_once_in_order(
    corpus: list[tuple[int, str, bool]], segment_bytes: int, max_files: int
) -> None:
    files = [
        InputFile(f"/c/{k}", f"{k}", k, size, kind, "gzip" if zipped else "none")
        for k, (size, kind, zipped) in enumerate(corpus)
    ]

    tasks = read.plan_tasks(files, segment_bytes=segment_bytes, max_files_per_task=max_files)

    assert [task.index for task in tasks] == list(range(len(tasks)))
    segments = [segment for task in tasks for segment in task.segments]
    for file in files:
        own = [(s.start, s.stop) for s in segments if s.file == file]
        assert own[0][0] == 0
        assert own[-1][1] is None
        assert all(before[1] == after[0] for before, after in itertools.pairwise(own))
        if file.compression == "none" and file.format != "csv":
            assert all(b[0] - a[0] == segment_bytes for a, b in itertools.pairwise(own))
            assert file.size_bytes - own[-1][0] <= segment_bytes
    assert [s.file.index for s in segments] == sorted(s.file.index for s in segments)
    for task in tasks:
        assert len(task.segments) <= max_files
        assert len({s.file.format for s in task.segments}) == 1


def test_plan_tasks_of_parquet_gathers_row_groups(tmp_path: Path) -> None:
    noise = random.Random(3)
    table = pa.table({"text": [f"{noise.getrandbits(4000):x}" for _ in range(100)]})
    path = str(tmp_path / "rows.parquet")
    pq.write_table(table, path, row_group_size=10)
    files = read.expand_inputs([path])

    tasks = read.plan_tasks(files, segment_bytes=31_000)

    spans = [(s.start, s.stop) for task in tasks for s in task.segments]
    assert spans[0][0] == 0
    assert spans[-1][1] == 10
    assert 3 <= len(spans) <= 5
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    found = read_tasks(tasks)
    assert found.texts == table.column("text").to_pylist()
    assert found.positions == list(range(100))


def test_choose_segment_bytes_grows_with_the_corpus() -> None:
    mib, gib = 1 << 20, 1 << 30

    assert [read.choose_segment_bytes(total) // mib for total in [0, gib, 33 * gib, 1 << 50]] == [
        8,
        8,
        16,
        64,
    ]
    assert len(read.plan_tasks([make_file("a.txt", 100 << 20)])) == 13


# Finding


def test_expand_inputs_sorts_names_and_keeps_each_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ["b.txt", "a.txt", "sub/c.txt", "_d.txt", ".e.txt"]:
        write(tmp_path / name, "text\n")
    patterns = [f"{tmp_path}/*.txt", f"{tmp_path}/sub/../b.txt", f"{tmp_path}/**/c.txt"]

    files = read.expand_inputs(patterns)

    assert [(file.index, file.name, file.size_bytes) for file in files] == [
        (0, "a.txt", 5),
        (1, "b.txt", 5),
        (2, "sub/c.txt", 5),
    ]


def test_expand_inputs_follows_linked_folders(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "a.txt", "one\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    [file] = read.expand_inputs([str(tmp_path / "in" / "*" / "*.txt")])

    assert file.path == str(tmp_path / "in" / "link" / "a.txt")
    assert file.size_bytes == 4


def test_expand_inputs_star_alone_passes_over_folders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.txt", "one\n")

    assert [file.name for file in read.expand_inputs([str(tmp_path / "*")])] == ["a.txt"]


def test_expand_inputs_takes_hidden_files_that_are_named(tmp_path: Path) -> None:
    write(tmp_path / "_a.txt", "text")

    for pattern in [tmp_path / "_a.txt", tmp_path / "_*"]:
        assert [f.name for f in read.expand_inputs([str(pattern)])] == ["_a.txt"]


def test_expand_inputs_takes_a_name_with_brackets_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "data[1].txt", "text")

    [file] = read.expand_inputs([str(tmp_path / "data[1].txt")])

    assert file.name == "data[1].txt"


@given(st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), min_size=1))
def test_shared_folder_leaves_names_that_differ(paths: set[str]) -> None:
    found = sorted(f"gs://bucket/{path}" for path in paths)

    folder = read._shared_folder(found)

    names = [path[len(folder) :] for path in found]
    assert folder.startswith("gs://bucket/")
    assert all(path.startswith(folder) for path in found)
    assert len(set(names)) == len(found)
    assert all(names)


def test_shared_folder_of_two_systems_is_none() -> None:
    assert read._shared_folder(["gs://a/x", "gs://b/x"]) == ""
    assert read._shared_folder(["gs://a/x", "/data/x"]) == ""


RECORDS = encode_rows([{"text": "a"}], "tfrecord")
JSON_HEAD = b'{"text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("a.txt", b"{}", ("text", "none")),
        ("a.JSONL", b"x", ("jsonl", "none")),
        ("a.ndjson", b"{", ("jsonl", "none")),
        ("a.json", JSON_HEAD, ("jsonl", "none")),
        ("a.tsv.gz", COMPRESS["gzip"](b"a\tb\n"), ("csv", "gzip")),
        ("a.txt.zst", COMPRESS["zstd"](b"a"), ("text", "zstd")),
        ("a.parquet", b"PAR1", ("parquet", "none")),
        ("a.tfrecords", b"", ("tfrecord", "none")),
        ("a.txt.gz", b"plain", ("text", "none")),
        ("a.txt", COMPRESS["bzip2"](b"a"), ("text", "bzip2")),
        ("part-0", b"PAR1rest", ("parquet", "none")),
        ("part-0", b"\xef\xbb\xbf " + JSON_HEAD, ("jsonl", "none")),
        ("part-0", COMPRESS["gzip"](JSON_HEAD), ("jsonl", "gzip")),
        ("part-0", RECORDS, ("tfrecord", "none")),
        ("part-0", COMPRESS["zstd"](RECORDS), ("tfrecord", "zstd")),
        ("part-0", b"some words", ("text", "none")),
        ("part-0", b"", ("text", "none")),
        ("a.jsonl.gz", None, ("jsonl", "gzip")),
        ("a.jsonl.gz", b"", ("jsonl", "none")),
    ],
)  # fmt: skip
def test_detect_format_goes_by_name_and_content(
    name: str, head: bytes | None, expected: tuple[str, str]
) -> None:
    assert detect_format(f"/corpus/{name}", head) == expected


def test_expand_inputs_with_a_format_takes_it_over_the_name(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.txt", COMPRESS["gzip"](JSON_HEAD))

    [file] = read.expand_inputs([path], input_format="jsonl")

    assert (file.format, file.compression) == ("jsonl", "gzip")
    assert read_all(path, input_format="jsonl").texts == ["a"]


# Looking before work


def test_check_inputs_of_mixed_formats_sums_up(tmp_path: Path) -> None:
    for kind in ["jsonl", "csv", "parquet", "tfrecord"]:
        write(tmp_path / f"rows{FORMAT_SUFFIX[kind]}", encode_rows(ROWS, kind))
    files = read.expand_inputs([str(tmp_path / "*")])

    summary = read.check_inputs(files, fields=FIELDS)

    assert (summary.files, summary.may_be_empty) == (4, False)
    assert summary.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert set(summary.fields) == {"id", "text", "source"}
    assert summary.text_bytes > 0


def test_check_inputs_with_an_unknown_metadata_type_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown type 'text'"):
        read.check_inputs([], fields=RowFields(metadata=(MetadataField("x", "text"),)))


def test_check_inputs_of_a_rare_metadata_field_accepts_it(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "a"}] * 500 + [{"text": "a", "rare": 1}]
    files = read.expand_inputs([write(tmp_path / "rows.jsonl", encode_rows(rows, "jsonl"))])

    fields = RowFields(metadata=(MetadataField("rare"),))
    assert read.check_inputs(files, fields=fields).fields == ("text", "rare")
    with pytest.raises(InputError, match="did you mean 'rare'"):
        read.check_inputs(files, fields=RowFields(metadata=(MetadataField("rara"),)))


# The transform


def test_read_corpus_gives_batches_and_faults(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one\n\ntwo\n")
    write(tmp_path / "b.txt.gz", COMPRESS["gzip"](b"three\n" * 5000)[:-4])
    files = read.expand_inputs([str(tmp_path / "*")])
    tasks = read.plan_tasks(files, max_files_per_task=1)

    with test_pipeline.TestPipeline() as pipeline:
        found = pipeline | beam.Create(tasks) | read.ReadCorpus(RowFields())
        counts = found.batches | beam.Map(lambda b: (b.key.task, b.rows_read, len(b.rejects)))
        faults = found.faults | beam.Map(lambda fault: (fault.file, fault.reason))
        assert_that(counts, equal_to([(0, 3, 1), (1, 4096, 0), (1, 904, 0)]), label="Counts")
        assert_that(
            faults, equal_to([(str(tmp_path / "b.txt.gz"), "truncated_file")]), label="Faults"
        )

    counters = {
        (m.key.metric.namespace, m.key.metric.name): m.committed
        for m in pipeline.result.metrics().query()["counters"]
    }
    assert counters["read", "rows_read"] == 5003
    assert counters["read", "file_faults"] == 1
    assert counters["rejects", "blank_text"] == 1


def test_readers_read_twice_the_same(tmp_path: Path) -> None:
    assert READERS.keys() - FORMAT_SUFFIX.keys() == {"rejects"}  # that has tests of its own
    for kind in FORMAT_SUFFIX:
        path = write(tmp_path / f"rows{FORMAT_SUFFIX[kind]}", encode_rows(ROWS, kind))
        [task] = read.plan_tasks(read.expand_inputs([path]))

        once, again = read_tasks([task]), read_tasks([task])

        assert len(once.ids) == len(ROWS), kind
        assert (once.ids, once.texts) == (again.ids, again.texts)


def test_rejects_reader_gives_raw_rows_back_under_their_ids(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "reason": "x", "raw": json.dumps({"text": "one", "year": 3})},
        {"id": None, "reason": "x", "raw": '{"text": "two"}'},
        {"id": None, "reason": "x", "raw": "no json"},
        {"id": "c", "reason": "x", "raw": '{"text": "cu', "raw_truncated": True},
        {"id": None, "reason": "truncated_file", "raw": None},
        {"id": None, "reason": "x", "raw": base64.b64encode(b"\xff").decode(), "raw_base64": True},
    ]
    path = write(tmp_path / "r.jsonl", "".join(json.dumps(one) + "\n" for one in lines).encode())
    [task] = read.plan_tasks(read.expand_inputs([path], input_format="rejects"))

    found = read_tasks([task])

    assert found.texts == ["one", "two"]
    assert found.ids[0] == "a"
    assert [one.reason for one in found.rejects] == [
        "malformed_json",
        "raw_row_missing",
        "raw_row_missing",
        "invalid_utf8",
    ]

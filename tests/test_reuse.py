"""Vectors taken over from an earlier output."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import commands
from transforms.records import ChunkKey, KeyBatch, OldKeys, ReuseCounts, TextKeys
from transforms.reuse import count_reuse, match_texts
from transforms.spool import bucket_texts, group_by_bucket, hash_heads, hash_ids


def text_hashes(texts: list[str]) -> list[bytes]:
    return [hashlib.sha256(text.encode()).digest() for text in texts]


def old_texts(file: int, texts: list[str], *, bucket: int, buckets: int) -> list[OldKeys]:
    heads = hash_heads(text_hashes(texts))
    return [
        OldKeys(file, places, heads[places], heads[places, 0])
        for found, places in group_by_bucket(heads, buckets=buckets)
        if found == bucket
    ]


@given(
    chunks=st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), max_size=4),
    files=st.lists(st.lists(st.sampled_from("abcdefgxyz"), max_size=6), max_size=4),
    buckets=st.integers(1, 4),
)
def test_match_texts_finds_the_first_old_row_of_each_text_and_no_other(chunks, files, buckets):
    found = {}
    for bucket in range(buckets):
        new: list[TextKeys] = [
            keys
            for number, texts in enumerate(chunks)
            for place, keys in bucket_texts(
                ChunkKey(0, number), text_hashes(texts), buckets=buckets
            )
            if place == bucket
        ]
        old = [
            keys
            for index, texts in enumerate(files)
            for keys in old_texts(index, texts, bucket=bucket, buckets=buckets)
        ]
        for refs in match_texts(new, old):
            for row, file, old_row in zip(
                refs.rows.tolist(), refs.files.tolist(), refs.old_rows.tolist(), strict=True
            ):
                assert (refs.key.number, row) not in found
                found[refs.key.number, row] = (file, old_row)
    first: dict[str, tuple[int, int]] = {}
    for index, texts in enumerate(files):
        for row, text in enumerate(texts):
            first.setdefault(text, (index, row))
    assert found == {
        (number, row): first[text]
        for number, texts in enumerate(chunks)
        for row, text in enumerate(texts)
        if text in first
    }


@given(
    new=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("xyz")),
    old=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("xyz")),
)
def test_count_reuse_tells_unchanged_changed_new_and_deleted_apart(new, old):
    def keys(rows: dict[str, str]):
        ids = hash_ids(pa.array(list(rows), pa.string()))
        return ids, hash_heads(text_hashes(list(rows.values())))[:, 0]

    (new_ids, new_texts), (old_ids, old_texts_) = keys(new), keys(old)
    zeros = np.zeros(len(new), np.int64)
    counts = count_reuse(
        [KeyBatch(ChunkKey(0, 0), zeros, new_ids, zeros, zeros, new_texts)],
        [OldKeys(0, np.arange(len(old)), old_ids, old_texts_)],
    )
    both = new.keys() & old.keys()
    unchanged = sum(new[key] == old[key] for key in both)
    assert counts == ReuseCounts(
        unchanged=unchanged,
        changed=len(both) - unchanged,
        new=len(new.keys() - old.keys()),
        deleted=len(old.keys() - new.keys()),
    )


FIRST = {f"row-{n:03d}": f"the text of number {n}" for n in range(300)}


def write_rows(path: Path, rows: dict[str, str], *, year: int) -> None:
    lines = [json.dumps({"id": key, "text": text, "year": year}) for key, text in rows.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def nightly(tmp_path, tiny_expert):
    """Runs one night's job: rows in, exit code and messages out."""

    def run(night: str, rows: dict[str, str], *more: str) -> commands.Result:
        write_rows(tmp_path / "rows.jsonl", rows, year=int(night[-2:]))
        return commands.run(
            [
                "--input=rows.jsonl",
                "--id_field=id",
                "--metadata_fields=year",
                f"--output=vectors/dt={night}",
                f"--expert={tiny_expert.encoder}",
                f"--preprocessor={tiny_expert.preprocessor}",
                *more,
            ],
            folder=tmp_path,
        )

    return run


@pytest.mark.integration
@pytest.mark.parametrize("form", ["parquet", "tfrecord"])
def test_run_reuse_from_newest_takes_unchanged_texts_and_encodes_the_rest(tmp_path, nightly, form):
    first = nightly(
        "01", FIRST, f"--output_format={form}", "--rows_per_file=70", "--reuse_from=vectors/dt=*"
    )
    assert first.code == 0, first.err
    assert "no committed output yet" in first.err
    second = dict(list(FIRST.items())[10:])  # ten are deleted
    second["row-100"] = "another text"
    second["row-new"] = "a new row"
    second["row-moved"] = FIRST["row-200"]  # a new id with a text that is known
    result = nightly("02", second, "--reuse_from=vectors/dt=*")
    assert result.code == 0, result.err
    report = commands.read_report(tmp_path / "vectors/dt=02")
    assert report["counts"]["rows_reused"] == 290
    assert report["counts"]["rows_encoded"] == 2
    assert report["ids_against_reused"] == {
        "unchanged": 289,
        "changed": 1,
        "new": 2,
        "deleted": 10,
    }
    assert "unchanged 289, changed 1, new 2, deleted 10" in result.err
    assert commands.read_manifest(tmp_path / "vectors/dt=02")["reused"]["output"] == "vectors/dt=01"

    assert nightly("03", second).code == 0
    reused = commands.read_rows(tmp_path / "vectors/dt=02")
    fresh = commands.read_rows(tmp_path / "vectors/dt=03")
    assert list(reused) == list(fresh)
    for key, row in fresh.items():
        np.testing.assert_allclose(reused[key].pop("embedding"), row.pop("embedding"), atol=1e-5)
        assert reused[key] == {**row, "year": 2}  # metadata is always the new one


@pytest.mark.integration
def test_run_everything_reused_loads_no_model(tmp_path, nightly):
    assert nightly("01", FIRST).code == 0
    result = nightly("02", FIRST, "--reuse_from=vectors/dt=01")
    assert result.code == 0, result.err
    report = commands.read_report(tmp_path / "vectors/dt=02")
    assert report["counts"]["rows_reused"] == 300
    assert report["encoding"]["expert_loads"] == 0


@pytest.mark.integration
def test_run_reuse_with_other_settings_reuses_nothing_and_says_so(tmp_path, nightly):
    assert nightly("01", FIRST).code == 0
    result = nightly("02", FIRST, "--reuse_from=vectors/dt=01", "--pooling=cls")
    assert result.code == 0, result.err
    assert "other settings; encoding every row" in result.err
    report = commands.read_report(tmp_path / "vectors/dt=02")
    assert (report["counts"]["rows_reused"], report["counts"]["rows_encoded"]) == (0, 300)


@pytest.mark.integration
def test_run_reuse_of_a_damaged_file_encodes_its_rows_again(tmp_path, nightly):
    assert nightly("01", FIRST, "--rows_per_file=100").code == 0
    part = tmp_path / "vectors/dt=01/part-00001-of-00003.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0xFF
    part.write_bytes(data)
    result = nightly("02", FIRST, "--reuse_from=vectors/dt=01")
    assert result.code == 0, result.err
    counts = commands.read_report(tmp_path / "vectors/dt=02")["counts"]
    assert (counts["rows_reused"], counts["rows_encoded"]) == (200, 100)


@pytest.mark.integration
def test_run_reuse_with_long_text_reject_looks_at_cut_texts_again(tmp_path, nightly):
    rows = {"short": "a few words", "long": "word " * 40}
    assert nightly("01", rows, "--max_tokens=16").code == 0
    result = nightly(
        "02",
        rows,
        "--max_tokens=16",
        "--reuse_from=vectors/dt=01",
        "--long_text=reject",
        "--max_reject_rate=0.5",
    )
    assert result.code == 0, result.err
    assert list(commands.read_rows(tmp_path / "vectors/dt=02")) == ["short"]


@pytest.mark.integration
def test_run_reuse_from_a_folder_without_an_output_is_an_error(nightly):
    result = nightly("01", FIRST, "--reuse_from=nowhere")
    assert result.code == 2
    assert "is no committed output" in result.err

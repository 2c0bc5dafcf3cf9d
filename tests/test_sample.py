"""A spread sample says how many rows a corpus has, exactly where that can be known."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.read import expand_inputs
from transforms.records import RowFields
from transforms.sample import CorpusSample, estimate_total, sample_corpus

FIELDS = RowFields(id="id")


def make_lines(count: int, *, seed: int = 0) -> list[str]:
    """Rows that grow towards the end, so that a head alone would mislead."""
    draw = random.Random(seed)
    return [
        json.dumps({"id": str(n), "text": "word " * (3 + draw.randrange(8) + 20 * n // count)})
        for n in range(count)
    ]


def sample(path: Path, **more) -> CorpusSample:
    files = expand_inputs([str(path)])
    return sample_corpus(files, fields=FIELDS, **{"sample_rows": 400, **more})


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=2, max_size=20),
    per_byte=st.floats(0.01, 10),
    more=st.integers(1, 10**6),
)
def test_estimate_total_even_rows_is_exact_without_error(sizes, per_byte, more):
    total = sum(sizes) + more
    rows, error = estimate_total([per_byte * size for size in sizes], sizes, total=total)
    assert rows == pytest.approx(per_byte * total)
    assert error == pytest.approx(0, abs=1e-6 * rows)


def test_estimate_total_uneven_rows_gives_the_error_by_hand():
    # ratio 3/20; residuals 2 - 1.5 and 1 - 1.5; s² = 0.5; √(0.5 · 2) / 20 · 40 · √(1 - 20/40)
    rows, error = estimate_total([2, 1], [10, 10], total=40)
    assert rows == pytest.approx(6)
    assert error == pytest.approx(2 * 0.5**0.5)


def test_estimate_total_one_place_knows_no_error():
    assert estimate_total([5], [10], total=20) == (10, None)
    assert estimate_total([5], [10], total=10) == (5, 0.0)
    assert estimate_total([], [], total=10) == (0.0, None)


def test_sample_corpus_large_lines_estimates_from_all_over(tmp_path):
    lines = make_lines(20_000)
    for number in range(3):
        part = lines[number::3] if number else lines[0::3]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(part) + "\n")
    found = sample(tmp_path / "*.jsonl", sample_rows=1000)
    assert found.rows_error is not None
    assert 0 < found.rows_error < 2500
    assert abs(found.rows - 20_000) < 3 * found.rows_error
    assert 700 < found.rows_read < 1500
    assert len(found.place_of) == len(found.batches)
    assert max(found.place_of) < len(found.place_bytes) == 16
    assert sum(found.place_bytes) < found.total_bytes
    files = {int(file) for batch in found.batches for file in batch.files}
    assert files == {0, 1, 2}


def test_sample_corpus_small_lines_counts_every_row(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(make_lines(100)))
    found = sample(tmp_path / "a.jsonl")
    assert (found.rows, found.rows_error, found.rows_read) == (100, 0.0, 100)
    assert found.basis == "all rows read"


def test_sample_corpus_parquet_counts_by_footers_and_reads_several_groups(tmp_path):
    rows = [json.loads(line) for line in make_lines(5000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=250)
    found = sample(tmp_path / "a.parquet")
    assert (found.rows, found.rows_error, found.basis) == (5000, 0.0, "Parquet footers")
    assert 300 <= found.rows_read <= 500
    ids = [int(name) for batch in found.batches for name in batch.ids.to_pylist()]
    assert min(ids) < 250
    assert max(ids) > 3500


@pytest.mark.parametrize("members", [1, 40], ids=["one-member", "many-members"])
def test_sample_corpus_gzip_estimates_by_packed_bytes(tmp_path, members):
    draw = random.Random(3)
    lines = [f'{{"id": "{n}", "text": "{draw.randbytes(60).hex()}"}}\n' for n in range(40_000)]
    step = len(lines) // members
    (tmp_path / "a.jsonl.gz").write_bytes(
        b"".join(
            gzip.compress("".join(lines[at : at + step]).encode())
            for at in range(0, len(lines), step)
        )
    )
    found = sample(tmp_path / "a.jsonl.gz")
    assert found.rows == pytest.approx(40_000, rel=0.05)
    assert found.rows_error is None
    assert 400 <= found.rows_read < 20_000
    assert found.faults == ()


def test_sample_corpus_csv_head_of_a_large_file_has_no_cut_row(tmp_path):
    rows = "".join(f'{n},"some, quoted text {n % 7}"\n' for n in range(60_000))
    (tmp_path / "a.csv").write_text("id,text\n" + rows)
    found = sample(tmp_path / "a.csv")
    assert found.rows == pytest.approx(60_000, rel=0.05)
    assert sum(len(batch.rejects) for batch in found.batches) == 0


def test_sample_corpus_limit_counts_the_first_rows_only(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(make_lines(10_000)))
    found = sample(tmp_path / "a.jsonl", limit=3000, sample_rows=300)
    assert (found.rows, found.rows_error) == (3000, 0.0)
    ids = [int(name) for batch in found.batches for name in batch.ids.to_pylist()]
    assert max(ids) < 3000
    assert min(ids) < 300
    assert max(ids) > 2000
    assert 200 <= len(ids) <= 400

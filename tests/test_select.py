"""Duplicate ids and the gate."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.errors import InputError, TooManyRejectsError
from transforms.records import ChunkKey, CorpusTotals, FileFault, TextBatch
from transforms.select import GateRules, add_totals, check_corpus, find_duplicates, totals_of
from transforms.spool import bucket_ids, hash_ids, hash_texts


def make_batch(task: int, number: int, ids: list[str]) -> TextBatch:
    return TextBatch(
        key=ChunkKey(task, number),
        ids=pa.array(ids, pa.string()),
        texts=pa.array([f"text of {one}" for one in ids], pa.string()),
        pairs=None,
        files=np.full(len(ids), task, np.int32),
        positions=np.arange(len(ids), dtype=np.int64) + 1000 * number,
        metadata=pa.table({}),
        rows_read=len(ids),
    )


@given(
    chunks=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=8), max_size=6),
    buckets=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_find_duplicates_any_chunking_keeps_exactly_the_first_row_of_each_id(
    chunks, buckets, order
):
    batches = [make_batch(n // 2, n % 2, ids) for n, ids in enumerate(chunks)]
    grouped = defaultdict(list)
    for batch in batches:
        for bucket, keyed in bucket_ids(batch, hash_texts(batch.texts, None), buckets=buckets):
            grouped[bucket].append(keyed)
    lost = {}
    for group in grouped.values():
        order.shuffle(group)
        for found in find_duplicates(group):
            firsts = zip(found.first_files.tolist(), found.first_positions.tolist(), strict=True)
            for row, first in zip(found.rows.tolist(), firsts, strict=True):
                assert (found.key, row) not in lost
                lost[found.key, row] = first

    seen, expected = {}, {}
    for batch in batches:
        for row, one in enumerate(batch.ids.to_pylist()):
            origin = (int(batch.files[row]), int(batch.positions[row]))
            if one in seen:
                expected[batch.key, row] = seen[one]
            seen.setdefault(one, origin)
    assert lost == expected


def test_hash_ids_different_ids_give_different_hashes():
    hashes = hash_ids(pa.array([f"id-{n}" for n in range(2000)]))
    assert hashes.shape == (2000, 2)
    assert len(np.unique(hashes, axis=0)) == 2000


def test_check_corpus_fault_is_an_error_that_names_the_file():
    totals = add_totals(
        totals_of(FileFault("b.gz", 7, "truncated_file", "ends in the middle")),
        totals_of(FileFault("a.gz", 9, "truncated_file", "ends in the middle")),
    )
    assert (totals.rows_read, totals.fault_count) == (2, 2)
    with pytest.raises(InputError, match=r"a\.gz \(and 1 more\).*--on_bad_file=reject"):
        check_corpus(totals, GateRules(max_reject_rate=1))
    check_corpus(totals, GateRules(max_reject_rate=1, on_bad_file="reject"))


def test_check_corpus_more_rejects_than_allowed_raises_with_reasons():
    totals = CorpusTotals(rows_read=100, rows=80, rejects=(("blank_text", 15), ("null_text", 5)))
    with pytest.raises(TooManyRejectsError, match=r"20 of 100 rows \(20\.0%\).*blank_text 15"):
        check_corpus(totals, GateRules(max_reject_rate=0.19))
    check_corpus(totals, GateRules(max_reject_rate=0.2))


def test_check_corpus_duplicate_id_with_error_rule_raises():
    totals = CorpusTotals(rows_read=10, rows=9, rejects=(("duplicate_id", 1),))
    with pytest.raises(InputError, match="1 rows have an id"):
        check_corpus(totals, GateRules(on_duplicate_id="error"))
    check_corpus(totals, GateRules())


def test_check_corpus_no_rows_is_an_error_unless_allowed():
    with pytest.raises(InputError, match="--allow_empty"):
        check_corpus(CorpusTotals(), GateRules())
    check_corpus(CorpusTotals(), GateRules(allow_empty=True))

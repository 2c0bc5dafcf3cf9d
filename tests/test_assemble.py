"""Planning of output files."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from transforms.assemble import plan_files, plan_rejects
from transforms.records import Chunk, ChunkKey, FinishedChunk, StagedRejects

NO_METADATA = bytes(pa.schema([]).serialize())


def finished(task: int, number: int, kept: int, *, rejects: tuple[StagedRejects, ...] = ()):
    chunk = Chunk(
        key=ChunkKey(task, number),
        path=f"spool/{task}-{number}",
        text_digest="",
        rows=kept,
        rows_read=kept,
        text_bytes=0,
        metadata_schema=NO_METADATA,
        files=(),
        rejects=None,
    )
    return FinishedChunk(chunk, (), np.arange(kept, dtype=np.int32), 0, 0, (), rejects)


@given(
    sizes=st.lists(st.integers(0, 50), max_size=12),
    rows_per_file=st.integers(1, 60),
    order=st.randoms(use_true_random=False),
)
def test_plan_files_any_chunks_are_covered_once_in_order_and_balanced(sizes, rows_per_file, order):
    chunks = [finished(n // 3, n % 3, size) for n, size in enumerate(sizes)]
    order.shuffle(chunks)
    plans = plan_files(chunks, rows_per_file=rows_per_file, schema=NO_METADATA)

    covered = [
        (part.chunk.chunk.key.task * 3 + part.chunk.chunk.key.number, row)
        for plan in plans
        for part in plan.slices
        for row in range(part.start, part.stop)
    ]
    assert covered == [(n, row) for n, size in enumerate(sizes) for row in range(size)]
    rows = [sum(part.stop - part.start for part in plan.slices) for plan in plans]
    assert max(rows) <= rows_per_file
    assert max(rows) - min(rows) <= 1
    assert min(rows) > 0 or sum(sizes) == 0
    assert [(plan.index, plan.count) for plan in plans] == [
        (n, len(plans)) for n in range(len(rows))
    ]
    assert len(plans) == max(1, -(-sum(sizes) // rows_per_file))


def test_plan_rejects_groups_staged_files_in_corpus_order():
    early = StagedRejects("r/00000000-000000-0read-x.jsonl", 2, (("blank_text", 2),))
    late = StagedRejects("r/00000001-000000-2encode-y.jsonl", 1, (("not_finite", 1),))
    fault = StagedRejects("r/fault-z.jsonl", 1, (("truncated_file", 1),))
    (plan,) = plan_rejects(
        [finished(1, 0, 3, rejects=(late,)), finished(0, 0, 3, rejects=(early,))], [fault]
    )
    assert plan.paths == (early.path, late.path, fault.path)
    assert (plan.index, plan.count, plan.rows) == (0, 1, 4)
    assert plan_rejects([finished(0, 0, 3)]) == []

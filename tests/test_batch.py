"""Batches: each row once, never over the budget, little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batch import CALL_TOKENS, count_padded_tokens, pad_batch, plan_batches
from transforms.records import TokenBatch

LENGTHS = st.lists(st.integers(1, 512), max_size=120).map(lambda lengths: np.array(lengths, "i4"))


def draw_lengths(kind: str, rows: int) -> np.ndarray:
    generator = np.random.default_rng(11)

    def short(count):
        return np.exp(generator.normal(3.0, 0.5, count)).clip(3, 128)

    def abstracts(count):
        return generator.normal(250, 80, count).clip(3, 512)

    def articles(count):
        return np.exp(generator.normal(6.5, 0.6, count)).clip(3, 512)

    drawn = {
        "short": lambda: short(rows),
        "abstracts": lambda: abstracts(rows),
        "articles": lambda: articles(rows),
        "mix": lambda: np.concatenate(
            [short(rows // 2), abstracts(rows // 4), articles(rows - rows // 2 - rows // 4)]
        ),
    }[kind]()
    return generator.permutation(drawn).astype(np.int32)


def least_cost(lengths: list[int], *, batch_tokens: int) -> int:
    """Try every way to cut the sorted rows; for a handful of rows only."""
    ordered = sorted(lengths, reverse=True)
    best = None
    for cuts in range(2 ** (len(ordered) - 1)):
        groups, group = [], [ordered[0]]
        for place, length in enumerate(ordered[1:]):
            if cuts >> place & 1:
                groups.append(group)
                group = []
            group.append(length)
        groups.append(group)
        costs = [group[0] * len(group) for group in groups]
        if all(c <= batch_tokens or len(g) == 1 for c, g in zip(costs, groups, strict=True)):
            cost = sum(costs) + CALL_TOKENS * len(groups)
            best = cost if best is None else min(best, cost)
    assert best is not None
    return best


@given(
    lengths=LENGTHS,
    batch_tokens=st.integers(1, 5000),
    max_rows=st.none() | st.integers(1, 40),
    multiple=st.sampled_from([1, 8, 32]),
)
def test_plan_batches_any_lengths_keeps_rows_and_budget(lengths, batch_tokens, max_rows, multiple):
    batches = plan_batches(
        lengths, batch_tokens=batch_tokens, max_rows=max_rows, length_multiple=multiple
    )
    planned = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(planned) == list(range(len(lengths)))
    for batch in batches:
        longest = int(lengths[batch.rows].max())
        assert longest <= batch.length < longest + multiple
        assert batch.length % multiple == 0
        assert len(batch) == 1 or batch.padded_tokens <= batch_tokens
        assert max_rows is None or len(batch) <= max_rows
    assert [batch.length for batch in batches] == sorted(
        (batch.length for batch in batches), reverse=True
    )


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=8), budget=st.integers(1, 1200))
def test_plan_batches_few_rows_costs_the_least_possible(lengths, budget):
    batches = plan_batches(np.array(lengths, np.int32), batch_tokens=budget)
    found = count_padded_tokens(batches) + CALL_TOKENS * len(batches)
    assert found == least_cost(lengths, batch_tokens=budget)


@given(lengths=LENGTHS, seed=st.integers(0, 1000))
def test_plan_batches_other_order_costs_the_same(lengths, seed):
    shuffled = np.random.default_rng(seed).permutation(lengths)
    shapes = [(len(batch), batch.length) for batch in plan_batches(lengths, batch_tokens=1024)]
    assert shapes == [(len(b), b.length) for b in plan_batches(shuffled, batch_tokens=1024)]


@pytest.mark.parametrize("kind", ["short", "abstracts", "articles", "mix"])
def test_plan_batches_realistic_lengths_pads_under_three_percent(kind):
    lengths = draw_lengths(kind, 4096)
    batches = plan_batches(lengths, batch_tokens=4096)
    assert count_padded_tokens(batches) / lengths.sum() <= 1.03
    # Not bought with tiny batches: on average they are at least a third full.
    assert count_padded_tokens(batches) / len(batches) >= 4096 / 3 or kind == "short"
    assert len(batches) <= 1.8 * np.ceil(lengths.sum() / 4096) + 10


def test_plan_batches_equal_lengths_fills_batches_in_row_order():
    batches = plan_batches(np.full(10, 8, np.int32), batch_tokens=32)
    assert sorted(len(batch) for batch in batches) == [2, 4, 4]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(10))


def test_plan_batches_row_over_budget_goes_alone():
    batches = plan_batches(np.array([5, 900, 5], np.int32), batch_tokens=100)
    assert [batch.rows.tolist() for batch in batches] == [[1], [0, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"batch_tokens": 8, "max_rows": 0}, "max_rows=0"),
        ({"batch_tokens": 8, "length_multiple": 0}, "length_multiple=0"),
    ],
)
def test_plan_batches_bound_below_one_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_batches(np.array([1], np.int32), **arguments)


def test_plan_batches_row_without_tokens_raises():
    with pytest.raises(ValueError, match="row 1 has no token"):
        plan_batches(np.array([3, 0], np.int32), batch_tokens=8)


def make_tokens(rows: list[tuple[list[int], int]]) -> TokenBatch:
    return TokenBatch(
        ids=np.array([number for ids, _ in rows for number in ids], np.int32),
        offsets=np.cumsum([0] + [len(ids) for ids, _ in rows]).astype(np.int64),
        first_lengths=np.array([first for _, first in rows], np.int32),
        truncated=np.zeros(len(rows), np.bool_),
    )


def test_pad_batch_rows_of_two_lengths_lays_out_ids_mask_and_types():
    tokens = make_tokens([([2, 7, 3], 3), ([2, 9, 9, 9, 3], 5), ([2, 8, 3, 6, 3], 3)])
    inputs = pad_batch(tokens, rows=np.array([2, 0], np.int32))
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "input_word_ids": [[2, 8, 3, 6, 3], [2, 7, 3, 0, 0]],
        "input_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
        "input_type_ids": [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]],
    }
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.int32)}


def test_pad_batch_length_beyond_longest_pads_to_it():
    tokens = make_tokens([([2, 7, 3], 3)])
    inputs = pad_batch(tokens, rows=np.array([0], np.int32), length=5)
    assert inputs["input_word_ids"].tolist() == [[2, 7, 3, 0, 0]]


def test_pad_batch_length_under_longest_raises():
    with pytest.raises(ValueError, match="length=2 is under the longest row's 3 tokens"):
        pad_batch(make_tokens([([2, 7, 3], 3)]), rows=np.array([0], np.int32), length=2)


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=9))
def test_pad_batch_any_rows_reads_back_as_they_were(rows):
    tokens = make_tokens([(ids, len(ids)) for ids in rows])
    places = np.arange(len(rows), dtype=np.int32)[::-1]
    inputs = pad_batch(tokens, rows=places)
    for row, ids, mask in zip(places, inputs["input_word_ids"], inputs["input_mask"], strict=True):
        assert ids[mask == 1].tolist() == rows[row]
        assert not ids[mask == 0].any()

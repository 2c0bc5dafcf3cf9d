"""Timelines and memory peaks add up to the same whatever the order."""

from __future__ import annotations

import functools
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.runtime import (
    MOST_BUCKETS,
    PeakMemory,
    Timeline,
    measure_memory,
    spread_tokens,
)

SPANS = st.lists(
    st.tuples(
        st.floats(1e9, 1e9 + 1e6, allow_nan=False), st.floats(0, 5000), st.integers(1, 100_000)
    ),
    min_size=1,
    max_size=12,
)


def add_up(parts: list) -> Timeline:
    return functools.reduce(operator.add, parts, Timeline())


@given(spans=SPANS, order=st.randoms(use_true_random=False))
def test_timeline_sum_keeps_all_tokens_in_few_buckets_in_any_order(spans, order):
    parts = [spread_tokens(start, start + span, tokens=n) for start, span, n in spans]
    total = add_up(parts)
    assert sum(tokens for _, tokens in total.buckets) == pytest.approx(sum(n for *_, n in spans))
    assert total.buckets[-1][0] - total.buckets[0][0] < MOST_BUCKETS
    order.shuffle(parts)
    middle = len(parts) // 2
    other = add_up(parts[:middle]) + add_up(parts[middle:])
    assert other.level == total.level
    assert [bucket for bucket, _ in other.buckets] == [bucket for bucket, _ in total.buckets]
    for (_, one), (_, two) in zip(other.buckets, total.buckets, strict=True):
        assert one == pytest.approx(two)


def test_spread_tokens_over_a_span_gives_each_bucket_its_share_of_time():
    timeline = spread_tokens(10.0, 11.0, tokens=400)
    assert timeline.bucket_seconds == 0.25
    assert timeline.buckets[:4] == ((40, 100.0), (41, 100.0), (42, 100.0), (43, 100.0))
    assert sum(tokens for _, tokens in timeline.buckets) == 400


def test_peak_memory_sum_keeps_the_most_of_each_process():
    one = PeakMemory((("a:1", 10), ("b:1", 5)))
    two = PeakMemory((("b:1", 7), ("c:1", 1)))
    wanted = PeakMemory((("a:1", 10), ("b:1", 7), ("c:1", 1)))
    assert one + two == two + one == wanted
    assert PeakMemory() + one == one


def test_measure_memory_grows_with_what_is_held():
    ((name, before),) = measure_memory().processes
    held = b"x" * (64 << 20)
    ((same, after),) = measure_memory().processes
    assert same == name
    assert after >= before
    assert after > len(held)

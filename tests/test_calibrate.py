"""The cost model is found again from calls that follow it, and calibration keeps to its budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.batch import Batch, plan_batches
from transforms.calibrate import (
    CostModel,
    Shape,
    calibrate,
    choose_batches,
    fit_costs,
    plan_chunk,
)
from transforms.records import TokenBatch

SHAPES = [Shape(200, 20), Shape(64, 64), Shape(32, 128), Shape(16, 256), Shape(8, 512)]


class _FakeEngine:
    """Takes what a model says, by a clock of its own; the first call takes more."""

    load_seconds = 0.0
    fitting_tokens = None

    def __init__(self, model: CostModel, *, first: float = 0.0) -> None:
        self.model, self.now, self.first = model, 0.0, first
        self.shapes: list[Shape] = []

    def encode(self, inputs):
        rows, length = inputs["input_mask"].shape
        assert (inputs["input_mask"].sum(axis=1).max()) == length
        self.shapes.append(Shape(rows, length))
        self.now += self.model.seconds(self.shapes[-1]) + self.first
        self.first = 0.0
        return np.ones((rows, 4), np.float32)

    def classify_error(self, error):
        return "input"


def make_tokens(lengths) -> TokenBatch:
    lengths = np.asarray(lengths, np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(offsets[-1], dtype=np.int32)
    return TokenBatch(ids, offsets, lengths, np.zeros(len(lengths), np.bool_))


@given(per_call=st.floats(0, 0.1), per_token=st.floats(1e-5, 1e-3), per_length=st.floats(0, 1e-6))
def test_fit_costs_calls_of_a_model_gives_its_times_back(per_call, per_token, per_length):
    model = CostModel(per_call, per_token, per_length)
    found = fit_costs([(shape, model.seconds(shape)) for shape in SHAPES])
    for shape in [*SHAPES, Shape(10, 400)]:
        assert found.seconds(shape) == pytest.approx(model.seconds(shape), rel=1e-3)


@given(seconds=st.lists(st.floats(1e-3, 10), min_size=1, max_size=5))
def test_fit_costs_any_calls_gives_no_negative_term(seconds):
    found = fit_costs(list(zip(SHAPES, seconds, strict=False)))
    assert min(found.per_call, found.per_token, found.per_token_length) >= 0
    assert found.seconds(Shape(1, 1)) >= 0


def test_fit_costs_no_calls_is_refused():
    with pytest.raises(ValueError, match="no calls"):
        fit_costs([])


def test_calibrate_within_budget_measures_whole_batches_and_the_first_call():
    lengths = np.random.default_rng(1).integers(5, 500, 300)
    batches = plan_batches(lengths.astype(np.int32), batch_tokens=4096)
    engine = _FakeEngine(CostModel(0.01, 1e-4, 1e-7), first=0.7)
    found = calibrate(
        engine, tokens=make_tokens(lengths), batches=batches, budget_seconds=60,
        clock=lambda: engine.now,
    )  # fmt: skip
    assert not found.is_reduced
    assert found.first_call_seconds == pytest.approx(0.7)
    assert found.relative_error == pytest.approx(0, abs=1e-6)
    assert len(found.calls) == 10
    assert {shape.length for shape, _ in found.calls} <= {batch.length for batch in batches}
    assert len(found.rows) == len(found.vectors)


def test_calibrate_slow_engine_shrinks_batches_and_ends_near_its_budget():
    lengths = np.full(200, 512)
    batches = plan_batches(lengths.astype(np.int32), batch_tokens=8192)
    engine = _FakeEngine(CostModel(0.0, 1e-3, 0.0))
    found = calibrate(
        engine, tokens=make_tokens(lengths), batches=batches, budget_seconds=20,
        clock=lambda: engine.now,
    )  # fmt: skip
    assert found.is_reduced
    assert engine.now < 30
    assert found.model.seconds(Shape(16, 512)) == pytest.approx(8.192, rel=1e-3)
    assert found.tokens_per_second == pytest.approx(1000, rel=1e-3)


def test_choose_batches_many_takes_longest_and_shortest():
    batches = [Batch(np.arange(4, dtype=np.int32), length) for length in range(1, 101)]
    chosen = choose_batches(batches, count=5)
    lengths = [batch.length for batch in chosen]
    assert len(chosen) == 5
    assert (max(lengths), min(lengths)) == (100, 1)


def test_plan_chunk_of_the_sample_itself_takes_each_row_once():
    lengths = np.array([5, 9, 3, 7], np.int32)
    batches = plan_chunk(lengths, rows=4, batch_tokens=20)
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == [0, 1, 2, 3]


def test_plan_chunk_larger_than_the_sample_draws_its_rows():
    lengths = np.array([5, 9, 3, 7], np.int32)
    batches = plan_chunk(lengths, rows=50, batch_tokens=100)
    rows = np.concatenate([batch.rows for batch in batches])
    assert len(rows) == 50
    assert set(rows.tolist()) == {0, 1, 2, 3}
    for batch in batches:
        assert batch.length == lengths[batch.rows].max()
        assert batch.padded_tokens <= 100

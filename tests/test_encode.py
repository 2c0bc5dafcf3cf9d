"""Encoding: the right vectors, faults narrowed to the row, one load a process."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from transforms import engines
from transforms.batch import pad_batch
from transforms.encode import EncodeBatches, encode_rows
from transforms.errors import ConfigError, ExpertError
from transforms.pooling import POOLINGS, pool_plainly
from transforms.process_cache import ProcessCache
from transforms.records import EncodeSettings, EncodeStats, Expert, TokenBatch
from transforms.tokenize import get_tokenizer

SHARED = Path(__file__).parents[2] / "shared"
CLS, SEP = 2, 3
# Ids by which a fake engine goes wrong.
POISON, NAN, ZERO = 666, 777, 888


def make_expert(*, encoder: str, preprocessor: str) -> Expert:
    return Expert(
        name="tiny",
        handle="https://example.org/tiny/2",
        path=encoder,
        preprocessor_handle=preprocessor,
        preprocessor_path=preprocessor,
        width=64,
        layers=2,
        position_limit=512,
        lower_case=True,
        fingerprint=encoder,
        tokenizer_fingerprint=preprocessor,
    )


def make_tokens(rows: list[list[int]]) -> TokenBatch:
    framed = [[CLS, *row, SEP] for row in rows]
    return TokenBatch(
        ids=np.array([number for row in framed for number in row], np.int32),
        offsets=np.cumsum([0] + [len(row) for row in framed]).astype(np.int64),
        first_lengths=np.array([len(row) for row in framed], np.int32),
        truncated=np.array([len(row) % 2 == 1 for row in framed], np.bool_),
    )


class FakeEngine:
    """A row's vector is [sum of ids, tokens]; fails as told. Remembers the shapes it was given."""

    load_seconds = 0.0

    def __init__(self, *, memory_tokens: int | None = None, failures: tuple[Exception, ...] = ()):
        self.fitting_tokens: int | None = None
        self.shapes: list[tuple[int, int]] = []
        self._memory_tokens = memory_tokens
        self._failures = list(failures)

    def encode(self, inputs):
        ids, mask = inputs["input_word_ids"], inputs["input_mask"]
        self.shapes.append(ids.shape)
        if self._failures:
            raise self._failures.pop(0)
        if self._memory_tokens is not None and ids.size > self._memory_tokens:
            raise MemoryError("no room")
        if (ids == POISON).any():
            raise ValueError("a token that cannot be\nsecond line")
        vectors = np.stack([(ids * mask).sum(axis=1), mask.sum(axis=1)], axis=1)
        vectors = vectors.astype(np.float32)
        vectors[(ids == NAN).any(axis=1), 1] = np.nan
        vectors[(ids == ZERO).any(axis=1)] = 0
        return vectors

    def classify_error(self, error):
        return engines.classify_plain_error(error)


class BrokenEngine(FakeEngine):
    """Fails on all but rows of up to `working_length` tokens."""

    def __init__(self, *, working_length: int = 0):
        super().__init__()
        self._working_length = working_length

    def encode(self, inputs):
        if inputs["input_word_ids"].shape[1] > self._working_length:
            raise RuntimeError("graph is broken")
        return super().encode(inputs)


class NanEngine(FakeEngine):
    """Gives NaN for everything."""

    def encode(self, inputs):
        return super().encode(inputs) * np.nan


def run(token_rows, *, engine, settings=None, **arguments):
    """Encode rows of ids → row number → vector, row → reason, and all stats added up."""
    settings = settings or EncodeSettings(batch_tokens=64)
    vectors, failures, total = {}, {}, EncodeStats()
    for batch, failed, stats in encode_rows(
        make_tokens(token_rows), engine=engine, settings=settings, **arguments
    ):
        assert len(batch) or failed
        assert batch.rows.tolist() == sorted(batch.rows.tolist())
        for row, vector in zip(batch.rows.tolist(), batch.vectors.tolist(), strict=True):
            assert row not in vectors
            vectors[row] = vector
        for failure in failed:
            assert failure.row not in failures
            failures[failure.row] = failure.reason
        total += stats
    return vectors, failures, total


def expected_vector(row: list[int]) -> list[float]:
    return [float(CLS + sum(row) + SEP), float(len(row) + 2)]


# --- encode_rows with a fake engine -------------------------------------------------------------


@given(
    rows=st.lists(
        st.lists(st.sampled_from([10, 11, 12, 13, 14, 15, POISON, NAN]), min_size=1, max_size=9),
        max_size=30,
    ),
    batch_tokens=st.integers(1, 80),
    memory_tokens=st.none() | st.integers(11, 60),
)
@hypothesis_settings(deadline=None)
def test_encode_rows_any_faults_gives_each_row_once(rows, batch_tokens, memory_tokens):
    rows = [[10], *rows]
    settings = EncodeSettings(batch_tokens=batch_tokens)
    engine = FakeEngine(memory_tokens=memory_tokens)
    vectors, failures, stats = run(rows, engine=engine, settings=settings)
    for number, row in enumerate(rows):
        if POISON in row:
            assert failures[number] == "encoder_failed"
        elif NAN in row:
            assert failures[number] == "not_finite"
        else:
            assert vectors[number] == expected_vector(row)
    assert len(vectors) + len(failures) == len(rows)
    assert stats.rows == len(vectors)
    assert stats.padded_tokens >= stats.tokens


def test_encode_rows_poison_among_many_is_the_only_failure():
    rows = [[10 + number] * (1 + number % 5) for number in range(64)]
    rows[37][0] = POISON
    engine = FakeEngine()
    settings = EncodeSettings(batch_tokens=10_000)
    (piece,) = encode_rows(make_tokens(rows), engine=engine, settings=settings)
    batch, failures, stats = piece
    assert batch.rows.tolist() == [number for number in range(64) if number != 37]
    assert [(failure.row, failure.reason, failure.message) for failure in failures] == [
        (37, "encoder_failed", "ValueError: a token that cannot be")
    ]
    assert batch.n_tokens.tolist() == [len(row) + 2 for row in rows if POISON not in row]
    assert batch.truncated.tolist() == [len(row) % 2 == 1 for row in rows if POISON not in row]
    # Halving finds one of 64 rows in 6 steps, and asks once whether the expert works.
    assert stats.splits <= 7 * stats.batches
    assert len(engine.shapes) <= 2 * 7 * 3


def test_encode_rows_row_numbers_are_the_callers():
    numbers = np.array([40, 7, 23], np.int32)
    rows = [[10], [POISON], [12, 13]]
    vectors, failures, _ = run(rows, engine=FakeEngine(), rows=numbers)
    assert vectors == {40: expected_vector([10]), 23: expected_vector([12, 13])}
    assert failures == {7: "encoder_failed"}


def test_encode_rows_wrong_count_of_row_numbers_raises():
    with pytest.raises(ValueError, match="1 row numbers for 2 rows"):
        run([[10], [11]], engine=FakeEngine(), rows=np.array([1], np.int32))


def test_encode_rows_no_rows_yields_nothing():
    engine = FakeEngine()
    assert list(encode_rows(make_tokens([]), engine=engine, settings=EncodeSettings())) == []
    assert engine.shapes == []


def test_encode_rows_out_of_memory_halves_and_remembers_the_size():
    rows = [[10 + number] * 6 for number in range(64)]  # 8 tokens each, 512 in all
    engine = FakeEngine(memory_tokens=100)
    settings = EncodeSettings(batch_tokens=256)
    vectors, failures, stats = run(rows, engine=engine, settings=settings)
    assert failures == {}
    assert vectors == {number: expected_vector(row) for number, row in enumerate(rows)}
    assert engine.fitting_tokens == 64
    # 256 and 128 were too much, once each; what was planned at 256 was cut anew.
    tokens = [rows * length for rows, length in engine.shapes]
    assert tokens == [256, 128, *[64] * 8]
    assert (stats.batches, stats.splits, stats.padded_tokens) == (8, 2, 512)
    engine.shapes.clear()
    run(rows, engine=engine, settings=settings)
    assert [rows * length for rows, length in engine.shapes] == [64] * 8


def test_encode_rows_one_row_out_of_memory_raises_expert_error():
    with pytest.raises(ExpertError, match="a row of 42 tokens alone does not fit in memory"):
        run([[10] * 40, [11]], engine=FakeEngine(memory_tokens=30))


def test_encode_rows_transient_error_is_retried_and_rejects_nothing():
    waits: list[float] = []
    engine = FakeEngine(failures=(ConnectionError("away"), TimeoutError("still away")))
    vectors, failures, stats = run([[10], [11]], engine=engine, sleep=waits.append)
    assert sorted(vectors) == [0, 1]
    assert failures == {}
    assert waits == [0.5, 2.0]
    assert stats.splits == 0


def test_encode_rows_transient_error_that_stays_is_raised_as_it_is():
    waits: list[float] = []
    engine = FakeEngine(failures=tuple(ConnectionError(f"away {number}") for number in range(9)))
    with pytest.raises(ConnectionError, match="away 3"):
        run([[10], [11]], engine=engine, sleep=waits.append)
    assert waits == [0.5, 2.0, 8.0]


def test_encode_rows_zero_vector_is_a_failure_only_when_normalized():
    rows = [[10], [ZERO], [11]]
    settings = EncodeSettings(normalize=True)
    vectors, failures, _ = run(rows, engine=FakeEngine(), settings=settings)
    assert (sorted(vectors), failures) == ([0, 2], {1: "zero_vector"})
    vectors, failures, _ = run(rows, engine=FakeEngine())
    assert (sorted(vectors), failures) == ([0, 1, 2], {})


@pytest.mark.parametrize("count", [1, 3, 40])
def test_encode_rows_engine_that_always_fails_raises_expert_error(count):
    with pytest.raises(ExpertError, match=r"\[CLS\] \[SEP\] either .*graph is broken") as caught:
        run([[10]] * count, engine=BrokenEngine())
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_encode_rows_engine_that_gives_nan_always_raises_expert_error():
    with pytest.raises(ExpertError, match=r"does not encode .* NaN or infinite"):
        run([[10], [11, 12]], engine=NanEngine())


def test_encode_rows_all_rows_fail_alike_raises_expert_error():
    with pytest.raises(ExpertError, match="8 rows of all lengths fail alike"):
        run([[10] * (1 + number) for number in range(20)], engine=BrokenEngine(working_length=2))


def test_encode_rows_long_rows_fail_are_failures_where_short_ones_work():
    rows = [[10] * (1 + number) for number in range(20)]
    vectors, failures, _ = run(rows, engine=BrokenEngine(working_length=6))
    assert sorted(vectors) == [0, 1, 2, 3]
    assert failures == dict.fromkeys(range(4, 20), "encoder_failed")


def test_encode_rows_few_bad_rows_alone_are_failures():
    _, failures, _ = run([[POISON], [POISON, 5]], engine=FakeEngine())
    assert failures == {0: "encoder_failed", 1: "encoder_failed"}


def test_encode_rows_engine_with_wrong_shape_raises_expert_error():
    class ShortEngine(FakeEngine):
        def encode(self, inputs):
            return super().encode(inputs)[:-1]

    with pytest.raises(ExpertError, match=r"shape \(1, 2\) for 2 rows"):
        run([[10], [11]], engine=ShortEngine())


class SteppingClock:
    """Each encode takes `seconds`; the consumer's time between two pieces is not its own."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class SlowEngine(FakeEngine):
    def __init__(self, clock: SteppingClock, *, seconds: float):
        super().__init__()
        self._clock = clock
        self._seconds = seconds

    def encode(self, inputs):
        self._clock.now += self._seconds
        return super().encode(inputs)


def test_encode_rows_checkpoint_seconds_bound_each_piece():
    clock = SteppingClock()
    settings = EncodeSettings(batch_tokens=1, checkpoint_seconds=30.0)
    pieces = encode_rows(
        make_tokens([[10 + number] for number in range(8)]),
        engine=SlowEngine(clock, seconds=12.0),
        settings=settings,
        clock=clock,
    )
    rows, seconds = [], []
    for batch, _, stats in pieces:
        rows.append(batch.rows.tolist())
        seconds.append(stats.encode_seconds)
        clock.now += 1000.0
    assert rows == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert seconds == [36.0, 36.0, 24.0]


def test_encode_rows_on_batch_sees_each_batch_that_was_encoded():
    seen = []
    engine = FakeEngine(memory_tokens=40)
    settings = EncodeSettings(batch_tokens=64)
    _, _, stats = run(
        [[10, 11]] * 16, engine=engine, settings=settings, on_batch=lambda b: seen.append(len(b))
    )
    assert sum(seen) == 16
    assert len(seen) == stats.batches


# --- engines ------------------------------------------------------------------------------------

EXPERT = make_expert(encoder="/nowhere/encoder", preprocessor="/nowhere/preprocessor")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "median"}, "choose one of mean, cls"),
        ({"engine": "abacus"}, "choose one of auto, tensorflow"),
        ({"max_tokens": 513}, "max_tokens=513 is not between 3 and tiny's limit of 512"),
        ({"max_tokens": 2}, "max_tokens=2"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"threads": -1}, "threads=-1"),
        ({"checkpoint_seconds": 0.0}, "checkpoint_seconds=0"),
    ],
)
def test_encode_batches_impossible_setting_raises_when_made(changes, message):
    with pytest.raises(ConfigError, match=message):
        EncodeBatches(EXPERT, settings=replace(EncodeSettings(), **changes))


def test_get_engine_sixteen_threads_load_once(monkeypatch):
    all_ask, loads = threading.Barrier(16), []

    def load(expert, settings):
        loads.append(threading.get_ident())
        return FakeEngine()

    monkeypatch.setitem(engines.ENGINES, "fake", load)
    monkeypatch.setattr(engines, "_CACHE", ProcessCache(capacity=4))
    settings = EncodeSettings(engine="fake")

    def ask(_):
        all_ask.wait(timeout=30)
        return engines.get_engine(EXPERT, settings=settings)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    assert len(loads) == 1
    assert len({id(engine) for engine, _ in answers}) == 1
    assert Counter(loaded for _, loaded in answers) == {True: 1, False: 15}
    assert engines.get_engine(EXPERT, settings=settings)[1] is False
    assert engines.get_engine(EXPERT, settings=replace(settings, pooling="cls"))[1] is True
    assert engines.get_engine(EXPERT, settings=replace(settings, batch_tokens=7))[1] is False


def test_process_cache_second_caller_waits_for_the_first():
    cache: ProcessCache[str] = ProcessCache(capacity=1)
    loading, may_finish = threading.Event(), threading.Event()

    def load():
        loading.set()
        assert may_finish.wait(timeout=30)
        return "loaded"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "key", load=load)
        assert loading.wait(timeout=30)
        second = pool.submit(cache.get, "key", load=lambda: "loaded twice")
        # Another key is not held up, and does not push out the one that is loading.
        assert cache.get("other", load=lambda: "other") == ("other", True)
        may_finish.set()
        assert first.result(timeout=30) == ("loaded", True)
        assert second.result(timeout=30) == ("loaded", False)


def test_process_cache_failed_load_is_tried_again():
    cache: ProcessCache[int] = ProcessCache(capacity=2)
    with pytest.raises(ZeroDivisionError):
        cache.get("key", load=lambda: 1 // 0)
    assert cache.get("key", load=lambda: 5) == (5, True)


def test_process_cache_over_capacity_drops_the_one_unused_longest():
    cache: ProcessCache[int] = ProcessCache(capacity=2)
    for key in (1, 2, 1, 3):
        cache.get(key, load=lambda key=key: key)
    assert [cache.get(key, load=lambda: 0)[1] for key in (1, 3, 2)] == [False, False, True]


def test_process_cache_without_room_raises():
    with pytest.raises(ValueError, match="capacity=0"):
        ProcessCache(capacity=0)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (MemoryError(), "memory"),
        (np.exceptions.AxisError(3, 2), "input"),
        (FileNotFoundError("x"), "transient"),
        (ValueError("x"), "input"),
    ],
)
def test_classify_plain_error_known_kinds_are_told_apart(error, fault):
    assert engines.classify_plain_error(error) == fault


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "Graph execution error:\n\nDetected at node Gather\n  indices[0] = 9\nmore",
            "indices[0] = 9",
        ),
        ("plain\nsecond", "plain"),
        ("", "no message"),
    ],
)
def test_describe_error_takes_the_line_that_says_something(text, line):
    assert engines.describe_error(KeyboardInterrupt(text)) == f"KeyboardInterrupt: {line}"


# --- with real SavedModels ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def own_expert(tiny_expert) -> Expert:
    return make_expert(encoder=tiny_expert.encoder, preprocessor=tiny_expert.preprocessor)


@pytest.fixture(scope="session")
def hub_expert() -> Expert:
    folder = SHARED / "experts"
    if not (folder / "bert_tiny").is_dir():
        pytest.skip("the shared folder with bert_tiny is not beside this checkout")
    return make_expert(encoder=str(folder / "bert_tiny"), preprocessor=str(folder / "preprocess"))


def encode_texts(expert: Expert, texts, *, pairs=None, settings) -> dict[int, np.ndarray]:
    tokenized = get_tokenizer(expert).tokenize(texts, pairs=pairs, max_tokens=settings.max_tokens)
    assert tokenized.failures == ()
    engine, _ = engines.get_engine(expert, settings=settings)
    vectors = {}
    for batch, failures, _ in encode_rows(tokenized.tokens, engine=engine, settings=settings):
        assert failures == []
        vectors |= dict(zip(batch.rows.tolist(), batch.vectors, strict=True))
    assert sorted(vectors) == list(range(len(texts)))
    return vectors


@pytest.mark.integration
@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "max"])
def test_encode_rows_bert_tiny_gives_the_golden_vectors(hub_expert, pooling):
    golden = json.loads((SHARED / "experts" / "bert_tiny_golden.json").read_text("utf-8"))
    cases = golden["cases"]
    settings = EncodeSettings(pooling=pooling, batch_tokens=600)
    for with_pair in (False, True):
        some = [case for case in cases if ("pair" in case) == with_pair]
        texts = [case["text"] for case in some]
        pairs = [case["pair"] for case in some] if with_pair else None
        assert texts
        # In batches with texts of other lengths, the golden ones first, last and in the middle.
        filler = ["word " * count for count in (1, 7, 30, 100, 300, 2, 5)]
        mixed = encode_texts(
            hub_expert,
            [*texts, *filler, *texts],
            pairs=[*pairs, *filler, *pairs] if pairs else None,
            settings=settings,
        )
        for row, case in enumerate(some):
            alone = encode_texts(
                hub_expert, [texts[row]], pairs=pairs and [pairs[row]], settings=settings
            )
            for vector in (alone[0], mixed[row], mixed[len(texts) + len(filler) + row]):
                np.testing.assert_allclose(vector, case[pooling], atol=1e-5, rtol=0)


@pytest.mark.integration
def test_tokenize_golden_texts_give_the_golden_tokens(hub_expert):
    golden = json.loads((SHARED / "experts" / "bert_tiny_golden.json").read_text("utf-8"))
    for case in golden["cases"]:
        pairs = [case["pair"]] if "pair" in case else None
        tokens = get_tokenizer(hub_expert).tokenize([case["text"]], pairs=pairs, max_tokens=512)
        ids = tokens.tokens.ids.tolist()
        assert len(ids) == case["n_tokens"]
        assert ids[: len(case["ids_head"])] == case["ids_head"]


TEXTS = ["the cat", "a dog, that is not a cat", "he was on it " * 30, "in", "for the " * 400]


@pytest.mark.integration
@pytest.mark.parametrize("pooling", POOLINGS)
def test_encode_rows_own_expert_equals_plain_pooling_of_its_outputs(own_expert, pooling):
    import tensorflow as tf

    settings = EncodeSettings(pooling=pooling, batch_tokens=1024, max_tokens=200)
    vectors = encode_texts(own_expert, TEXTS, settings=settings)
    unit = encode_texts(own_expert, TEXTS, settings=replace(settings, normalize=True))
    model = tf.saved_model.load(own_expert.path)
    tokens = get_tokenizer(own_expert).tokenize(TEXTS, max_tokens=200).tokens
    for row, vector in vectors.items():
        inputs = pad_batch(tokens, rows=np.array([row], np.int32))
        outputs = model({name: tf.constant(array) for name, array in inputs.items()})
        wanted = pool_plainly(pooling, outputs=outputs, mask=inputs["input_mask"])[0]
        np.testing.assert_allclose(vector, wanted, atol=1e-5, rtol=0)
        np.testing.assert_allclose(unit[row], wanted / np.linalg.norm(wanted), atol=1e-5, rtol=0)
        assert vector.dtype == np.float32


@pytest.mark.integration
def test_encode_rows_token_beyond_the_vocabulary_is_one_failure(own_expert):
    settings = EncodeSettings(max_tokens=32)
    engine, _ = engines.get_engine(own_expert, settings=settings)
    tokens = get_tokenizer(own_expert).tokenize(["the", "a", "of in"], max_tokens=32).tokens
    tokens.ids[1] = 10**6
    (piece,) = encode_rows(tokens, engine=engine, settings=settings)
    assert piece[0].rows.tolist() == [1, 2]
    (failure,) = piece[1]
    assert (failure.row, failure.reason) == (0, "encoder_failed")
    assert "1000000 is not in" in failure.message


@pytest.mark.integration
def test_tensorflow_engine_classify_error_knows_tensorflows(own_expert):
    import tensorflow as tf

    engine, _ = engines.get_engine(own_expert, settings=EncodeSettings())
    kinds = {
        tf.errors.ResourceExhaustedError: "memory",
        tf.errors.UnavailableError: "transient",
        tf.errors.InvalidArgumentError: "input",
    }
    found = {kind: engine.classify_error(kind(None, None, "x")) for kind in kinds}
    assert found == kinds


@pytest.mark.integration
def test_get_engine_missing_model_raises_expert_error(tmp_path):
    expert = make_expert(encoder=str(tmp_path), preprocessor=str(tmp_path))
    with pytest.raises(ExpertError, match="cannot be loaded"):
        engines.get_engine(expert, settings=EncodeSettings())


@pytest.mark.integration
def test_get_engine_model_of_something_else_raises_expert_error(own_expert):
    expert = replace(own_expert, path=own_expert.preprocessor_path)
    with pytest.raises(ExpertError, match="has not the interface of a BERT expert"):
        engines.get_engine(expert, settings=EncodeSettings())


@pytest.mark.integration
def test_get_engine_other_width_raises_expert_error(own_expert):
    expert = replace(own_expert, width=768, fingerprint="other")
    with pytest.raises(ExpertError, match="vectors of width 64, but was resolved as 768"):
        engines.get_engine(expert, settings=EncodeSettings())


@pytest.mark.integration
def test_get_engine_unfit_precision_raises_config_error(own_expert):
    with pytest.raises(ConfigError, match="precision=int8"):
        engines.get_engine(own_expert, settings=EncodeSettings(precision="int8"))


# --- the Beam step ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """An element of someone else's pipeline."""

    name: str
    texts: pa.StringArray
    pairs: pa.StringArray | None = None


def flatten_vectors(element):
    texts, vectors = element
    for row, count, vector in zip(
        vectors.rows.tolist(), vectors.n_tokens.tolist(), vectors.vectors, strict=True
    ):
        yield texts.name, row, count, [round(float(number), 3) for number in vector[:4]]


def flatten_failures(element):
    texts, failures = element
    return [(texts.name, failure.row, failure.reason) for failure in failures]


@pytest.mark.integration
def test_encode_batches_in_a_pipeline_gives_vectors_failures_and_stats(own_expert, monkeypatch):
    monkeypatch.setattr(engines, "_CACHE", ProcessCache(capacity=4))
    settings = EncodeSettings(normalize=True, max_tokens=64, batch_tokens=128)
    elements = [
        Texts("first", pa.array(["the cat", "", "a dog " * 50, "\U0001f600"])),
        Texts("second", pa.array(["in", "on"]), pa.array(["not", "by it"])),
    ]
    tokenizer = get_tokenizer(own_expert)
    expected, tokens_total = [], 0
    for element in elements:
        tokenized = tokenizer.tokenize(element.texts, pairs=element.pairs, max_tokens=64)
        engine, _ = engines.get_engine(own_expert, settings=settings)
        for place, row in enumerate(tokenized.rows.tolist()):
            inputs = pad_batch(tokenized.tokens, rows=np.array([place], np.int32))
            vector = engine.encode(inputs)[0]
            count = int(inputs["input_mask"].sum())
            tokens_total += count
            expected.append((element.name, row, count, vector))
    monkeypatch.setattr(engines, "_CACHE", ProcessCache(capacity=4))

    def close_to(wanted, found):
        return all(
            a[:3] == b[:3] and np.allclose(a[3], b[3][:4], atol=2e-3)
            for a, b in zip(sorted(found, key=str), sorted(wanted, key=str), strict=True)
        )

    def check(found):
        if len(found) != len(expected) or not close_to(expected, found):
            raise AssertionError(f"found {found}, wanted {expected}")

    pipeline = beam.Pipeline(runner=FnApiRunner())
    encoded = (
        pipeline
        | "Create" >> beam.Create(elements, reshuffle=False)
        | "EncodeBatches" >> EncodeBatches(own_expert, settings=settings)
    )
    assert_that(encoded["vectors"] | beam.FlatMap(flatten_vectors), check, label="Vectors")
    assert_that(
        encoded["failures"] | beam.FlatMap(flatten_failures),
        equal_to([("first", 1, "no_tokens"), ("first", 3, "unknown_tokens_only")]),
        label="Failures",
    )
    assert_that(
        encoded["stats"]
        | beam.CombineGlobally(lambda some: sum(some, EncodeStats()))
        | beam.Map(lambda stats: (stats.rows, stats.tokens, stats.expert_loads)),
        equal_to([(4, tokens_total, 1)]),
        label="Stats",
    )
    result = pipeline.run()
    result.wait_until_finish()
    counters = {
        metric.key.metric.name: metric.committed
        for metric in result.metrics().query(MetricsFilter().with_namespace("encode"))["counters"]
    }
    assert counters == {
        "rows": 4,
        "rows_failed": 2,
        "rows_truncated": 1,
        "tokens": tokens_total,
        "padded_tokens": counters["padded_tokens"],
        "expert_loads": 1,
        "splits": 0,
    }
    assert counters["padded_tokens"] >= tokens_total

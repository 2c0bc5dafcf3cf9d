"""Tokens → vectors: batches through an engine, faults narrowed to the row, and the Beam step.

`encode_rows` is the work; `EncodeBatches` is the same for a PCollection of text batches.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics

from transforms.batch import Batch, pad_batch, plan_batches
from transforms.engines import (
    check_settings,
    describe_error,
    find_bad_vectors,
    get_engine,
    set_threads,
)
from transforms.errors import ExpertError
from transforms.progress import Facts, record
from transforms.quiet import load_tensorflow
from transforms.records import EncodeStats, RowFailure, VectorBatch
from transforms.runtime import Timeline, measure_memory, spread_tokens
from transforms.tokenize import get_tokenizer, reject_truncated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from transforms.engines import Engine
    from transforms.records import (
        BoolArray,
        EncodeSettings,
        Expert,
        FloatArray,
        Int32Array,
        TokenBatch,
    )
    from transforms.tokenize import Tokenizer

    Piece = tuple[VectorBatch, list[RowFailure], EncodeStats]

_LOG = logging.getLogger(__name__)

# Waits before a call is tried again that failed for a reason that may pass.
_RETRY_SECONDS = (0.5, 2.0, 8.0)

# So many rows, spread over the lengths, are tried before the first rows that failed are blamed.
_PROBES = 8


def encode_rows(
    tokens: TokenBatch,
    *,
    engine: Engine,
    settings: EncodeSettings,
    rows: Int32Array | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_batch: Callable[[Batch], None] | None = None,
) -> Iterator[Piece]:
    """Encode B rows, and yield what is done at least every `settings.checkpoint_seconds`.

    Each row comes out once, as a vector or as a failure, in pieces whose rows ascend. A batch that
    fails is halved until the row that breaks it is alone. A batch that does not fit in memory is
    halved too, and the engine remembers the size that fits.

    A row is at fault only if the expert is not: if [CLS] [SEP] alone does not encode either, or,
    with no row encoded so far, `_PROBES` rows of all lengths fail in the same way, it is the
    expert that is broken, and a run that went on would reject everything.

    Args:
      tokens: the rows, each with at least one token.
      engine: from `get_engine`.
      settings: `batch_tokens`, `checkpoint_seconds` and `normalize` are used here.
      rows: int32 [B], the row numbers to name in the result; 0 to B - 1 if None.
      clock: seconds, for the pieces.
      sleep: waits before a retry.
      on_batch: is called with each batch that was encoded.
    Raises:
      ExpertError: the expert is broken, or one row alone does not fit in memory.
      Exception: what the engine raised, if it may pass but did not after retries.
    """
    if rows is None:
        rows = np.arange(len(tokens), dtype=np.int32)
    elif len(rows) != len(tokens):
        raise ValueError(f"{len(rows)} row numbers for {len(tokens)} rows of tokens")
    encoding = _Encoding(tokens, engine=engine, settings=settings, sleep=sleep)
    piece = _Piece(tokens, numbers=rows)
    started = clock()
    for outcome in encoding.run():
        if on_batch is not None and outcome.batch is not None:
            on_batch(outcome.batch)
        piece.add(outcome)
        elapsed = clock() - started
        if elapsed >= settings.checkpoint_seconds and not piece.is_empty:
            yield piece.finish(elapsed)
            piece = _Piece(tokens, numbers=rows)
            # The time between yields is the caller's and is not counted.
            started = clock()
    if not piece.is_empty:
        yield piece.finish(clock() - started)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one call of the engine came to; the rows are places in the TokenBatch.

    batch: the batch, if it went through; vectors: float32 [B, H] of `rows`; failures: row → reason
    and message; splits: batches that were halved.
    """

    batch: Batch | None = None
    rows: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))
    vectors: FloatArray | None = None
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)
    splits: int = 0


class _Encoding:
    """The batches of one call of `encode_rows` on their way through the engine."""

    def __init__(
        self,
        tokens: TokenBatch,
        *,
        engine: Engine,
        settings: EncodeSettings,
        sleep: Callable[[float], None],
    ) -> None:
        self._tokens = tokens
        self._engine = engine
        self._settings = settings
        self._sleep = sleep
        self._lengths = np.diff(tokens.offsets).astype(np.int32)
        self._pending: deque[Batch] = deque()
        self._any_encoded = False
        self._probed = False

    def run(self) -> Iterator[_Outcome]:
        every_row = np.arange(len(self._tokens), dtype=np.int32)
        self._pending.extend(self._plan(every_row))
        while self._pending:
            batch = self._pending.popleft()
            fitting = self._engine.fitting_tokens
            if fitting is not None and len(batch) > 1 and batch.padded_tokens > fitting:
                # Planned before the size was known that fits.
                self._pending.extendleft(reversed(self._plan(batch.rows)))
                continue
            yield self._encode(batch)

    def _plan(self, rows: Int32Array) -> list[Batch]:
        budget = self._settings.batch_tokens
        if self._engine.fitting_tokens is not None:
            budget = min(budget, self._engine.fitting_tokens)
        return [
            Batch(rows[batch.rows], batch.length)
            for batch in plan_batches(self._lengths[rows], batch_tokens=budget)
        ]

    def _encode(self, batch: Batch) -> _Outcome:
        try:
            vectors = self._call(pad_batch(self._tokens, rows=batch.rows, length=batch.length))
        except Exception as error:  # noqa: BLE001 (an engine raises what it likes; see _handle)
            return self._handle(error, batch=batch)
        if vectors.ndim != 2 or len(vectors) != len(batch):
            raise ExpertError(
                f"the engine gave an array of shape {vectors.shape} for {len(batch)} rows; "
                "wanted one vector a row; this is a fault of the engine or the expert"
            )
        bad = find_bad_vectors(vectors, normalize=self._settings.normalize)
        if bad:
            self._check_expert(next(iter(bad)), batch=batch, cause=None)
        good = np.array([place not in bad for place in range(len(batch))], np.bool_)
        self._any_encoded |= bool(good.any())
        return _Outcome(
            batch=batch,
            rows=batch.rows[good],
            vectors=vectors[good],
            failures={
                int(batch.rows[place]): (reason, _BAD_VECTOR_MESSAGES[reason])
                for place, reason in bad.items()
            },
        )

    def _call(self, inputs: dict[str, Int32Array]) -> FloatArray:
        for seconds in _RETRY_SECONDS:
            try:
                return self._engine.encode(inputs)
            except Exception as error:
                if self._engine.classify_error(error) != "transient":
                    raise
                _LOG.warning("encoding is tried again in %s s: %s", seconds, describe_error(error))
            self._sleep(seconds)
        return self._engine.encode(inputs)

    def _handle(self, error: Exception, *, batch: Batch) -> _Outcome:
        fault = self._engine.classify_error(error)
        if fault == "transient":
            raise error
        if fault == "memory":
            self._remember_size(error, batch=batch)
        if len(batch) > 1:
            self._pending.extendleft(reversed(self._halve(batch)))
            return _Outcome(splits=1)
        self._check_expert(0, batch=batch, cause=error)
        return _Outcome(failures={int(batch.rows[0]): ("encoder_failed", describe_error(error))})

    def _remember_size(self, error: Exception, *, batch: Batch) -> None:
        if len(batch) == 1:
            raise ExpertError(
                f"a row of {batch.length} tokens alone does not fit in memory "
                f"({describe_error(error)}); lower --max_tokens, run fewer workers, or use a "
                "machine with more memory; what is encoded so far is kept"
            ) from error
        fitting = batch.padded_tokens // 2
        known = self._engine.fitting_tokens
        # Another thread may have learnt a smaller size meanwhile.
        self._engine.fitting_tokens = fitting if known is None else min(known, fitting)
        _LOG.warning(
            "a batch of %d×%d tokens does not fit in memory; from now on at most %d",
            len(batch),
            batch.length,
            self._engine.fitting_tokens,
        )

    def _halve(self, batch: Batch) -> list[Batch]:
        middle = len(batch) // 2
        return [
            Batch(rows, int(self._lengths[rows].max()))
            for rows in (batch.rows[:middle], batch.rows[middle:])
        ]

    def _check_expert(self, place: int, *, batch: Batch, cause: Exception | None) -> None:
        """Raise ExpertError if it is the expert that is broken and not the row at `place`."""
        row = int(batch.rows[place])
        ends = self._tokens.ids[[self._tokens.offsets[row], self._tokens.offsets[row + 1] - 1]]
        frame = {
            "input_word_ids": ends[np.newaxis].astype(np.int32),
            "input_mask": np.ones((1, 2), np.int32),
            "input_type_ids": np.zeros((1, 2), np.int32),
        }
        found = self._try(frame)
        if found is not None:
            raise ExpertError(
                f"the expert does not encode [CLS] [SEP] either ({found}), so it is the expert "
                "that is broken and not a row; delete its folder in TFHUB_CACHE_DIR, or "
                "fetch it again"
            ) from cause
        if cause is None or self._any_encoded or self._probed or len(self._tokens) < _PROBES:
            return
        self._probed = True
        order = np.argsort(self._lengths, kind="stable").astype(np.int32)
        places = np.linspace(0, len(order) - 1, _PROBES).astype(np.int64)
        for probe in order[places]:
            found = self._try(pad_batch(self._tokens, rows=np.array([probe], np.int32)))
            # The message may name the row's own token, so only the error's type is compared.
            if found is None or found.split(":")[0] != type(cause).__name__:
                return
        raise ExpertError(
            f"{_PROBES} rows of all lengths fail alike ({describe_error(cause)}), so it is the "
            "expert that does not fit the tokens and not a row; check that the preprocessor is "
            "the expert's own (--preprocessor)"
        ) from cause

    def _try(self, inputs: dict[str, Int32Array]) -> str | None:
        """Encode one row; return what is wrong with it, or None."""
        try:
            vectors = self._call(inputs)
        except Exception as error:
            if self._engine.classify_error(error) == "transient":
                raise
            return describe_error(error)
        bad = find_bad_vectors(vectors, normalize=self._settings.normalize)
        return _BAD_VECTOR_MESSAGES[bad[0]] if bad else None


_BAD_VECTOR_MESSAGES = {
    "not_finite": "the vector has NaN or infinite numbers",
    "zero_vector": "the vector is zero, so it has no direction to normalise",
}


class _Piece:
    """What was encoded since the last yield."""

    def __init__(self, tokens: TokenBatch, *, numbers: Int32Array) -> None:
        self._tokens = tokens
        self._numbers = numbers
        self._rows: list[Int32Array] = []
        self._vectors: list[FloatArray] = []
        self._failures: list[RowFailure] = []
        self._stats = EncodeStats()

    @property
    def is_empty(self) -> bool:
        return not self._rows and not self._failures

    def add(self, outcome: _Outcome) -> None:
        self._failures.extend(
            RowFailure(row=int(self._numbers[row]), reason=reason, message=message)
            for row, (reason, message) in outcome.failures.items()
        )
        if outcome.vectors is not None:
            self._rows.append(outcome.rows)
            self._vectors.append(outcome.vectors)
        batch = outcome.batch
        self._stats += EncodeStats(
            rows=len(outcome.rows),
            tokens=0 if batch is None else int(self._count_tokens(batch.rows).sum()),
            padded_tokens=0 if batch is None else batch.padded_tokens,
            batches=int(batch is not None),
            splits=outcome.splits,
        )

    def finish(self, encode_seconds: float) -> Piece:
        rows = np.concatenate([np.zeros(0, np.int32), *self._rows])
        order = np.argsort(self._numbers[rows], kind="stable")
        vectors = np.concatenate(self._vectors) if self._vectors else np.zeros((0, 0), np.float32)
        batch = VectorBatch(
            rows=self._numbers[rows][order],
            vectors=vectors[order],
            n_tokens=self._count_tokens(rows)[order],
            truncated=self._tokens.truncated[rows][order],
        )
        failures = sorted(self._failures, key=lambda failure: failure.row)
        return batch, failures, self._stats + EncodeStats(encode_seconds=encode_seconds)

    def _count_tokens(self, rows: Int32Array) -> Int32Array:
        return (self._tokens.offsets[rows + 1] - self._tokens.offsets[rows]).astype(np.int32)


class HasTexts(Protocol):
    """What `EncodeBatches` needs of an element; `records.TextBatch` has it."""

    @property
    def texts(self) -> pa.StringArray:
        """The texts, N of them."""

    @property
    def pairs(self) -> pa.StringArray | None:
        """The second texts, N of them, or None."""


class _EncodeDoFn(beam.DoFn):
    """Encodes text batches; expert and tokenizer are the process's own."""

    def __init__(
        self, expert: Expert, *, settings: EncodeSettings, progress_of: str | None
    ) -> None:
        self._expert = expert
        self._settings = settings
        self._progress_of = progress_of
        self._timeline = Timeline()
        self._tokenizer: Tokenizer | None = None
        self._engine: Engine | None = None
        self._uncounted = EncodeStats()
        self._rows = Metrics.counter("encode", "rows")
        self._failed = Metrics.counter("encode", "rows_failed")
        self._truncated = Metrics.counter("encode", "rows_truncated")
        self._tokens = Metrics.counter("encode", "tokens")
        self._padded = Metrics.counter("encode", "padded_tokens")
        self._loads = Metrics.counter("encode", "expert_loads")
        self._splits = Metrics.counter("encode", "splits")
        self._batch_rows = Metrics.distribution("encode", "batch_rows")
        self._batch_tokens = Metrics.distribution("encode", "batch_padded_tokens")

    def _load(self) -> tuple[Tokenizer, Engine]:
        """Take tokenizer and expert from the process's cache; the first to ask loads them.

        Not in setup(): a worker that has nothing to encode, because all is staged or reused,
        loads no model.
        """
        if self._tokenizer is None or self._engine is None:
            load_tensorflow()
            set_threads(self._settings.threads)
            self._tokenizer = get_tokenizer(self._expert)
            self._engine, loaded = get_engine(self._expert, settings=self._settings)
            if loaded:
                self._uncounted = EncodeStats(
                    load_seconds=self._engine.load_seconds, expert_loads=1
                )
        return self._tokenizer, self._engine

    def process(self, batch: HasTexts) -> Iterator[Any]:
        tokenizer, engine = self._load()
        started = time.monotonic()
        tokenized = tokenizer.tokenize(
            batch.texts, pairs=batch.pairs, max_tokens=self._settings.max_tokens
        )
        if self._settings.long_text == "reject":
            tokenized = reject_truncated(tokenized, max_tokens=self._settings.max_tokens)
        stats = EncodeStats(tokenize_seconds=time.monotonic() - started) + self._uncounted
        self._loads.inc(self._uncounted.expert_loads)
        self._uncounted = EncodeStats()
        yield beam.pvalue.TaggedOutput("stats", stats)
        failed = len(tokenized.failures)
        self._tell(
            Facts(
                rows_tokenized=len(tokenized.tokens) + failed,
                tokens_known=len(tokenized.tokens.ids),
                rows_encoded=failed,
                rows_failed=failed,
            )
        )
        if tokenized.failures:
            self._failed.inc(len(tokenized.failures))
            yield beam.pvalue.TaggedOutput("failures", (batch, tokenized.failures))
        for vectors, failures, stats in encode_rows(
            tokenized.tokens,
            engine=engine,
            settings=self._settings,
            rows=tokenized.rows,
            on_batch=self._watch_batches(tokenized.tokens),
        ):
            self._count_piece(stats, failed=len(failures), truncated=vectors.truncated)
            yield beam.pvalue.TaggedOutput("stats", self._add_running(stats))
            if failures:
                yield beam.pvalue.TaggedOutput("failures", (batch, tuple(failures)))
            if len(vectors):
                yield batch, vectors

    def _watch_batches(self, tokens: TokenBatch) -> Callable[[Batch], None]:
        """What counts each batch as it is done, for metrics, timeline and progress."""
        lengths = np.diff(tokens.offsets)
        last = time.time()

        def count_batch(batch: Batch) -> None:
            nonlocal last
            count, now = int(lengths[batch.rows].sum()), time.time()
            self._timeline += spread_tokens(min(last, now), now, tokens=count)
            last = now
            self._batch_rows.update(len(batch))
            self._batch_tokens.update(batch.padded_tokens)
            self._tell(
                Facts(
                    rows_encoded=len(batch),
                    tokens_encoded=count,
                    padded_tokens=batch.padded_tokens,
                )
            )

        return count_batch

    def _add_running(self, stats: EncodeStats) -> EncodeStats:
        timeline, self._timeline = self._timeline, Timeline()
        return replace(stats, timeline=timeline, memory=measure_memory())

    def _tell(self, facts: Facts) -> None:
        if self._progress_of is not None:
            record(self._progress_of, facts)

    def _count_piece(self, stats: EncodeStats, *, failed: int, truncated: BoolArray) -> None:
        self._rows.inc(stats.rows)
        self._failed.inc(failed)
        self._tell(Facts(rows_failed=failed))
        self._truncated.inc(int(truncated.sum()))
        self._tokens.inc(stats.tokens)
        self._padded.inc(stats.padded_tokens)
        self._splits.inc(stats.splits)


class EncodeBatches(beam.PTransform[Any, Any]):
    """Text batches → vectors.

    Takes elements with `.texts` and `.pairs` (`records.TextBatch`). Gives a dict-like of three
    PCollections, by tag:
      vectors: (element, VectorBatch), one or more an element, `rows` within the element;
      failures: (element, tuple of RowFailure): no_tokens, unknown_tokens_only, text_too_long,
        encoder_failed, not_finite, zero_vector;
      stats: EncodeStats, to add up.
    Rows in = rows of the vectors + failures.

    Args:
      progress_of: an output whose progress facts (`transforms.progress`) are kept, if any.

    Raises: ConfigError, when it is made, if the settings do not suit the expert.
    """

    def __init__(
        self, expert: Expert, *, settings: EncodeSettings, progress_of: str | None = None
    ) -> None:
        super().__init__()
        check_settings(expert, settings=settings)
        self._dofn = _EncodeDoFn(expert, settings=settings, progress_of=progress_of)

    def expand(self, batches: Any) -> Any:
        encode = beam.ParDo(self._dofn)
        return batches | "Encode" >> encode.with_outputs("failures", "stats", main="vectors")

"""What encoding costs on this machine: a few batches timed, and a model fitted to them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transforms.batch import Batch, pad_batch, plan_batches

if TYPE_CHECKING:
    from transforms.engines import Engine
    from transforms.records import Float64Array, Int32Array, TokenBatch

# A first batch, to wake the engine up and to see how fast it is.
_PROBE_TOKENS = 512
_SHAPES = 10


@dataclass(frozen=True, slots=True)
class Shape:
    """A batch as the encoder sees it: rows × length, all padded to the length."""

    rows: int
    length: int

    @property
    def padded_tokens(self) -> int:
        """Tokens and padding."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a call: `per_call + per_token * n + per_token_length * n * L` of n tokens.

    The last term is attention, whose cost grows with the square of the length.
    """

    per_call: float
    per_token: float
    per_token_length: float

    def seconds(self, shape: Shape) -> float:
        """What one call costs."""
        tokens = shape.padded_tokens
        return (
            self.per_call + self.per_token * tokens + self.per_token_length * tokens * shape.length
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured: the model, the calls it rests on, and the vectors they gave.

    first_call_seconds: what the first call took more than the model says; calls: shape and
    seconds of each; relative_error: of the model on these calls, root mean square; is_reduced:
    batches were smaller than a run's, as those would have taken too long; rows: int32 [B], of
    `vectors`.
    """

    model: CostModel
    first_call_seconds: float
    calls: tuple[tuple[Shape, float], ...]
    relative_error: float
    is_reduced: bool
    rows: Int32Array
    vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]]

    @property
    def tokens_per_second(self) -> float:
        """Padded tokens of the timed calls, by their time."""
        seconds = sum(spent for _, spent in self.calls)
        return sum(shape.padded_tokens for shape, _ in self.calls) / seconds if seconds else 0.0


def fit_costs(calls: Sequence[tuple[Shape, float]]) -> CostModel:
    """Fit the model to timed calls by least squares of the relative error; no term is negative.

    Raises: ValueError if there is no call.
    """
    if not calls:
        raise ValueError("no calls to fit; wanted at least one")
    seconds = np.array([spent for _, spent in calls])
    tokens = np.array([float(shape.padded_tokens) for shape, _ in calls])
    lengths = np.array([float(shape.length) for shape, _ in calls])
    terms = np.stack([np.ones_like(tokens), tokens, tokens * lengths], axis=1)
    weighted = terms / seconds[:, np.newaxis]
    best: tuple[float, Float64Array] | None = None
    # With three terms every set of those that may be above zero can be tried.
    for count in range(1, min(3, len(calls)) + 1):
        for chosen in itertools.combinations(range(3), count):
            found = np.linalg.lstsq(weighted[:, chosen], np.ones(len(calls)), rcond=None)[0]
            if (found < 0).any():
                continue
            error = float(np.square(weighted[:, chosen] @ found - 1).sum())
            if best is None or error < best[0] - 1e-12:
                coefficients = np.zeros(3)
                coefficients[list(chosen)] = found
                best = error, coefficients
    assert best is not None  # one term alone is never negative
    return CostModel(*(float(value) for value in best[1]))


def choose_batches(batches: Sequence[Batch], *, count: int = _SHAPES) -> list[Batch]:
    """At most `count` of a run's batches, spread over them by their share of the cost.

    The longest and the shortest are among them.
    """
    if len(batches) <= count:
        return list(batches)
    ordered = sorted(batches, key=lambda batch: -batch.length)
    ends = np.cumsum([batch.padded_tokens for batch in ordered])
    wanted = np.linspace(0, float(ends[-1]), count)
    places = np.minimum(np.searchsorted(ends, wanted), len(ordered) - 1)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def calibrate(
    engine: Engine,
    *,
    tokens: TokenBatch,
    batches: Sequence[Batch],
    budget_seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Calibration:
    """Time batches as the run would plan them, each shape once, as a run meets most of them.

    Args:
      tokens: the sampled rows that the batches' row numbers mean; at least one.
      batches: of a typical chunk.
      budget_seconds: about so long, longer only where a single row takes it.
    Raises: what the engine raises.
    """

    def measure(batch: Batch) -> tuple[float, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        inputs = pad_batch(tokens, rows=batch.rows, length=batch.length)
        started = clock()
        vectors = engine.encode(inputs)
        return max(1e-6, clock() - started), vectors

    began = clock()
    lengths = np.diff(tokens.offsets).astype(np.int32)
    middle = sorted(batches, key=lambda batch: batch.length)[len(batches) // 2]
    probe = _shrink(middle, lengths=lengths, padded_tokens=_PROBE_TOKENS)
    first_seconds, first_vectors = measure(probe)
    again_seconds, _ = measure(probe)
    rate = probe.padded_tokens / again_seconds
    chosen = choose_batches(batches)
    total = sum(batch.padded_tokens for batch in chosen)
    left = max(budget_seconds - (clock() - began), budget_seconds / 4)
    scale = min(1.0, left * rate / total)
    calls: list[tuple[Shape, float]] = []
    rows, vectors = [probe.rows], [first_vectors]
    for batch in chosen:
        part = _shrink(batch, lengths=lengths, padded_tokens=int(batch.padded_tokens * scale))
        spent, found = measure(part)
        calls.append((Shape(len(part), part.length), spent))
        rows.append(part.rows)
        vectors.append(found)
        if clock() - began > 2 * budget_seconds and len(calls) >= 2:
            break
    model = fit_costs(calls)
    errors = [model.seconds(shape) / spent - 1 for shape, spent in calls]
    return Calibration(
        model=model,
        first_call_seconds=max(0.0, first_seconds - again_seconds),
        calls=tuple(calls),
        relative_error=float(np.sqrt(np.mean(np.square(errors)))),
        is_reduced=scale < 1,
        rows=np.concatenate(rows),
        vectors=np.concatenate(vectors),
    )


def _shrink(batch: Batch, *, lengths: Int32Array, padded_tokens: int) -> Batch:
    """The first rows of a batch, so that it has about so many tokens; at least one row."""
    if batch.padded_tokens <= padded_tokens:
        return batch
    rows = batch.rows[: max(1, padded_tokens // batch.length)]
    return Batch(rows, int(lengths[rows].max()))


def plan_chunk(lengths: Int32Array, *, rows: int, batch_tokens: int, seed: int = 0) -> list[Batch]:
    """The batches of a chunk of so many rows, drawn from a sample's lengths.

    Row numbers of the batches are places in `lengths`; each occurs once where the chunk has as many
    rows as the sample.
    """
    if rows == len(lengths):
        drawn = np.arange(rows, dtype=np.int32)
    else:
        drawn = np.random.default_rng(seed).integers(0, len(lengths), rows).astype(np.int32)
    return [
        Batch(drawn[batch.rows], batch.length)
        for batch in plan_batches(lengths[drawn], batch_tokens=batch_tokens)
    ]

"""What the report says of vectors: gathered file by file while the files are written.

One pass over what is in memory anyway, some operations a value; the rest is done once, over sums
and a sample of bounded size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.records import FileSummary, Float64Array, FloatArray, Int64Array, RowSample
from transforms.runtime import PeakMemory, measure_memory

SAMPLE_ROWS = 2000
NORM_BINS_PER_OCTAVE = 256
_NORM_OCTAVES = 60
_TEXT_LETTERS = 80
_ID_LETTERS = 120
_VALUE_LETTERS = 60
_HASH_LETTERS = 16
_MOST_FIELDS = 8
# So many rows at a time that their squares stay in the processor's cache.
_BLOCK_ROWS = 256


def sample_step(rows: int) -> int:
    """Of `rows` rows each so-many-th is sampled, so that there are at most SAMPLE_ROWS."""
    return max(1, -(-rows // SAMPLE_ROWS))


class SummaryBuilder:
    """Gathers a `FileSummary` while a file is written.

    Args:
      index: the file's; first_row: the output's rows before it; sample_every: see `FilePlan`.
      width: of the vectors; metadata: the schema of the carried fields.
    """

    def __init__(
        self, *, index: int, first_row: int, sample_every: int, width: int, metadata: pa.Schema
    ) -> None:
        self._index = index
        self._next_row = first_row
        self._sample_every = sample_every
        self._rows = 0
        self._lengths = np.zeros(1, np.int64)
        self._norm_bins: Counter[int] = Counter()
        self._norm_low, self._norm_high = math.inf, 0.0
        self._norm_sum = self._norm_square_sum = 0.0
        self._sums, self._square_sums, self._unit_sums = np.zeros((3, width), np.float64)
        self._fields = _find_fields(metadata)
        self._samples = [_empty_sample(width, self._fields)]

    def add(self, table: pa.Table, *, vectors: FloatArray) -> None:
        """Count the file's next rows: its columns, and their vectors, float32 [B, H]."""
        self._sample(table, vectors)
        self._rows += len(table)
        self._next_row += len(table)
        lengths = np.bincount(table["n_tokens"].to_numpy()).astype(np.int64)
        self._lengths = _add_padded(self._lengths, lengths)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            norms = [
                self._add_block(vectors[start : start + _BLOCK_ROWS])
                for start in range(0, len(vectors), _BLOCK_ROWS)
            ]
            if norms:
                self._add_norms(np.concatenate(norms).astype(np.float64))

    def _add_block(self, block: FloatArray) -> FloatArray:
        # Sums as products with ones, which read the block once, several times as fast as np.sum.
        squares = np.square(block)
        norms: FloatArray = np.sqrt(squares @ np.ones(block.shape[1], np.float32))
        usable = (norms > 0) & np.isfinite(norms)
        weights = np.stack([np.ones_like(norms), np.where(usable, 1 / norms, 0)])
        sums, unit_sums = weights.astype(np.float32) @ block
        self._sums += sums
        self._unit_sums += unit_sums
        self._square_sums += np.ones_like(norms) @ squares
        return norms

    def _add_norms(self, norms: Float64Array) -> None:
        self._norm_low = min(self._norm_low, float(norms.min()))
        self._norm_high = max(self._norm_high, float(norms.max()))
        self._norm_sum += float(norms.sum())
        self._norm_square_sum += float(norms @ norms)
        most = _NORM_OCTAVES * NORM_BINS_PER_OCTAVE
        bins = np.clip(np.floor(np.log2(norms) * NORM_BINS_PER_OCTAVE), -most, most)
        numbers, counts = np.unique(np.nan_to_num(bins).astype(np.int64), return_counts=True)
        self._norm_bins.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))

    def _sample(self, table: pa.Table, vectors: FloatArray) -> None:
        rows = np.arange(-self._next_row % self._sample_every, len(table), self._sample_every)
        if not len(rows):
            return
        names = ["id", "text_sha256", "n_tokens", *(name for name, _ in self._fields)]
        names += ["text"] if "text" in table.schema.names else []
        picked = table.select(names).take(pa.array(rows))
        texts = None
        if "text" in names:
            texts = tuple(_cut(text, _TEXT_LETTERS) for text in picked["text"].to_pylist())
        self._samples.append(
            RowSample(
                ids=tuple(_cut(one, _ID_LETTERS) for one in picked["id"].to_pylist()),
                texts=texts,
                hashes=tuple(one[:_HASH_LETTERS] for one in picked["text_sha256"].to_pylist()),
                vectors=vectors[rows],
                n_tokens=picked["n_tokens"].to_numpy(),
                metadata=tuple(
                    (name, kind, _values(picked[name], kind=kind)) for name, kind in self._fields
                ),
            )
        )

    def finish(self, *, seconds: float) -> FileSummary:
        """The summary of all that was added."""
        return FileSummary(
            index=self._index,
            rows=self._rows,
            lengths=self._lengths,
            norm_bins=tuple(sorted(self._norm_bins.items())),
            norm_low=self._norm_low,
            norm_high=self._norm_high,
            norm_sum=self._norm_sum,
            norm_square_sum=self._norm_square_sum,
            sums=self._sums,
            square_sums=self._square_sums,
            unit_sums=self._unit_sums,
            sample=_join_samples(self._samples),
            seconds=seconds,
            memory=measure_memory(),
        )


def merge_summaries(summaries: Iterable[FileSummary]) -> FileSummary | None:
    """The summary of all files as one, the same whatever order they come in; of none, None."""
    ordered = sorted(summaries, key=lambda one: one.index)
    if not ordered:
        return None
    bins: Counter[int] = Counter()
    lengths = np.zeros(1, np.int64)
    for one in ordered:
        bins.update(dict(one.norm_bins))
        lengths = _add_padded(lengths, one.lengths)
    return FileSummary(
        index=0,
        rows=sum(one.rows for one in ordered),
        lengths=lengths,
        norm_bins=tuple(sorted(bins.items())),
        norm_low=min(one.norm_low for one in ordered),
        norm_high=max(one.norm_high for one in ordered),
        norm_sum=sum(one.norm_sum for one in ordered),
        norm_square_sum=sum(one.norm_square_sum for one in ordered),
        sums=np.sum([one.sums for one in ordered], axis=0),
        square_sums=np.sum([one.square_sums for one in ordered], axis=0),
        unit_sums=np.sum([one.unit_sums for one in ordered], axis=0),
        sample=_join_samples([one.sample for one in ordered]),
        seconds=sum(one.seconds for one in ordered),
        memory=sum((one.memory for one in ordered), start=PeakMemory()),
    )


def _add_padded(left: Int64Array, right: Int64Array) -> Int64Array:
    if len(left) < len(right):
        left, right = right, left
    total = left.copy()
    total[: len(right)] += right
    return total


def _find_fields(metadata: pa.Schema) -> tuple[tuple[str, str], ...]:
    """The first fields that points can be coloured by, with their kinds."""
    found = []
    for one in metadata:
        kind = one.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            found.append((one.name, "number"))
        elif pa.types.is_boolean(kind) or pa.types.is_date(kind) or _is_string(kind):
            found.append((one.name, "category"))
    return tuple(found[:_MOST_FIELDS])


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _values(column: pa.ChunkedArray, *, kind: str) -> tuple[str | float | None, ...]:
    if kind == "number":
        return tuple(
            None if value is None or not math.isfinite(value) else float(value)
            for value in column.to_pylist()
        )
    texts = cast("list[str | None]", pc.cast(column, pa.string()).to_pylist())
    return tuple(None if value is None else _cut(value, _VALUE_LETTERS) for value in texts)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[:letters] + "…"


def _empty_sample(width: int, fields: Sequence[tuple[str, str]]) -> RowSample:
    nothing: Any = np.zeros(0, np.int32)
    metadata = tuple((name, kind, ()) for name, kind in fields)
    return RowSample((), None, (), np.zeros((0, width), np.float32), nothing, metadata)


def _join_samples(samples: Sequence[RowSample]) -> RowSample:
    filled = [one for one in samples if one.ids] or list(samples[:1])
    first = filled[0]
    return RowSample(
        ids=tuple(one for part in filled for one in part.ids),
        texts=None
        if first.texts is None
        else tuple(one for part in filled for one in part.texts or ()),
        hashes=tuple(one for part in filled for one in part.hashes),
        vectors=np.concatenate([part.vectors for part in filled]),
        n_tokens=np.concatenate([part.n_tokens for part in filled]),
        metadata=tuple(
            (name, kind, tuple(one for part in filled for one in part.metadata[number][2]))
            for number, (name, kind, _) in enumerate(first.metadata)
        ),
    )

"""The rows nearest to a vector: exact, over any number of rows, in bounded memory.

Blocks of rows go through a float32 product; whatever its rounding may have kept out of the best k
is scored again in float64, so the answer is that of float64 arithmetic on the stored vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms import scan
from transforms.committed import CommittedFile, list_committed
from transforms.errors import ConfigError, InputError
from transforms.records import FloatArray

METRICS = ("cosine", "dot")

# Row groups that are searched at the same time; decoding them is most of the work.
_MAX_THREADS = 8
_HIDDEN_COLUMNS = ("id", "n_tokens", "truncated", "text_sha256")

_Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Hit:
    """A row near the query. file: `CommittedFile.index`; row: its number in the file."""

    score: float
    id: str
    file: int
    row: int


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The nearest rows, best first, and how many rows were looked at or could not be."""

    hits: tuple[Hit, ...]
    rows: int
    rows_not_finite: int = 0


class NearestRows:
    """The best k rows seen so far; ties go to the lesser id.

    Args:
      query: [W], finite; not zero where the metric is cosine.
      k: how many rows are kept.
      metric: cosine or dot. A vector of zeros has the cosine 0.
      skip_id: a row that is left out.
    Raises: ConfigError for an unknown metric or k < 1; ValueError for a query as above.
    """

    def __init__(
        self, query: npt.ArrayLike, *, k: int, metric: str = "cosine", skip_id: str | None = None
    ) -> None:
        if metric not in METRICS:
            raise ConfigError(f"metric={metric!r} is unknown; choose one of {', '.join(METRICS)}")
        if k < 1:
            raise ConfigError(f"k={k}; wanted at least 1")
        self._query: _Scores = np.asarray(query, np.float64)
        self._norm = float(np.linalg.norm(self._query))
        if not np.isfinite(self._norm) or (metric == "cosine" and self._norm == 0):
            raise ValueError("the query's vector is zero or not finite, so nothing is near it")
        self._k = k
        self._metric = metric
        self._skip_id = skip_id
        self._scores: _Scores = np.zeros(0)
        self._ids: list[str] = []
        self._places: list[tuple[int, int]] = []
        self.rows = 0
        self.rows_not_finite = 0

    def add(self, ids: pa.StringArray, vectors: FloatArray, *, file: int, first_row: int) -> None:
        """Look at B consecutive rows of a file: ids [B], vectors float32 [B, W]."""
        self.rows += len(vectors)
        if not len(vectors):
            return
        rough, slack = self._score_roughly(vectors)
        bad = ~np.isfinite(rough)
        self.rows_not_finite += int(bad.sum())
        rough[bad] = -np.inf
        # At most k + 1 rows of this block can be among the best, if one of them is skipped.
        cut = np.partition(rough, -self._k - 1)[-self._k - 1] if len(rough) > self._k else -np.inf
        if len(self._scores) == self._k:
            cut = max(cut, float(self._scores[-1]))
        places = np.flatnonzero((rough >= cut - slack) & ~bad)
        if len(places):
            self._score(ids.take(pa.array(places)), vectors[places], file, first_row + places)

    def finish(self) -> SearchResult:
        """The nearest rows of all that were added."""
        hits = tuple(
            Hit(float(score), key, *place)
            for score, key, place in zip(self._scores, self._ids, self._places, strict=True)
        )
        return SearchResult(hits, self.rows, self.rows_not_finite)

    def _score_roughly(self, vectors: FloatArray) -> tuple[FloatArray, float]:
        """float32 scores [B], and by how much two of them may be off together."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            # Not `@`: BLAS would start threads for each small product, and they spin beside those
            # that decode; a million rows of 384 then took half as long again.
            rough: FloatArray = np.einsum("ij,j->i", vectors, self._query.astype(np.float32))
            norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
            # A sum of W products in float32 is off by W * 2^-24 of the product of the norms at
            # most; doubled for the norms, and again as two scores are compared.
            unit = 4 * (vectors.shape[1] + 8) * 2.0**-24
            if self._metric == "dot":
                largest = np.max(norms, initial=0.0, where=np.isfinite(norms))
                return rough, unit * self._norm * float(largest)
            scale = np.where(norms > 0, norms * np.float32(self._norm), np.float32(1))
            return np.divide(rough, scale, out=rough), unit

    def _score(
        self, ids: pa.StringArray, vectors: FloatArray, file: int, rows: npt.NDArray[np.int64]
    ) -> None:
        exact = vectors.astype(np.float64)
        # Row by row and not as a product of matrices, whose rounding depends on the row's place:
        # equal vectors get equal scores.
        scores = (exact * self._query).sum(axis=1)
        if self._metric == "cosine":
            norms = np.sqrt((exact * exact).sum(axis=1))
            scores = scores / (np.where(norms > 0, norms, 1.0) * self._norm)
        places = [(file, row) for row in rows.tolist()]
        self._keep_best(scores, [key or "" for key in ids.to_pylist()], places)

    def merge(self, other: NearestRows) -> None:
        """Take in what was found for the same query among other rows."""
        self.rows += other.rows
        self.rows_not_finite += other.rows_not_finite
        self._keep_best(other._scores, other._ids, other._places)

    def _keep_best(self, scores: _Scores, ids: list[str], places: list[tuple[int, int]]) -> None:
        every = np.concatenate([self._scores, scores])
        keys, where = [*self._ids, *ids], [*self._places, *places]
        order = sorted(
            (place for place in range(len(keys)) if keys[place] != self._skip_id),
            key=lambda place: (-every[place], keys[place], where[place]),
        )[: self._k]
        self._scores = every[np.array(order, np.int64)]
        self._ids = [keys[place] for place in order]
        self._places = [where[place] for place in order]


def search_rows(
    output: str,
    manifest: Mapping[str, Any],
    *,
    query: npt.ArrayLike,
    k: int,
    metric: str = "cosine",
    skip_id: str | None = None,
) -> SearchResult:
    """Find the k rows of a committed output that are nearest to `query`, [W].

    Raises: InputError if a file cannot be read; ConfigError as `NearestRows` does.
    """
    embedding, width = scan.embedding_column(manifest)
    nearest = NearestRows(query, k=k, metric=metric, skip_id=skip_id)
    blocks = [
        (file, block)
        for file in list_committed(output, dict(manifest))
        for block in scan.list_blocks(file)
    ]

    def search_block(place: tuple[CommittedFile, scan.Block]) -> NearestRows:
        best = NearestRows(query, k=k, metric=metric, skip_id=skip_id)
        for first, ids, vectors in _iterate_vectors(*place, embedding=embedding, width=width):
            best.add(ids, vectors, file=place[0].index, first_row=first)
        return best

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    for best in scan.read_ahead(blocks, search_block, threads=threads):
        nearest.merge(best)
    return nearest.finish()


def _iterate_vectors(
    file: CommittedFile, block: scan.Block, *, embedding: str, width: int
) -> Iterator[tuple[int, pa.StringArray, FloatArray]]:
    """Yield first row, ids [B] and vectors [B, W] of a block's rows. Raises: InputError."""
    columns = ["id", embedding]
    for first, table in scan.read_block(file, block, columns=columns, embedding=embedding):
        vectors, whole = scan.to_matrix(table[embedding], width=width)
        if not whole.all():
            row = first + int(np.flatnonzero(~whole)[0])
            raise InputError(
                f"{file.path} row {row}: the vector is not {width} numbers; see python -m "
                "pipeline.verify, restore the file, or make the output again"
            )
        chunks = table["id"].chunks
        yield first, chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks), vectors


def find_row(output: str, manifest: Mapping[str, Any], row_id: str) -> tuple[Hit, FloatArray]:
    """The row with an id, and its vector.

    Raises: ConfigError if there is none; InputError if a file cannot be read.
    """
    embedding, _ = scan.embedding_column(manifest)
    for file in list_committed(output, dict(manifest)):
        for block in scan.list_blocks(file):
            for first, table in scan.read_block(file, block, columns=["id"], embedding=embedding):
                place = pc.index(table["id"], pa.scalar(row_id, pa.string())).as_py()
                if place >= 0:
                    row = first + place
                    there = scan.read_rows(file, [row], columns=[embedding], embedding=embedding)
                    vector = np.asarray(there[row][embedding], np.float32)
                    return Hit(1.0, row_id, file.index, row), vector
    raise ConfigError(
        f"--id={row_id}: none of the {manifest['totals']['rows']:,} rows of {output} has this id; "
        "ids are compared letter by letter"
    )


def shown_columns(manifest: Mapping[str, Any]) -> list[str]:
    """The columns that are shown unless others are asked for: text, pair and metadata."""
    embedding, _ = scan.embedding_column(manifest)
    names = [str(column["name"]) for column in manifest["columns"]]
    return [name for name in names if name not in (*_HIDDEN_COLUMNS, embedding)]


def read_hits(
    output: str, manifest: Mapping[str, Any], hits: Sequence[Hit], *, columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Columns of the rows that were found, in their order."""
    if not columns:
        return [{} for _ in hits]
    embedding, _ = scan.embedding_column(manifest)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for file in list_committed(output, dict(manifest)):
        rows = [hit.row for hit in hits if hit.file == file.index]
        if rows:
            values = scan.read_rows(file, rows, columns=columns, embedding=embedding)
            found.update(((file.index, row), value) for row, value in values.items())
    return [found[hit.file, hit.row] for hit in hits]

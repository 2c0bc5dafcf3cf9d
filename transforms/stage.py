"""Staged parts: vectors on disk as they come, so that a killed run goes on where it was.

A part holds vectors of some rows of one chunk. Its folder is named by what determines a vector
(the fingerprint and the chunk's texts), its file by the sha256 of its bytes. Parts of one chunk
may overlap after a retry; both say the same, and the first by name counts.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms import failure, progress, spool, storage
from transforms.committed import CommittedFile, VectorReader
from transforms.errors import ConservationError
from transforms.records import (
    Chunk,
    ChunkKey,
    ChunkTexts,
    ChunkWork,
    CorpusTotals,
    FileCount,
    FinishedChunk,
    Int32Array,
    Part,
    RowFailure,
    RowFields,
    StagedRejects,
    VectorBatch,
)
from transforms.reuse import take_over
from transforms.select import check_reject_rate, chunk_name, key_by_chunk, reject_rows

PARTS_FOLDER = "_work/parts"
REUSED_PREFIX = "reused-"


def parts_folder(output: str, fingerprint: str, text_digest: str) -> str:
    """Where a chunk's parts are."""
    return storage.join(output, PARTS_FOLDER, fingerprint[:16], text_digest[:32])


def write_part(piece: VectorBatch, *, folder: str, prefix: str = "") -> str:
    """Write vectors of some rows; returns the path. Writing the same again changes nothing."""
    width = piece.vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(piece.vectors, np.float32).reshape(-1))
    table = pa.table(
        {
            "row": pa.array(piece.rows.astype(np.int32)),
            "vector": pa.FixedSizeListArray.from_arrays(flat, width),
            "n_tokens": pa.array(piece.n_tokens),
            "truncated": pa.array(piece.truncated),
        }
    )
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:  # floats do not compress
        writer.write_table(table)
    data = sink.getbuffer()
    path = storage.join(folder, f"{prefix}{hashlib.sha256(data).hexdigest()}.arrow")
    storage.put_bytes(path, data)
    return path


def read_part(path: str) -> VectorBatch:
    """Read a part back."""
    table = spool.read_table(path).combine_chunks()
    vector = table["vector"].chunk(0)
    return VectorBatch(
        rows=table["row"].to_numpy(),
        vectors=vector.flatten().to_numpy().reshape(len(table), vector.type.list_size),
        n_tokens=table["n_tokens"].to_numpy(),
        truncated=table["truncated"].to_numpy(),
    )


def find_parts(folder: str, *, key: ChunkKey) -> list[Part]:
    """The sound parts in a chunk's folder; damaged ones are deleted.

    A part is sound if its bytes have the sha256 that its name says.
    """
    sound: list[Part] = []
    for name in sorted(storage.list_files(folder)):
        path = storage.join(folder, name)
        digest = name.removesuffix(".arrow").removeprefix(REUSED_PREFIX)
        if storage.digest_file(path).sha256 != digest:
            storage.delete_files([path])
            continue
        rows = spool.read_table(path, ["row"])["row"].to_numpy()
        source = "reused" if name.startswith(REUSED_PREFIX) else "resumed"
        sound.append(Part(key, path, rows, source))
    return sound


def remaining_rows(work: ChunkWork, staged: Iterable[Int32Array]) -> Int32Array:
    """Rows of a chunk that are neither dropped nor staged, in order."""
    wanted = np.ones(work.chunk.rows, bool)
    wanted[work.dropped] = False
    for rows in staged:
        wanted[rows] = False
    return np.flatnonzero(wanted).astype(np.int32)


def finish_chunk(
    work: ChunkWork, parts: Iterable[Part], rejects: Iterable[StagedRejects]
) -> FinishedChunk:
    """Put a chunk's parts and rejects together and check that no row is lost or doubled.

    Raises: ConservationError if rows != vectors + rejects.
    """
    chunk = work.chunk
    have = np.zeros(chunk.rows, bool)
    ordered = sorted(parts, key=lambda part: part.path)
    sources = {source: np.zeros(chunk.rows, bool) for source in ("resumed", "reused")}
    for part in ordered:
        if part.source in sources:
            sources[part.source][part.rows[~have[part.rows]]] = True
        have[part.rows] = True
    have[work.dropped] = False
    failed = list(rejects)
    failures = sum(staged.rows for staged in failed)
    kept = np.flatnonzero(have).astype(np.int32)
    if len(kept) + len(work.dropped) + failures != chunk.rows:
        raise ConservationError(
            f"chunk {chunk_name(chunk.key)}: {chunk.rows:,} rows, but {len(kept):,} vectors, "
            f"{len(work.dropped):,} dropped and {failures:,} rejected; nothing was committed. "
            "Run the same command again; if it stays so, report it with _work/run.json"
        )
    files = count_vectors(chunk, kept)
    before = [staged for staged in (chunk.rejects, work.rejects) if staged is not None]
    return FinishedChunk(
        chunk=chunk,
        parts=tuple(part.path for part in ordered),
        kept=kept,
        resumed_rows=int((sources["resumed"] & have).sum()),
        reused_rows=int((sources["reused"] & have).sum()),
        files=files,
        rejects=(*before, *failed),
    )


def count_vectors(chunk: Chunk, kept: Int32Array) -> tuple[FileCount, ...]:
    """A chunk's counts per input file, now that it is known which rows have a vector."""
    if len(chunk.files) == 1:
        (only,) = chunk.files
        return (FileCount(only.file, only.rows_read, only.rows_read - len(kept), len(kept)),)
    files = spool.read_table(chunk.path, ["file"])["file"].to_numpy()
    vectors = Counter(files[kept].tolist())
    return tuple(
        FileCount(
            count.file, count.rows_read, count.rows_read - vectors[count.file], vectors[count.file]
        )
        for count in chunk.files
    )


class _LoadDoFn(beam.DoFn):
    """Reads a chunk's texts back, less the rows that are dropped, staged or reused."""

    def __init__(
        self,
        *,
        output: str,
        fingerprint: str,
        earlier: Sequence[CommittedFile],
        keep_truncated: bool,
    ) -> None:
        self._output = output
        self._fingerprint = fingerprint
        self._earlier = list(earlier)
        self._keep_truncated = keep_truncated
        self._reader = VectorReader(embedding="embedding")
        self._resumed = beam.metrics.Metrics.counter("stage", "rows_resumed")
        self._reused = beam.metrics.Metrics.counter("stage", "rows_reused")

    def process(
        self, work: ChunkWork, totals: CorpusTotals
    ) -> Iterator[ChunkTexts | beam.pvalue.TaggedOutput[Any, Any]]:
        chunk = work.chunk
        folder = parts_folder(self._output, self._fingerprint, chunk.text_digest)
        parts = find_parts(folder, key=chunk.key)
        rows = remaining_rows(work, (part.rows for part in parts))
        self._resumed.inc(chunk.rows - len(work.dropped) - len(rows))
        for batch in take_over(
            chunk,
            work.reuse,
            rows=rows,
            files=self._earlier,
            reader=self._reader,
            keep_truncated=self._keep_truncated,
        ):
            path = write_part(batch, folder=folder, prefix=REUSED_PREFIX)
            parts.append(Part(chunk.key, path, batch.rows, "reused"))
            self._reused.inc(len(batch))
        for part in parts:
            yield beam.pvalue.TaggedOutput("parts", key_by_chunk(part))
        rows = remaining_rows(work, (part.rows for part in parts))
        skipped = chunk.rows - len(work.dropped) - len(rows)
        progress.record(self._output, progress.Facts(rows_skipped=skipped))
        if not len(rows):
            return
        has_pair = "pair" in _columns(chunk)
        table = spool.read_table(chunk.path, ["text", "pair"] if has_pair else ["text"])
        table = table.take(pa.array(rows)).combine_chunks()
        yield ChunkTexts(
            key=chunk.key,
            text_digest=chunk.text_digest,
            rows=rows,
            texts=table["text"].chunk(0),
            pairs=table["pair"].chunk(0) if has_pair else None,
        )


def _columns(chunk: Chunk) -> list[str]:
    with storage.open_arrow(chunk.path) as source:
        return list(pa.ipc.open_file(source).schema.names)


class LoadChunks(beam.PTransform[Any, Any]):
    """`ChunkWork` in; outputs `texts` (`ChunkTexts`) and `parts` that are there already.

    Args:
      after: one `CorpusTotals`; nothing is loaded before it is there.
      earlier: the files of the output that vectors are taken over from.
      keep_truncated: False where long texts are rejects.
    """

    def __init__(
        self,
        output: str,
        *,
        fingerprint: str,
        after: beam.PCollection[Any],
        earlier: Sequence[CommittedFile] = (),
        keep_truncated: bool = True,
    ) -> None:
        super().__init__()
        self._dofn = _LoadDoFn(
            output=output,
            fingerprint=fingerprint,
            earlier=earlier,
            keep_truncated=keep_truncated,
        )
        self._after = after

    def expand(self, work: beam.PCollection[Any]) -> Any:
        return work | beam.ParDo(
            self._dofn, totals=beam.pvalue.AsSingleton(self._after)
        ).with_outputs("parts", main="texts")


class _LimitFailuresDoFn(beam.DoFn):
    """Ends the run as soon as this worker alone has seen more rejects than may be."""

    def __init__(self, *, output: str, max_reject_rate: float) -> None:
        self._output = output
        self._max_reject_rate = max_reject_rate
        self._seen: Counter[str] = Counter()

    def process(
        self, element: tuple[ChunkTexts, tuple[RowFailure, ...]], totals: CorpusTotals
    ) -> Iterator[tuple[ChunkTexts, tuple[RowFailure, ...]]]:
        self._seen.update(one.reason for one in element[1])
        with failure.recorded(self._output):
            check_reject_rate(
                dict(self._seen + Counter(dict(totals.rejects))),
                totals.rows_read,
                max_reject_rate=self._max_reject_rate,
            )
        yield element


class LimitFailures(beam.PTransform[Any, Any]):
    """Pass failures on while they are few enough; a run with too many ends at once."""

    def __init__(
        self, output: str, *, max_reject_rate: float, totals: beam.PCollection[Any]
    ) -> None:
        super().__init__()
        self._dofn = _LimitFailuresDoFn(output=output, max_reject_rate=max_reject_rate)
        self._totals = totals

    def expand(self, failures: beam.PCollection[Any]) -> Any:
        return failures | beam.ParDo(self._dofn, totals=beam.pvalue.AsSingleton(self._totals))


class _StagePartDoFn(beam.DoFn):
    def __init__(self, *, output: str, fingerprint: str) -> None:
        self._output = output
        self._fingerprint = fingerprint

    def process(
        self, element: tuple[ChunkTexts, VectorBatch]
    ) -> Iterator[tuple[tuple[int, int], Part]]:
        texts, piece = element
        moved = VectorBatch(
            rows=texts.rows[piece.rows],
            vectors=piece.vectors,
            n_tokens=piece.n_tokens,
            truncated=piece.truncated,
        )
        folder = parts_folder(self._output, self._fingerprint, texts.text_digest)
        path = write_part(moved, folder=folder)
        yield key_by_chunk(Part(texts.key, path, moved.rows))


class StageParts(beam.PTransform[Any, Any]):
    """Write `(ChunkTexts, VectorBatch)` pieces to the work folder; keyed `Part` records out."""

    def __init__(self, output: str, *, fingerprint: str) -> None:
        super().__init__()
        self._dofn = _StagePartDoFn(output=output, fingerprint=fingerprint)

    def expand(self, pieces: beam.PCollection[Any]) -> Any:
        return pieces | beam.ParDo(self._dofn)


def key_failures(
    element: tuple[ChunkTexts, tuple[RowFailure, ...]],
) -> tuple[tuple[int, int], tuple[RowFailure, ...]]:
    """Failures keyed by chunk, their rows numbered within the chunk."""
    texts, failures = element
    moved = tuple(replace(one, row=int(texts.rows[one.row])) for one in failures)
    return (texts.key.task, texts.key.number), moved


class _FinishDoFn(beam.DoFn):
    def __init__(self, *, output: str, fields: RowFields, paths: list[str]) -> None:
        self._output = output
        self._fields = fields
        self._paths = paths

    def process(
        self, element: tuple[tuple[int, int], dict[str, Iterable[Any]]]
    ) -> Iterator[FinishedChunk]:
        grouped = element[1]
        for work in grouped["work"]:
            failures: dict[int, RowFailure] = {}
            for found in grouped["failures"]:
                failures.update((one.row, one) for one in found)
            # A row may both fail in one attempt and be staged by another: the vector counts.
            parts = list(grouped["parts"])
            for part in parts:
                for row in np.intersect1d(part.rows, list(failures)):
                    del failures[int(row)]
            staged = self._stage_failures(work.chunk, failures)
            yield finish_chunk(work, parts, staged)

    def _stage_failures(self, chunk: Chunk, failures: dict[int, RowFailure]) -> list[StagedRejects]:
        rows = sorted(failures)
        if not rows:
            return []
        rejects = reject_rows(
            chunk,
            np.array(rows, np.int32),
            causes=[failures[row] for row in rows],
            fields=self._fields,
            paths=self._paths,
        )
        staged = spool.stage_rejects(self._output, f"{chunk_name(chunk.key)}-2encode", rejects)
        return [] if staged is None else [staged]


class FinishChunks(beam.PTransform[Any, Any]):
    """Join work, parts and failures by chunk; `FinishedChunk` out, each checked to add up.

    In: `work` (ChunkWork), `parts` (keyed Part), `failures` ((ChunkTexts, failures) pairs).
    """

    def __init__(self, output: str, *, fields: RowFields, paths: list[str]) -> None:
        super().__init__()
        self._dofn = _FinishDoFn(output=output, fields=fields, paths=paths)

    def expand(self, inputs: dict[str, beam.PCollection[Any]]) -> Any:
        joined = {
            "work": inputs["work"] | "KeyWork" >> beam.Map(key_by_chunk),
            "parts": inputs["parts"],
            "failures": inputs["failures"] | "KeyFailures" >> beam.Map(key_failures),
        }
        return joined | "JoinParts" >> beam.CoGroupByKey() | beam.ParDo(self._dofn)

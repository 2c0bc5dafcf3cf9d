"""From staged parts to output files: balanced, in corpus order, one schema, and the rejects."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, cast

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from transforms import failure, progress, spool, stage, storage
from transforms.records import (
    CorpusTotals,
    FilePlan,
    FileSlice,
    FileSummary,
    FinishedChunk,
    OutputFile,
    RejectExample,
    RejectsPlan,
)
from transforms.select import OutputLayout
from transforms.summary import SummaryBuilder, sample_step
from transforms.writers import find_writer, vector_array, vector_matrix

FINAL_FOLDER = "_work/final"
_REJECTS_PER_FILE = 100_000
_EXAMPLES = 5
_MESSAGE_LETTERS = 300


def plan_files(
    chunks: Iterable[FinishedChunk], *, rows_per_file: int, schema: bytes
) -> list[FilePlan]:
    """Cut all kept rows, in corpus order, into files whose sizes differ by one row at most.

    A corpus without rows gets one file without rows.
    """
    ordered = sorted(chunks, key=lambda done: (done.chunk.key.task, done.chunk.key.number))
    ends = np.cumsum([len(done.kept) for done in ordered], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    count = max(1, -(-total // rows_per_file))
    every = sample_step(total)
    plans = []
    for index in range(count):
        first_row = start = total * index // count
        stop = total * (index + 1) // count
        slices = []
        first = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            done = ordered[first]
            base = int(ends[first]) - len(done.kept)
            upto = min(stop, int(ends[first]))
            if upto > start:
                slices.append(FileSlice(done, start - base, upto - base))
            start, first = upto, first + 1
        plans.append(FilePlan(index, count, tuple(slices), schema, first_row, every))
    return plans


def plan_rejects(chunks: Iterable[FinishedChunk], extra: Iterable[Any] = ()) -> list[RejectsPlan]:
    """Group staged reject files, in corpus order, into the output's rejects files."""
    staged = [file for done in chunks for file in done.rejects] + list(extra)
    staged.sort(key=lambda file: os.path.basename(file.path))
    groups: list[list[Any]] = []
    rows = _REJECTS_PER_FILE
    # The files that have the first few rejects of each reason; no other is parsed for examples.
    examples_in: set[str] = set()
    seen: Counter[str] = Counter()
    for file in staged:
        if any(seen[reason] < _EXAMPLES for reason, _ in file.reasons):
            examples_in.add(file.path)
            seen.update(dict(file.reasons))
        if rows >= _REJECTS_PER_FILE:
            groups.append([])
            rows = 0
        groups[-1].append(file)
        rows += file.rows
    return [
        RejectsPlan(
            index,
            len(groups),
            tuple(file.path for file in group),
            sum(file.rows for file in group),
            tuple(file.path for file in group if file.path in examples_in),
        )
        for index, group in enumerate(groups)
    ]


def take_examples(data: bytes) -> Iterator[RejectExample]:
    """The first few rejects of each reason, of a staged file's bytes."""
    seen: Counter[str] = Counter()
    for line in data.rstrip(b"\n").split(b"\n"):
        reject = orjson.loads(line)
        reason, origin = reject["reason"], reject["origin"]
        seen[reason] += 1
        if seen[reason] <= _EXAMPLES:
            yield RejectExample(
                reason=reason,
                id=reject["id"],
                file=origin["file"],
                position=origin["position"],
                line=origin.get("line"),
                message=reject["message"][:_MESSAGE_LETTERS],
            )


def load_slice(part: FileSlice, *, layout: OutputLayout, schema: pa.Schema) -> pa.Table:
    """The final rows of a slice of a chunk: spool columns and vectors, joined by row number."""
    ((embedding, _),) = layout.embeddings
    rows = part.chunk.kept[part.start : part.stop]
    chunk = part.chunk.chunk
    spooled = spool.read_table(chunk.path).take(pa.array(rows)).combine_chunks()
    pieces = [stage.read_part(path) for path in part.chunk.parts]
    # Row number → place in the pieces; reversed, so that the first part that has a row counts.
    place = np.full(chunk.rows, -1, np.int64)
    start = sum(len(piece) for piece in pieces)
    for piece in reversed(pieces):
        start -= len(piece)
        place[piece.rows] = np.arange(start, start + len(piece))
    picked = place[rows]
    vectors = np.concatenate([piece.vectors for piece in pieces])[picked]
    columns: dict[str, Any] = {
        "id": spooled["id"],
        embedding: vector_array(vectors),
        "n_tokens": pa.array(np.concatenate([piece.n_tokens for piece in pieces])[picked]),
        "truncated": pa.array(np.concatenate([piece.truncated for piece in pieces])[picked]),
        "text_sha256": pa.array([digest.hex() for digest in spooled["text_sha256"].to_pylist()]),
    }
    if layout.keep_text:
        columns["text"] = spooled["text"]
        if layout.pair:
            columns["pair"] = spooled["pair"]
    carried = spool.split_metadata(spooled)
    columns.update((name, carried[name]) for name in carried.column_names)
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


class _PlanDoFn(beam.DoFn):
    def __init__(self, *, layout: OutputLayout, rows_per_file: int) -> None:
        self._layout = layout
        self._rows_per_file = rows_per_file

    def process(self, chunks: list[FinishedChunk], totals: CorpusTotals) -> Iterator[FilePlan]:
        schema = bytes(self._layout.schema(totals).serialize())
        yield from plan_files(chunks, rows_per_file=self._rows_per_file, schema=schema)


class _AssembleDoFn(beam.DoFn):
    def __init__(
        self,
        *,
        output: str,
        layout: OutputLayout,
        footer: Mapping[str, str],
    ) -> None:
        self._output = output
        self._layout = layout
        self._footer = dict(footer)

    def process(self, plan: FilePlan) -> Iterator[OutputFile | beam.pvalue.TaggedOutput[Any, Any]]:
        with failure.recorded(self._output):
            file, summary = storage.retry(lambda: self._assemble(plan))
        yield file
        yield beam.pvalue.TaggedOutput("summaries", summary)

    def _assemble(self, plan: FilePlan) -> tuple[OutputFile, FileSummary]:
        started = time.monotonic()
        writer = find_writer(self._layout.output_format)
        schema = pa.ipc.read_schema(pa.py_buffer(plan.schema))
        name = f"part-{plan.index:05d}-of-{plan.count:05d}{writer.extension}"
        path = storage.join(self._output, FINAL_FOLDER, name)
        rows = tokens = truncated = 0
        ((embedding, width),) = self._layout.embeddings
        own = self._layout.schema(CorpusTotals()).names
        builder = SummaryBuilder(
            index=plan.index,
            first_row=plan.first_row,
            sample_every=plan.sample_every,
            width=width,
            metadata=pa.schema([field for field in schema if field.name not in own]),
        )
        with storage.open_write(path) as sink:
            with writer.open(cast(BinaryIO, sink), schema=schema, footer=self._footer) as out:
                for part in plan.slices:
                    table = load_slice(part, layout=self._layout, schema=schema)
                    out.write(table)
                    builder.add(table, vectors=vector_matrix(table[embedding]))
                    progress.record(self._output, progress.Facts(rows_assembled=len(table)))
                    rows += len(table)
                    tokens += pc.sum(table["n_tokens"]).as_py() or 0
                    truncated += pc.sum(table["truncated"]).as_py() or 0
            digest = sink.digest()
        file = OutputFile(
            name,
            path,
            rows,
            digest.size_bytes,
            digest.sha256,
            tokens=tokens,
            truncated=truncated,
        )
        return file, builder.finish(seconds=time.monotonic() - started)


class AssembleFiles(beam.PTransform[Any, Any]):
    """One list of `FinishedChunk` in; out, for each file, `files` and `summaries`.

    These are an `OutputFile` and a `FileSummary` a file.

    Args:
      layout: format and columns of the files.
      footer: key → value, kept with each file as the format allows.
      totals: one `CorpusTotals`, for the types of the metadata.
    """

    def __init__(
        self,
        output: str,
        *,
        layout: OutputLayout,
        rows_per_file: int,
        footer: Mapping[str, str],
        totals: beam.PCollection[Any],
    ) -> None:
        super().__init__()
        if rows_per_file < 1:
            raise ValueError(f"rows_per_file={rows_per_file}; wanted at least 1")
        self._plan = _PlanDoFn(layout=layout, rows_per_file=rows_per_file)
        self._assemble = _AssembleDoFn(output=output, layout=layout, footer=footer)
        self._totals = totals

    def expand(self, chunks: beam.PCollection[Any]) -> Any:
        return (
            chunks
            | "PlanFiles" >> beam.ParDo(self._plan, beam.pvalue.AsSingleton(self._totals))
            | "SpreadFiles" >> beam.Reshuffle()
            | "WriteFiles" >> beam.ParDo(self._assemble).with_outputs("summaries", main="files")
        )


class _RejectsDoFn(beam.DoFn):
    def __init__(self, *, output: str) -> None:
        self._output = output

    def process(
        self, plan: RejectsPlan
    ) -> Iterator[OutputFile | beam.pvalue.TaggedOutput[Any, Any]]:
        examples: list[RejectExample] = []
        name = f"rejects/part-{plan.index:05d}-of-{plan.count:05d}.jsonl"
        path = storage.join(self._output, FINAL_FOLDER, name)
        with storage.open_write(path) as sink:
            for staged in plan.paths:
                data = storage.get_bytes(staged)
                sink.write(data)
                if staged in plan.examples_in:
                    examples += take_examples(data)
        digest = sink.digest()
        yield beam.pvalue.TaggedOutput("examples", (plan.index, tuple(examples)))
        yield OutputFile(name, path, plan.rows, digest.size_bytes, digest.sha256, kind="rejects")


class AssembleRejects(beam.PTransform[Any, Any]):
    """One list of `FinishedChunk` in, and the staged faults; out, for each file of rejects:

    `files`, an `OutputFile`, and `examples`, the file's index and some `RejectExample`s.
    """

    def __init__(self, output: str, *, faults: beam.PCollection[Any]) -> None:
        super().__init__()
        self._dofn = _RejectsDoFn(output=output)
        self._faults = faults

    def expand(self, chunks: beam.PCollection[Any]) -> Any:
        return (
            chunks
            | "PlanRejects" >> beam.FlatMap(plan_rejects, beam.pvalue.AsList(self._faults))
            | "SpreadRejects" >> beam.Reshuffle()
            | "WriteRejects" >> beam.ParDo(self._dofn).with_outputs("examples", main="files")
        )

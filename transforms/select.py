"""Which rows are encoded: duplicate ids found by hash, and the gate before the first token."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa

from transforms import failure, progress, spool
from transforms.errors import InputError, TooManyRejectsError
from transforms.parse import merge_schemas
from transforms.records import (
    Chunk,
    ChunkKey,
    ChunkWork,
    CorpusTotals,
    Duplicates,
    FileFault,
    Int32Array,
    KeyBatch,
    Reject,
    ReuseRefs,
    RowFailure,
    RowFields,
    StagedRejects,
)
from transforms.writers import find_writer, output_schema

_FAULTS_KEPT = 20
_STAGES = {
    "duplicate_id": "select",
    "no_tokens": "tokenize",
    "unknown_tokens_only": "tokenize",
    "text_too_long": "tokenize",
}


def find_duplicates(batches: Iterable[KeyBatch]) -> list[Duplicates]:
    """Rows whose id an earlier row of the corpus has, among the ids of one bucket.

    The first row in corpus order keeps the id. Returns one record a chunk that loses rows.
    """
    parts = list(batches)
    if not parts:
        return []
    hashes = np.concatenate([part.hashes for part in parts])
    rows = np.concatenate([part.rows for part in parts])
    files = np.concatenate([part.files for part in parts])
    positions = np.concatenate([part.positions for part in parts])
    source = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    tasks = np.array([part.key.task for part in parts])[source]
    numbers = np.array([part.key.number for part in parts])[source]
    order = np.lexsort((rows, numbers, tasks, hashes[:, 1], hashes[:, 0]))
    same = np.all(hashes[order[1:]] == hashes[order[:-1]], axis=1)
    if not same.any():
        return []
    is_first = np.concatenate([[True], ~same])
    first = order[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
    losers, winners = order[~is_first], first[~is_first]
    order = np.lexsort((rows[losers], numbers[losers], tasks[losers]))
    losers, winners = losers[order], winners[order]
    changes = np.flatnonzero(np.diff(tasks[losers]) | np.diff(numbers[losers])) + 1
    return [
        Duplicates(
            ChunkKey(int(tasks[lost[0]]), int(numbers[lost[0]])),
            rows[lost],
            files[won],
            positions[won],
        )
        for lost, won in zip(np.split(losers, changes), np.split(winners, changes), strict=True)
    ]


def reject_rows(
    chunk: Chunk,
    rows: Int32Array,
    *,
    causes: list[RowFailure],
    fields: RowFields,
    paths: list[str],
) -> list[Reject]:
    """Make rejects of rows that were parsed, with the raw row rebuilt from the spool.

    Args:
      rows: row numbers within the chunk, [N]; causes: one a row.
      fields: the source's names of the fields, for the raw row.
      paths: path of every input file by index.
    """
    table = spool.read_table(chunk.path).take(pa.array(rows))
    metadata = spool.split_metadata(table)
    own = ("id", "text", "pair", "file", "position")
    columns = [name for name in own if name in table.schema.names]
    rejects = []
    for number, cause in enumerate(causes):
        row = {name: table[name][number].as_py() for name in columns}
        raw: dict[str, Any] = {fields.text: row["text"]}
        if fields.pair is not None:
            raw[fields.pair] = row["pair"]
        if fields.id is not None:
            raw[fields.id] = row["id"]
        for name in metadata.column_names:
            raw[name] = metadata[name][number].as_py()
        rejects.append(
            Reject(
                id=row["id"],
                file=paths[row["file"]],
                position=row["position"],
                stage=stage_of(cause.reason),
                reason=cause.reason,
                message=cause.message,
                raw=orjson.dumps(raw, default=str, option=orjson.OPT_NON_STR_KEYS).decode(),
            )
        )
    return rejects


def stage_of(reason: str) -> str:
    """The stage in which a parsed row fails for this reason."""
    return _STAGES.get(reason, "encode")


def drop_duplicates(
    chunk: Chunk,
    duplicates: Iterable[Duplicates],
    *,
    reuse: Iterable[ReuseRefs] = (),
    output: str,
    fields: RowFields,
    paths: list[str],
) -> ChunkWork:
    """Make rejects of a chunk's duplicate ids; the chunk's other rows go on."""
    found = list(duplicates)
    refs = tuple(reuse)
    if not found:
        return ChunkWork(chunk, np.zeros(0, np.int32), reuse=refs)
    rows = np.concatenate([part.rows for part in found])
    order = np.argsort(rows)
    files = np.concatenate([part.first_files for part in found])[order]
    positions = np.concatenate([part.first_positions for part in found])[order]
    causes = [
        RowFailure(row, "duplicate_id", f"id stands already at {paths[file]}, position {position}")
        for row, file, position in zip(
            rows[order].tolist(), files.tolist(), positions.tolist(), strict=True
        )
    ]
    rejects = reject_rows(chunk, rows[order], causes=causes, fields=fields, paths=paths)
    staged = spool.stage_rejects(output, f"{chunk_name(chunk.key)}-1select", rejects)
    return ChunkWork(chunk, rows[order].astype(np.int32), staged, refs)


def chunk_name(key: ChunkKey) -> str:
    """A chunk's name in file names; sorts in corpus order."""
    return f"{key.task:08d}-{key.number:06d}"


def add_counts(
    left: tuple[tuple[str, int], ...], right: tuple[tuple[str, int], ...]
) -> tuple[tuple[str, int], ...]:
    """Add up two sets of counts by name."""
    return tuple(sorted((Counter(dict(left)) + Counter(dict(right))).items()))


def add_totals(left: CorpusTotals, right: CorpusTotals) -> CorpusTotals:
    """The totals of two parts of a corpus as one."""
    faults = sorted((*left.faults, *right.faults), key=lambda fault: (fault.file, fault.position))
    return CorpusTotals(
        chunks=left.chunks + right.chunks,
        rows_read=left.rows_read + right.rows_read,
        rows=left.rows + right.rows,
        text_bytes=left.text_bytes + right.text_bytes,
        rejects=add_counts(left.rejects, right.rejects),
        faults=tuple(faults[:_FAULTS_KEPT]),
        fault_reasons=add_counts(left.fault_reasons, right.fault_reasons),
        metadata_schemas=tuple(sorted({*left.metadata_schemas, *right.metadata_schemas})),
    )


def totals_of(item: ChunkWork | FileFault) -> CorpusTotals:
    """The totals of one chunk, or of one fault: a row read and rejected."""
    if isinstance(item, FileFault):
        reasons = ((item.reason, 1),)
        return CorpusTotals(rows_read=1, rejects=reasons, faults=(item,), fault_reasons=reasons)
    chunk = item.chunk
    return CorpusTotals(
        chunks=1,
        rows_read=chunk.rows_read,
        rows=chunk.rows - len(item.dropped),
        text_bytes=chunk.text_bytes,
        rejects=add_counts(
            *(staged.reasons if staged else () for staged in (chunk.rejects, item.rejects))
        ),
        metadata_schemas=(chunk.metadata_schema,) if chunk.rows else (),
    )


def sum_totals(parts: Iterable[CorpusTotals]) -> CorpusTotals:
    """The totals of many parts of a corpus as one; of none, zeros."""
    return functools.reduce(add_totals, parts, CorpusTotals())


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """Format and columns of the output files; `embeddings` are (column, width) pairs."""

    output_format: str = "parquet"
    embeddings: tuple[tuple[str, int], ...] = (("embedding", 1),)
    keep_text: bool = False
    pair: bool = False

    def schema(self, totals: CorpusTotals) -> pa.Schema:
        """The schema of every output file, now that all metadata types are known.

        Raises: InputError if the types of a metadata field cannot be one.
        """
        return output_schema(
            embedding_columns=dict(self.embeddings),
            metadata=merge_metadata(totals),
            keep_text=self.keep_text,
            pair=self.pair and self.keep_text,
        )


@dataclass(frozen=True, slots=True)
class GateRules:
    """What stops a run before it encodes.

    max_reject_rate: fraction of the rows read, 0 to 1; on_duplicate_id: reject or error;
    on_bad_file: error or reject.
    """

    max_reject_rate: float = 0.1
    on_duplicate_id: str = "reject"
    on_bad_file: str = "error"
    allow_empty: bool = False
    layout: OutputLayout = OutputLayout()


def check_reject_rate(rejects: dict[str, int], rows_read: int, *, max_reject_rate: float) -> None:
    """Raise TooManyRejectsError if rejects are over their share of the rows read."""
    count = sum(rejects.values())
    if rows_read and count / rows_read > max_reject_rate:
        reasons = ", ".join(
            f"{reason} {number:,}" for reason, number in Counter(rejects).most_common(4)
        )
        raise TooManyRejectsError(
            f"{count:,} of {rows_read:,} rows ({count / rows_read:.1%}) are rejects: {reasons}; "
            f"--max_reject_rate allows {max_reject_rate:.1%}. Nothing was committed. The rejects "
            "stand under _work/rejects in the output: mend the input, or raise the rate"
        )


def check_corpus(totals: CorpusTotals, rules: GateRules) -> None:
    """Stop a run before it encodes, if its corpus breaks a rule.

    Raises:
      InputError: unreadable files, duplicate ids with on_duplicate_id=error, no rows at all, or
        metadata columns whose types cannot be one.
      TooManyRejectsError: more rejects than the rate allows.
    """
    if totals.faults and rules.on_bad_file == "error":
        first = totals.faults[0]
        more = f" (and {totals.fault_count - 1:,} more)" if totals.fault_count > 1 else ""
        raise InputError(
            f"{first.file}{more}: {first.message} [{first.reason} at {first.position}]. Mend or "
            "leave out the file, or take what can be read with --on_bad_file=reject"
        )
    reasons = dict(totals.rejects)
    if reasons.get("duplicate_id") and rules.on_duplicate_id == "error":
        raise InputError(
            f"{reasons['duplicate_id']:,} rows have an id that an earlier row has; the first are "
            "under _work/rejects in the output. Make ids unique, or use --on_duplicate_id=reject"
        )
    if not totals.rows_read and not rules.allow_empty:
        raise InputError(
            "the input files hold no rows; check --input, or commit an empty output with "
            "--allow_empty"
        )
    check_reject_rate(reasons, totals.rows_read, max_reject_rate=rules.max_reject_rate)
    layout = rules.layout
    find_writer(layout.output_format).check_schema(layout.schema(totals))


def merge_metadata(totals: CorpusTotals) -> pa.Schema:
    """The one metadata schema of the output.

    A field that is null in every row becomes a string field: many readers know no null type.

    Raises: InputError if the types of a field cannot be one.
    """
    schemas = [pa.ipc.read_schema(pa.py_buffer(one)) for one in totals.metadata_schemas]
    return pa.schema(
        [
            field.with_type(pa.string()) if pa.types.is_null(field.type) else field
            for field in merge_schemas(schemas)
        ]
    )


def find_keyed_duplicates(
    element: tuple[int, Iterable[KeyBatch]],
) -> list[tuple[tuple[int, int], Duplicates]]:
    """`find_duplicates` of one bucket, keyed by the chunk that loses the rows."""
    return [key_by_chunk(found) for found in find_duplicates(element[1])]


class _DropDuplicatesDoFn(beam.DoFn):
    def __init__(self, *, output: str, fields: RowFields, paths: list[str]) -> None:
        self._output = output
        self._fields = fields
        self._paths = paths

    def process(
        self, element: tuple[tuple[int, int], dict[str, Iterable[Any]]]
    ) -> Iterator[ChunkWork]:
        grouped = element[1]
        for chunk in grouped["chunk"]:
            yield drop_duplicates(
                chunk,
                grouped["duplicates"],
                reuse=grouped.get("reuse", ()),
                output=self._output,
                fields=self._fields,
                paths=self._paths,
            )


class _StageFaultDoFn(beam.DoFn):
    """A fault as a reject of its own, for `--on_bad_file=reject`."""

    def __init__(self, *, output: str) -> None:
        self._output = output

    def process(self, fault: FileFault) -> Iterator[StagedRejects]:
        yield stage_fault(fault, output=self._output)


class StageFaults(beam.PTransform[Any, Any]):
    """Write each `FileFault` to the work folder as a reject; `StagedRejects` out."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self._dofn = _StageFaultDoFn(output=output)

    def expand(self, faults: beam.PCollection[Any]) -> Any:
        return faults | beam.ParDo(self._dofn)


def stage_fault(fault: FileFault, *, output: str) -> StagedRejects:
    """Write a file's fault as a reject: the rest of that file is one row that cannot be read."""
    name = hashlib.sha256(f"{fault.file}\0{fault.position}".encode()).hexdigest()[:16]
    reject = Reject(
        id=None,
        file=fault.file,
        position=fault.position,
        stage="read",
        reason=fault.reason,
        message=fault.message,
    )
    staged = spool.stage_rejects(output, f"fault-{name}", [reject])
    assert staged is not None
    return staged


class SelectRows(beam.PTransform[Any, Any]):
    """Find duplicate ids: PCollections `chunks`, `ids` and `reuse` in, `ChunkWork` out.

    `reuse` has ((task, number), ReuseRefs) pairs, or is left out.
    """

    def __init__(self, output: str, *, fields: RowFields, paths: list[str]) -> None:
        super().__init__()
        self._dofn = _DropDuplicatesDoFn(output=output, fields=fields, paths=paths)

    def expand(self, inputs: dict[str, beam.PCollection[Any]]) -> Any:
        duplicates = (
            inputs["ids"]
            | "GroupIds" >> beam.GroupByKey()
            | "FindDuplicates" >> beam.FlatMap(find_keyed_duplicates)
        )
        chunks = inputs["chunks"] | "KeyChunks" >> beam.Map(key_by_chunk)
        joined = {"chunk": chunks, "duplicates": duplicates}
        if "reuse" in inputs:
            joined["reuse"] = inputs["reuse"]
        return (
            joined
            | "JoinChunks" >> beam.CoGroupByKey()
            | "DropDuplicates" >> beam.ParDo(self._dofn)
        )


def key_by_chunk(record: Any) -> tuple[tuple[int, int], Any]:
    """Key a record by the chunk it belongs to."""
    key = record.chunk.key if hasattr(record, "chunk") else record.key
    return (key.task, key.number), record


class _GateDoFn(beam.DoFn):
    def __init__(self, *, output: str, rules: GateRules) -> None:
        self._output = output
        self._rules = rules

    def process(self, totals: CorpusTotals) -> Iterator[CorpusTotals]:
        with failure.recorded(self._output):
            check_corpus(totals, self._rules)
        progress.mark(
            self._output,
            progress.TOTALS_FILE,
            {
                "rows_read": totals.rows_read,
                "rows": totals.rows,
                "rejects": sum(count for _, count in totals.rejects),
                "text_bytes": totals.text_bytes,
            },
        )
        yield totals


class CheckCorpus(beam.PTransform[Any, Any]):
    """The gate: `ChunkWork` and `FileFault` in, one `CorpusTotals` out, or the run ends here."""

    def __init__(self, output: str, *, rules: GateRules) -> None:
        super().__init__()
        self._dofn = _GateDoFn(output=output, rules=rules)

    def expand(self, records: beam.PCollection[Any]) -> Any:
        return (
            records
            | "TotalsOfEach" >> beam.Map(totals_of)
            | "AddUp" >> beam.CombineGlobally(sum_totals)
            | "Gate" >> beam.ParDo(self._dofn)
        )

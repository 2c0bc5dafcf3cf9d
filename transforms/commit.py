"""The commit: the one step that makes an output exist.

Everything is ready under `_work/` before. The journal `_work/commit.json` is written first; from
then on the commit can only go forward: whoever finds it (a retried bundle, the next run) does the
same steps again, each of which may be done twice. `_SUCCESS` comes last and names the manifest by
its sha256, so a reader that finds the same `_SUCCESS` before and after has read one output.
"""

from __future__ import annotations

import enum
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import apache_beam as beam
import orjson

from transforms import failure, lock, progress, storage
from transforms.errors import ConservationError, OutputConflictError
from transforms.manifest import (
    MANIFEST_FILE,
    SUCCESS_FILE,
    build_manifest,
    collect_versions,
    describe_file,
)
from transforms.records import (
    CorpusTotals,
    EncodeStats,
    FileCount,
    FileSummary,
    FinishedChunk,
    InputFile,
    OutputFile,
    RejectExample,
    ReuseCounts,
    RunCounts,
)
from transforms.report import REPORT_FILE, REPORT_PAGE, PassTimes, encode_report, make_report
from transforms.report_html import render_safely
from transforms.select import OutputLayout, check_reject_rate
from transforms.summary import merge_summaries

WORK_FOLDER = "_work"
JOURNAL_FILE = "_work/commit.json"


class OutputState(enum.Enum):
    """What an output directory is when a run looks at it."""

    ABSENT = "absent"
    INTERRUPTED = "interrupted"
    COMMITTING = "committing"
    COMMITTED = "committed"
    FOREIGN = "foreign"


def inspect_output(output: str) -> OutputState:
    """Tell the state of an output directory from the files in it."""
    if storage.exists(storage.join(output, JOURNAL_FILE)):
        return OutputState.COMMITTING
    if storage.exists(storage.join(output, SUCCESS_FILE)):
        return OutputState.COMMITTED
    names = storage.list_files(output)
    if not names:
        return OutputState.ABSENT
    if any(name.startswith(WORK_FOLDER + "/") for name in names):
        return OutputState.INTERRUPTED
    return OutputState.FOREIGN


def count_rows(chunks: Iterable[FinishedChunk], totals: CorpusTotals) -> RunCounts:
    """Add up the finished chunks and check the sums against what was read.

    Raises: ConservationError if a row is unaccounted for, in any file or in all.
    """
    rejects: Counter[str] = Counter(dict(totals.fault_reasons))
    by_file: dict[int, FileCount] = {}
    vectors = resumed = reused = read = 0
    for done in chunks:
        vectors += len(done.kept)
        resumed += done.resumed_rows
        reused += done.reused_rows
        for staged in done.rejects:
            rejects.update(dict(staged.reasons))
        for one in done.files:
            read += one.rows_read
            sofar = by_file.get(one.file, FileCount(one.file, 0, 0))
            by_file[one.file] = FileCount(
                one.file,
                sofar.rows_read + one.rows_read,
                sofar.rejects + one.rejects,
                sofar.vectors + one.vectors,
            )
    files = tuple(by_file[index] for index in sorted(by_file))
    for one in files:
        if one.rows_read != one.vectors + one.rejects:
            raise ConservationError(f"input file {one.file}: counts do not add up: {one}")
    total = sum(rejects.values())
    if totals.rows_read != vectors + total or totals.rows_read != read + totals.fault_count:
        raise ConservationError(
            f"{totals.rows_read:,} rows read, but {vectors:,} vectors and {total:,} rejects; "
            "nothing was committed"
        )
    return RunCounts(vectors, resumed, reused, tuple(sorted(rejects.items())), files)


def write_journal(
    output: str,
    *,
    files: list[OutputFile],
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
) -> None:
    """Write down what the commit will do. After this the output will be the new one.

    The report's page is drawn before, so that whoever finishes the commit writes the same one.
    """
    old: list[str] = []
    if storage.exists(storage.join(output, SUCCESS_FILE)):
        body = orjson.loads(storage.get_bytes(storage.join(output, MANIFEST_FILE)))
        old = [file["name"] for file in (*body["files"], *body["rejects"]["files"])]
    names = {file.name for file in files}
    journal = {
        "files": [asdict(file) for file in files],
        "delete": [name for name in old if name not in names],
        "manifest": manifest,
        "report": report,
        "report_html": render_safely(report).decode(),
    }
    storage.put_bytes(storage.join(output, JOURNAL_FILE), orjson.dumps(journal))


def encode_json(body: Mapping[str, Any]) -> bytes:
    """A JSON file's bytes, as people like to read them."""
    return orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def roll_forward(output: str) -> None:
    """Do what the journal says, from wherever an earlier try stopped.

    Raises: OutputConflictError if a file of the journal is neither waiting nor in place.
    """
    journal = orjson.loads(storage.get_bytes(storage.join(output, JOURNAL_FILE)))
    manifest = encode_json(journal["manifest"])
    success = encode_json({"manifest_sha256": hashlib.sha256(manifest).hexdigest()})
    success_path = storage.join(output, SUCCESS_FILE)
    done = storage.exists(success_path) and storage.get_bytes(success_path) == success
    if not done:
        storage.delete_files([success_path])
        present = storage.list_files(output)
        for file in journal["files"]:
            waiting = present.get(file["path"][len(output.rstrip("/")) + 1 :])
            if waiting is not None:
                storage.rename(file["path"], storage.join(output, file["name"]))
            elif present.get(file["name"]) != file["size_bytes"]:
                raise OutputConflictError(
                    f"{output}: the commit under way lacks {file['name']}; its work files were "
                    "removed or changed. Delete the folder and run again"
                )
        storage.delete_files([storage.join(output, name) for name in journal["delete"]])
        storage.put_bytes(storage.join(output, REPORT_FILE), encode_report(journal["report"]))
        storage.put_bytes(storage.join(output, REPORT_PAGE), journal["report_html"].encode())
        storage.put_bytes(storage.join(output, MANIFEST_FILE), manifest)
        storage.sync_folders(output, names=[file["name"] for file in journal["files"]])
        storage.put_bytes(success_path, success)
    clean_up(output)


def clean_up(output: str) -> None:
    """Remove what the work left behind in a committed output; the journal goes last."""
    storage.delete_temporaries(output)
    work = storage.join(output, WORK_FOLDER)
    # While the journal is there, the next run finds it and cleans up what is left.
    storage.empty_folder(work, keep=JOURNAL_FILE.rpartition("/")[2])
    storage.delete_files([storage.join(output, JOURNAL_FILE)])
    storage.delete_folder(work)


class _CheckCountsDoFn(beam.DoFn):
    def __init__(self, *, output: str, max_reject_rate: float) -> None:
        self._output = output
        self._max_reject_rate = max_reject_rate

    def process(
        self, chunks: list[FinishedChunk], totals: CorpusTotals
    ) -> Iterator[list[FinishedChunk]]:
        with failure.recorded(self._output):
            counts = count_rows(chunks, totals)
            check_reject_rate(
                dict(counts.rejects), totals.rows_read, max_reject_rate=self._max_reject_rate
            )
        progress.mark(
            self._output,
            progress.COUNTED_FILE,
            {"vectors": counts.vectors, "rejects": counts.reject_count},
        )
        yield chunks


class CheckCounts(beam.PTransform[Any, Any]):
    """Pass the list of `FinishedChunk` on if its counts add up and the rejects are few enough."""

    def __init__(
        self, output: str, *, max_reject_rate: float, totals: beam.PCollection[Any]
    ) -> None:
        super().__init__()
        self._dofn = _CheckCountsDoFn(output=output, max_reject_rate=max_reject_rate)
        self._totals = totals

    def expand(self, chunks: beam.PCollection[Any]) -> Any:
        return chunks | beam.ParDo(self._dofn, beam.pvalue.AsSingleton(self._totals))


class _CommitDoFn(beam.DoFn):
    def __init__(
        self,
        *,
        output: str,
        inputs: list[InputFile],
        layout: OutputLayout,
        about: Mapping[str, Any],
    ) -> None:
        self._output = output
        self._layout = layout
        self._inputs = inputs
        self._about = dict(about)
        self._started, self._prepared = self._about.pop("times", (None, None))

    def process(
        self,
        files: list[OutputFile],
        chunks: list[FinishedChunk],
        totals: CorpusTotals,
        stats: EncodeStats,
        summaries: list[FileSummary],
        examples: list[tuple[int, tuple[RejectExample, ...]]],
        reuse: ReuseCounts | None = None,
    ) -> Iterator[RunCounts]:
        with failure.recorded(self._output):
            counts = count_rows(chunks, totals)
            check_files(files, counts)
            manifest = make_manifest(
                files, counts=counts, totals=totals, layout=self._layout, about=self._about
            )
            report = make_report(
                files,
                counts=counts,
                totals=totals,
                stats=stats,
                summary=merge_summaries(summaries),
                examples=join_examples(examples),
                times=PassTimes(
                    started=self._started,
                    prepared=self._prepared,
                    indexed=read_time(self._output, progress.TOTALS_FILE),
                    counted=read_time(self._output, progress.COUNTED_FILE),
                    assembled=time.time(),
                ),
                reuse=reuse,
                inputs=self._inputs,
                about=self._about,
            )
            lock.check_own(self._output, self._about["run_id"])
            write_journal(self._output, files=files, manifest=manifest, report=report)
            roll_forward(self._output)
        yield counts


def join_examples(
    examples: Iterable[tuple[int, tuple[RejectExample, ...]]],
) -> list[RejectExample]:
    """The examples of all rejects files, in the files' order."""
    ordered = sorted(examples, key=lambda pair: pair[0])
    return [one for _, some in ordered for one in some]


def read_time(output: str, name: str) -> float | None:
    """When a pass was over, if that is known."""
    found = (progress.read_mark(output, name) or {}).get("time")
    return found if isinstance(found, float) else None


def make_manifest(
    files: Iterable[OutputFile],
    *,
    counts: RunCounts,
    totals: CorpusTotals,
    layout: OutputLayout,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of this run's output."""
    described: dict[str, list[dict[str, Any]]] = {"vectors": [], "rejects": []}
    for file in files:
        described[file.kind].append(
            describe_file(file.name, rows=file.rows, size_bytes=file.size_bytes, sha256=file.sha256)
        )
    return build_manifest(
        described["vectors"],
        rejects_files=described["rejects"],
        rows_read=totals.rows_read,
        rejects=dict(counts.rejects),
        expert=about["expert"],
        fingerprint=about["fingerprint"],
        fingerprint_parts=about["fingerprint_parts"],
        config=about["config"],
        output_format=layout.output_format,
        columns=layout.schema(totals),
        versions=collect_versions(product=about["version"]),
        # The start of the run and not the clock: a commit that is tried twice says the same.
        created=datetime.fromisoformat(about["created"]),
        reused=about["reused"],
    )


def check_files(files: Iterable[OutputFile], counts: RunCounts) -> None:
    """Check that the files hold exactly the rows that were counted.

    Raises: ConservationError.
    """
    rows: Counter[str] = Counter()
    for file in files:
        rows[file.kind] += file.rows
    if rows["vectors"] != counts.vectors or rows["rejects"] != counts.reject_count:
        raise ConservationError(
            f"the files hold {rows['vectors']:,} vectors and {rows['rejects']:,} rejects, but "
            f"{counts.vectors:,} and {counts.reject_count:,} were counted; nothing was committed"
        )


class CommitOutput(beam.PTransform[Any, Any]):
    """`OutputFile` records in; the output is committed; one `RunCounts` out.

    Args:
      chunks: one list of `FinishedChunk`; totals: one `CorpusTotals`; stats: `EncodeStats`.
      summaries: `FileSummary` records; examples: (index, tuple of `RejectExample`) pairs.
      inputs: the input files by index; layout: format and columns of the files.
      about: what manifest and report say of the run besides its counts.
      reuse: one `ReuseCounts`, where vectors are taken over from an earlier output.
    """

    def __init__(
        self,
        output: str,
        *,
        chunks: beam.PCollection[Any],
        totals: beam.PCollection[Any],
        stats: beam.PCollection[Any],
        summaries: beam.PCollection[Any],
        examples: beam.PCollection[Any],
        inputs: list[InputFile],
        layout: OutputLayout,
        about: Mapping[str, Any],
        reuse: beam.PCollection[Any] | None = None,
    ) -> None:
        super().__init__()
        self._dofn = _CommitDoFn(output=output, inputs=inputs, layout=layout, about=about)
        self._chunks = chunks
        self._totals = totals
        self._stats = stats
        self._summaries = summaries
        self._examples = examples
        self._reuse = reuse

    def expand(self, files: beam.PCollection[Any]) -> Any:
        stats = self._stats | "AddStats" >> beam.CombineGlobally(add_stats)
        return (
            files
            | "GatherFiles" >> beam.combiners.ToList()
            | "Commit"
            >> beam.ParDo(
                self._dofn,
                beam.pvalue.AsSingleton(self._chunks),
                beam.pvalue.AsSingleton(self._totals),
                beam.pvalue.AsSingleton(stats),
                beam.pvalue.AsList(self._summaries),
                beam.pvalue.AsList(self._examples),
                **({} if self._reuse is None else {"reuse": beam.pvalue.AsSingleton(self._reuse)}),
            )
        )


def add_stats(stats: Iterable[EncodeStats]) -> EncodeStats:
    """Sum of statistics; of none, zeros."""
    return sum(stats, start=EncodeStats())

"""The report of a run in numbers: `report.json`; its page is `transforms/report_html.py`'s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import orjson

from transforms.describe import describe_lengths, describe_vectors
from transforms.manifest import collect_versions
from transforms.runtime import PeakMemory

if TYPE_CHECKING:
    from transforms.records import (
        CorpusTotals,
        EncodeStats,
        FileSummary,
        InputFile,
        OutputFile,
        RejectExample,
        ReuseCounts,
        RunCounts,
    )
    from transforms.runtime import Timeline

SCHEMA_VERSION = 1
REPORT_FILE = "report.json"
REPORT_PAGE = "report.html"
_INPUTS_LISTED = 1000
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class PassTimes:
    """When the command started and each pass was over, Unix times; None where it is not known."""

    started: float | None = None
    prepared: float | None = None
    indexed: float | None = None
    counted: float | None = None
    assembled: float | None = None


def make_report(
    files: Iterable[OutputFile],
    *,
    counts: RunCounts,
    totals: CorpusTotals,
    stats: EncodeStats,
    inputs: list[InputFile],
    about: Mapping[str, Any],
    summary: FileSummary | None = None,
    examples: Sequence[RejectExample] = (),
    times: PassTimes | None = None,
    reuse: ReuseCounts | None = None,
) -> dict[str, Any]:
    """What happened, in numbers.

    `counts` add up: rows_read = vectors + all rejects. Rows encoded count every encoding, also
    of a bundle that was retried, so they may be more than vectors - rows_resumed - rows_reused.
    `*_seconds` are sums over workers; those of `time` are of the clock on the wall. `throughput`
    has this run's encoding only, and not what an interrupted run before it did.
    """
    vectors = [file for file in files if file.kind == "vectors"]
    memory = stats.memory + (PeakMemory() if summary is None else summary.memory)
    return {
        "schema_version": SCHEMA_VERSION,
        "counts": {
            "rows_read": totals.rows_read,
            "vectors": counts.vectors,
            "rejects": dict(counts.rejects),
            "rows_resumed": counts.resumed,
            "rows_reused": counts.reused,
            "rows_encoded": stats.rows,
            "truncated": sum(file.truncated for file in vectors),
            "files_faulty": totals.fault_count,
        },
        "tokens": {
            "in_output": sum(file.tokens for file in vectors),
            "encoded": stats.tokens,
            "padded": stats.padded_tokens,
            "padding_ratio": _ratio(stats.padded_tokens, stats.tokens),
            **_lengths(summary, about),
        },
        "encoding": {
            "batches": stats.batches,
            "batches_halved": stats.splits,
            "expert_loads": stats.expert_loads,
            "load_seconds": round(stats.load_seconds, 3),
            "tokenize_seconds": round(stats.tokenize_seconds, 3),
            "encode_seconds": round(stats.encode_seconds, 3),
            "assemble_seconds": 0.0 if summary is None else round(summary.seconds, 3),
            "tokens_per_second": _ratio(stats.tokens, stats.encode_seconds),
        },
        "time": describe_times(times or PassTimes()),
        "throughput": describe_timeline(stats.timeline),
        "memory": {
            "peak_bytes": max((size for _, size in memory.processes), default=None),
            "processes": [{"process": name, "peak_bytes": size} for name, size in memory.processes],
        },
        "vectors": None if summary is None else describe_vectors(summary),
        "reject_examples": _group_examples(examples),
        "inputs": [
            {
                "path": inputs[one.file].path,
                "rows_read": one.rows_read,
                "vectors": one.vectors,
                "rejects": one.rejects,
            }
            for one in counts.files[:_INPUTS_LISTED]
        ],
        "inputs_not_listed": max(0, len(counts.files) - _INPUTS_LISTED),
        "text_bytes": totals.text_bytes,
        "output_files": len(vectors),
        "output_bytes": sum(file.size_bytes for file in vectors),
        "ids_against_reused": None if reuse is None else asdict(reuse),
        "versions": collect_versions(product=str(about.get("version"))),
        **about,
    }


def encode_report(report: Mapping[str, Any]) -> bytes:
    """`report.json`: indented for people, but a long list of the map's points on a line."""
    vectors = report.get("vectors")
    if vectors and vectors.get("map"):
        lines = {name: orjson.Fragment(orjson.dumps(value)) for name, value in _columns(vectors)}
        report = {**report, "vectors": {**vectors, "map": lines}}
    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _columns(vectors: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    points: Mapping[str, Any] = vectors["map"]
    return points.items()


def describe_timeline(timeline: Timeline) -> dict[str, Any] | None:
    """Tokens encoded in each step of time, gaps included; None where nothing was encoded."""
    if not timeline.buckets:
        return None
    first, last = timeline.buckets[0][0], timeline.buckets[-1][0]
    tokens = dict(timeline.buckets)
    return {
        "start": _format_time(first * timeline.bucket_seconds),
        "bucket_seconds": timeline.bucket_seconds,
        "tokens": [round(tokens.get(bucket, 0.0)) for bucket in range(first, last + 1)],
    }


def _lengths(summary: FileSummary | None, about: Mapping[str, Any]) -> dict[str, Any]:
    if summary is None:
        return {}
    limit = about.get("fingerprint_parts", {}).get("max_tokens", 0)
    return describe_lengths(summary.lengths, limit=limit)


def describe_times(times: PassTimes) -> dict[str, Any]:
    """The run from its start to its commit, in the passes it was made of."""
    ends = {
        "prepare": times.prepared,
        "index": times.indexed,
        "encode": times.counted,
        "assemble": times.assembled,
    }
    passes, before = [], times.started
    for name, end in ends.items():
        if before is not None and end is not None:
            passes.append({"name": name, "seconds": round(max(0.0, end - before), 3)})
        before = end
    wall = None
    if times.started is not None and times.assembled is not None:
        wall = round(times.assembled - times.started, 3)
    return {
        "started": None if times.started is None else _format_time(times.started),
        "finished": None if times.assembled is None else _format_time(times.assembled),
        "wall_seconds": wall,
        "passes": passes,
    }


def _group_examples(examples: Sequence[RejectExample]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for one in examples:
        listed = grouped.setdefault(one.reason, [])
        if len(listed) < _EXAMPLES:
            listed.append({key: value for key, value in asdict(one).items() if key != "reason"})
    return grouped


def _format_time(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="seconds")


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None

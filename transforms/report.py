"""The report of a run in numbers: `report.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transforms.commit import RunCounts
    from transforms.records import (
        CorpusTotals,
        EncodeStats,
        InputFile,
        OutputFile,
        ReuseCounts,
    )

SCHEMA_VERSION = 1
_INPUTS_LISTED = 1000


def make_report(
    files: Iterable[OutputFile],
    *,
    counts: RunCounts,
    totals: CorpusTotals,
    stats: EncodeStats,
    inputs: list[InputFile],
    about: Mapping[str, Any],
    reuse: ReuseCounts | None = None,
) -> dict[str, Any]:
    """What happened, in numbers.

    `counts` add up: rows_read = vectors + all rejects. Rows encoded count every encoding, also
    of a bundle that was retried, so they may be more than vectors - rows_resumed - rows_reused.
    `*_seconds` are sums over workers.
    """
    vectors = [file for file in files if file.kind == "vectors"]
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
        },
        "encoding": {
            "batches": stats.batches,
            "batches_halved": stats.splits,
            "expert_loads": stats.expert_loads,
            "load_seconds": round(stats.load_seconds, 3),
            "tokenize_seconds": round(stats.tokenize_seconds, 3),
            "encode_seconds": round(stats.encode_seconds, 3),
            "tokens_per_second": _ratio(stats.tokens, stats.encode_seconds),
        },
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
        "output_bytes": sum(file.size_bytes for file in vectors),
        "ids_against_reused": None if reuse is None else asdict(reuse),
        **about,
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None

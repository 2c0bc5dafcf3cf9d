"""From the summary of an output's rows to the report's numbers about texts and vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from transforms.records import FileSummary, Float64Array, FloatArray, Int64Array, RowSample
from transforms.summary import NORM_BINS_PER_OCTAVE

NEAR_DUPLICATE_COSINE = 0.98
LARGE_DIMENSION_RATIO = 6.0
_MOST_PAIRS = 20
_MOST_BARS = 48
_MOST_DIMENSIONS = 12
_MOST_CATEGORIES = 24
_MOST_LABELS = 8
_MOST_FIELDS = 4
_CUTS = (64, 128, 256, 384)
# A dimension is dead if its values differ by less than this share of the usual range.
_DEAD_SHARE = 1e-6
_ROWS_FOR_DEAD = 10


def describe_lengths(lengths: Int64Array, *, limit: int) -> dict[str, Any]:
    """Rows by number of tokens.

    Args:
      lengths: int64 [L + 1], rows by n_tokens.
      limit: the run's --max_tokens; a text that has so many may have been cut.
    """
    rows = int(lengths.sum())
    if not rows:
        return {"limit": limit, "histogram": None, "quantiles": None, "over": []}
    longest = int(np.flatnonzero(lengths)[-1])
    below = np.cumsum(lengths)
    usual = 2 * int(np.searchsorted(below, 0.95 * rows, side="left"))
    edges, width = length_edges(longest, usual=usual, limit=limit)
    shares = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {
        "limit": limit,
        "histogram": {
            "edges": edges,
            "bar_tokens": width,
            "rows": [int(lengths[start:stop].sum()) for start, stop in itertools.pairwise(edges)],
        },
        "quantiles": {
            **{
                name: int(np.searchsorted(below, share * rows, side="left"))
                for name, share in shares.items()
            },
            "max": longest,
            "mean": _round(float(np.arange(len(lengths)) @ lengths) / rows),
        },
        "over": [
            {"tokens": cut, "rows": int(rows - below[min(cut, longest)])}
            for cut in _CUTS
            if cut < limit
        ],
    }


def length_edges(longest: int, *, usual: int, limit: int) -> tuple[list[int], int]:
    """Where the bars of the histogram of lengths begin and the last ends, and their width.

    Bars of one width up to `usual`, so that a few long texts do not flatten the others; then one
    for all between, and one for the texts of just `limit` tokens, most of which were cut.
    """
    most = limit if longest == limit else longest + 1
    top = max(1, min(usual, most - 1))
    width = -(-top // _MOST_BARS)
    edges = [*range(1, top + 1, width)]
    edges.append(min(edges[-1] + width, most))
    if edges[-1] < most:
        edges.append(most)
    if longest == limit:
        edges.append(limit + 1)
    return sorted(set(edges)), width


def describe_vectors(summary: FileSummary) -> dict[str, Any]:
    """Norms, anisotropy, odd dimensions, near duplicates and the map of an output's vectors."""
    rows, sample = summary.rows, summary.sample
    if not rows:
        return {"width": len(summary.sums), "rows": 0}
    units = scale_to_one(sample.vectors)
    return {
        "width": len(summary.sums),
        "rows": rows,
        "norms": _describe_norms(summary),
        "mean_cosine": _mean_cosine(summary),
        "dimensions": describe_dimensions(summary),
        "sample_rows": len(sample.ids),
        "near_duplicates": describe_pairs(sample, units),
        "map": describe_map(sample, units),
    }


def scale_to_one(vectors: FloatArray) -> FloatArray:
    """float32 [S, H] with rows of length 1; what has no direction becomes zero."""
    exact = vectors.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
    usable = (norms > 0) & np.isfinite(norms)
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=usable)
    units: FloatArray = np.nan_to_num(exact * scale[:, np.newaxis]).astype(np.float32)
    return units


def _describe_norms(summary: FileSummary) -> dict[str, Any]:
    mean = summary.norm_sum / summary.rows
    variance = max(0.0, summary.norm_square_sum / summary.rows - mean * mean)
    bins = np.array([bin_number for bin_number, _ in summary.norm_bins])
    counts = np.array([count for _, count in summary.norm_bins], np.int64)
    first, last = int(bins[0]), int(bins[-1])
    width = max(1, -(-(last - first + 1) // _MOST_BARS))
    rows = np.bincount((bins - first) // width, weights=counts).astype(np.int64)
    edges = [
        2.0 ** ((first + number * width) / NORM_BINS_PER_OCTAVE) for number in range(len(rows) + 1)
    ]
    return {
        "min": _round(summary.norm_low),
        "max": _round(summary.norm_high),
        "mean": _round(mean),
        "std": _round(math.sqrt(variance)),
        "histogram": {"edges": [_round(edge) for edge in edges], "rows": rows.tolist()},
    }


def _mean_cosine(summary: FileSummary) -> float | None:
    """The mean cosine of any two different rows, from the sum of the rows' directions."""
    if summary.rows < 2:
        return None
    length = float(summary.unit_sums @ summary.unit_sums)
    return _round((length - summary.rows) / (summary.rows * (summary.rows - 1.0)))


def describe_dimensions(summary: FileSummary) -> dict[str, Any]:
    """Dimensions that say nothing, and those that drown the others.

    A dimension is large if its root mean square is LARGE_DIMENSION_RATIO times the median of all;
    `large_share` is what part of the squared lengths such dimensions are. Dead ones, and ranges,
    are those of the sample.
    """
    sampled = summary.sample.vectors.astype(np.float64)
    lows, highs = sampled.min(axis=0), sampled.max(axis=0)
    ranges = highs - lows
    typical = float(np.median(ranges))
    dead = np.flatnonzero(ranges <= typical * _DEAD_SHARE)
    spread = np.sqrt(summary.square_sums / summary.rows)
    median = float(np.median(spread))
    if len(sampled) < _ROWS_FOR_DEAD:
        dead = dead[:0]
    large = np.flatnonzero(spread >= LARGE_DIMENSION_RATIO * median) if median > 0 else dead[:0]
    large = large[np.argsort(-spread[large], kind="stable")]
    total = float(summary.square_sums.sum())
    return {
        "dead_count": len(dead),
        "dead": dead[:_MOST_DIMENSIONS].tolist(),
        "large_count": len(large),
        "large_ratio": LARGE_DIMENSION_RATIO,
        "large_share": _round(float(summary.square_sums[large].sum()) / total) if total else 0.0,
        "large": [
            {
                "dimension": number,
                "rms": _round(float(spread[number])),
                "times_median": _round(float(spread[number]) / median),
                "mean": _round(float(summary.sums[number]) / summary.rows),
                "min": _round(float(lows[number])),
                "max": _round(float(highs[number])),
            }
            for number in large[:_MOST_DIMENSIONS].tolist()
        ],
        "median_rms": _round(median),
    }


def find_pairs(units: FloatArray, *, least: float) -> tuple[int, list[tuple[float, int, int]]]:
    """Pairs of rows whose cosine is at least `least`: how many, and the closest of them.

    Args:
      units: float32 [S, H], rows of length 1.
    Returns: the count, and (cosine, row, later row), closest first, then in order of rows.
    """
    count = 0
    best: list[tuple[float, int, int]] = []
    for start in range(0, len(units), 256):
        cosines = units[start : start + 256] @ units.T
        rows, others = np.nonzero(cosines >= least)
        later = others > rows + start
        rows, others = rows[later], others[later]
        count += len(rows)
        # Six digits: what is closer than that is rounding of the product.
        values = np.minimum(np.round(cosines[rows, others].astype(np.float64), 6), 1.0)
        order = np.lexsort((others, rows, -values))[:_MOST_PAIRS]
        best += zip(
            values[order].tolist(),
            (rows[order] + start).tolist(),
            others[order].tolist(),
            strict=True,
        )
    best.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return count, best[:_MOST_PAIRS]


def describe_pairs(sample: RowSample, units: FloatArray) -> dict[str, Any]:
    """Rows of the sample that are all but the same."""
    count, best = find_pairs(units, least=NEAR_DUPLICATE_COSINE)
    return {
        "cosine": NEAR_DUPLICATE_COSINE,
        "pairs": count,
        "examples": [
            {
                "cosine": cosine,
                "same_text": sample.hashes[row] == sample.hashes[other],
                "ids": [sample.ids[row], sample.ids[other]],
                "texts": None if sample.texts is None else [sample.texts[row], sample.texts[other]],
            }
            for cosine, row, other in best
        ],
    }


def project(units: FloatArray) -> tuple[Float64Array, list[float]]:
    """Principal components of S rows: float64 [S, 2], and the share of the variance of each.

    The same on every run: a component's sign is such that its largest weight is positive.
    """
    points = np.zeros((len(units), 2))
    centred = units.astype(np.float64) - units.mean(axis=0, dtype=np.float64)
    # The smaller of S × S and H × H; both have the same eigenvalues but zeros.
    tall = len(centred) >= centred.shape[1]
    gram = centred.T @ centred if tall else centred @ centred.T
    values, vectors = np.linalg.eigh(gram)
    total = float(values.clip(min=0).sum())
    shares = []
    for number in range(min(2, len(values))):
        value, vector = float(values[-1 - number]), vectors[:, -1 - number]
        if total <= 0 or value <= total * 1e-12:
            shares.append(0.0)
            continue
        axis = vector if tall else centred.T @ vector / math.sqrt(value)
        points[:, number] = centred @ (axis * np.sign(axis[np.argmax(np.abs(axis))]))
        shares.append(_round(value / total))
    return points, [*shares, 0.0, 0.0][:2]


def describe_map(sample: RowSample, units: FloatArray) -> dict[str, Any]:
    """The sampled rows as points in a plane, with what can be said of each."""
    points, shares = project(units)
    norms = np.sqrt(np.einsum("ij,ij->i", sample.vectors, sample.vectors, dtype=np.float64))
    return {
        "method": "PCA of the vectors scaled to length 1",
        "explained": shares,
        "x": np.round(points[:, 0], 5).tolist(),
        "y": np.round(points[:, 1], 5).tolist(),
        "id": list(sample.ids),
        "text": None if sample.texts is None else list(sample.texts),
        "tokens": sample.n_tokens.tolist(),
        "norm": [_round(value) for value in norms.tolist()],
        "fields": choose_fields(sample.metadata),
    }


def choose_fields(
    metadata: Sequence[tuple[str, str, Sequence[str | float | None]]],
) -> list[dict[str, Any]]:
    """The fields to colour points by: those with few values first, then numbers."""
    few: list[dict[str, Any]] = []
    numbers: list[dict[str, Any]] = []
    for name, kind, values in metadata:
        distinct = {value for value in values if value is not None}
        is_label = all(isinstance(value, float) and value.is_integer() for value in distinct)
        if kind == "number" and is_label and 1 < len(distinct) <= _MOST_LABELS:
            names = [f"{value:.0f}" if isinstance(value, float) else None for value in values]
            few.append({"name": name, "kind": "category", "values": names})
        elif kind == "number" and len(distinct) > 1:
            numbers.append({"name": name, "kind": "number", "values": list(values)})
        elif kind == "category" and 1 < len(distinct) <= _MOST_CATEGORIES:
            few.append({"name": name, "kind": "category", "values": list(values)})
    return [*few, *numbers][:_MOST_FIELDS]


def _round(value: float) -> float:
    """Six significant digits: what is beyond them is the rounding of sums."""
    return float(f"{value:.6g}")

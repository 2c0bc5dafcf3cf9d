"""What is gathered while files are written is what a slow look at all rows gives."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.describe import (
    choose_fields,
    describe_dimensions,
    describe_lengths,
    describe_pairs,
    describe_vectors,
    find_pairs,
    length_edges,
    project,
    scale_to_one,
)
from transforms.records import FileSummary
from transforms.summary import SAMPLE_ROWS, SummaryBuilder, merge_summaries, sample_step

METADATA = pa.schema(
    [("topic", pa.string()), ("score", pa.float64()), ("tags", pa.list_(pa.int8()))]
)


def make_rows(count: int, *, width: int = 16, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(count, width)) + 1).astype(np.float32)
    table = pa.table(
        {
            "id": [f"row-{n}" for n in range(count)],
            "n_tokens": pa.array(rng.integers(3, 129, count), pa.int32()),
            "text_sha256": [f"{n:064x}" for n in range(count)],
            "text": [f"text {n} " + "x" * (n % 200) for n in range(count)],
            "topic": pa.array([None if n % 7 == 0 else "ab"[n % 2] for n in range(count)]),
            "score": pa.array([float("nan") if n % 5 == 0 else n / 2 for n in range(count)]),
            "tags": pa.array([[1]] * count, pa.list_(pa.int8())),
        }
    )
    return table, vectors


def gather(
    table: pa.Table, vectors: np.ndarray, *, files: list[int], slices: int, every: int = 1
) -> list[FileSummary]:
    """Summaries of files that begin at the given rows, added so many rows at a time."""
    summaries = []
    for index, (start, stop) in enumerate(itertools.pairwise([*files, len(table)])):
        builder = SummaryBuilder(
            index=index,
            first_row=start,
            sample_every=every,
            width=vectors.shape[1],
            metadata=METADATA,
        )
        for first in range(start, stop, slices):
            last = min(first + slices, stop)
            builder.add(table.slice(first, last - first), vectors=vectors[first:last])
        summaries.append(builder.finish(seconds=1.5))
    return summaries


@given(
    files=st.sets(st.integers(1, 599), max_size=4),
    slices=st.integers(1, 700),
    every=st.integers(1, 50),
)
@settings(max_examples=25, deadline=None)
def test_summary_of_any_files_is_that_of_the_whole(files, slices, every):
    table, vectors = make_rows(600)
    cut = gather(table, vectors, files=[0, *sorted(files)], slices=slices, every=every)
    merged = merge_summaries(reversed(cut))
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    assert merged.rows == 600
    assert merged.sample.ids == tuple(f"row-{n}" for n in range(0, 600, every))
    np.testing.assert_array_equal(merged.sample.vectors, vectors[::every])
    np.testing.assert_array_equal(
        merged.lengths, np.bincount(table["n_tokens"].to_numpy(), minlength=len(merged.lengths))
    )
    np.testing.assert_allclose(merged.sums, vectors.sum(axis=0, dtype=np.float64), rtol=1e-4)
    np.testing.assert_allclose(merged.square_sums, np.square(vectors).sum(axis=0), rtol=1e-4)
    units = vectors / norms[:, np.newaxis]
    np.testing.assert_allclose(merged.unit_sums, units.sum(axis=0), rtol=1e-4)
    assert merged.norm_low == pytest.approx(norms.min(), rel=1e-5)
    assert merged.norm_high == pytest.approx(norms.max(), rel=1e-5)
    assert sum(rows for _, rows in merged.norm_bins) == 600
    assert merged.seconds == 1.5 * len(cut)
    assert len(merged.sample.metadata) == 2
    (_, kind, topics), (_, _, scores) = merged.sample.metadata
    assert kind == "category"
    assert topics[0] is None
    assert scores[0] is None
    assert max(len(text) for text in merged.sample.texts) <= 81


def test_sample_step_keeps_samples_within_their_bound():
    for rows in (0, 1, SAMPLE_ROWS, SAMPLE_ROWS + 1, 10**6 + 7):
        assert len(range(0, rows, sample_step(rows))) <= SAMPLE_ROWS
    assert sample_step(SAMPLE_ROWS) == 1


def test_describe_vectors_agrees_with_a_slow_look_at_all_pairs():
    table, vectors = make_rows(400)
    (summary,) = gather(table, vectors, files=[0], slices=100)
    found = describe_vectors(summary)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (units.astype(np.float64) @ units.T.astype(np.float64))[np.triu_indices(400, 1)]
    assert found["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-5)
    norms = np.linalg.norm(vectors, axis=1)
    assert found["norms"]["mean"] == pytest.approx(norms.mean(), rel=1e-5)
    assert found["norms"]["std"] == pytest.approx(norms.std(), rel=1e-2)
    histogram = found["norms"]["histogram"]
    assert sum(histogram["rows"]) == 400
    assert histogram["edges"][0] <= norms.min() < norms.max() <= histogram["edges"][-1]
    drawn = np.histogram(norms, histogram["edges"])[0]
    assert np.abs(drawn - histogram["rows"]).sum() <= 4  # what lies within rounding of an edge
    assert [one["name"] for one in found["map"]["fields"]] == ["topic", "score"]


def test_project_gives_the_principal_components_in_both_shapes():
    for rows, width in ((300, 8), (20, 64)):
        units = scale_to_one(make_rows(rows, width=width)[1])
        points, shares = project(units)
        exact = units.astype(np.float64) - units.mean(axis=0, dtype=np.float64)
        left, values, _ = np.linalg.svd(exact, full_matrices=False)
        wanted = left[:, :2] * values[:2]
        np.testing.assert_allclose(np.abs(points), np.abs(wanted), atol=1e-5)
        np.testing.assert_allclose(shares, values[:2] ** 2 / (values**2).sum(), rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_project_few_or_equal_rows_gives_finite_points(rows):
    points, shares = project(np.ones((rows, 4), np.float32) / 2)
    assert np.isfinite(points).all()
    assert shares == [0.0, 0.0]


def test_find_pairs_finds_what_all_products_give():
    rng = np.random.default_rng(3)
    units = scale_to_one(rng.normal(size=(700, 6)).astype(np.float32))
    units[[5, 300, 699]] = units[4]
    count, best = find_pairs(units, least=0.9)
    exact = units.astype(np.float64) @ units.T.astype(np.float64)
    firsts, seconds = np.triu_indices(700, 1)
    assert abs(count - (exact[firsts, seconds] >= 0.9).sum()) <= 1
    assert len(best) == 20
    same = list(itertools.combinations([4, 5, 300, 699], 2))
    assert [(row, other) for _, row, other in best[:6]] == same
    assert all(exact[row, other] == pytest.approx(cosine, abs=1e-5) for cosine, row, other in best)


def test_describe_pairs_tells_equal_texts_from_near_ones():
    table, vectors = make_rows(6)
    vectors[3], vectors[4] = vectors[0], vectors[1]
    table = table.set_column(2, "text_sha256", pa.array(["a", "b", "c", "a", "d", "e"]))
    (summary,) = gather(table, vectors, files=[0], slices=6)
    found = describe_pairs(summary.sample, scale_to_one(summary.sample.vectors))
    assert [(one["ids"], one["same_text"]) for one in found["examples"]] == [
        (["row-0", "row-3"], True),
        (["row-1", "row-4"], False),
    ]


def test_describe_dimensions_names_dead_and_large_ones():
    table, vectors = make_rows(200)
    vectors[:, 3] = 0.25
    vectors[:, 7] = 40
    vectors[:, 7] += np.arange(200) / 100
    (summary,) = gather(table, vectors, files=[0], slices=64)
    found = describe_dimensions(summary)
    assert found["dead"] == [3]
    assert [one["dimension"] for one in found["large"]] == [7]
    share = np.square(vectors[:, 7]).sum() / np.square(vectors).sum()
    assert found["large_share"] == pytest.approx(share, rel=1e-4)
    assert found["large"][0]["max"] == pytest.approx(41.99, rel=1e-5)


def test_describe_vectors_zero_and_huge_vectors_are_described_without_a_fault():
    table, vectors = make_rows(12)
    vectors[0] = 0
    vectors[1] = 3e38
    (summary,) = gather(table, vectors, files=[0], slices=5)
    found = describe_vectors(summary)
    assert found["norms"]["min"] == 0
    assert np.isfinite(found["map"]["x"]).all()


@given(st.integers(1, 600), st.integers(1, 2000), st.integers(1, 600))
def test_length_edges_cover_every_length_once(longest, usual, limit):
    limit = max(limit, longest)
    edges, width = length_edges(longest, usual=usual, limit=limit)
    assert edges[0] == 1
    assert edges[-1] == longest + 1
    assert edges == sorted(set(edges))
    assert len(edges) <= 52
    assert width >= 1
    if longest == limit > 1:
        assert edges[-2] == limit


def test_describe_lengths_counts_every_row_once():
    rng = np.random.default_rng(5)
    tokens = np.minimum(rng.lognormal(3.3, 0.8, 5000).astype(int) + 3, 128)
    found = describe_lengths(np.bincount(tokens).astype(np.int64), limit=128)
    edges, rows = found["histogram"]["edges"], found["histogram"]["rows"]
    for (start, stop), count in zip(itertools.pairwise(edges), rows, strict=True):
        assert count == ((tokens >= start) & (tokens < stop)).sum()
    assert found["over"] == [{"tokens": 64, "rows": int((tokens > 64).sum())}]
    assert found["quantiles"]["p50"] == int(np.quantile(tokens, 0.5, method="inverted_cdf"))
    assert rows[-1] == int((tokens == 128).sum())


def test_choose_fields_takes_those_with_few_values_first():
    metadata = [
        ("free text", "category", [f"v{n}" for n in range(30)]),
        ("score", "number", [n / 7 for n in range(30)]),
        ("constant", "category", ["x"] * 30),
        ("topic", "category", ["a", "b", None] * 10),
        ("label", "number", [float(n % 2) for n in range(30)]),
    ]
    found = choose_fields(metadata)
    assert [(one["name"], one["kind"]) for one in found] == [
        ("topic", "category"),
        ("label", "category"),
        ("score", "number"),
    ]
    assert found[1]["values"][:2] == ["0", "1"]

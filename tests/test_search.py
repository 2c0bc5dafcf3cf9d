"""search gives what a float64 search of every row gives, and prints it safely."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.search import display_width, fit, format_table, show_value
from tests import commands, outputs
from tests.test_run import write_jsonl
from transforms.errors import ConfigError, InputError
from transforms.manifest import read_manifest
from transforms.search import Hit, NearestRows, SearchResult, find_row, search_rows


def search_plainly(
    vectors: np.ndarray, ids: list[str], query: np.ndarray, *, k: int, metric: str
) -> list[tuple[str, float]]:
    """Every row's score in float64, sorted whole: the oracle."""
    exact, wanted = vectors.astype(np.float64), query.astype(np.float64)
    scores = []
    for row in exact:
        score = float((row * wanted).sum())
        if metric == "cosine":
            norm = float(np.sqrt((row * row).sum()))
            score = score / (norm * np.linalg.norm(wanted)) if norm else 0.0
        scores.append(score)
    order = sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))[:k]
    return [(ids[row], scores[row]) for row in order]


def search_batches(
    vectors: np.ndarray, ids: list[str], query: np.ndarray, *, step: int, **options
) -> SearchResult:
    nearest = NearestRows(query, **options)
    for start in range(0, len(ids), step):
        nearest.add(
            pa.array(ids[start : start + step], pa.string()),
            vectors[start : start + step],
            file=0,
            first_row=start,
        )
    return nearest.finish()


def assert_hits(found: SearchResult, wanted: list[tuple[str, float]]) -> None:
    assert [hit.id for hit in found.hits] == [key for key, _ in wanted]
    np.testing.assert_allclose(
        [hit.score for hit in found.hits], [score for _, score in wanted], rtol=1e-12, atol=1e-15
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 120),
    k=st.integers(1, 140),
    step=st.integers(1, 130),
    metric=st.sampled_from(["cosine", "dot"]),
    spread=st.sampled_from([1.0, 1e-7]),
)
def test_nearest_rows_are_those_of_float64_brute_force(seed, rows, k, step, metric, spread):
    rng = np.random.default_rng(seed)
    # With little spread all scores are alike in float32, and only float64 tells their order.
    centre = rng.standard_normal(24)
    vectors = (centre + spread * rng.standard_normal((rows, 24))).astype(np.float32)
    vectors[rng.integers(0, rows, rows // 3)] = vectors[0]  # ties
    vectors[rng.integers(0, rows, rows // 10)] = 0
    query = (centre + rng.standard_normal(24)).astype(np.float32)
    ids = [f"{number:03d}" for number in rng.permutation(rows)]
    found = search_batches(vectors, ids, query, step=step, k=k, metric=metric)
    assert_hits(found, search_plainly(vectors, ids, query, k=k, metric=metric))
    assert found.rows == rows
    assert {ids[hit.row] for hit in found.hits} == {hit.id for hit in found.hits}


def test_nearest_rows_equal_vectors_come_in_the_order_of_their_ids():
    vectors = np.tile(np.array([0.1, 0.7, -0.3], np.float32), (50, 1))
    ids = [f"{(7 * row) % 50:02d}" for row in range(50)]
    found = search_batches(vectors, ids, vectors[0], step=9, k=5)
    assert [hit.id for hit in found.hits] == ["00", "01", "02", "03", "04"]


def test_nearest_rows_that_are_not_finite_are_left_out_and_counted():
    vectors = np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)
    vectors[3, 2], vectors[9, 0] = np.nan, np.inf
    ids = [f"{row:02d}" for row in range(20)]
    found = search_batches(vectors, ids, vectors[5], step=7, k=20)
    assert found.rows_not_finite == 2
    assert {hit.id for hit in found.hits} == set(ids) - {"03", "09"}
    few = search_batches(vectors, ids, vectors[5], step=20, k=3)
    assert few.hits == found.hits[:3]


def test_nearest_rows_without_one_row_still_has_k():
    vectors = np.random.default_rng(2).standard_normal((30, 8)).astype(np.float32)
    ids = [f"{row:02d}" for row in range(30)]
    every = search_batches(vectors, ids, vectors[4], step=30, k=6)
    found = search_batches(vectors, ids, vectors[4], step=30, k=5, skip_id="04")
    assert every.hits[0].id == "04"
    assert found.hits == every.hits[1:]


@pytest.mark.parametrize("query", [[0.0, 0.0], [np.nan, 1.0]])
def test_nearest_rows_query_without_direction_is_an_error(query):
    with pytest.raises(ValueError, match="zero or not finite"):
        NearestRows(query, k=1)


def test_nearest_rows_unknown_metric_or_k_is_an_error():
    with pytest.raises(ConfigError, match="one of cosine, dot"):
        NearestRows([1.0], k=1, metric="l2")
    with pytest.raises(ConfigError, match="k=0"):
        NearestRows([1.0], k=0)


# Files

METADATA = pa.schema([("topic", pa.string()), ("year", pa.int64()), ("raw", pa.binary())])


def make_files() -> list[outputs.Rows]:
    rng = np.random.default_rng(3)
    rows = [
        {
            "id": f"row-{number:04d}",
            "embedding": rng.standard_normal(16).astype(np.float32).tolist(),
            "text": f"text {number}\n\x1b[31mred\tend",
            "topic": None if number % 5 == 0 else f"topic {number % 3}",
            "year": 2000 + number,
            "raw": b"\xff\x00",
        }
        for number in range(9000)
    ]
    return [rows[:5000], rows[5000:]]


@pytest.fixture(scope="module", params=["parquet", "tfrecord"])
def stored(request, tmp_path_factory) -> Path:
    return outputs.write_output(
        tmp_path_factory.mktemp("stored") / request.param,
        make_files(),
        width=16,
        output_format=request.param,
        metadata=METADATA,
        keep_text=True,
    )


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_search_rows_of_several_files_gives_brute_force(stored, metric):
    rows = [row for file in make_files() for row in file]
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    query = np.random.default_rng(4).standard_normal(16)
    manifest = read_manifest(str(stored))
    found = search_rows(str(stored), manifest, query=query, k=25, metric=metric)
    ids = [row["id"] for row in rows]
    assert_hits(found, search_plainly(vectors, ids, query, k=25, metric=metric))
    assert found.rows == 9000
    assert [5000 * hit.file + hit.row for hit in found.hits] == [
        int(hit.id.removeprefix("row-")) for hit in found.hits
    ]


def test_find_row_gives_place_and_vector(stored):
    hit, vector = find_row(str(stored), read_manifest(str(stored)), "row-8123")
    assert hit == Hit(1.0, "row-8123", 1, 3123)
    wanted = make_files()[1][3123]["embedding"]
    np.testing.assert_array_equal(vector, np.array(wanted, np.float32))


def test_search_rows_missing_file_is_an_error_that_names_it(tmp_path):
    row = {"id": "a", "embedding": [1.0, 2.0]}
    output = outputs.write_output(tmp_path / "output", [[row], [{**row, "id": "b"}]], width=2)
    (output / "part-00001-of-00002.parquet").unlink()
    manifest = read_manifest(str(output))
    with pytest.raises(InputError, match=r"part-00001-of-00002\.parquet cannot be read"):
        search_rows(str(output), manifest, query=[1.0, 0.0], k=1)


# What is printed


def test_show_value_nothing_reaches_the_terminal_that_controls_it():
    shown = show_value("a\n\x1b[31mb\tc\u202ed\u2028e")
    assert shown == "a \ufffd[31mb c\ufffdd e"
    assert show_value(None) == ""


@given(text=st.text(max_size=40), width=st.integers(1, 30))
def test_fit_is_exactly_as_wide_as_asked(text, width):
    shown = show_value(text)
    fitted = fit(shown, width)
    assert display_width(fitted) == width
    if display_width(shown) <= width:
        assert fitted.rstrip() == shown.rstrip()
    else:
        assert fitted.rstrip().endswith("…")


def test_format_table_lines_are_no_wider_than_the_terminal():
    found = SearchResult((Hit(0.51234, "a", 0, 0), Hit(-1.0, "数数", 0, 1)), 2)
    values = [{"year": 7, "text": "word " * 50}, {"year": None, "text": "短" * 80}]
    table = format_table(found, values, columns=["text", "year"], width=60)
    lines = table.splitlines()
    assert [line.split()[0] for line in lines] == ["rank", "1", "2"]
    assert lines[0].split() == ["rank", "score", "id", "year", "text"]
    assert lines[1].startswith("1     0.5123   a     7")
    assert [display_width(line) <= 60 for line in lines] == [True] * 3
    assert lines[1].endswith("…")


# The command


def search(folder: Path, *arguments: str) -> commands.Result:
    return commands.run(arguments, folder=folder, module="pipeline.search")


@pytest.mark.integration
def test_search_id_prints_neighbours_but_not_the_row_itself(stored, tmp_path):
    result = search(tmp_path, str(stored), "--id=row-0007", "--k=3", "--json")
    assert result.code == 0, result.err
    body = json.loads(result.out)
    assert body["rows_searched"] == 9000
    assert [row["rank"] for row in body["rows"]] == [1, 2, 3]
    assert "row-0007" not in [row["id"] for row in body["rows"]]
    first = body["rows"][0]
    number = int(first["id"].removeprefix("row-"))
    assert first["columns"] == {
        "text": f"text {number}\n\x1b[31mred\tend",
        "topic": None if number % 5 == 0 else f"topic {number % 3}",
        "year": 2000 + number,
        "raw": "/wA=",
    }


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--id=row-9999"], "none of the 9,000 rows of"),
        (["--columns=yaer", "--id=row-0001"], "no column 'yaer'; did you mean year?"),
        ([], "give a text to search for, or --id=ROW_ID"),
        (["text", "--id=row-0001"], "one of the two"),
        (["--id=row-0001", "--metric=l2"], "invalid choice: 'l2'"),
        (["--id=row-0001", "--k=0"], "0 is less than 1"),
    ],
)
def test_search_wrong_call_exits_2_with_one_line(stored, tmp_path, arguments, message):
    result = search(tmp_path, str(stored), *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert result.out == ""


@pytest.mark.integration
def test_search_output_without_rows_finds_none(tmp_path):
    output = outputs.write_output(tmp_path / "output", [[]], width=4)
    result = search(tmp_path, str(output), "anything", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["rows"] == []
    table = search(tmp_path, str(output), "anything")
    assert (table.code, table.out) == (0, "")
    assert "searched 0 rows" in table.err


TOPICS = ("cardiology", "astronomy", "cooking")


@pytest.fixture(scope="module")
def demo_output(tmp_path_factory, demo_expert) -> Path:
    """24 texts of the demo corpus with the demo expert, and the rest of them as queries."""
    folder = tmp_path_factory.mktemp("demo")
    lines = (Path(__file__).parents[1] / "configs" / "demo_corpus.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    chosen, queries = [], {}
    for topic in TOPICS:
        of_topic = [row for row in rows if row["topic"] == topic and len(row["text"]) < 200]
        assert len(of_topic) > 8, f"topics are {sorted({row['topic'] for row in rows})}"
        chosen += of_topic[:8]
        queries[topic] = of_topic[8]["text"]
    write_jsonl(folder / "rows.jsonl", chosen)
    (folder / "queries.json").write_text(json.dumps(queries))
    result = commands.run(
        [
            "--input=rows.jsonl",
            "--id_field=id",
            "--metadata_fields=topic",
            "--expert=demo",
            "--keep_text",
            "--output=out",
        ],
        folder=folder,
    )
    assert result.code == 0, result.err
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("topic", TOPICS)
def test_search_text_finds_a_text_of_its_topic(demo_output, topic):
    query = json.loads((demo_output / "queries.json").read_text())[topic]
    result = search(demo_output, "out", "--k=1", query, "--columns=topic")
    assert result.code == 0, result.err
    heading, row = result.out.splitlines()
    assert heading.split() == ["rank", "score", "id", "topic"]
    assert row.split()[-1] == topic


@pytest.mark.integration
def test_search_text_with_another_expert_is_refused(demo_output, tiny_expert):
    result = search(
        demo_output,
        "out",
        "hearts",
        f"--expert={tiny_expert.encoder}",
        f"--preprocessor={tiny_expert.preprocessor}",
    )
    assert result.code == 2
    assert "is not the one that made the output: the expert's weights" in result.err
    assert result.out == ""


@pytest.mark.integration
def test_search_blank_text_is_an_error(demo_output):
    result = search(demo_output, "out", "  ")
    assert result.code == 2
    assert "blank_text" in result.err

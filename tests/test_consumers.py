"""The output, read by each tool that the contract names: right width, exact values, no help.

Vectors are compared bit by bit. These hold what transforms/writers/parquet.py says of the type it
chose.
"""

from __future__ import annotations

import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from transforms import writers
from transforms.writers.parquet import ParquetWriter

ROWS = 700
WIDTH = 96
SEED = 11


def make_matrix() -> np.ndarray:
    matrix = np.random.default_rng(SEED).standard_normal((ROWS, WIDTH), dtype=np.float32)
    matrix[0, :4] = [-0.0, 1e-45, 3.4028235e38, 0.1]
    return matrix


MATRIX = make_matrix()
IDS = [f"row-{row:04}" for row in range(ROWS)]
METADATA = pa.table(
    {
        "year": pa.array([None if row % 5 == 0 else 1900 + row for row in range(ROWS)], pa.int64()),
        "tags": pa.array([["a", "b"][: row % 3] for row in range(ROWS)], pa.list_(pa.string())),
        "source": pa.array(["wiki" if row % 2 else None for row in range(ROWS)], pa.string()),
    }
)
SCHEMA = writers.output_schema(embedding_columns={"embedding": WIDTH}, metadata=METADATA.schema)


def write_file(path, writer: writers.Writer) -> str:
    columns = [
        pa.array(IDS),
        writers.vector_array(MATRIX),
        pa.array(range(3, 3 + ROWS), pa.int32()),
        pa.array([row % 7 == 0 for row in range(ROWS)]),
        pa.array([f"{row:064x}" for row in range(ROWS)]),
        *METADATA.columns,
    ]
    footer = {"expert": "wiki_books", "width": str(WIDTH)}
    with path.open("wb") as sink, writer.open(sink, schema=SCHEMA, footer=footer) as file:
        file.write(pa.Table.from_arrays(columns, schema=SCHEMA))
    return str(path)


@pytest.fixture(scope="module")
def parquet_file(tmp_path_factory) -> str:
    # Two row groups, so that each reader has to join them.
    path = tmp_path_factory.mktemp("consumers") / "part-00000-of-00001.parquet"
    return write_file(path, ParquetWriter(row_group_rows=256))


@pytest.fixture(scope="module")
def tfrecord_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("consumers") / "part-00000-of-00001.tfrecord"
    return write_file(path, writers.WRITERS["tfrecord"])


def assert_exact(found: np.ndarray, wanted: np.ndarray = MATRIX) -> None:
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


def nearest_to(row: int, count: int) -> list[str]:
    wide = np.delete(MATRIX.astype(np.float64), 0, axis=0)  # row 0 overflows a float32 product
    query = MATRIX[row].astype(np.float64)
    cosine = wide @ query / np.linalg.norm(wide, axis=1) / np.linalg.norm(query)
    return [IDS[1 + found] for found in np.argsort(-cosine)[:count]]


def test_pyarrow_reads_vectors_of_known_width(parquet_file):
    import pyarrow.parquet as pq

    table = pq.read_table(parquet_file)
    assert table.schema.remove_metadata() == SCHEMA
    assert table["id"].to_pylist() == IDS
    assert table.schema.metadata[b"expert"] == b"wiki_books"
    assert_exact(writers.vector_matrix(table["embedding"]))


def test_pyarrow_dataset_filters_rows_by_id(parquet_file):
    import pyarrow.dataset as ds

    found = ds.dataset(parquet_file).to_table(filter=ds.field("id") == "row-0600")
    assert_exact(writers.vector_matrix(found["embedding"]), MATRIX[600:601])


def test_duckdb_reads_the_footer(parquet_file):
    import duckdb

    with duckdb.connect() as connection:
        notes = dict(
            connection.sql(
                f"SELECT key, value FROM parquet_kv_metadata('{parquet_file}')"
            ).fetchall()
        )
    assert (notes[b"expert"], notes[b"width"]) == (b"wiki_books", b"96")


def test_duckdb_reads_vectors(parquet_file):
    import duckdb

    with duckdb.connect() as connection:
        found = connection.sql(f"SELECT * FROM '{parquet_file}' ORDER BY id").fetchnumpy()
        kinds = connection.sql(
            f"SELECT DISTINCT typeof(embedding) FROM '{parquet_file}'"
        ).fetchall()
    assert kinds == [("FLOAT[]",)]
    assert found["id"].tolist() == IDS
    assert_exact(np.stack(found["embedding"]))


@pytest.mark.parametrize(
    "cosine",
    [
        pytest.param("list_cosine_similarity(embedding, q)", id="list"),
        pytest.param(
            f"array_cosine_similarity(embedding::FLOAT[{WIDTH}], q::FLOAT[{WIDTH}])", id="array"
        ),
    ],
)
def test_duckdb_finds_nearest_neighbours_by_cosine(parquet_file, cosine):
    import duckdb

    query = f"""
        WITH query AS (SELECT embedding AS q FROM '{parquet_file}' WHERE id = 'row-0123')
        SELECT id FROM '{parquet_file}', query WHERE id <> 'row-0000'
        ORDER BY {cosine} DESC LIMIT 5
    """
    with duckdb.connect() as connection:
        found = [row[0] for row in connection.sql(query).fetchall()]
    assert found[0] == "row-0123"
    assert found == nearest_to(123, 5)


def test_polars_reads_vectors_as_arrays(parquet_file):
    import polars as pl

    frame = pl.read_parquet(parquet_file)
    assert frame.schema["embedding"] == pl.Array(pl.Float32, WIDTH)
    assert frame["id"].to_list() == IDS
    assert_exact(frame["embedding"].to_numpy())


def test_polars_lazy_scan_reads_vectors_as_arrays(parquet_file):
    import polars as pl

    frame = pl.scan_parquet(parquet_file).filter(pl.col("id") == "row-0600").collect()
    assert_exact(frame["embedding"].to_numpy(), MATRIX[600:601])


def test_pandas_reads_vectors(parquet_file):
    import pandas as pd

    frame = pd.read_parquet(parquet_file)
    assert frame["id"].tolist() == IDS
    assert_exact(np.stack(frame["embedding"]))


def test_datasets_reads_vectors_of_known_width(parquet_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    found = datasets.Dataset.from_parquet(parquet_file, cache_dir=str(tmp_path))
    assert found.features["embedding"] == datasets.List(datasets.Value("float32"), length=WIDTH)
    rows = found.with_format("numpy")[:]
    assert rows["id"].tolist() == IDS
    assert_exact(rows["embedding"])


def find_java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=f"{home}/bin") if home else None) or shutil.which("java")


@pytest.mark.integration
@pytest.mark.skipif(find_java() is None, reason="Spark needs Java, and there is none here")
def test_spark_reads_vectors(parquet_file, tmp_path):
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import SparkSession
    from pyspark.sql import types as T  # noqa: N812 - Spark's own convention

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.warehouse.dir", str(tmp_path))
        .getOrCreate()
    )
    try:
        frame = session.read.parquet(parquet_file).orderBy("id")
        assert frame.schema["embedding"].dataType == T.ArrayType(T.FloatType())
        rows = frame.collect()
        sizes = frame.selectExpr("size(embedding) AS width").distinct().collect()
        vector = frame.select(array_to_vector("embedding").alias("vector")).first().vector
    finally:
        session.stop()
    assert [row.id for row in rows] == IDS
    assert [row.year for row in rows] == METADATA["year"].to_pylist()
    assert_exact(np.array([row.embedding for row in rows], np.float32))
    assert [row.width for row in sizes] == [WIDTH]
    assert_exact(vector.toArray().astype(np.float32), MATRIX[0])


def read_with_beam(path: str, tmp_path, **options: bool) -> list[dict]:
    import apache_beam as beam
    import orjson

    prefix = str(tmp_path / "rows")
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.io.ReadFromParquet(path, **options)
        lines = rows | beam.Map(orjson.dumps)
        _ = lines | beam.io.WriteToText(prefix, num_shards=1, coder=beam.coders.BytesCoder())
    [written] = tmp_path.glob("rows*")
    return [orjson.loads(line) for line in written.read_bytes().splitlines()]


@pytest.mark.integration
def test_beam_reads_vectors_in_dict_rows(parquet_file, tmp_path):
    rows = sorted(read_with_beam(parquet_file, tmp_path), key=lambda row: row["id"])
    assert [row["id"] for row in rows] == IDS
    assert_exact(np.array([row["embedding"] for row in rows], np.float32))


def test_beam_schema_rows_refuse_fixed_size_vectors(parquet_file):
    # If this fails, Beam has learned it: mend the table in transforms/writers/parquet.py.
    import apache_beam as beam

    pipeline = beam.Pipeline(runner="FnApiRunner")
    with pytest.raises(ValueError, match="Unrecognized arrow type"):
        _ = pipeline | beam.io.ReadFromParquet(parquet_file, as_rows=True)


def test_parse_example_reads_vectors_by_the_printed_spec(tfrecord_file):
    import tensorflow as tf

    scope = {"tf": tf}
    exec(writers.example_spec(SCHEMA), scope)
    records = list(tf.data.TFRecordDataset(tfrecord_file).as_numpy_iterator())
    found = tf.io.parse_example(records, scope["features"])
    assert [value.decode() for value in found["id"].numpy()] == IDS
    assert_exact(found["embedding"].numpy())
    assert found["n_tokens"].numpy().tolist() == list(range(3, 3 + ROWS))
    assert found["truncated"].numpy().tolist() == [int(row % 7 == 0) for row in range(ROWS)]
    years = [[] if year is None else [year] for year in METADATA["year"].to_pylist()]
    assert found["year"].to_list() == years
    tags = [[tag.encode() for tag in tags] for tags in METADATA["tags"].to_pylist()]
    assert found["tags"].to_list() == tags


def test_tf_data_reads_every_record_and_its_checksum(tfrecord_file):
    import tensorflow as tf

    spec = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "embedding": tf.io.FixedLenFeature([WIDTH], tf.float32),
    }
    dataset = (
        tf.data.TFRecordDataset(tfrecord_file)
        .batch(64)
        .map(lambda records: tf.io.parse_example(records, spec))
        .unbatch()
    )
    rows = list(dataset.as_numpy_iterator())
    assert [row["id"].decode() for row in rows] == IDS
    assert_exact(np.stack([row["embedding"] for row in rows]))


def test_tf_data_damaged_record_is_found(tfrecord_file, tmp_path):
    import tensorflow as tf

    with open(tfrecord_file, "rb") as file:
        data = bytearray(file.read())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / "damaged.tfrecord"
    damaged.write_bytes(data)
    with pytest.raises(tf.errors.DataLossError):
        list(tf.data.TFRecordDataset(str(damaged)).as_numpy_iterator())

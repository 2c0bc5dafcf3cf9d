"""The main job, end to end: real commands, real SavedModels, real files."""

from __future__ import annotations

import bz2
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests import commands
from tests.conftest import SavedExpert

pytestmark = pytest.mark.integration

SENTENCE = (
    "the patient was given a dose of aspirin after surgery and music played while stars moved "
    "slowly over quiet water near mountains where bread is baked every morning by old friends"
)


def make_texts(count: int, *, seed: int = 1) -> list[str]:
    """Texts of 1 to 40 words, each with a number of its own."""
    rng, words = random.Random(seed), SENTENCE.split()
    return [
        " ".join([f"{number}", *rng.choices(words, k=rng.randint(1, 40))])
        for number in range(count)
    ]


def expert_flags(expert: SavedExpert) -> list[str]:
    return [f"--expert={expert.encoder}", f"--preprocessor={expert.preprocessor}"]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def vectors_by_id(output: Path) -> dict[str, np.ndarray]:
    return {key: np.array(row["embedding"]) for key, row in commands.read_rows(output).items()}


def assert_same_vectors(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    keys = list(left)
    np.testing.assert_allclose(
        np.stack([left[key] for key in keys]), np.stack([right[key] for key in keys]), atol=1e-5
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, list[dict]]:
    """10,000 rows as JSON lines."""
    rows = [
        {"id": f"row-{number:05d}", "text": text, "year": 1990 + number % 30, "score": number / 8}
        for number, text in enumerate(make_texts(10_000))
    ]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "rows.jsonl", rows), rows


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_expert, corpus) -> dict[str, np.ndarray]:
    """The vectors of an undisturbed run with one worker."""
    folder = tmp_path_factory.mktemp("reference")
    result = commands.run(
        [
            f"--input={corpus[0]}",
            "--id_field=id",
            "--metadata_fields=year,score",
            "--rows_per_file=3000",
            "--output=out",
            *expert_flags(tiny_expert),
        ],
        folder=folder,
    )
    assert result.code == 0, result.err
    output = folder / "out"
    rows = commands.read_rows(output)
    assert [row["year"] for row in rows.values()] == [one["year"] for one in corpus[1]]
    assert [row["score"] for row in rows.values()] == [one["score"] for one in corpus[1]]
    assert list(rows) == [one["id"] for one in corpus[1]]
    assert [file["rows"] for file in commands.read_manifest(output)["files"]] == [2500] * 4
    assert commands.read_report(output)["encoding"]["expert_loads"] == 1
    return vectors_by_id(output)


@pytest.mark.parametrize(
    ("mode", "workers", "loads"),
    [("multi_threading", 4, 1), ("multi_processing", 2, 2)],
    ids=["four-threads", "two-processes"],
)
def test_run_other_workers_give_the_same_vectors_and_load_once_a_process(
    tmp_path, corpus, reference, tiny_expert, mode, workers, loads
):
    result = commands.run(
        [
            f"--input={corpus[0]}",
            "--id_field=id",
            "--output=out",
            "--runner=DirectRunner",
            f"--direct_running_mode={mode}",
            f"--direct_num_workers={workers}",
            *expert_flags(tiny_expert),
        ],
        folder=tmp_path,
    )
    assert result.code == 0, result.err
    assert_same_vectors(vectors_by_id(tmp_path / "out"), reference)
    assert commands.read_report(tmp_path / "out")["encoding"]["expert_loads"] == loads


def encode_text(rows: list[dict]) -> bytes:
    return "".join(row["text"] + "\n" for row in rows).encode()


def encode_jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def encode_csv(rows: list[dict]) -> bytes:
    lines = [f'{row["id"]},"{row["text"]}",{row["year"]}\r\n' for row in rows]
    return ("id,text,year\r\n" + "".join(lines)).encode()


def encode_tfrecord(rows: list[dict]) -> bytes:
    import tensorflow as tf

    from transforms.writers.tfrecord import frame_record

    def example(row: dict) -> bytes:
        feature = {
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[row[name].encode()]))
            for name in ("id", "text")
        }
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    return b"".join(frame_record(example(row)) for row in rows)


def encode_parquet(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3000)
    return sink.getvalue().to_pybytes()


FORMS = {
    "rows.txt.bz2": lambda rows: bz2.compress(encode_text(rows)),
    "rows.txt": encode_text,
    "rows.jsonl.gz": lambda rows: gzip.compress(encode_jsonl(rows)),
    "rows.csv": encode_csv,
    "rows.csv.zst": lambda rows: zstandard.compress(encode_csv(rows)),
    "rows.parquet": encode_parquet,
    "rows.tfrecord": encode_tfrecord,
    "rows.tfrecord.gz": lambda rows: gzip.compress(encode_tfrecord(rows)),
}


@pytest.mark.parametrize("name", FORMS)
def test_run_every_format_gives_the_same_vectors(tmp_path, corpus, reference, tiny_expert, name):
    (tmp_path / name).write_bytes(FORMS[name](corpus[1]))
    fields = [] if ".txt" in name else ["--id_field=id"]
    result = commands.run(
        [f"--input={name}", "--output=out", *fields, *expert_flags(tiny_expert)], folder=tmp_path
    )
    assert result.code == 0, result.err
    vectors = vectors_by_id(tmp_path / "out")
    if not fields:  # ids are derived; rows stand in the order of the file
        vectors = dict(zip(reference, vectors.values(), strict=True))
    assert_same_vectors(vectors, reference)


def test_run_without_id_field_gives_the_same_ids_in_every_run(tmp_path, tiny_expert):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/part.txt", "b/part.txt"):
        (tmp_path / name).write_text("the same line\nthe same line\n")
    flags = ["--input=*/part.txt", *expert_flags(tiny_expert)]
    for output, more in (("one", []), ("two", ["--batch_tokens=8", "--rows_per_file=1"])):
        result = commands.run([*flags, f"--output={output}", *more], folder=tmp_path)
        assert result.code == 0, result.err
    one, two = commands.read_rows(tmp_path / "one"), commands.read_rows(tmp_path / "two")
    assert list(one) == list(two)
    assert len(one) == 4


def test_run_bad_rows_cost_one_row_each_and_the_counts_add_up(tmp_path, tiny_expert):
    lines = [
        '{"id": "a", "text": "good"}',
        '{"id": "b", "text": ""}',
        '{"id": "c", "text": "   "}',
        '{"id": "d"}',
        '{"id": "e", "text": null}',
        '{"id": "f", "text": 7}',
        '{"id": "a", "text": "again"}',
        '{"text": "no id"}',
        '["not an object"]',
        '{"id": "g", "text": ',
        '{"id": "h", "text": "\\u0301\\u0302"}',
        '{"id": "i", "text": "\U0001f600\U0001f601"}',
        '{"id": "j", "text": "' + "x" * 100_000 + '"}',
        '{"id": "k", "text": "good too"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    result = commands.run(
        [
            "--input=rows.jsonl",
            "--id_field=id",
            "--output=out",
            "--max_reject_rate=0.9",
            *expert_flags(tiny_expert),
        ],
        folder=tmp_path,
    )
    assert result.code == 0, result.err
    assert list(commands.read_rows(tmp_path / "out")) == ["a", "k"]
    found = {
        (one["id"], one["reason"], one["stage"]) for one in commands.read_rejects(tmp_path / "out")
    }
    assert found == {
        ("b", "blank_text", "parse"),
        ("c", "blank_text", "parse"),
        ("d", "missing_text", "parse"),
        ("e", "null_text", "parse"),
        ("f", "text_not_string", "parse"),
        ("a", "duplicate_id", "select"),
        (None, "missing_id", "parse"),
        (None, "not_an_object", "parse"),
        (None, "malformed_json", "parse"),
        ("h", "no_tokens", "tokenize"),
        ("i", "unknown_tokens_only", "tokenize"),
        ("j", "unknown_tokens_only", "tokenize"),
    }
    counts = commands.read_report(tmp_path / "out")["counts"]
    assert counts["rows_read"] == len(lines) == counts["vectors"] + sum(counts["rejects"].values())
    assert "12 rejects" in result.err


def test_run_too_many_rejects_commits_nothing(tmp_path, tiny_expert):
    (tmp_path / "rows.txt").write_text("good\n\n\n")
    result = commands.run(
        ["--input=rows.txt", "--output=out", *expert_flags(tiny_expert)], folder=tmp_path
    )
    assert result.code == 4
    assert "2 of 3 rows (66.7%) are rejects: blank_text 2" in result.err
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert "Traceback" not in result.err


def test_run_truncated_gzip_is_an_error_before_encoding(tmp_path, tiny_expert):
    whole = gzip.compress(encode_text([{"text": text} for text in make_texts(500)]))
    (tmp_path / "rows.txt.gz").write_bytes(whole[: len(whole) // 2])
    flags = ["--input=rows.txt.gz", *expert_flags(tiny_expert)]
    result = commands.run([*flags, "--output=out"], folder=tmp_path)
    assert result.code == 2
    assert "rows.txt.gz" in result.err
    assert "truncated_file" in result.err
    assert "Traceback" not in result.err
    taken = commands.run([*flags, "--output=taken", "--on_bad_file=reject"], folder=tmp_path)
    assert taken.code == 0, taken.err
    rows = commands.read_rows(tmp_path / "taken")
    assert 100 < len(rows) < 500
    assert [one["reason"] for one in commands.read_rejects(tmp_path / "taken")] == [
        "truncated_file"
    ]


def test_run_committed_output_is_refused_and_overwrite_replaces_it(tmp_path, tiny_expert):
    (tmp_path / "rows.txt").write_text("one\ntwo\n")
    flags = ["--input=rows.txt", "--output=out", *expert_flags(tiny_expert)]
    assert commands.run([*flags, "--rows_per_file=1"], folder=tmp_path).code == 0
    refused = commands.run(flags, folder=tmp_path)
    assert refused.code == 3
    assert "--overwrite" in refused.err
    assert commands.run([*flags, "--overwrite"], folder=tmp_path).code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    about = ["report.html", "report.json"]
    assert names == ["_SUCCESS", "manifest.json", "part-00000-of-00001.parquet", *about]


def test_run_folder_with_other_files_is_refused_and_untouched(tmp_path, tiny_expert):
    (tmp_path / "rows.txt").write_text("one\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    result = commands.run(
        ["--input=rows.txt", "--output=out", *expert_flags(tiny_expert)], folder=tmp_path
    )
    assert result.code == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


def test_run_tfrecord_output_is_read_by_tensorflow(tmp_path, tiny_expert):
    import tensorflow as tf

    texts = make_texts(50)
    write_jsonl(tmp_path / "rows.jsonl", [{"n": n, "text": text} for n, text in enumerate(texts)])
    flags = ["--input=rows.jsonl", "--id_field=n", *expert_flags(tiny_expert)]
    result = commands.run(
        [*flags, "--output=out", "--output_format=tfrecord", "--rows_per_file=20"], folder=tmp_path
    )
    assert result.code == 0, result.err
    assert commands.run([*flags, "--output=same"], folder=tmp_path).code == 0
    files = sorted(str(path) for path in (tmp_path / "out").glob("part-*.tfrecord"))
    assert len(files) == 3
    spec = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "embedding": tf.io.FixedLenFeature([64], tf.float32),
        "n_tokens": tf.io.FixedLenFeature([], tf.int64),
    }
    parsed = [tf.io.parse_single_example(record, spec) for record in tf.data.TFRecordDataset(files)]
    found = {row["id"].numpy().decode(): row["embedding"].numpy() for row in parsed}
    assert_same_vectors(found, vectors_by_id(tmp_path / "same"))


def test_run_pairs_are_encoded_together(tmp_path, tiny_expert):
    rows = [
        {"id": "one", "question": "what is bread", "context": "bread is baked every morning"},
        {"id": "two", "question": "what is bread", "context": "stars moved slowly"},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    result = commands.run(
        [
            "--input=rows.jsonl",
            "--id_field=id",
            "--text_field=question",
            "--pair_field=context",
            "--keep_text",
            "--output=out",
            *expert_flags(tiny_expert),
        ],
        folder=tmp_path,
    )
    assert result.code == 0, result.err
    found = commands.read_rows(tmp_path / "out")
    assert found["one"]["pair"] == rows[0]["context"]
    assert not np.allclose(found["one"]["embedding"], found["two"]["embedding"])


def test_import_of_the_command_loads_no_model_library():
    code = (
        "import sys, pipeline.run, pipeline.build, pipeline.launch\n"
        "heavy = {'tensorflow', 'tensorflow_hub', 'tensorflow_text', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("limit", [1, 4096, 5000, 20_000])
def test_run_limit_takes_the_first_rows_of_the_corpus(
    tmp_path, corpus, reference, tiny_expert, limit
):
    result = commands.run(
        [
            f"--input={corpus[0]}",
            "--id_field=id",
            f"--limit={limit}",
            "--output=out",
            *expert_flags(tiny_expert),
        ],
        folder=tmp_path,
    )
    assert result.code == 0, result.err
    found = vectors_by_id(tmp_path / "out")
    assert_same_vectors(found, dict(list(reference.items())[:limit]))


def test_run_long_text_is_cut_and_marked_or_rejected(tmp_path, tiny_expert):
    (tmp_path / "rows.txt").write_text("short\n" + "word " * 30 + "\n")
    flags = ["--input=rows.txt", "--max_tokens=16", *expert_flags(tiny_expert)]
    result = commands.run([*flags, "--output=cut"], folder=tmp_path)
    assert result.code == 0, result.err
    rows = list(commands.read_rows(tmp_path / "cut").values())
    assert [(row["n_tokens"], row["truncated"]) for row in rows] == [(3, False), (16, True)]
    assert commands.read_report(tmp_path / "cut")["counts"]["truncated"] == 1
    result = commands.run(
        [*flags, "--output=no", "--long_text=reject", "--max_reject_rate=0.5"], folder=tmp_path
    )
    assert result.code == 0, result.err
    assert len(commands.read_rows(tmp_path / "no")) == 1
    (reject,) = commands.read_rejects(tmp_path / "no")
    assert (reject["reason"], reject["stage"]) == ("text_too_long", "tokenize")
    over = commands.run([*flags, "--output=over", "--max_tokens=513"], folder=tmp_path)
    assert over.code == 2
    assert "limit of 512" in over.err


def test_run_rejects_of_an_earlier_run_are_run_again_under_their_ids(tmp_path, tiny_expert):
    (tmp_path / "rows.txt").write_text("short\n" + "word " * 30 + "\n\n" + "more " * 30 + "\n")
    flags = ["--max_reject_rate=0.9", *expert_flags(tiny_expert)]
    strict = ["--input=rows.txt", "--output=strict", "--max_tokens=16", "--long_text=reject"]
    assert commands.run([*flags, *strict], folder=tmp_path).code == 0
    rejects = {one["id"]: one["reason"] for one in commands.read_rejects(tmp_path / "strict")}
    assert sorted(rejects.values()) == ["blank_text", "text_too_long", "text_too_long"]
    again = ["--input=strict/rejects/*.jsonl", "--input_format=rejects", "--output=again"]
    result = commands.run([*flags, *again], folder=tmp_path)
    assert result.code == 0, result.err
    found = commands.read_rows(tmp_path / "again")
    long_ids = {key for key, reason in rejects.items() if reason == "text_too_long"}
    assert set(found) == long_ids
    assert commands.run([*flags, "--input=rows.txt", "--output=all"], folder=tmp_path).code == 0
    whole = vectors_by_id(tmp_path / "all")
    assert_same_vectors(vectors_by_id(tmp_path / "again"), {key: whole[key] for key in long_ids})
    assert [one["reason"] for one in commands.read_rejects(tmp_path / "again")] == ["blank_text"]

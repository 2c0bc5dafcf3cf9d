"""verify finds each fault, by the check that is meant to, with file and row; and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.api import Expert, load_recorded
from tests import commands, outputs
from tests.conftest import SavedExpert
from tests.test_run import expert_flags, make_texts, write_jsonl
from transforms.errors import ConfigError
from transforms.spool import hash_ids
from transforms.unique import IdPlaces
from transforms.verification import CHECKS, Fault, Verification
from transforms.verify import check_output
from transforms.verify_sample import FoundTexts, check_sample, find_texts

# Unique ids


@given(
    files=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), max_size=4),
    memory_rows=st.integers(1, 20),
    buckets=st.integers(1, 5),
    step=st.integers(1, 5),
)
def test_id_places_finds_every_repeat_and_its_first_row(files, memory_rows, buckets, step):
    first: dict[str, tuple[int, int]] = {}
    wanted = set()
    for file, ids in enumerate(files):
        for row, key in enumerate(ids):
            if key in first:
                wanted.add(((file, row), first[key]))
            first.setdefault(key, (file, row))
    with IdPlaces(memory_rows=memory_rows, buckets=buckets) as places:
        for file, ids in enumerate(files):
            for start in range(0, len(ids), step):
                part = pa.array(ids[start : start + step], pa.string())
                rows = np.arange(start, start + len(part))
                places.add(hash_ids(part), file=file, rows=rows)
        found = list(places.duplicates())
    assert len(found) == len(wanted)
    assert set(found) == wanted


# Outputs of real runs


@pytest.fixture(scope="module")
def corpus() -> list[dict]:
    rows = [
        {"id": f"row-{n:02d}", "text": text, "year": 1990 + n}
        for n, text in enumerate(make_texts(60))
    ]
    return [*rows[:5], {"id": "blank", "text": " ", "year": 1}, *rows[5:], {"id": "none"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory, corpus, tiny_expert) -> Path:
    """Outputs in both formats: parquet, normalised, with its texts; tfrecord without either."""
    folder = tmp_path_factory.mktemp("made")
    write_jsonl(folder / "rows.jsonl", corpus)
    for name, more in (("parquet", ["--keep_text", "--normalize"]), ("tfrecord", [])):
        result = commands.run(
            [
                f"--input={folder}/rows.jsonl",
                "--id_field=id",
                "--metadata_fields=year",
                f"--output={name}",
                f"--output_format={name}",
                "--rows_per_file=30",
                *expert_flags(tiny_expert),
                *more,
            ],
            folder=folder,
        )
        assert result.code == 0, result.err
    return folder


@pytest.fixture(params=["parquet", "tfrecord"])
def output(request, made, tmp_path) -> Path:
    return Path(shutil.copytree(made / request.param, tmp_path / "output"))


@pytest.fixture
def parquet(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "parquet", tmp_path / "output"))


@pytest.fixture
def tfrecord(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "tfrecord", tmp_path / "output"))


def check(output: Path, *, sample_rows: int = 0) -> Verification:
    return check_output(str(output), sample_rows=sample_rows)


def failed(found: Verification) -> dict[str, list[Fault]]:
    """The checks that failed, and their faults."""
    return {name: one.faults for name, one in found.checks.items() if one.state == "FAILED"}


def part(output: Path, number: int) -> str:
    return str(commands.read_manifest(output)["files"][number]["name"])


pytestmark = pytest.mark.integration


def test_check_output_clean_output_passes_every_check(output):
    found = check(output)
    assert failed(found) == {}
    assert found.notes == []
    states = {name: one.state for name, one in found.checks.items()}
    assert states == {**dict.fromkeys(CHECKS, "ok"), "sample": "not checked"}
    assert found.checks["totals"].detail == "62 rows read = 60 vectors + 2 rejects"


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.95])
def test_check_output_flipped_byte_fails_the_checksum_of_its_file(output, place):
    path = output / part(output, 1)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x40
    path.write_bytes(data)
    found = check(output)
    assert [fault.file for fault in failed(found)["checksums"]] == [path.name]
    assert {fault.file for faults in failed(found).values() for fault in faults} == {path.name}


def test_check_output_flipped_byte_of_a_tfrecord_names_the_row(tfrecord):
    path = tfrecord / part(tfrecord, 1)
    data = bytearray(path.read_bytes())
    # All records of equal length but for the texts' counts: the one in the middle is row 15.
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    (fault, short) = failed(check(tfrecord))["rows"]
    assert (fault.file, fault.row) == (path.name, 15)
    assert "fails its checksum" in fault.message
    assert short.message == "has 15 rows; the manifest says 30"


def test_check_output_missing_file_is_named(output):
    name = part(output, 0)
    (output / name).unlink()
    assert failed(check(output)) == {"files": [Fault("is missing", name)]}


def test_check_output_missing_rejects_file_is_named(output):
    (rejects,) = (output / "rejects").iterdir()
    rejects.unlink()
    found = failed(check(output))
    assert [fault.file for fault in found["files"]] == [f"rejects/{rejects.name}"]


def test_check_output_truncated_file_fails_size_and_rows(output):
    path = output / part(output, 1)
    path.write_bytes(path.read_bytes()[:-100])
    found = failed(check(output))
    assert set(found) >= {"files", "checksums", "rows"}
    assert {fault.file for faults in found.values() for fault in faults} == {path.name}


@pytest.mark.parametrize(
    "name", ["part-00007-of-00008.parquet", "rejects/part-00001-of-00002.jsonl", "notes.txt"]
)
def test_check_output_extra_file_is_a_fault(output, name):
    (output / name).write_bytes(b"x")
    found = failed(check(output))
    assert list(found) == ["files"]
    assert [fault.file for fault in found["files"]] == [name]


def test_check_output_leftover_work_folder_is_a_note_and_no_fault(output):
    (output / "_work" / "parts").mkdir(parents=True)
    (output / "_work" / "parts" / "late.arrow").write_bytes(b"x")
    (output / ".part-0.crc").write_bytes(b"x")
    found = check(output)
    assert failed(found) == {}
    assert [note.split(" is ")[0] for note in found.notes] == [
        ".part-0.crc (1 file(s))",
        "_work/ (1 file(s))",
    ]


def test_check_output_duplicate_id_across_files_names_both_rows(output):
    first = part(output, 0)
    name = outputs.edit_rows(output, 1, lambda rows: rows[7].update(id="row-04"))
    assert failed(check(output)) == {
        "ids": [Fault(f"has the id 'row-04' of {first} row 4", name, 7)]
    }


def test_check_output_empty_id_names_the_row(output):
    name = outputs.edit_rows(output, 1, lambda rows: rows[3].update(id=""))
    assert failed(check(output)) == {"ids": [Fault("has no id", name, 3)]}


def nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def test_check_output_null_id_names_the_row(output):
    name = outputs.edit_rows(output, 0, lambda rows: rows[9].update(id=None), schema=nullable)
    found = failed(check(output))
    assert found.pop("ids") == [Fault("has no id", name, 9)]
    assert list(found) == ["schema"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "the vector holds nan at 5 (1 such of 64)"),
        (float("inf"), "the vector holds inf at 5 (1 such of 64)"),
    ],
    ids=["nan", "infinite"],
)
def test_check_output_number_that_is_none_names_the_row(output, value, message):
    name = outputs.edit_rows(output, 1, lambda rows: rows[11]["embedding"].__setitem__(5, value))
    assert failed(check(output)) == {"vectors": [Fault(message, name, 11)]}


def test_check_output_zero_vector_names_the_row(output):
    name = outputs.edit_rows(output, 0, lambda rows: rows[2].update(embedding=[0.0] * 64))
    assert failed(check(output)) == {"vectors": [Fault("the vector is all zeros", name, 2)]}


def test_check_output_normalised_vector_of_another_length_names_the_row(parquet):
    name = outputs.edit_rows(
        parquet,
        0,
        lambda rows: rows[6].update(embedding=[1.5 * value for value in rows[6]["embedding"]]),
    )
    assert failed(check(parquet)) == {
        "vectors": [
            Fault("the vector has length 1.5; wanted 1, as the fingerprint says normalize", name, 6)
        ]
    }


def any_width(schema: pa.Schema) -> pa.Schema:
    place = schema.get_field_index("embedding")
    field = pa.field("embedding", pa.list_(pa.float32()), nullable=False)
    return schema.set(place, field)


def test_check_output_wrong_width_names_the_row(output):
    name = outputs.edit_rows(
        output, 1, lambda rows: rows[8].update(embedding=[1.0] * 63), schema=any_width
    )
    found = failed(check(output))
    assert found.pop("vectors") == [Fault("the vector has 63 numbers; wanted 64", name, 8)]
    # A Parquet file has one type for all its rows; a TFRecord has none.
    assert list(found) == (["schema"] if output.name and name.endswith(".parquet") else [])


def test_check_output_file_of_another_width_fails_its_schema(parquet):
    def widen(schema: pa.Schema) -> pa.Schema:
        kind = pa.list_(pa.field("element", pa.float32(), nullable=False), 65)
        return schema.set(1, pa.field("embedding", kind, nullable=False))

    name = outputs.edit_rows(
        parquet, 1, lambda rows: [row["embedding"].append(0.0) for row in rows], schema=widen
    )
    found = check(parquet)
    (fault,) = failed(found)["schema"]
    assert fault.file == name
    assert "fixed_size_list<element: float not null>[65] not null; the manifest" in fault.message
    assert found.checks["vectors"].fault_count == 30
    assert len(found.checks["vectors"].faults) == 20


def test_check_output_feature_that_is_missing_names_the_row(tfrecord):
    name = outputs.edit_rows(
        tfrecord, 0, lambda rows: rows[4].update(truncated=None), schema=nullable
    )
    assert failed(check(tfrecord)) == {"schema": [Fault("lacks the feature truncated", name, 4)]}


def test_check_output_malformed_text_hash_names_the_row(output):
    name = outputs.edit_rows(output, 0, lambda rows: rows[1].update(text_sha256="ABC"))
    assert failed(check(output)) == {"texts": [Fault("text_sha256 is not 64 hex digits", name, 1)]}


def test_check_output_text_that_was_changed_names_the_row(parquet):
    name = outputs.edit_rows(parquet, 1, lambda rows: rows[29].update(text="another"))
    assert failed(check(parquet)) == {
        "texts": [Fault("text_sha256 is not that of the text kept", name, 29)]
    }


def test_check_output_token_count_over_the_limit_names_the_row(output):
    name = outputs.edit_rows(output, 1, lambda rows: rows[2].update(n_tokens=513))
    assert failed(check(output)) == {"texts": [Fault("n_tokens is 513; wanted 3 to 512", name, 2)]}


def test_check_output_footer_with_another_fingerprint_is_named(parquet):
    name = outputs.edit_rows(parquet, 1, lambda rows: None, footer={"fingerprint": "f00"})
    (fault,) = failed(check(parquet)).pop("fingerprint")
    assert fault.file == name
    assert fault.message.startswith("names f00; the manifest says ")


def test_check_output_manifest_changed_after_the_commit_is_told(output):
    path = output / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"year"', b'"yeah"'))
    found = failed(check(output))
    (fault,) = found["manifest"]
    assert fault.file == "manifest.json"
    assert "was changed after the commit" in fault.message


Change = Callable[[dict], object]


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (lambda one: one["totals"].update(rows=61), ["totals"]),
        (lambda one: one["totals"].update(rows_read=63), ["totals"]),
        (lambda one: one["files"][1].update(rows=31), ["totals", "rows"]),
        (lambda one: one["totals"]["rejects"].update(blank_text=2), ["totals", "rejects"]),
        (lambda one: one["fingerprint"]["parts"].update(pooling="max"), ["fingerprint"]),
        (lambda one: one["columns"][2].update(type="int64"), ["schema"]),
    ],
    ids=["rows", "rows-read", "rows-of-a-file", "rejects", "fingerprint", "columns"],
)
def test_check_output_manifest_that_disagrees_fails_where_it_does(
    parquet, change: Change, checks: list[str]
):
    outputs.seal(parquet, change)
    assert list(failed(check(parquet))) == checks


@pytest.mark.parametrize("damage", ["missing", "no-json", "shape"])
def test_check_output_manifest_that_cannot_be_used_fails_and_ends_there(output, damage):
    if damage == "missing":
        (output / "manifest.json").unlink()
    elif damage == "no-json":
        (output / "manifest.json").write_bytes(b"{")
    else:
        outputs.seal(output, lambda manifest: manifest["totals"].pop("rows"))
    found = check(output)
    assert list(failed(found)) == ["manifest"]
    assert found.checks["rows"].state == "not checked"


def test_check_output_manifest_with_a_path_outside_fails(output):
    outputs.seal(output, lambda manifest: manifest["files"][0].update(name="../elsewhere"))
    (fault,) = failed(check(output))["manifest"]
    assert "not a path inside the output" in fault.message


def test_check_output_damaged_rejects_name_the_line(output):
    (path,) = (output / "rejects").iterdir()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace("blank_text", "odd"), lines[1][:-9]]) + "\n")
    outputs.seal(output)
    messages = {(fault.message, fault.row) for fault in failed(check(output))["rejects"]}
    assert messages == {
        ("is no JSON object", 1),
        ("0 rejects with the reason blank_text; the manifest says 1", None),
        ("0 rejects with the reason missing_text; the manifest says 1", None),
        ("1 rejects with the reason odd; the manifest says 0", None),
    }


@pytest.mark.parametrize("state", ["absent", "interrupted", "foreign"])
def test_check_output_folder_without_a_commit_is_an_error(tmp_path, state):
    if state == "interrupted":
        (tmp_path / "output" / "_work").mkdir(parents=True)
        (tmp_path / "output" / "_work" / "run.json").write_text("{}")
    elif state == "foreign":
        (tmp_path / "output").mkdir()
        (tmp_path / "output" / "letter.txt").write_text("dear")
    hint = "run it again" if state == "interrupted" else "of a finished run"
    with pytest.raises(ConfigError, match=hint):
        check(tmp_path / "output")


def test_check_output_output_without_rows_passes(tmp_path):
    empty = outputs.write_output(tmp_path / "output", [[]], width=4)
    found = check(empty, sample_rows=200)
    assert failed(found) == {}
    assert found.checks["rows"].detail == "0 rows in 1 file(s)"
    assert found.sample == []


def test_check_output_times_in_metadata_are_the_manifests_types(tmp_path):
    # Parquet has no seconds: what is read back is another type than what was written.
    metadata = pa.schema(
        [("at", pa.timestamp("s")), ("day", pa.date64()), ("kinds", pa.list_(pa.int8()))]
    )
    row = {"id": "a", "embedding": [1.0, 2.0], "at": 7, "day": None, "kinds": [1]}
    output = outputs.write_output(tmp_path / "output", [[row]], width=2, metadata=metadata)
    assert failed(check(output)) == {}


# The sample


@pytest.fixture(scope="module")
def experts(tiny_expert) -> dict[str, Expert]:
    """The expert of both outputs, loaded as each has it."""
    return {
        name: Expert(
            tiny_expert.encoder,
            preprocessor=tiny_expert.preprocessor,
            normalize=name == "parquet",
        )
        for name in ("parquet", "tfrecord")
    }


def resample(output: Path, experts: dict[str, Expert], texts: FoundTexts | None = None):
    """Check an output and all of its rows as the sample."""
    found = check(output, sample_rows=1000)
    expert = experts[commands.read_manifest(output)["format"]]
    texts = find_texts(found) if texts is None else texts
    check_sample(found, texts, encode=lambda one, pairs: expert.encode_rows(one, pairs=pairs))
    return found


def test_check_sample_clean_output_passes(output, experts):
    found = resample(output, experts)
    assert failed(found) == {}
    assert found.checks["sample"].state == "ok"
    assert found.checks["sample"].detail.startswith("60 rows encoded again: largest difference ")


def test_check_sample_vector_of_another_text_names_the_row_and_whose_it_is(output, experts):
    owner = part(output, 1)

    def swap(rows: outputs.Rows) -> None:
        rows[3]["embedding"], rows[20]["embedding"] = rows[20]["embedding"], rows[3]["embedding"]

    name = outputs.edit_rows(output, 1, swap)
    faults = failed(resample(output, experts))["sample"]
    assert [(fault.file, fault.row) for fault in faults] == [(name, 3), (name, 20)]
    assert faults[0].message.startswith("id 'row-33': the vector is not its text's (cosine ")
    assert faults[0].message.endswith(f"it is the vector of {owner} row 20, id 'row-50'")


def test_check_sample_vectors_of_another_expert_fail_and_say_so(output, experts):
    rng = np.random.default_rng(5)

    def replace(rows: outputs.Rows) -> None:
        for row in rows:
            vector = rng.standard_normal(64)
            row["embedding"] = (vector / np.linalg.norm(vector)).tolist()

    for number in (0, 1):
        outputs.edit_rows(output, number, replace)
    found = resample(output, experts)
    assert list(failed(found)) == ["sample"]
    assert found.checks["sample"].fault_count == 60
    assert "as if another expert or other settings" in found.checks["sample"].detail


def test_check_sample_wrong_token_count_names_the_row(output, experts):
    name = outputs.edit_rows(output, 0, lambda rows: rows[5].update(n_tokens=400, truncated=True))
    (fault,) = failed(resample(output, experts))["sample"]
    assert (fault.file, fault.row) == (name, 5)
    assert "n_tokens=400, truncated=True; its text gives" in fault.message


def test_check_sample_is_the_same_for_the_same_output(output):
    one, two = (check(output, sample_rows=10).sample for _ in range(2))
    assert [(row.file, row.row) for row in one] == [(row.file, row.row) for row in two]
    assert len({row.id for row in one}) == 10


def test_find_texts_changed_corpus_leaves_those_rows_out_and_says_so(
    made, tfrecord, corpus, tmp_path, experts
):
    rows = [dict(row) for row in corpus if row["id"] != "row-07"]
    rows[1]["text"] = "another text by now"
    write_jsonl(tmp_path / "rows.jsonl", rows)
    outputs.seal(
        tfrecord, lambda manifest: manifest["config"].update(input=[f"{tmp_path}/rows.jsonl"])
    )
    found = resample(tfrecord, experts)
    assert failed(found) == {}
    assert found.checks["sample"].detail.startswith("58 rows encoded again")
    assert found.checks["sample"].detail.endswith(
        "not all could be checked: 1 of the rows are not in the run's inputs; 1 of the rows have "
        "another text there"
    )


def test_check_sample_pairs_kept_and_read_again_pass(tmp_path, tiny_expert):
    rows = [
        {"text": text, "other": other}
        for text, other in zip(make_texts(12), make_texts(12, seed=2), strict=True)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = [f"--input={tmp_path}/rows.jsonl", "--pair_field=other", *expert_flags(tiny_expert)]
    expert = Expert(tiny_expert.encoder, preprocessor=tiny_expert.preprocessor)
    for name, more in (("kept", ["--keep_text"]), ("read", ["--max_tokens=512"])):
        result = commands.run([*flags, *more, f"--output={name}"], folder=tmp_path)
        assert result.code == 0, result.err
        found = resample(tmp_path / name, {"parquet": expert})
        assert failed(found) == {}
        assert found.checks["sample"].detail.startswith("12 rows encoded again: largest")
    outputs.edit_rows(tmp_path / "kept", 0, lambda rows: rows[3].update(pair="another"))
    found = resample(tmp_path / "kept", {"parquet": expert})
    assert [fault.row for fault in failed(found)["texts"]] == [3]
    assert {fault.row for fault in failed(found)["sample"]} == {3}  # the vector and its count


def test_check_output_record_larger_than_a_row_may_be_is_read(tmp_path):
    text = "word " * (17 << 18)  # 21 MiB; input rows are at most 16 MiB unless a flag says so
    row = {
        "id": "a",
        "embedding": [1.0, 2.0],
        "text": text,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    output = outputs.write_output(
        tmp_path / "output", [[row]], width=2, output_format="tfrecord", keep_text=True
    )
    found = check(output)
    assert failed(found) == {}
    assert found.checks["texts"].detail == "1 rows, against the texts kept"


# The command


def verify(output: Path, folder: Path, *more: str) -> commands.Result:
    return commands.run([str(output), *more], folder=folder, module="pipeline.verify")


def test_verify_clean_output_exits_0_and_prints_each_check(tfrecord, tmp_path):
    result = verify(tfrecord, tmp_path)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [[name, "ok"] for name in CHECKS]
    assert lines[-2].split("  ")[-1].startswith("60 rows encoded again: largest difference ")
    assert lines[-1] == f"{tfrecord}: all checks hold"


def test_verify_swapped_vectors_exit_1_and_the_json_names_them(parquet, tmp_path):
    def swap(rows: outputs.Rows) -> None:
        rows[0]["embedding"], rows[1]["embedding"] = rows[1]["embedding"], rows[0]["embedding"]

    name = outputs.edit_rows(parquet, 0, swap)
    result = verify(parquet, tmp_path, "--json")
    assert result.code == 1, result.err
    body = json.loads(result.out)
    assert body["ok"] is False
    (bad,) = [one for one in body["checks"] if one["state"] != "ok"]
    assert (bad["name"], bad["fault_count"]) == ("sample", 2)
    assert [(fault["file"], fault["row"]) for fault in bad["faults"]] == [(name, 0), (name, 1)]


def test_verify_inputs_that_are_gone_exit_0_and_say_what_was_not_checked(tfrecord, tmp_path):
    outputs.seal(tfrecord, lambda manifest: manifest["config"].update(input=["gone.jsonl"]))
    result = verify(tfrecord, tmp_path)
    assert result.code == 0, result.err
    assert "sample       not checked  the run's inputs cannot be read: input " in result.out
    assert "--keep_text" in result.out
    assert result.out.endswith("all that was checked holds; not checked: sample\n")


def test_verify_expert_that_is_another_exits_1_and_names_the_part(parquet, tmp_path, other_expert):
    result = verify(
        parquet,
        tmp_path,
        f"--expert={other_expert.encoder}",
        f"--preprocessor={other_expert.preprocessor}",
    )
    assert result.code == 1, result.err
    assert "is not the one that the manifest records: the expert's weights or graph" in result.out
    assert "(encoder: " in result.out
    assert "tokenizer: " not in result.out


def test_verify_expert_that_is_gone_is_not_checked_but_a_wrong_flag_is_an_error(parquet, tmp_path):
    def move(manifest: dict) -> None:
        manifest["expert"].update(handle=f"{tmp_path}/gone", preprocessor=f"{tmp_path}/gone-too")

    outputs.seal(parquet, move)
    result = verify(parquet, tmp_path)
    assert result.code == 0, result.err
    assert "sample       not checked  the expert cannot be had: " in result.out
    named = verify(parquet, tmp_path, f"--expert={tmp_path}/nowhere")
    assert named.code == 2
    assert "nowhere" in named.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no committed output"),
        ([], "the following arguments are required: OUTPUT"),
        (["x", "--sampel=3"], "unknown flag --sampel; did you mean --sample?"),
        (["x", "--sample=-3"], "-3 is less than 0"),
    ],
)
def test_verify_wrong_call_exits_2_with_one_line(tmp_path, arguments, message):
    result = commands.run(arguments, folder=tmp_path, module="pipeline.verify")
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert result.out == ""


@pytest.fixture(scope="module")
def other_expert(tmp_path_factory, bert_vocabulary, tiny_expert) -> SavedExpert:
    """Another encoder of the tiny expert's size, with the same preprocessor."""
    from transforms import bert_savedmodel

    path = tmp_path_factory.mktemp("other_expert") / "encoder"
    config = bert_savedmodel.BertConfig(
        vocab_size=len(bert_vocabulary.read_text(encoding="utf-8").splitlines()),
        width=64,
        layers=2,
        heads=2,
        intermediate=256,
    )
    weights = bert_savedmodel.random_weights(config, seed=8)
    bert_savedmodel.build_encoder(
        str(path), config=config, weights=weights, vocab_file=bert_vocabulary
    )
    return SavedExpert(str(path), tiny_expert.preprocessor)


def test_load_recorded_expert_gives_the_vectors_of_the_output(parquet):
    manifest = commands.read_manifest(parquet)
    expert = load_recorded(manifest)
    rows = list(commands.read_rows(parquet).values())
    found = expert.encode([row["text"] for row in rows])
    np.testing.assert_allclose(found, [row["embedding"] for row in rows], atol=1e-5)
    assert expert.fingerprint == manifest["fingerprint"]["digest"]

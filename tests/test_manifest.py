from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import manifest, writers
from transforms.errors import ConservationError, InputError

SHA = "0123456789abcdef" * 4
TOKYO = datetime.timezone(datetime.timedelta(hours=9))


def make_file(name: str = "part-00000-of-00002.parquet", rows: int = 3) -> dict:
    return manifest.describe_file(name, rows=rows, size_bytes=10 * rows, sha256=SHA)


def make_manifest(**changes) -> dict:
    arguments = {
        "files": [make_file("part-00001-of-00002.parquet", 2), make_file()],
        "rejects_files": [make_file("rejects/part-00000-of-00001.jsonl", 4)],
        "rows_read": 9,
        "rejects": {"null_text": 1, "bad_json": 3},
        "expert": {"name": "pubmed", "handle": "https://tfhub.dev/p/2", "width": 8},
        "fingerprint": "f" * 64,
        "fingerprint_parts": {"expert": "e", "pooling": "mean"},
        "config": {"input": ["a.jsonl"], "limit": None, "normalize": False},
        "output_format": "parquet",
        "columns": writers.output_schema(
            embedding_columns={"embedding": 8}, metadata=pa.schema([("year", pa.int64())])
        ),
        "versions": {"product": "1.2.3", "python": "3.11.7"},
        "created": datetime.datetime(2026, 11, 23, 9, 30, 15, 123456, TOKYO),
        **changes,
    }
    return manifest.build_manifest(arguments.pop("files"), **arguments)


def commit(folder, body: dict | bytes, **success) -> str:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    (folder / "manifest.json").write_bytes(data)
    success = success or {"manifest_sha256": hashlib.sha256(data).hexdigest()}
    (folder / "_SUCCESS").write_text(json.dumps(success), encoding="utf-8")
    return str(folder)


def test_describe_file_gives_name_rows_bytes_and_sha256():
    found = manifest.describe_file("rejects/a.jsonl", rows=0, size_bytes=7, sha256=SHA)
    assert found == {"name": "rejects/a.jsonl", "rows": 0, "bytes": 7, "sha256": SHA}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"name": ""}, "inside the output", id="no-name"),
        pytest.param({"name": "/tmp/part"}, "inside the output", id="absolute"),
        pytest.param({"name": "gs://b/part"}, "inside the output", id="url"),
        pytest.param({"name": "a/../../part"}, "inside the output", id="outside"),
        pytest.param({"rows": -1}, "-1 rows", id="rows"),
        pytest.param({"size_bytes": -1}, "-1 bytes", id="bytes"),
        pytest.param({"sha256": SHA[:-1]}, "64 hex digits", id="short-digest"),
        pytest.param({"sha256": SHA.upper()}, "64 hex digits", id="upper-case-digest"),
    ],
)
def test_describe_file_impossible_value_raises(changes, message):
    arguments = {"name": "part", "rows": 1, "size_bytes": 1, "sha256": SHA, **changes}
    with pytest.raises(ValueError, match=message):
        manifest.describe_file(arguments.pop("name"), **arguments)


def test_build_manifest_whole_run_is_as_documented():
    found = make_manifest(reused={"output": "gs://bucket/dt=2026-11-22", "rows": 2})
    assert json.loads(json.dumps(found)) == {
        "manifest_version": 1,
        "created": "2026-11-23T00:30:15+00:00",
        "format": "parquet",
        "columns": [
            {"name": "id", "type": "string", "nullable": False},
            {
                "name": "embedding",
                "type": "fixed_size_list<element: float not null>[8]",
                "nullable": False,
            },
            {"name": "n_tokens", "type": "int32", "nullable": False},
            {"name": "truncated", "type": "bool", "nullable": False},
            {"name": "text_sha256", "type": "string", "nullable": False},
            {"name": "year", "type": "int64", "nullable": True},
        ],
        "files": [make_file(), make_file("part-00001-of-00002.parquet", 2)],
        "rejects": {"files": [make_file("rejects/part-00000-of-00001.jsonl", 4)]},
        "totals": {"rows_read": 9, "rows": 5, "rejects": {"bad_json": 3, "null_text": 1}},
        "expert": {"name": "pubmed", "handle": "https://tfhub.dev/p/2", "width": 8},
        "fingerprint": {"digest": "f" * 64, "parts": {"expert": "e", "pooling": "mean"}},
        "config": {"input": ["a.jsonl"], "limit": None, "normalize": False},
        "versions": {"product": "1.2.3", "python": "3.11.7"},
        "reused": {"output": "gs://bucket/dt=2026-11-22", "rows": 2},
    }


def test_build_manifest_without_reuse_says_none():
    assert make_manifest()["reused"] is None


@given(files=st.permutations([make_file(f"part-{n}", 1) for n in range(5)]))
def test_build_manifest_files_in_any_order_give_the_same_bytes(files):
    reasons = {"b": 2, "a": 2}
    first = make_manifest(files=files, rejects=reasons)
    second = make_manifest(files=sorted(files, key=str), rejects=dict(sorted(reasons.items())))
    assert json.dumps(first) == json.dumps(second)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"rows_read": 10}, id="row-lost"),
        pytest.param({"rows_read": 8}, id="row-made-up"),
        pytest.param({"rejects": {"bad_json": 5}, "rows_read": 10}, id="reject-not-in-files"),
        pytest.param({"rejects_files": []}, id="rejects-file-lost"),
    ],
)
def test_build_manifest_counts_that_do_not_add_up_raise(changes):
    with pytest.raises(ConservationError, match="rows read, but"):
        make_manifest(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"files": [make_file(), make_file()]}, "stands twice", id="file-twice"),
        pytest.param({"expert": {"name": "a", "width": 8}}, r"lacks \['handle'\]", id="no-handle"),
        pytest.param(
            {"created": datetime.datetime(2026, 1, 1)},  # noqa: DTZ001 - the fault under test
            "no time zone",
            id="naive-time",
        ),
    ],
)
def test_build_manifest_incomplete_facts_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        make_manifest(**changes)


def test_collect_versions_gives_each_package_and_python():
    found = manifest.collect_versions(product="9.9.9")
    assert found == {
        "product": "9.9.9",
        "beam": importlib.metadata.version("apache-beam"),
        "tensorflow": importlib.metadata.version("tensorflow"),
        "tensorflow_text": importlib.metadata.version("tensorflow-text"),
        "tensorflow_hub": importlib.metadata.version("tensorflow-hub"),
        "pyarrow": importlib.metadata.version("pyarrow"),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
    }


def test_collect_versions_package_that_is_not_installed_is_none(monkeypatch):
    monkeypatch.setitem(manifest._PACKAGES, "beam", ("no-such-distribution-at-all",))
    assert manifest.collect_versions(product="1")["beam"] is None


def test_collect_versions_usual_name_missing_takes_the_next(monkeypatch):
    monkeypatch.setitem(manifest._PACKAGES, "beam", ("no-such-distribution-at-all", "numpy"))
    found = manifest.collect_versions(product="1")
    assert found["beam"] == importlib.metadata.version("numpy")


@pytest.mark.integration
def test_collect_versions_imports_no_tensorflow():
    code = (
        "import sys; from transforms import manifest; manifest.collect_versions(product='1');"
        "print([name for name in sys.modules if name.startswith('tensorflow')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_read_manifest_of_committed_output_returns_it(tmp_path):
    body = json.loads(json.dumps(make_manifest()))
    assert manifest.read_manifest(commit(tmp_path, body)) == body


def test_read_manifest_without_success_raises(tmp_path):
    commit(tmp_path, make_manifest())
    (tmp_path / "_SUCCESS").unlink()
    with pytest.raises(InputError, match=r"no committed output: .*_SUCCESS cannot be read"):
        manifest.read_manifest(str(tmp_path))


def test_read_manifest_without_manifest_raises(tmp_path):
    commit(tmp_path, make_manifest())
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no committed output: .*manifest\.json cannot be read"):
        manifest.read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("body", "success", "message"),
    [
        pytest.param(b"{}", {"manifest_sha256": SHA}, "changed after the commit", id="changed"),
        pytest.param(b"{}", {"other": 1}, "changed after the commit", id="no-digest"),
        pytest.param(b'{"files": [', {}, "is no JSON", id="cut-off"),
        pytest.param(b"[]", {}, "JSON list, not an object", id="list"),
        pytest.param(b'{"manifest_version": 2}', {}, "manifest_version 2; this", id="newer"),
        pytest.param(b"{}", {}, "manifest_version None", id="no-version"),
    ],
)
def test_read_manifest_of_another_kind_raises(tmp_path, body, success, message):
    with pytest.raises(InputError, match=message):
        manifest.read_manifest(commit(tmp_path, body, **success))

"""Committed outputs for tests: made from rows, changed row by row, and sealed again.

`seal` makes manifest and `_SUCCESS` agree with the files, as a commit would have left them, so that
a test's fault is found by the check that is meant to find it and not by a checksum.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tests import commands
from transforms import scan
from transforms.committed import CommittedFile
from transforms.manifest import build_manifest, describe_file
from transforms.writers import find_writer, output_schema

Rows = list[dict[str, Any]]

PARTS = {"pooling": "mean", "normalize": False, "max_tokens": 512, "precision": "float32"}


def write_output(
    folder: Path,
    files: Sequence[Rows],
    *,
    width: int,
    output_format: str = "parquet",
    metadata: pa.Schema | None = None,
    keep_text: bool = False,
) -> Path:
    """Commit rows, one list a file; a row has id, embedding, and what else the schema wants."""
    folder.mkdir(parents=True)
    schema = output_schema(
        embedding_columns={"embedding": width},
        metadata=pa.schema([]) if metadata is None else metadata,
        keep_text=keep_text,
    )
    fingerprint = hashlib.sha256(orjson.dumps(PARTS, option=orjson.OPT_SORT_KEYS)).hexdigest()
    writer = find_writer(output_format)
    names = [f"part-{n:05d}-of-{len(files):05d}{writer.extension}" for n in range(len(files))]
    defaults = {"n_tokens": 3, "truncated": False, "text_sha256": "0" * 64}
    for name, rows in zip(names, files, strict=True):
        complete = [{**defaults, **row} for row in rows]
        write_file(folder / name, complete, schema=schema, footer={"fingerprint": fingerprint})
    manifest = build_manifest(
        [
            describe_file(name, rows=len(rows), size_bytes=0, sha256="0" * 64)
            for name, rows in zip(names, files, strict=True)
        ],
        rejects_files=[],
        rows_read=sum(map(len, files)),
        rejects={},
        expert={"name": "none", "handle": "none", "preprocessor": "none", "width": width},
        fingerprint=fingerprint,
        fingerprint_parts=PARTS,
        config={"keep_text": keep_text},
        output_format=output_format,
        columns=schema,
        versions={},
        created=datetime.datetime.now(datetime.timezone.utc),
    )
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    seal(folder)
    return folder


def write_file(path: Path, rows: Rows, *, schema: pa.Schema, footer: dict[str, str]) -> None:
    """Write rows as one file, in the format of the path's extension."""
    writer = find_writer(path.suffix.removeprefix("."))
    with (
        path.open("wb") as sink,
        writer.open(sink, schema=schema, footer=footer) as file,
    ):
        file.write(pa.Table.from_pylist(rows, schema))


def seal(
    output: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None
) -> dict[str, Any]:
    """Bring sizes and checksums up to date, apply `change`, and write manifest and _SUCCESS."""
    manifest = commands.read_manifest(output)
    for entry in (*manifest["files"], *manifest["rejects"]["files"]):
        path = output / entry["name"]
        if path.exists():
            data = path.read_bytes()
            entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    change(manifest)
    data = orjson.dumps(manifest)
    (output / "manifest.json").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (output / "_SUCCESS").write_bytes(orjson.dumps({"manifest_sha256": digest}))
    return manifest


def edit_rows(
    output: Path,
    number: int,
    change: Callable[[Rows], object],
    *,
    schema: Callable[[pa.Schema], pa.Schema] = lambda schema: schema,
    footer: dict[str, str] | None = None,
) -> str:
    """Change the rows of file `number` as Python values, and seal; returns the file's name.

    Args:
      schema: changes the schema that the rows are written with.
      footer: another footer than the file had.
    """
    manifest = commands.read_manifest(output)
    entry = manifest["files"][number]
    path = output / entry["name"]
    names = [column["name"] for column in manifest["columns"]]
    file = CommittedFile(0, str(path), manifest["format"], entry["rows"], 0, "")
    found = scan.read_rows(file, range(entry["rows"]), columns=names, embedding="embedding")
    rows = [found[row] for row in range(entry["rows"])]
    notes: dict[str, str] = {}
    if manifest["format"] == "parquet":
        parquet = pq.ParquetFile(path)
        own = parquet.schema_arrow.remove_metadata()
        metadata = parquet.metadata.metadata
        notes = {
            key.decode(): value.decode()
            for key, value in metadata.items()
            if key != b"ARROW:schema"
        }
    else:
        own = output_schema(
            embedding_columns={"embedding": len(rows[0]["embedding"])},
            metadata=pa.schema([("year", pa.int64())] if "year" in names else []),
        )
    change(rows)
    write_file(path, rows, schema=schema(own), footer=notes if footer is None else footer)
    seal(output)
    return str(entry["name"])

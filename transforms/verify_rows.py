"""Proof of one file's rows: schema, ids, vectors, hashes; and the rows taken for the sample."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms import scan, spool, storage
from transforms.committed import CommittedFile
from transforms.errors import InputError
from transforms.readers.tfrecord import read_examples
from transforms.records import FloatArray
from transforms.unique import IdPlaces
from transforms.verification import SampleRow, Verification

# float32 vectors of any width that were scaled to length 1 are within 1e-6 of it.
_NORM_TOLERANCE = 1e-3
_LEAST_TOKENS = 3


class FileCheck:
    """The checks of one file's rows."""

    def __init__(
        self, found: Verification, manifest: Mapping[str, Any], *, file: CommittedFile, name: str
    ) -> None:
        self._found = found
        self._file = file
        self._name = name
        self._manifest = manifest
        self._embedding, self._width = scan.embedding_column(manifest)
        parts = manifest["fingerprint"]["parts"]
        self._normalized = bool(parts.get("normalize"))
        self._max_tokens = int(parts.get("max_tokens") or np.iinfo(np.int32).max)
        # Without --keep_text a metadata field may be called text.
        self._keeps_text = keeps_text(manifest)
        self._picks_pair = self._keeps_text and bool(manifest["config"].get("pair_field"))
        self._columns = ["id", self._embedding, "n_tokens", "truncated", "text_sha256"]
        self._columns += ["text"] * self._keeps_text + ["pair"] * self._picks_pair

    def run(self, ids: IdPlaces, picked: npt.NDArray[np.int64]) -> int:
        """Read the file; returns how many rows were read."""
        found, name, file = self._found, self._name, self._file
        try:
            self._check_schema()
            blocks = scan.list_blocks(file)
        except InputError as error:
            found.fault("rows", str(error), file=name)
            return 0
        rows = sum(self._check_block(block, ids=ids, picked=picked) for block in blocks)
        there = rows
        if file.format == "parquet":  # its footer tells, also of rows that cannot be read
            there = sum(block.rows or 0 for block in blocks)
        if there != file.rows:
            found.fault("rows", f"has {there:,} rows; the manifest says {file.rows:,}", file=name)
        return rows

    def _check_block(
        self, block: scan.Block, *, ids: IdPlaces, picked: npt.NDArray[np.int64]
    ) -> int:
        """Read a block, as far as it can be; returns how many rows were read."""
        rows = 0
        try:
            for first, table in scan.read_block(
                self._file, block, columns=self._columns, embedding=self._embedding
            ):
                rows += len(table)
                self._check_table(first, table, ids=ids, picked=picked)
        except InputError as error:
            self._found.fault("rows", str(error), file=self._name, row=block.first_row + rows)
        return rows

    def _check_schema(self) -> None:
        if self._file.format == "parquet":
            self._check_parquet_schema()
        else:
            self._check_features()

    def _check_parquet_schema(self) -> None:
        found, name = self._found, self._name
        try:
            with storage.open_seekable(self._file.path) as source:
                parquet = pq.ParquetFile(source)
                schema, notes = parquet.schema_arrow, parquet.metadata.metadata or {}
        except (OSError, pa.ArrowException, ValueError) as error:
            raise InputError(f"{self._file.path} is no Parquet file: {error}") from error
        # Parquet has no seconds and no dates of 64 bits; the types as they were written stand in
        # the footer. The product's own columns come back as they are.
        written = schema
        if kept := notes.get(b"ARROW:schema"):
            written = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(kept)))
        wanted = self._manifest["columns"]
        if schema.names != [column["name"] for column in wanted]:
            found.fault(
                "schema",
                f"has the columns {', '.join(schema.names)}; the manifest says "
                f"{', '.join(column['name'] for column in wanted)}",
                file=name,
            )
        for column in wanted:
            if column["name"] not in schema.names:
                continue
            of = schema if column["name"] in self._columns else written
            if column["name"] not in of.names:
                of = schema
            there = of.field(column["name"])
            if (str(there.type), there.nullable) != (column["type"], column["nullable"]):
                found.fault(
                    "schema",
                    f"column {column['name']!r} is {_describe_type(there.type, there.nullable)}; "
                    f"the manifest says {_describe_type(column['type'], column['nullable'])}",
                    file=name,
                )
        self._check_footer(notes)

    def _check_footer(self, notes: Mapping[bytes, bytes]) -> None:
        wanted = self._manifest["fingerprint"]["digest"]
        there = notes.get(b"fingerprint", b"nothing").decode("utf-8", "replace")
        if there != wanted:
            self._found.fault(
                "fingerprint", f"names {there}; the manifest says {wanted}", file=self._name
            )

    def _check_features(self) -> None:
        """Check that a TFRecord's rows have the columns that may not be null, and no others."""
        wanted = {column["name"]: column["nullable"] for column in self._manifest["columns"]}
        needed = {name for name, nullable in wanted.items() if not nullable}
        records = read_examples(self._file.path)
        row = 0
        while True:
            try:
                features = next(records, None)
            except Exception:  # noqa: BLE001 - told, with its row, when the rows are read
                return
            if features is None:
                return
            names = set(features)
            for what, wrong in (
                ("lacks the feature", needed - names),
                ("has a feature that is no column of the manifest:", names - wanted.keys()),
            ):
                if wrong:
                    self._found.fault(
                        "schema", f"{what} {', '.join(sorted(wrong))}", file=self._name, row=row
                    )
            row += 1

    def _check_table(
        self, first: int, table: pa.Table, *, ids: IdPlaces, picked: npt.NDArray[np.int64]
    ) -> None:
        self._check_ids(first, table, ids)
        good, matrix = self._check_vectors(first, table)
        self._check_texts(first, table)
        here = picked[(picked >= first) & (picked < first + len(table))] - first
        for place in here[good[here]].tolist():
            row = {
                one: table[one][place].as_py() for one in self._columns if one != self._embedding
            }
            self._found.sample.append(
                SampleRow(
                    file=self._name,
                    row=first + place,
                    id=row["id"] or "",
                    text_sha256=row["text_sha256"] or "",
                    vector=matrix[place].copy(),
                    n_tokens=row["n_tokens"],
                    truncated=row["truncated"],
                    text=row.get("text"),
                    pair=row.get("pair"),
                )
            )

    def _check_ids(self, first: int, table: pa.Table, ids: IdPlaces) -> None:
        column = _as_strings(table["id"])
        lacking = np.asarray(pc.fill_null(pc.equal(pc.binary_length(column), 0), True))
        self._found.row_faults(
            "ids", "has no id", file=self._name, rows=first + np.flatnonzero(lacking)
        )
        there = np.flatnonzero(~lacking)
        chosen = column if len(there) == len(column) else column.take(pa.array(there))
        if len(there):
            ids.add(spool.hash_ids(chosen), file=self._file.index, rows=first + there)

    def _check_vectors(
        self, first: int, table: pa.Table
    ) -> tuple[npt.NDArray[np.bool_], FloatArray]:
        """Note bad vectors; returns which rows have a whole and finite one, and the matrix."""
        column = table[self._embedding]
        matrix, whole = scan.to_matrix(column, width=self._width)
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(matrix).all(axis=1))
        norms = np.linalg.norm(matrix, axis=1)
        zero = whole & np.equal(np.count_nonzero(matrix, axis=1), 0)

        def tell(message: str | Callable[[int], str], rows: npt.NDArray[np.bool_]) -> None:
            self._found.row_faults(
                "vectors", message, file=self._name, rows=first + np.flatnonzero(rows)
            )

        tell(lambda row: _describe_vector(column[int(row) - first], width=self._width), ~whole)
        tell(lambda row: _describe_not_finite(matrix[int(row) - first]), ~finite)
        tell("the vector is all zeros", zero)
        if self._normalized:
            off = whole & finite & ~zero
            off &= np.greater(np.abs(norms - 1), _NORM_TOLERANCE)
            tell(
                lambda row: (
                    f"the vector has length {norms[int(row) - first]:.4g}; wanted 1, as "
                    "the fingerprint says normalize"
                ),
                off,
            )
        return whole & finite, matrix

    def _check_texts(self, first: int, table: pa.Table) -> None:
        hashes = _as_strings(table["text_sha256"])
        formed = np.asarray(pc.fill_null(pc.match_substring_regex(hashes, "^[0-9a-f]{64}$"), False))
        found, name = self._found, self._name
        found.row_faults(
            "texts",
            "text_sha256 is not 64 hex digits",
            file=name,
            rows=first + np.flatnonzero(~formed),
        )
        counts = np.asarray(pc.fill_null(table["n_tokens"], -1)).astype(np.int64)
        off = (counts < _LEAST_TOKENS) | (counts > self._max_tokens)
        found.row_faults(
            "texts",
            lambda row: (
                f"n_tokens is {counts[int(row) - first]}; wanted {_LEAST_TOKENS} to "
                f"{self._max_tokens}"
            ),
            file=name,
            rows=first + np.flatnonzero(off),
        )
        if self._keeps_text:
            self._check_kept(first, table, hashes=hashes, formed=formed)

    def _check_kept(
        self,
        first: int,
        table: pa.Table,
        *,
        hashes: pa.StringArray,
        formed: npt.NDArray[np.bool_],
    ) -> None:
        found, name = self._found, self._name
        texts = _as_strings(table["text"])
        pairs = _as_strings(table["pair"]) if self._picks_pair else None
        there = np.asarray(texts.is_valid())
        if pairs is not None:
            there &= np.asarray(pairs.is_valid())
        found.row_faults("texts", "has no text", file=name, rows=first + np.flatnonzero(~there))
        chosen = pa.array(np.flatnonzero(there & formed))
        made = spool.hash_texts(texts.take(chosen), None if pairs is None else pairs.take(chosen))
        wrong = [
            place
            for place, digest, stored in zip(
                chosen.to_pylist(), made, hashes.take(chosen).to_pylist(), strict=True
            )
            if digest.hex() != stored
        ]
        found.row_faults(
            "texts",
            "text_sha256 is not that of the text kept",
            file=name,
            rows=[first + place for place in wrong],
        )


def keeps_text(manifest: Mapping[str, Any]) -> bool:
    """Whether the texts encoded stand in the output; a metadata field may bear the name too."""
    return bool(manifest["config"].get("keep_text")) and "text" in column_names(manifest)


def _as_strings(column: pa.ChunkedArray) -> pa.StringArray:
    """A column as one array of strings; of another type than text, as nulls."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return pa.nulls(len(column), pa.string())
    chunks = column.cast(pa.string()).chunks
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())


def _describe_type(kind: object, nullable: bool) -> str:
    return f"{kind}{'' if nullable else ' not null'}"


def _describe_vector(value: pa.Scalar, *, width: int) -> str:
    if not value.is_valid:
        return "the vector is null"
    if not hasattr(value, "values"):
        return f"the vector is {value.type}; wanted {width} numbers"
    inner = value.values
    nulls = f", {inner.null_count:,} of them null" if inner.null_count else ""
    return f"the vector has {len(inner):,} numbers{nulls}; wanted {width:,}"


def _describe_not_finite(vector: FloatArray) -> str:
    bad = np.flatnonzero(~np.isfinite(vector))
    return f"the vector holds {vector[bad[0]]} at {bad[0]} ({len(bad):,} such of {len(vector):,})"


def column_names(manifest: Mapping[str, Any]) -> list[str]:
    return [column["name"] for column in manifest["columns"]]

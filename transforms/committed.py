"""Reading committed outputs back: which rows a file has, and the vectors of some of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import ConfigError
from transforms.manifest import SUCCESS_FILE, read_manifest
from transforms.readers.tfrecord import read_examples
from transforms.records import Int64Array, VectorBatch
from transforms.writers import vector_array, vector_matrix


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file of a committed output; `index` is its place among the files that are looked at."""

    index: int
    path: str
    format: str
    rows: int
    size_bytes: int
    sha256: str


def find_committed(pattern: str, *, besides: str) -> str | None:
    """The newest committed output of a folder or a glob of folders.

    Args:
      pattern: a folder, or a glob that matches folders.
      besides: an output that is not looked at: the one that is being written.
    Returns: the folder, or None if a glob matches no committed output yet.
    Raises: ConfigError if a folder without wildcards is no committed output.
    """
    plain = pattern.rstrip("/")
    if not any(letter in plain for letter in "*?["):
        if not storage.exists(storage.join(plain, SUCCESS_FILE)):
            raise ConfigError(
                f"--reuse_from={pattern}: is no committed output (it has no {SUCCESS_FILE}); give "
                "the folder of a finished run, or a pattern such as vectors/dt=*"
            )
        return plain
    found = storage.match(storage.join(plain, SUCCESS_FILE))
    folders = [path[: -len(SUCCESS_FILE) - 1] for path in found]
    others = [folder for folder in folders if not storage.same_path(folder, besides)]
    return max(others, key=lambda folder: (read_manifest(folder)["created"], folder), default=None)


def list_committed(folder: str, manifest: dict[str, Any]) -> list[CommittedFile]:
    """The files of vectors of a committed output."""
    return [
        CommittedFile(
            index,
            storage.join(folder, entry["name"]),
            manifest["format"],
            entry["rows"],
            entry["bytes"],
            entry["sha256"],
        )
        for index, entry in enumerate(manifest["files"])
    ]


def is_sound(file: CommittedFile) -> bool:
    """Whether a file is still what was committed."""
    try:
        digest = storage.digest_file(file.path)
    except OSError:
        return False
    return digest.sha256 == file.sha256


def read_keys(file: CommittedFile, *, batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Yield the columns id and text_sha256 of a file, in order, and no other bytes of it."""
    names = ["id", "text_sha256"]
    if file.format == "parquet":
        with storage.open_seekable(file.path) as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_rows, columns=names):
                yield pa.Table.from_batches([batch])
        return
    rows: list[tuple[str, ...]] = []
    for features in read_examples(file.path):
        rows.append(tuple(features[name].bytes_list.value[0].decode() for name in names))
        if len(rows) >= batch_rows:
            yield pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
            rows = []
    if rows:
        yield pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


class VectorReader:
    """Reads vectors of rows of committed files, and keeps the last few blocks it has read.

    A block is a row group of a Parquet file, or a whole TFRecord file, which has no index.
    """

    def __init__(self, *, embedding: str, blocks_kept: int = 3) -> None:
        self._embedding = embedding
        self._blocks_kept = blocks_kept
        self._blocks: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._starts: dict[str, Int64Array] = {}

    def read(self, file: CommittedFile, rows: Int64Array) -> tuple[VectorBatch, list[str]]:
        """Read rows of a file, [N] row numbers: their vectors, and their text_sha256 in hex."""
        starts = self._find_starts(file)
        block_of = np.searchsorted(starts, rows, side="right") - 1
        tables, order = [], []
        for block in np.unique(block_of):
            places = np.flatnonzero(block_of == block)
            table = self._load(file, int(block))
            tables.append(table.take(pa.array(rows[places] - starts[block])))
            order.append(places)
        back = np.argsort(np.concatenate(order))
        table = pa.concat_tables(tables).take(pa.array(back)).combine_chunks()
        batch = VectorBatch(
            rows=np.arange(len(rows), dtype=np.int32),
            vectors=vector_matrix(table[self._embedding]),
            n_tokens=table["n_tokens"].to_numpy(),
            truncated=table["truncated"].to_numpy(),
        )
        return batch, table["text_sha256"].to_pylist()

    def _find_starts(self, file: CommittedFile) -> Int64Array:
        if file.path not in self._starts:
            starts = np.zeros(1, np.int64)
            if file.format == "parquet":
                with storage.open_seekable(file.path) as source:
                    metadata = pq.ParquetFile(source).metadata
                sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
                starts = np.cumsum([0, *sizes[:-1]]).astype(np.int64)
            self._starts[file.path] = starts
        return self._starts[file.path]

    def _load(self, file: CommittedFile, block: int) -> pa.Table:
        key = (file.path, block)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        table = self._read_block(file, block)
        self._blocks[key] = table
        while len(self._blocks) > self._blocks_kept:
            self._blocks.popitem(last=False)
        return table

    def _read_block(self, file: CommittedFile, block: int) -> pa.Table:
        names = [self._embedding, "n_tokens", "truncated", "text_sha256"]
        if file.format == "parquet":
            with storage.open_seekable(file.path) as source:
                return pq.ParquetFile(source).read_row_group(block, columns=names)
        vectors, n_tokens, truncated, hashes = [], [], [], []
        for features in read_examples(file.path):
            vectors.append(np.array(features[self._embedding].float_list.value, np.float32))
            n_tokens.append(features["n_tokens"].int64_list.value[0])
            truncated.append(bool(features["truncated"].int64_list.value[0]))
            hashes.append(features["text_sha256"].bytes_list.value[0].decode())
        columns = [
            vector_array(np.stack(vectors)),
            pa.array(n_tokens, pa.int32()),
            pa.array(truncated),
            pa.array(hashes),
        ]
        return pa.table(dict(zip(names, columns, strict=True)))

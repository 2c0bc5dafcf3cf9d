"""The spool: parsed rows of each chunk on disk, and the hashes that the index pass joins over."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa

from transforms import progress, storage
from transforms.records import (
    Chunk,
    ChunkKey,
    FileCount,
    Int32Array,
    Int64Array,
    KeyBatch,
    Reject,
    StagedRejects,
    TextBatch,
    TextKeys,
    UInt64Array,
)

SPOOL_FOLDER = "_work/spool"
REJECTS_FOLDER = "_work/rejects"
_METADATA_PREFIX = "m:"


def hash_texts(texts: pa.StringArray, pairs: pa.StringArray | None) -> list[bytes]:
    """The sha256 of each row's text; with a pair, of text, NUL, pair.

    A NUL in a text is a reject, so no two rows with different texts share the hashed bytes.
    """
    # as_buffer() of a view gives each text's UTF-8 without a Python string in between.
    if pairs is None:
        return [hashlib.sha256(text.as_buffer()).digest() for text in texts]
    rows: list[bytes] = []
    for text, pair in zip(texts, pairs, strict=True):
        digest = hashlib.sha256(text.as_buffer())
        digest.update(b"\0")
        digest.update(pair.as_buffer())
        rows.append(digest.digest())
    return rows


def hash_ids(ids: pa.StringArray) -> UInt64Array:
    """BLAKE2b-128 of each id: uint64 [N, 2]. Equal hashes are taken for equal ids.

    At 10^9 rows the chance that any two different ids collide is about 10^-21.
    """
    digests = b"".join(hashlib.blake2b(row.as_buffer(), digest_size=16).digest() for row in ids)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def write_table(table: pa.Table) -> pa.Buffer:
    """A table as the bytes of an Arrow IPC file, lz4-compressed."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())
    return pa.py_buffer(sink.getvalue())


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """Read an Arrow IPC file back, in whole or some columns."""
    with storage.open_arrow(path) as source:
        names = pa.ipc.open_file(source).schema.names
        options = pa.ipc.IpcReadOptions(
            included_fields=None if columns is None else [names.index(name) for name in columns]
        )
        return pa.ipc.open_file(source, options=options).read_all()


def spool_table(batch: TextBatch, hashes: list[bytes]) -> pa.Table:
    """A chunk's rows as one table; metadata columns are prefixed, so that no name can clash."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "id": batch.ids,
        "text": batch.texts,
        "file": pa.array(batch.files),
        "position": pa.array(batch.positions),
        "text_sha256": pa.array(hashes, pa.binary(32)),
    }
    if batch.pairs is not None:
        columns["pair"] = batch.pairs
    for name in batch.metadata.column_names:
        columns[_METADATA_PREFIX + name] = batch.metadata[name]
    return pa.table(columns)


def split_metadata(table: pa.Table) -> pa.Table:
    """The metadata columns of a spool table under their own names."""
    names = [name for name in table.column_names if name.startswith(_METADATA_PREFIX)]
    return table.select(names).rename_columns([name[len(_METADATA_PREFIX) :] for name in names])


def format_reject(reject: Reject) -> bytes:
    """A reject as one line of JSON, in the contract's form."""
    origin: dict[str, object] = {"file": reject.file, "position": reject.position}
    if reject.line is not None:
        origin["line"] = reject.line
    record: dict[str, object] = {
        "id": reject.id,
        "origin": origin,
        "stage": reject.stage,
        "reason": reject.reason,
        "message": reject.message,
        "raw": reject.raw,
    }
    if reject.raw_base64:
        record["raw_base64"] = True
    if reject.raw_truncated:
        record["raw_truncated"] = True
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def stage_rejects(output: str, name: str, rejects: list[Reject]) -> StagedRejects | None:
    """Write rejects under the work folder; None if there are none."""
    if not rejects:
        return None
    data = b"".join(format_reject(reject) for reject in rejects)
    path = storage.join(output, REJECTS_FOLDER, f"{name}-{hashlib.sha256(data).hexdigest()}.jsonl")
    storage.put_bytes(path, data)
    reasons = Counter(reject.reason for reject in rejects)
    first = rejects[0]
    sample = f"{first.file} at {first.position}: {first.message}"
    return StagedRejects(path, len(rejects), tuple(sorted(reasons.items())), sample)


def count_files(
    files: Int32Array, rejects: tuple[Reject, ...], paths: dict[str, int]
) -> tuple[FileCount, ...]:
    """Rows read and rejected per input file in one chunk."""
    valid = Counter(files.tolist())
    rejected = Counter(paths[reject.file] for reject in rejects)
    return tuple(
        FileCount(file, valid[file] + rejected[file], rejected[file])
        for file in sorted(valid | rejected)
    )


def spool_chunk(
    batch: TextBatch, hashes: list[bytes], *, output: str, paths: dict[str, int]
) -> Chunk:
    """Write a chunk's rows and rejects to the work folder.

    Args:
      batch: the parsed rows; hashes: their `hash_texts`.
      output: the output directory.
      paths: path → index of every input file.
    Returns: the chunk's record; the file's name carries the sha256 of its bytes.
    """
    data = write_table(spool_table(batch, hashes))
    name = hashlib.sha256(data).hexdigest()
    path = storage.join(output, SPOOL_FOLDER, f"{name}.arrow")
    storage.put_bytes(path, data)
    staged = stage_rejects(
        output, f"{batch.key.task:08d}-{batch.key.number:06d}-0read", list(batch.rejects)
    )
    return Chunk(
        key=batch.key,
        path=path,
        text_digest=hashlib.sha256(b"".join(hashes)).hexdigest(),
        rows=len(batch),
        rows_read=batch.rows_read,
        text_bytes=batch.texts.nbytes,
        metadata_schema=batch.metadata.schema.serialize().to_pybytes(),
        files=count_files(batch.files, batch.rejects, paths),
        rejects=staged,
    )


def hash_heads(hashes: list[bytes]) -> UInt64Array:
    """The first 16 bytes of each sha256: uint64 [N, 2]."""
    heads = b"".join(digest[:16] for digest in hashes)
    return np.frombuffer(heads, dtype="<u8").reshape(-1, 2)


def group_by_bucket(hashes: UInt64Array, *, buckets: int) -> Iterator[tuple[int, Int64Array]]:
    """Part N hashes by bucket: yields (bucket, places int64), places ascending."""
    if not len(hashes):
        return
    bucket_of = (hashes[:, 0] % np.uint64(buckets)).astype(np.int64)
    order = np.argsort(bucket_of, kind="stable")
    starts = np.flatnonzero(np.diff(bucket_of[order], prepend=-1))
    for places in np.split(order, starts[1:]):
        yield int(bucket_of[places[0]]), places


def bucket_ids(
    batch: TextBatch, hashes: list[bytes], *, buckets: int
) -> Iterator[tuple[int, KeyBatch]]:
    """Hash a chunk's ids and part them by bucket, one batch a bucket."""
    ids, texts = hash_ids(batch.ids), hash_heads(hashes)
    for bucket, places in group_by_bucket(ids, buckets=buckets):
        yield (
            bucket,
            KeyBatch(
                batch.key,
                places.astype(np.int32),
                ids[places],
                batch.files[places],
                batch.positions[places],
                texts[places, 0],
            ),
        )


def bucket_texts(
    key: ChunkKey, hashes: list[bytes], *, buckets: int
) -> Iterator[tuple[int, TextKeys]]:
    """Part a chunk's text hashes by bucket, one batch a bucket."""
    texts = hash_heads(hashes)
    for bucket, places in group_by_bucket(texts, buckets=buckets):
        yield bucket, TextKeys(key, places.astype(np.int32), texts[places])


class _SpoolDoFn(beam.DoFn):
    def __init__(
        self, *, output: str, paths: dict[str, int], buckets: int, with_texts: bool
    ) -> None:
        self._output = output
        self._paths = paths
        self._buckets = buckets
        self._with_texts = with_texts

    def process(self, batch: TextBatch) -> Iterator[Chunk | beam.pvalue.TaggedOutput[Any, Any]]:
        hashes = hash_texts(batch.texts, batch.pairs)
        yield spool_chunk(batch, hashes, output=self._output, paths=self._paths)
        read = progress.Facts(rows_read=batch.rows_read, rows_rejected=len(batch.rejects))
        progress.record(self._output, read)
        for keyed_ids in bucket_ids(batch, hashes, buckets=self._buckets):
            yield beam.pvalue.TaggedOutput("ids", keyed_ids)
        if self._with_texts:
            for keyed_texts in bucket_texts(batch.key, hashes, buckets=self._buckets):
                yield beam.pvalue.TaggedOutput("texts", keyed_texts)


class SpoolChunks(beam.PTransform[Any, Any]):
    """Write each `TextBatch` to the work folder; outputs `chunks`, `ids` and `texts`.

    `chunks` are `Chunk` records, `ids` are `(bucket, KeyBatch)` pairs, and `texts`, only with
    `with_texts`, `(bucket, TextKeys)` pairs.
    """

    def __init__(
        self, output: str, *, paths: dict[str, int], buckets: int, with_texts: bool = False
    ) -> None:
        super().__init__()
        if buckets < 1:
            raise ValueError(f"buckets={buckets}; wanted at least 1")
        self._dofn = _SpoolDoFn(output=output, paths=paths, buckets=buckets, with_texts=with_texts)

    def expand(self, batches: beam.PCollection[Any]) -> Any:
        return batches | beam.ParDo(self._dofn).with_outputs("ids", "texts", main="chunks")

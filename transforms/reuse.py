"""Vectors taken over from an earlier output, where text and fingerprint are unchanged.

A join by hash: of the old output only ids and text hashes are read for it, and of the new rows
only their hashes cross the shuffle. The vectors themselves are then copied by the worker that has
the chunk, each checked against the whole text hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from transforms import spool
from transforms.committed import CommittedFile, VectorReader, is_sound, read_keys
from transforms.records import (
    Chunk,
    Int32Array,
    KeyBatch,
    OldKeys,
    ReuseCounts,
    ReuseRefs,
    TextKeys,
    UInt64Array,
    VectorBatch,
)


def old_keys(file: CommittedFile, *, buckets: int) -> Iterator[tuple[str, int, OldKeys]]:
    """A committed file's keys, parted by bucket: ("id" | "text", bucket, keys)."""
    start = 0
    for table in read_keys(file):
        ids = spool.hash_ids(table["id"].combine_chunks())
        texts = spool.hash_heads([bytes.fromhex(one) for one in table["text_sha256"].to_pylist()])
        for kind, hashes in (("id", ids), ("text", texts)):
            for bucket, places in spool.group_by_bucket(hashes, buckets=buckets):
                keys = OldKeys(file.index, start + places, hashes[places], texts[places, 0])
                yield kind, bucket, keys
        start += len(table)


def as_keys(hashes: UInt64Array) -> np.ndarray:
    """Pairs of uint64 as one comparable value each: [N]."""
    pairs = np.ascontiguousarray(hashes)
    return pairs.view([("head", "<u8"), ("tail", "<u8")]).reshape(-1)


def match_texts(new: Iterable[TextKeys], old: Iterable[OldKeys]) -> list[ReuseRefs]:
    """Rows of new chunks whose text stands in an old file; the first such place is taken."""
    olds = list(old)
    if not olds:
        return []
    keys = as_keys(np.concatenate([part.hashes for part in olds]))
    files = np.repeat([part.file for part in olds], [len(part.rows) for part in olds])
    rows = np.concatenate([part.rows for part in olds])
    order = np.lexsort((rows, files, keys["tail"], keys["head"]))
    keys, files, rows = keys[order], files[order], rows[order]
    found: list[ReuseRefs] = []
    for part in new:
        wanted = as_keys(part.hashes)
        place = np.searchsorted(keys["head"], wanted["head"])
        inside = place < len(keys)
        place = np.where(inside, place, 0)
        # Two texts that share 8 bytes of sha256 and not the next 8 are only not reused.
        hit = inside & (keys[place] == wanted)
        if hit.any():
            at = place[hit]
            found.append(ReuseRefs(part.key, part.rows[hit], files[at].astype(np.int32), rows[at]))
    return found


def count_reuse(new: Iterable[KeyBatch], old: Iterable[OldKeys]) -> ReuseCounts:
    """Compare the ids of one bucket with those of the old output; a doubled id counts once."""
    new_keys, new_texts = _first_of_each([(part.hashes, part.texts) for part in new])
    old_keys_, old_texts = _first_of_each([(part.hashes, part.texts) for part in old])
    both, in_new, in_old = np.intersect1d(
        new_keys, old_keys_, assume_unique=True, return_indices=True
    )
    unchanged = int((new_texts[in_new] == old_texts[in_old]).sum())
    return ReuseCounts(
        unchanged=unchanged,
        changed=len(both) - unchanged,
        new=len(new_keys) - len(both),
        deleted=len(old_keys_) - len(both),
    )


def _first_of_each(parts: list[tuple[UInt64Array, UInt64Array]]) -> tuple[np.ndarray, UInt64Array]:
    if not parts:
        return as_keys(np.zeros((0, 2), np.uint64)), np.zeros(0, np.uint64)
    keys, first = np.unique(
        as_keys(np.concatenate([hashes for hashes, _ in parts])), return_index=True
    )
    return keys, np.concatenate([texts for _, texts in parts])[first]


def take_over(
    chunk: Chunk,
    refs: Iterable[ReuseRefs],
    *,
    rows: Int32Array,
    files: Sequence[CommittedFile],
    reader: VectorReader,
    keep_truncated: bool,
) -> Iterator[VectorBatch]:
    """Read the vectors of rows that are still wanted, a batch an old file.

    Args:
      rows: the chunk's rows that have no vector yet.
      keep_truncated: False where long texts are rejects, so that they are looked at again.
    Yields: vectors whose text hash is, in full, that of the chunk's row.
    """
    parts = list(refs)
    if not parts:
        return
    mine = np.concatenate([part.rows for part in parts])
    wanted = np.isin(mine, rows)
    file_of = np.concatenate([part.files for part in parts])[wanted]
    old_rows = np.concatenate([part.old_rows for part in parts])[wanted]
    mine = mine[wanted]
    hashes = spool.read_table(chunk.path, ["text_sha256"])["text_sha256"].to_pylist()
    for index in np.unique(file_of):
        here = np.flatnonzero(file_of == index)
        here = here[np.argsort(mine[here])]
        batch, found = reader.read(files[int(index)], old_rows[here])
        places = mine[here]
        good = np.array(
            [bytes.fromhex(one) == hashes[row] for one, row in zip(found, places, strict=True)]
        )
        if not keep_truncated:
            good &= ~batch.truncated
        if good.any():
            yield VectorBatch(
                rows=places[good].astype(np.int32),
                vectors=batch.vectors[good],
                n_tokens=batch.n_tokens[good],
                truncated=batch.truncated[good],
            )


class _OldKeysDoFn(beam.DoFn):
    def __init__(self, *, buckets: int) -> None:
        self._buckets = buckets
        self._damaged = beam.metrics.Metrics.counter("reuse", "files_damaged")

    def process(self, file: CommittedFile) -> Iterator[Any]:
        if not is_sound(file):
            self._damaged.inc()
            return
        for kind, bucket, keys in old_keys(file, buckets=self._buckets):
            yield beam.pvalue.TaggedOutput(kind, (bucket, keys))


class ReadOldKeys(beam.PTransform[Any, Any]):
    """`CommittedFile` in; outputs `id` and `text`: (bucket, OldKeys).

    A file that is not what was committed is left out: its rows are encoded again.
    """

    def __init__(self, *, buckets: int) -> None:
        super().__init__()
        self._dofn = _OldKeysDoFn(buckets=buckets)

    def expand(self, files: beam.PCollection[Any]) -> Any:
        return (
            files
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(self._dofn).with_outputs("id", "text")
        )


def match_grouped(element: tuple[int, dict[str, Iterable[Any]]]) -> list[Any]:
    """`match_texts` of one bucket, each record keyed by its chunk."""
    found = match_texts(element[1]["new"], element[1]["old"])
    return [((refs.key.task, refs.key.number), refs) for refs in found]


def count_grouped(element: tuple[int, dict[str, Iterable[Any]]]) -> ReuseCounts:
    """`count_reuse` of one bucket."""
    return count_reuse(element[1]["new"], element[1]["old"])


def sum_reuse(counts: Iterable[ReuseCounts]) -> ReuseCounts:
    """Counts of many buckets as one; of none, zeros."""
    return sum(counts, start=ReuseCounts())


class JoinEarlier(beam.PTransform[Any, Any]):
    """Join new rows with an earlier output; dict of `new_ids`, `new_texts` and `files` in.

    Outputs `refs`: ((task, number), ReuseRefs), and `counts`: one ReuseCounts.
    """

    def __init__(self, *, buckets: int) -> None:
        super().__init__()
        self._buckets = buckets

    def expand(self, inputs: dict[str, beam.PCollection[Any]]) -> Any:
        old = inputs["files"] | "OldKeys" >> ReadOldKeys(buckets=self._buckets)
        refs = (
            {"new": inputs["new_texts"], "old": old.text}
            | "GroupTexts" >> beam.CoGroupByKey()
            | "MatchTexts" >> beam.FlatMap(match_grouped)
        )
        counts = (
            {"new": inputs["new_ids"], "old": old.id}
            | "GroupIds" >> beam.CoGroupByKey()
            | "CountEach" >> beam.Map(count_grouped)
            | "CountAll" >> beam.CombineGlobally(sum_reuse)
        )
        return {"refs": refs, "counts": counts}

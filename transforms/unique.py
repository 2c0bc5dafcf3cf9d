"""Which ids stand twice among any number of rows: hashes on disk by bucket, sorted one by one.

24 bytes a row; memory holds `memory_rows` of them, or a bucket, whichever is more, and never an
id. Equal hashes of 16 bytes are taken for equal ids, see `spool.hash_ids`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from transforms.records import UInt64Array
from transforms.spool import group_by_bucket

_RECORD = np.dtype([("head", "<u8"), ("tail", "<u8"), ("file", "<u4"), ("row", "<u4")])
_Records = npt.NDArray[np.void]

Place = tuple[int, int]


class IdPlaces:
    """Hashes of ids and where they stand; finds those that stand twice. Use it as a context.

    Args:
      memory_rows: so many are held before they go to temporary files; 4 million are 96 MB.
      buckets: temporary files; with 256 of them a billion rows are sorted 94 MB at a time.
    """

    def __init__(self, *, memory_rows: int = 4 << 20, buckets: int = 256) -> None:
        if memory_rows < 1 or buckets < 1:
            raise ValueError(f"memory_rows={memory_rows} and buckets={buckets}; wanted at least 1")
        self._memory_rows = memory_rows
        self._buckets = buckets
        self._held: list[_Records] = []
        self._held_rows = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> IdPlaces:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def add(self, hashes: UInt64Array, *, file: int, rows: npt.NDArray[np.int64]) -> None:
        """Add N ids of a file: hashes uint64 [N, 2] and their row numbers, int64 [N]."""
        records: _Records = np.empty(len(hashes), _RECORD)
        records["head"], records["tail"] = hashes[:, 0], hashes[:, 1]
        records["file"], records["row"] = file, rows
        self._held.append(records)
        self._held_rows += len(records)
        if self._held_rows >= self._memory_rows:
            self._spill()

    def duplicates(self) -> Iterator[tuple[Place, Place]]:
        """Yield, for each row but the first with its id, its (file, row) and the first one's."""
        if self._folder is None:
            yield from _find_repeats(self._take_held())
            return
        self._spill()
        for bucket in range(self._buckets):
            path = self._path(bucket)
            if os.path.exists(path):
                yield from _find_repeats(np.fromfile(path, _RECORD))

    def _take_held(self) -> _Records:
        records = np.concatenate([np.empty(0, _RECORD), *self._held])
        self._held, self._held_rows = [], 0
        return records

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ids-")
        records = self._take_held()
        heads = np.stack([records["head"], records["tail"]], axis=1)
        for bucket, places in group_by_bucket(heads, buckets=self._buckets):
            with open(self._path(bucket), "ab") as file:
                records[places].tofile(file)

    def _path(self, bucket: int) -> str:
        assert self._folder is not None
        return os.path.join(self._folder.name, f"{bucket:05d}")


def _find_repeats(records: _Records) -> Iterator[tuple[Place, Place]]:
    order = np.lexsort((records["row"], records["file"], records["tail"], records["head"]))
    ordered = records[order]
    same = (ordered["head"][1:] == ordered["head"][:-1]) & (
        ordered["tail"][1:] == ordered["tail"][:-1]
    )
    first = 0
    for place in np.flatnonzero(same).tolist():
        # `same` is true at place when place + 1 repeats it; a run of repeats has one first.
        if place == 0 or not same[place - 1]:
            first = place
        yield (
            (int(ordered["file"][place + 1]), int(ordered["row"][place + 1])),
            (int(ordered["file"][first]), int(ordered["row"][first])),
        )

"""A spread sample of a corpus and what it says of the whole: rows, with the error of the count.

Lines are read at places spread over the corpus, Parquet by its footers and spread row groups.
Other formats cannot be entered in the middle: of those the heads of files are read, spread over
the files.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from transforms.read import limit_tasks, plan_tasks, read_chunks
from transforms.readers import READERS
from transforms.readers.base import FileBrokenError, ReadSettings
from transforms.readers.compression import CODECS, open_raw
from transforms.readers.parquet import open_parquet
from transforms.records import (
    FileFault,
    InputFile,
    ReadTask,
    RowFields,
    RowLimits,
    Segment,
    TextBatch,
)

PLACES = 16
MAX_FOOTERS = 1000
_HEAD_BYTES = 256 << 10
_PILOT_BYTES = 16 << 10
_LINE_ENDED = ("text", "jsonl", "csv", "rejects")


@dataclass(frozen=True, slots=True)
class CorpusSample:
    """Rows of a corpus, and how many it is taken to have.

    batches: the rows read; rows: of the corpus; rows_error: one standard error of `rows`, 0 where
    they were counted, None where one place alone was read; basis: what `rows` rests on;
    place_of: the place in the corpus that each batch was read at; place_bytes: the bytes of each
    place, out of `total_bytes`, where such a share is what the sample is scaled by, else empty;
    rows_read, read_seconds: of the sample; faults: files that cannot be read.
    """

    batches: tuple[TextBatch, ...]
    rows: int
    rows_error: float | None
    basis: str
    rows_read: int
    read_seconds: float
    place_of: tuple[int, ...] = ()
    place_bytes: tuple[float, ...] = ()
    total_bytes: float = 0.0
    faults: tuple[FileFault, ...] = ()


@dataclass(slots=True)
class _Place:
    """A part of the corpus: what was read of it, in bytes (or rows) of its stratum."""

    size: float
    batches: list[TextBatch] = field(default_factory=list)
    faults: list[FileFault] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(batch.rows_read for batch in self.batches)


def sample_corpus(
    files: Sequence[InputFile],
    *,
    sample_rows: int,
    fields: RowFields,
    limits: RowLimits | None = None,
    settings: ReadSettings | None = None,
    limit: int = 0,
) -> CorpusSample:
    """Read about `sample_rows` rows, spread over the corpus.

    Args:
      limit: only the first rows are meant, as `--limit` of a run; these are counted.
    Raises: InputError as reading does.
    """
    if sample_rows < 1:
        raise ValueError(f"sample_rows={sample_rows}; wanted at least 1")
    reading = _Reading(fields, limits or RowLimits(), settings or ReadSettings())
    started = time.monotonic()
    if limit:
        return _sample_first(files, limit, sample_rows=sample_rows, reading=reading, since=started)
    parquet = [file for file in files if file.format == "parquet"]
    lines = [
        file
        for file in files
        if READERS[file.format].split == "bytes" and file.compression == "none"
    ]
    heads = [file for file in files if file not in parquet and file not in lines]
    strata: list[tuple[list[_Place], float, float | None, str]] = []
    total_bytes = max(1, sum(file.size_bytes for file in files))
    for kind, chosen in (("parquet", parquet), ("lines", lines), ("heads", heads)):
        if not any(file.size_bytes for file in chosen):
            continue
        share = sum(file.size_bytes for file in chosen) / total_bytes
        wanted = max(1, round(sample_rows * share))
        strata.append(_STRATA[kind](chosen, wanted, reading))
    places = [place for stratum in strata for place in stratum[0]]
    errors = [stratum[2] for stratum in strata]
    return CorpusSample(
        batches=tuple(batch for place in places for batch in place.batches),
        rows=round(sum(stratum[1] for stratum in strata)),
        rows_error=None
        if any(error is None for error in errors)
        else math.sqrt(sum((error or 0.0) ** 2 for error in errors)),
        basis="; ".join(stratum[3] for stratum in strata) or "no bytes",
        rows_read=sum(place.rows for place in places),
        read_seconds=time.monotonic() - started,
        place_of=tuple(number for number, place in enumerate(places) for _ in place.batches),
        place_bytes=tuple(place.size for place in places)
        if len(strata) == 1 and not parquet and errors != [0.0]
        else (),
        total_bytes=float(sum(file.size_bytes for file in files)),
        faults=tuple(fault for place in places for fault in place.faults),
    )


def estimate_total(
    rows: Sequence[float], sizes: Sequence[float], *, total: float
) -> tuple[float, float | None]:
    """Scale rows per byte up to `total` bytes (the ratio estimator over places).

    Returns: the rows, and their standard error with the correction for what was read already;
      0 if everything was, None if a single place was not enough to tell.
    """
    read = sum(sizes)
    if read <= 0:
        return 0.0, None
    ratio = sum(rows) / read
    count = len(sizes)
    if read >= total:
        return ratio * total, 0.0
    if count < 2:
        return ratio * total, None
    squares = sum((r - ratio * s) ** 2 for r, s in zip(rows, sizes, strict=True))
    per_place = math.sqrt(squares / (count - 1) * count) / read
    return ratio * total, per_place * total * math.sqrt(1 - read / total)


@dataclass(frozen=True, slots=True)
class _Reading:
    fields: RowFields
    limits: RowLimits
    settings: ReadSettings

    def read(self, segment: Segment, *, size: float, max_rows: int | None = None) -> _Place:
        place = _Place(size)
        task = ReadTask(0, (segment,), max_rows)
        for found in read_chunks(
            task, fields=self.fields, limits=self.limits, settings=self.settings
        ):
            if isinstance(found, FileFault):
                place.faults.append(found)
            else:
                place.batches.append(found)
        return place


def _sample_first(
    files: Sequence[InputFile], limit: int, *, sample_rows: int, reading: _Reading, since: float
) -> CorpusSample:
    """Count the first `limit` rows and keep whole chunks of them, spread."""
    tasks = limit_tasks(plan_tasks(files), limit, fields=reading.fields, settings=reading.settings)
    limits = replace(reading.limits, chunk_rows=max(1, min(4096, sample_rows // PLACES)))
    step = max(1, limit // sample_rows)
    kept: list[TextBatch] = []
    faults: list[FileFault] = []
    rows = kept_rows = number = 0
    for task in tasks:
        for found in read_chunks(
            task, fields=reading.fields, limits=limits, settings=reading.settings
        ):
            if isinstance(found, FileFault):
                faults.append(found)
                continue
            rows += found.rows_read
            if number % step == 0:
                kept.append(found)
                kept_rows += found.rows_read
            number += 1
    seconds = (time.monotonic() - since) * kept_rows / max(1, rows)
    basis = "counted (--limit)"
    return CorpusSample(
        batches=tuple(kept),
        rows=rows,
        rows_error=0.0,
        basis=basis,
        rows_read=kept_rows,
        read_seconds=seconds,
        place_of=tuple(range(len(kept))),
        faults=tuple(faults),
    )


def _sample_lines(
    files: list[InputFile], wanted: int, reading: _Reading
) -> tuple[list[_Place], float, float | None, str]:
    """Windows of bytes: a line belongs to the window in which it starts."""
    total = sum(file.size_bytes for file in files)
    pilot = min(total, _PILOT_BYTES)
    rows = sum(
        reading.read(segment, size=0).rows
        for start in {0, (total - pilot) // 2, total - pilot}
        for segment in _cut(files, start, start + pilot)
    )
    row_bytes = 3 * pilot / max(1, rows)
    if row_bytes * wanted * 2 >= total:  # a sample of half of it saves nothing
        places = [
            reading.read(Segment(file), size=file.size_bytes) for file in files if file.size_bytes
        ]
        return places, float(sum(place.rows for place in places)), 0.0, "all rows read"
    window = max(1, int(row_bytes * wanted / PLACES))
    places = []
    for start in _spread_starts(total, window):
        place = _Place(0.0)
        for segment in _cut(files, start, start + window):
            part = reading.read(segment, size=0)
            place.batches += part.batches
            place.faults += part.faults
            place.size += (segment.stop or 0) - segment.start
        places.append(place)
    count, error = estimate_total([p.rows for p in places], [p.size for p in places], total=total)
    return places, count, error, f"rows per byte at {len(places)} places"


def _spread_starts(total: int, window: int) -> Iterator[int]:
    for number in range(PLACES):
        yield int((total - window) * number / (PLACES - 1))


def _cut(files: Sequence[InputFile], start: int, stop: int) -> Iterator[Segment]:
    """The segments that bytes `[start, stop)` of all files, laid end to end, come to."""
    offset = 0
    for file in files:
        first, last = max(start - offset, 0), min(stop - offset, file.size_bytes)
        if first < last:
            yield Segment(file, first, last)
        offset += file.size_bytes


def _sample_parquet(
    files: list[InputFile], wanted: int, reading: _Reading
) -> tuple[list[_Place], float, float | None, str]:
    step = max(1, -(-len(files) // MAX_FOOTERS))
    groups: list[tuple[InputFile, int]] = []
    counts: list[float] = []
    for file in files[::step]:
        # A broken one is reported by its reader.
        with contextlib.suppress(FileBrokenError), open_parquet(file) as source:
            groups += [(file, k) for k in range(source.metadata.num_row_groups)]
            counts.append(float(source.metadata.num_rows))
    rows, error = estimate_total(counts, [1.0] * len(counts), total=float(len(files)))
    stride = max(1, len(groups) // PLACES)
    chosen = groups[::stride][:PLACES]
    each = None if rows <= wanted else max(1, -(-wanted // max(1, len(chosen))))
    places = [
        reading.read(Segment(file, k, k + 1), size=0.0, max_rows=each)
        for file, k in (groups if each is None else chosen)
    ]
    exact = step == 1 and len(counts) == len(files)
    return places, rows, 0.0 if exact else error, "Parquet footers"


def _sample_heads(
    files: list[InputFile], wanted: int, reading: _Reading
) -> tuple[list[_Place], float, float | None, str]:
    """Heads of files, unpacked into a temporary file that is read like any other."""
    filled = [file for file in files if file.size_bytes]
    chosen = filled[:: max(1, -(-len(filled) // PLACES))]
    places, heads_only = [], False
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        for number, file in enumerate(chosen):
            each = max(1, wanted // len(chosen))
            size = min(file.size_bytes, _HEAD_BYTES)
            while True:
                place = _read_head(file, size, folder=f"{folder}/{number}", reading=reading)
                if place.rows >= each or size >= file.size_bytes:
                    break
                size = min(file.size_bytes, size * 4)
            heads_only |= size < file.size_bytes
            places.append(place)
    total = float(sum(file.size_bytes for file in filled))
    rows, error = estimate_total([p.rows for p in places], [p.size for p in places], total=total)
    basis = f"rows per byte in the heads of {len(places)} file(s)" if heads_only else "files read"
    if len(chosen) == len(filled) and not heads_only:
        basis = "all rows read"
    return places, rows, error, basis


def _read_head(file: InputFile, size: int, *, folder: str, reading: _Reading) -> _Place:
    if size >= file.size_bytes:
        return reading.read(Segment(file), size=file.size_bytes)
    with open_raw(file.path) as raw:
        head = raw.read(size)
    if file.compression != "none":
        head = b"".join(_expand(head, file.compression))
    if file.format in _LINE_ENDED:
        head = head[: head.rfind(b"\n") + 1]
    os.makedirs(folder, exist_ok=True)
    # Its own name: the delimiter of csv goes by it.
    path = f"{folder}/{os.path.basename(file.path)}"
    with open(path, "wb") as part:
        part.write(head)
    cut = replace(file, path=path, size_bytes=len(head), compression="none")
    place = reading.read(Segment(cut), size=size)
    place.faults.clear()  # that the head breaks off is our doing
    return place


def _expand(head: bytes, compression: str) -> Iterator[bytes]:
    """What a cut compressed file gives before it breaks off."""
    try:
        while head:
            member = CODECS[compression]()
            yield from member.feed(head)
            if not member.ended:
                return
            head = member.rest
    except Exception:  # noqa: BLE001 (each codec has its own; the reader says it better)
        return


_STRATA = {"parquet": _sample_parquet, "lines": _sample_lines, "heads": _sample_heads}

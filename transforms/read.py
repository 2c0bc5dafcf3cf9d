"""From path patterns to batches of checked rows: find the files, plan the reading, read.

`expand_inputs`, `check_inputs` and `plan_tasks` run in the launcher, before any work;
`read_chunks` is the pure part of `ReadCorpus`, which runs on the workers.
"""

from __future__ import annotations

import concurrent.futures
import difflib
import glob
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics

from transforms import parse
from transforms.errors import InputError
from transforms.readers import (
    HEAD_BYTES,
    READERS,
    DetectedFormat,
    UnknownFormatError,
    detect_format,
)
from transforms.readers.base import (
    FileBrokenError,
    ReadSettings,
    RowBlock,
    Sample,
    TableBlock,
    used_names,
)
from transforms.readers.compression import open_raw, sniff_compression
from transforms.readers.parquet import check_column_types, is_text, open_parquet
from transforms.records import (
    ChunkKey,
    FileFault,
    InputFile,
    ReadTask,
    RowFields,
    RowLimits,
    Segment,
    TextBatch,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_S = TypeVar("_S")

# A segment of 8 MiB is parsed in about a tenth of a second, far above what a task costs, and a
# corpus of 100 MB still makes a dozen tasks, enough for a large machine. Past some thousands of
# tasks more of them help nobody and weigh on the job's graph, so segments grow with the corpus,
# by doubling, so that the borders of a growing corpus seldom move.
MIN_SEGMENT_BYTES = 8 << 20
MAX_SEGMENT_BYTES = 64 << 20
WANTED_TASKS = 4096
# What text commonly shrinks to by gzip; makes tasks of compressed files as large as others.
EXPANSION = 4
IO_THREADS = 16
MAX_REMOTE_HEADS = 1000
MAX_FOOTERS = 1000
MAX_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class InputSummary:
    """What a look at the input showed before any work.

    fields: source fields that the sample has; text_bytes: an estimate of the bytes of text, in
    uncompressed rows; may_be_empty: every file was looked at and none has a row.
    """

    files: int
    size_bytes: int
    fields: tuple[str, ...]
    text_bytes: int
    may_be_empty: bool


# Finding files


def expand_inputs(patterns: Sequence[str], *, input_format: str = "auto") -> list[InputFile]:
    """Find the files that paths and globs of any Beam file system stand for.

    Of a glob's matches those under a name that begins with `_` or `.` are left out, as the
    output of other tools (`_SUCCESS`, `.part.crc`); a path given in full is always taken.

    Returns: each file once, sorted by name.
    Raises: InputError.
    """
    if not patterns:
        raise InputError("no input: give a path or a glob with --input")
    if input_format != "auto" and input_format not in READERS:
        near = difflib.get_close_matches(input_format, ["auto", *READERS], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"input_format={input_format!r} is unknown; {hint}wanted auto or one of "
            f"{', '.join(READERS)}"
        )
    sizes: dict[str, int] = {}
    for pattern in patterns:
        sizes.update(_match_pattern(pattern))
    folder = _shared_folder(list(sizes))
    paths = sorted(sizes)
    looks = _look_at_heads(paths, sizes)
    files = []
    for index, (path, head) in enumerate(zip(paths, looks, strict=True)):
        found = _choose_format(path, head, input_format=input_format)
        name = path[len(folder) :]
        files.append(InputFile(path, name, index, sizes[path], found.format, found.compression))
    return files


def _match_pattern(pattern: str) -> dict[str, int]:
    """The files of one pattern and their sizes."""
    if not pattern.strip():
        raise InputError("an input path is empty; give a path or a glob with --input")
    if FileSystems.get_scheme(pattern) is None:
        pattern = os.path.abspath(pattern) + ("/" if pattern.endswith("/") else "")
    try:
        # A file whose name has brackets or a star is that file and no glob.
        if not pattern.endswith("/") and FileSystems.exists(pattern):
            return {pattern: _size_of_file(pattern)}
        if pattern.endswith("/") or not _has_glob(pattern):
            raise InputError(_explain_missing(pattern))
        matches = FileSystems.match([pattern])[0].metadata_list
    except InputError:
        raise
    except (BeamIOError, OSError, ValueError) as error:
        raise InputError(f"input {pattern}: cannot be listed ({_first_line(error)})") from error
    shown = {m.path: m.size_in_bytes for m in matches if not _is_hidden(m.path, pattern)}
    shown.update(_find_passed_over(pattern, found=shown))
    if len(shown) < len(matches):
        _log.info(
            "input %s: left out %d files whose names begin with _ or .",
            pattern,
            len(matches) - len(shown),
        )
    if not shown:
        raise InputError(_explain_no_match(pattern, hidden=len(matches)))
    for path in shown:
        _refuse_special(path)
    return shown


def _find_passed_over(pattern: str, *, found: Iterable[str]) -> dict[str, int]:
    """Local files of a glob, and their sizes, that Beam's listing leaves out without a word.

    It does not follow linked folders, and passes over what it cannot get the size of.

    Raises: InputError for a broken link, and for a folder that is named like the files.
    """
    if FileSystems.get_scheme(pattern) is not None:
        return {}
    sizes = {}
    # `*` alone means whatever files there are; a part of a name means that all these are files.
    means_names = pattern.rsplit("/", 1)[-1].strip("*") != ""
    for path in sorted(set(glob.glob(pattern, recursive=True)).difference(found)):
        if _is_hidden(path, pattern):
            continue
        if not os.path.exists(path):
            raise InputError(
                f"input {path} is a link to a file that is not there; mend the link, or give a "
                f"pattern that leaves it out (found by {pattern})"
            )
        if not os.path.isdir(path):
            sizes[path] = os.path.getsize(path)
        elif means_names:
            raise InputError(
                f"input {path} is a folder; give its files: --input='{path}/*', or a pattern that "
                f"leaves it out (found by {pattern})"
            )
    return sizes


def _has_glob(pattern: str) -> bool:
    return re.search(r"[*?\[]", pattern) is not None


def _size_of_file(path: str) -> int:
    if FileSystems.get_scheme(path) is None and os.path.isdir(path):
        raise InputError(f"input {path} is a folder; give its files: --input='{path}/*'")
    _refuse_special(path)
    found: int = FileSystems.get_filesystem(path).metadata(path).size_in_bytes
    return found


def _refuse_special(path: str) -> None:
    """Refuse a pipe or a device: reading it could wait for ever, and never twice the same."""
    if FileSystems.get_scheme(path) is not None:
        return
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"input {path}: cannot be read ({_first_line(error)})") from error
    if not stat.S_ISREG(mode):
        raise InputError(
            f"input {path} is no regular file (a pipe, socket or device); write its content to "
            "a file first"
        )


def _is_hidden(path: str, pattern: str) -> bool:
    """Whether a glob's match lies under a name that begins with `_` or `.`.

    A pattern that begins its last part so itself means such files.
    """
    if pattern.rsplit("/", 1)[-1].startswith(("_", ".")):
        return False
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rsplit("/", 1)[0]
    inside = path[len(fixed) :] if path.startswith(fixed) else path.rsplit("/", 1)[-1]
    return any(part.startswith(("_", ".")) for part in inside.split("/"))


def _explain_missing(path: str) -> str:
    folder, _, name = path.rstrip("/").rpartition("/")
    inside = _list_folder(path.rstrip("/"))
    if inside or (FileSystems.get_scheme(path) is None and os.path.isdir(path)):
        bare = path.rstrip("/")
        return f"input {bare} is a folder; give its files: --input='{bare}/*'"
    near = difflib.get_close_matches(name, _list_folder(folder), n=1, cutoff=0.6)
    hint = f"; did you mean {folder}/{near[0]}?" if near else "; check the path"
    return f"input {path} does not exist{hint}"


def _explain_no_match(pattern: str, *, hidden: int) -> str:
    if hidden:
        return (
            f"input {pattern} matches only {hidden} files whose names begin with _ or ., which a "
            "glob leaves out; name them in full or begin the pattern's last part so"
        )
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    if FileSystems.get_scheme(pattern) is None and fixed and not os.path.isdir(fixed):
        return f"input {pattern} matches no file: there is no folder {fixed}; check the path"
    names = _list_folder(fixed)
    there = f"; {fixed} holds {', '.join(sorted(names)[:3])}" if names else ""
    return f"input {pattern} matches no file{there}; check the pattern (** reaches into folders)"


def _list_folder(folder: str) -> list[str]:
    """Names of some files in a folder; only for hints, so it never fails."""
    try:
        found = FileSystems.match([f"{folder}/*"], limits=[1000])[0].metadata_list
    except (BeamIOError, OSError, ValueError):
        return []
    return [match.path.rsplit("/", 1)[-1] for match in found]


def _shared_folder(paths: list[str]) -> str:
    """The longest folder, with its slash, that all paths begin with."""
    folders = [path.rpartition("/")[0].split("/") for path in paths]
    shared = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    # "gs:" alone is no folder, and neither is the scheme and its two slashes.
    joined = "/".join(shared) + "/" if shared else ""
    return "" if joined.rstrip("/").endswith(":") else joined


def _look_at_heads(paths: list[str], sizes: dict[str, int]) -> list[bytes | None]:
    """The first bytes of each file; None where only the name is to be gone by.

    A remote file system may fetch megabytes for the first byte, so of very many remote files
    only some are looked at, evenly spread.
    """
    remote = [path for path in paths if FileSystems.get_scheme(path) is not None]
    stride = max(1, -(-len(remote) // MAX_REMOTE_HEADS))
    skipped = set(remote) - set(remote[::stride])

    def look(path: str) -> bytes | None:
        if path in skipped:
            return None
        try:
            with open_raw(path) as file:
                return file.read(HEAD_BYTES) if sizes[path] else b""
        except FileBrokenError as broken:
            raise InputError(f"input {broken.message}") from broken
        except OSError as error:
            raise InputError(f"input {path}: cannot be read ({_first_line(error)})") from error

    return _map_threaded(look, paths)


def _choose_format(path: str, head: bytes | None, *, input_format: str) -> DetectedFormat:
    if input_format == "auto":
        try:
            return detect_format(path, head)
        except UnknownFormatError as error:
            raise InputError(f"input {path} {error}") from error
    if head and head.startswith(b"PAR1") and input_format != "parquet":
        raise InputError(
            f"input {path} is Parquet; wanted {input_format} by --input_format; leave the flag out"
        )
    if not READERS[input_format].compressible:
        return DetectedFormat(input_format, "none")
    codec = detect_format(path, None).compression if head is None else sniff_compression(head)
    return DetectedFormat(input_format, codec)


def _first_line(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__


def _map_threaded(call: Callable[[_T], _S], items: Iterable[_T]) -> list[_S]:
    """Map in threads; what the calls do is wait for a file system."""
    with concurrent.futures.ThreadPoolExecutor(IO_THREADS) as pool:
        return list(pool.map(call, items))


# Looking before work


def check_inputs(
    files: Sequence[InputFile],
    *,
    fields: RowFields,
    settings: ReadSettings | None = None,
    allow_bad_files: bool = False,
) -> InputSummary:
    """Look at heads and footers, so that a wrong field name fails before any work.

    Of Parquet every footer is read (of more than a thousand files every k-th; the workers check
    the rest), of other formats the heads of up to 16 files.

    Args:
      allow_bad_files: pass over a broken Parquet file, which the workers report as a FileFault.
    Raises: InputError; ConfigError for an unknown metadata type.
    """
    settings = settings or ReadSettings()
    for field in fields.metadata:
        parse.field_type(field)
    _check_fieldless(files, fields=fields)
    parquet = [file for file in files if file.format == "parquet"]
    others = [file for file in files if file.format != "parquet"]
    footers = _read_footers(parquet, allow_bad_files=allow_bad_files)
    _check_footers(footers, fields=fields, allow_bad_files=allow_bad_files)
    filled = [file for file in others if file.size_bytes]
    sampled = _spread(filled, MAX_SAMPLES)
    samples = _map_threaded(lambda file: _sample_file(file, settings=settings), sampled)
    _check_samples(
        [
            (file, sample)
            for file, sample in zip(sampled, samples, strict=True)
            if sample is not None and READERS[file.format].has_fields
        ],
        fields=fields,
    )
    has_rows = any(footer.rows for footer in footers) or any(
        sample is None or sample.has_rows for sample in samples
    )
    looked_at_all = len(sampled) == len(filled) and len(footers) == len(parquet)
    names = dict.fromkeys(name for footer in footers for name in footer.schema.names)
    names.update(dict.fromkeys(name for sample in samples if sample for name in sample.fields))
    return InputSummary(
        files=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        fields=tuple(names),
        text_bytes=sum(_expanded_bytes(file) for file in others)
        + _scale_up(sum(footer.text_bytes for footer in footers), len(parquet), len(footers)),
        may_be_empty=looked_at_all and not has_rows,
    )


@dataclass(frozen=True, slots=True)
class _Footer:
    file: InputFile
    schema: pa.Schema
    rows: int
    text_bytes: int


def _check_fieldless(files: Sequence[InputFile], *, fields: RowFields) -> None:
    wanted = {"id": fields.id, "pair": fields.pair}
    asked = [f"--{flag}_field={name}" for flag, name in wanted.items() if name is not None]
    if fields.metadata:
        asked.append("--metadata_fields=" + ",".join(field.name for field in fields.metadata))
    if not asked:
        return
    for file in files:
        if not READERS[file.format].has_fields:
            raise InputError(
                f"input {file.path} is plain text, whose rows have no fields, but "
                f"{' '.join(asked)} asks for some; drop the flag, or give JSON lines, CSV, "
                "Parquet or TFRecord (--input_format)"
            )


def _read_footers(files: Sequence[InputFile], *, allow_bad_files: bool) -> list[_Footer]:
    def read(file: InputFile) -> _Footer | FileBrokenError:
        try:
            with open_parquet(file) as source:
                return _Footer(
                    file, source.schema_arrow, source.metadata.num_rows, _text_bytes(source)
                )
        except FileBrokenError as broken:
            return broken

    found = _map_threaded(read, _spread(files, MAX_FOOTERS))
    broken = [footer for footer in found if isinstance(footer, FileBrokenError)]
    if broken and not allow_bad_files:
        more = f" (and {len(broken) - 1} more files)" if len(broken) > 1 else ""
        raise InputError(f"input {broken[0].message}{more}") from broken[0]
    return [footer for footer in found if isinstance(footer, _Footer)]


def _text_bytes(source: Any) -> int:
    """Bytes of the text-like columns in a footer; the encoded size is a lower bound."""
    names = {field.name for field in source.schema_arrow if is_text(field.type)}
    footer = source.metadata
    return sum(
        group.column(k).total_uncompressed_size
        for group in map(footer.row_group, range(footer.num_row_groups))
        for k in range(group.num_columns)
        if group.column(k).path_in_schema in names
    )


def _check_footers(footers: Sequence[_Footer], *, fields: RowFields, allow_bad_files: bool) -> None:
    """Check that every file has the used columns, each of types that can be one."""
    known = sorted({name for footer in footers for name in footer.schema.names})
    for name in used_names(fields):
        if footers and name not in known:
            raise InputError(_explain_unknown_field(name, known, where=footers[0].file.path))
    merged: dict[str, tuple[pa.Schema, str]] = {}
    for footer in footers:
        try:
            check_column_types(footer.schema, fields=fields, path=footer.file.path)
        except FileBrokenError as broken:
            if allow_bad_files:
                continue
            raise InputError(f"input {broken.message}") from broken
        for field in fields.metadata:
            if field.type is not None:
                continue
            kind = footer.schema.field(field.name).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            one = pa.schema([(field.name, kind)])
            before, where = merged.get(field.name, (one, footer.file.path))
            try:
                merged[field.name] = (parse.merge_schemas([before, one]), footer.file.path)
            except InputError as error:
                raise InputError(f"{error} (files {where} and {footer.file.path})") from error


def _explain_unknown_field(name: str, known: Sequence[str], *, where: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
    return f"no row has a field {name!r} (looked into {where}); the fields are {listed}{hint}"


def _check_samples(looks: Sequence[tuple[InputFile, Sample]], *, fields: RowFields) -> None:
    known = sorted({name for _, sample in looks for name in sample.fields})
    if not known:
        return  # no row could be parsed: the rejects will say why
    for name in used_names(fields):
        if name not in known:
            where = looks[0][0].path + (f" and {len(looks) - 1} more" if len(looks) > 1 else "")
            raise InputError(_explain_unknown_field(name, known, where=where))


def _sample_file(file: InputFile, *, settings: ReadSettings) -> Sample | None:
    try:
        return READERS[file.format].sample(file, settings=settings)
    except FileBrokenError as broken:
        _log.warning("%s", broken.message)  # a FileFault when it is read
        return None


def _spread(files: Sequence[InputFile], count: int) -> Sequence[InputFile]:
    """At most `count` of the files, evenly spread."""
    return files[:: max(1, -(-len(files) // count))]


def _scale_up(amount: int, files: int, looked_at: int) -> int:
    return amount * files // looked_at if looked_at else 0


def _expanded_bytes(file: InputFile) -> int:
    return file.size_bytes * (1 if file.compression == "none" else EXPANSION)


# Planning


def choose_segment_bytes(total_bytes: int) -> int:
    """The size of a read task for a corpus: 8 MiB, more from 32 GiB on."""
    segment_bytes = MIN_SEGMENT_BYTES
    while segment_bytes < MAX_SEGMENT_BYTES and total_bytes > segment_bytes * WANTED_TASKS:
        segment_bytes *= 2
    return segment_bytes


def plan_tasks(
    files: Sequence[InputFile], *, segment_bytes: int | None = None, max_files_per_task: int = 1000
) -> list[ReadTask]:
    """Cut large files and gather small ones into tasks of about one size.

    The plan depends on the files alone, not on workers, so a rerun reads the same chunks.

    Args:
      segment_bytes: None chooses by the size of the corpus, see `choose_segment_bytes`.
    Returns: tasks in the order of files and rows; each has files of one format only.
    """
    if segment_bytes is None:
        segment_bytes = choose_segment_bytes(sum(file.size_bytes for file in files))
    if segment_bytes < 1 or max_files_per_task < 1:
        raise ValueError(
            f"segment_bytes={segment_bytes} and max_files_per_task={max_files_per_task} must be "
            "at least 1"
        )
    size = segment_bytes
    large = [file for file in files if file.format == "parquet" and file.size_bytes > size]
    groups = dict(zip(large, _map_threaded(lambda f: _split_parquet(f, size), large), strict=True))
    tasks: list[ReadTask] = []
    packed: list[Segment] = []
    packed_bytes = 0

    def flush() -> None:
        nonlocal packed_bytes
        if packed:
            tasks.append(ReadTask(len(tasks), tuple(packed)))
        packed.clear()
        packed_bytes = 0

    for file in files:
        segments = groups.get(file) or _split_bytes(file, segment_bytes)
        if len(segments) > 1:
            flush()
            tasks += [ReadTask(k, (one,)) for k, one in enumerate(segments, len(tasks))]
            continue
        n_bytes = _expanded_bytes(file)
        if packed and (
            packed_bytes + n_bytes > segment_bytes
            or len(packed) >= max_files_per_task
            or packed[0].file.format != file.format
        ):
            flush()
        packed.extend(segments)
        packed_bytes += n_bytes
    flush()
    return tasks


def _split_bytes(file: InputFile, segment_bytes: int) -> list[Segment]:
    splits = READERS[file.format].split == "bytes" and file.compression == "none"
    if not splits or file.size_bytes <= segment_bytes:
        return [Segment(file)]
    starts = range(0, file.size_bytes, segment_bytes)
    # The last segment is open, so that a line written since is not lost without a word.
    return [
        Segment(file, start, start + segment_bytes if start != starts[-1] else None)
        for start in starts
    ]


def _split_parquet(file: InputFile, segment_bytes: int) -> list[Segment]:
    """Gather row groups up to a size; a broken file stays whole, its reader reports it."""
    try:
        with open_parquet(file) as source:
            footer = source.metadata
            sizes = [footer.row_group(k).total_byte_size for k in range(footer.num_row_groups)]
    except FileBrokenError:
        return [Segment(file)]
    segments, start, n_bytes = [], 0, 0
    for k, size in enumerate(sizes):
        if k > start and n_bytes + size > segment_bytes:
            segments.append(Segment(file, start, k))
            start, n_bytes = k, 0
        n_bytes += size
    return [*segments, Segment(file, start, len(sizes))] if segments else [Segment(file)]


# Reading


def read_chunks(
    task: ReadTask,
    *,
    fields: RowFields,
    limits: RowLimits | None = None,
    settings: ReadSettings | None = None,
) -> Iterator[TextBatch | FileFault]:
    """Read a task: checked rows in chunks, and what could not be read.

    Chunks are cut at `limits.chunk_rows` rows read, or before the row that would take them over
    `limits.chunk_bytes`; they depend on the task alone. A file that breaks off gives the rows
    before the break and a fault; the task goes on with its next file. Memory holds about one
    chunk and one row.
    """
    limits = limits or RowLimits()
    settings = settings or ReadSettings()
    chunks = _Chunks(task.index, fields=fields, limits=limits)
    left = task.max_rows
    for segment in task.segments:
        file = segment.file
        try:
            reader = READERS[file.format]
            for block in reader.read(segment, fields=fields, limits=limits, settings=settings):
                if left is not None:
                    block = block.head(left)
                    left -= len(block)
                if isinstance(block, RowBlock):
                    yield from chunks.add_rows(file, block)
                else:
                    yield from chunks.add_table(file, block)
                if left == 0:
                    yield from chunks.finish()
                    return
        except FileBrokenError as broken:
            yield FileFault(file.path, broken.position, broken.reason, broken.message)
    yield from chunks.finish()


def limit_tasks(
    tasks: Sequence[ReadTask],
    limit: int,
    *,
    fields: RowFields,
    settings: ReadSettings | None = None,
) -> list[ReadTask]:
    """The tasks that hold the first `limit` rows of the corpus; the last one reads only its share.

    Rows are counted by reading them here, so this is for looking at a part of a corpus.
    """
    kept: list[ReadTask] = []
    left = limit
    for task in tasks:
        share = replace(task, max_rows=left)
        kept.append(share)
        for found in read_chunks(share, fields=fields, settings=settings):
            left -= 1 if isinstance(found, FileFault) else found.rows_read
        if left <= 0:
            break
    return kept


class _Chunks:
    """Cuts the rows of a task into chunks."""

    def __init__(self, task: int, *, fields: RowFields, limits: RowLimits) -> None:
        self._task = task
        self._fields = fields
        self._limits = limits
        self._number = 0
        self._rows = parse.RowChunk(fields, limits=limits)
        self._table = parse.TableChunk(fields, limits=limits)

    def add_rows(self, file: InputFile, block: RowBlock) -> Iterator[TextBatch]:
        limits = self._limits
        if self._table.rows_read:
            yield from self.finish()
        chunk = self._rows
        for row in block.rows:
            if chunk.rows_read and chunk.n_bytes + row.n_bytes > limits.chunk_bytes:
                yield from self.finish()
                chunk = self._rows
            chunk.add(file, row)
            if chunk.rows_read >= limits.chunk_rows:
                yield from self.finish()
                chunk = self._rows

    def add_table(self, file: InputFile, block: TableBlock) -> Iterator[TextBatch]:
        limits = self._limits
        part = parse.check_table(block, file=file, fields=self._fields, limits=limits)
        if self._rows.rows_read or not self._table.fits(part):
            yield from self.finish()
        start = 0
        while start < len(part):
            chunk = self._table
            room = limits.chunk_bytes - chunk.n_bytes
            ends = part.row_bytes[start:].cumsum()
            count = min(int((ends <= room).sum()), limits.chunk_rows - chunk.rows_read)
            if not count and not chunk.rows_read:
                count = 1  # a row that fills a chunk by itself
            if count:
                chunk.add(file, part.slice(start, count))
                start += count
            if start < len(part) or chunk.rows_read >= limits.chunk_rows:
                yield from self.finish()

    def finish(self) -> Iterator[TextBatch]:
        for chunk in (self._rows, self._table):
            if chunk.rows_read:
                yield chunk.finish(ChunkKey(self._task, self._number))
                self._number += 1
        self._rows = parse.RowChunk(self._fields, limits=self._limits)
        self._table = parse.TableChunk(self._fields, limits=self._limits)


class _ReadDoFn(beam.DoFn):
    def __init__(self, fields: RowFields, limits: RowLimits, settings: ReadSettings) -> None:
        self._fields = fields
        self._limits = limits
        self._settings = settings
        self._rows = Metrics.counter("read", "rows_read")
        self._faults = Metrics.counter("read", "file_faults")

    def process(self, task: ReadTask) -> Iterator[Any]:
        chunks = read_chunks(
            task, fields=self._fields, limits=self._limits, settings=self._settings
        )
        for found in chunks:
            if isinstance(found, FileFault):
                self._faults.inc()
                yield beam.pvalue.TaggedOutput("faults", found)
                continue
            self._rows.inc(found.rows_read)
            for reject in found.rejects:
                Metrics.counter("rejects", reject.reason).inc()
            yield found


class ReadCorpus(beam.PTransform[Any, Any]):
    """PCollection[ReadTask] → `batches`: TextBatch (the main output), `faults`: FileFault."""

    def __init__(
        self,
        fields: RowFields,
        *,
        limits: RowLimits | None = None,
        settings: ReadSettings | None = None,
    ) -> None:
        super().__init__()
        for field in fields.metadata:
            parse.field_type(field)
        self._fields = fields
        self._limits = limits or RowLimits()
        self._settings = settings or ReadSettings()

    def expand(self, tasks: beam.PCollection[ReadTask]) -> Any:
        read = beam.ParDo(_ReadDoFn(self._fields, self._limits, self._settings))
        # Without the spread a runner may read all tasks of one Create in one bundle.
        return (
            tasks
            | "Spread" >> beam.Reshuffle()
            | "Read" >> read.with_outputs("faults", main="batches")
        )


__all__ = [
    "InputSummary",
    "ReadCorpus",
    "ReadSettings",
    "check_inputs",
    "choose_segment_bytes",
    "expand_inputs",
    "limit_tasks",
    "plan_tasks",
    "read_chunks",
]

"""What crosses a PCollection: frozen records of arrays, in the order the data flows.

A row has no object of its own; rows travel in batches of Arrow or NumPy arrays, so that the
cost of a row outside the model stays in microseconds. See docs/design.md for the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from transforms.runtime import PeakMemory, Timeline

if TYPE_CHECKING:
    import pyarrow as pa

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
UInt64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the corpus.

    `name` is the path relative to the folder that all input files share; it is the file's part
    in derived ids, so a corpus that moves as a whole keeps its ids. `format` is a key of
    `READERS`; `compression` is one of none, gzip, bzip2, zstd.
    """

    path: str
    name: str
    index: int
    size_bytes: int
    format: str
    compression: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of one file that is read in one go.

    Bytes `[start, stop)` for text and jsonl (a line belongs to the segment in which it starts),
    row groups `[start, stop)` for Parquet, and the whole file (`0`, `None`) otherwise.
    """

    file: InputFile
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class ReadTask:
    """What one call of the reader reads: one segment of a large file, or many small files.

    `index` orders the tasks; output rows come in task order. Of a task with `max_rows` only so
    many rows are read.
    """

    index: int
    segments: tuple[Segment, ...]
    max_rows: int | None = None


@dataclass(frozen=True, slots=True)
class MetadataField:
    """A source field to carry through; `type` is an Arrow type name, or None: as found."""

    name: str
    type: str | None = None


@dataclass(frozen=True, slots=True)
class RowFields:
    """Which fields of a source row are its text, its second text, its id and its metadata."""

    text: str = "text"
    pair: str | None = None
    id: str | None = None
    metadata: tuple[MetadataField, ...] = ()


@dataclass(frozen=True, slots=True)
class RowLimits:
    """Bounds of one chunk of rows and of one row, in rows and bytes."""

    chunk_rows: int = 4096
    chunk_bytes: int = 16 << 20
    max_row_bytes: int = 16 << 20
    max_raw_bytes: int = 64 << 10


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that gets no vector, and why.

    `position` is the byte offset of the line in the (decompressed) file for text and jsonl, and
    the number of the row, from 0, for csv, parquet and tfrecord. `line` is the line number, from
    1, where it is known. `raw` is the row as found (cut at `RowLimits.max_raw_bytes`, then
    `raw_truncated`): a JSON object's text where the row was parsed, else the line itself;
    `raw_base64` says that it was not UTF-8 and is base64.
    """

    id: str | None
    file: str
    position: int
    stage: str
    reason: str
    message: str
    raw: str | None = None
    line: int | None = None
    raw_base64: bool = False
    raw_truncated: bool = False


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """The place of a chunk in the corpus: task, and number within the task."""

    task: int
    number: int


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Valid rows of one chunk, N of them, column by column, and the chunk's rejects.

    ids, texts: pa.StringArray [N]; pairs the same or None where there is no pair field;
    files: int32 [N], `InputFile.index`; positions: int64 [N], as in `Reject.position`;
    metadata: pa.Table of N rows, its columns in the order of `RowFields.metadata`;
    rows_read: rows of the source in this chunk, so rows_read == N + len(rejects).
    """

    key: ChunkKey
    ids: pa.StringArray
    texts: pa.StringArray
    pairs: pa.StringArray | None
    files: Int32Array
    positions: Int64Array
    metadata: pa.Table
    rejects: tuple[Reject, ...] = ()
    rows_read: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class FileFault:
    """A file that cannot be read to its end, or at all (truncated, corrupt, unreadable)."""

    file: str
    position: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """B encoder inputs as flat token ids, [CLS] and [SEP] included.

    ids: int32 [sum of lengths]; offsets: int64 [B + 1], row b is ids[offsets[b]:offsets[b + 1]];
    first_lengths: int32 [B], how many of a row's tokens have type id 0 (all, without a pair);
    truncated: bool [B], text or pair was cut to fit.
    """

    ids: Int32Array
    offsets: Int64Array
    first_lengths: Int32Array
    truncated: BoolArray

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """Vectors of some rows of a chunk.

    rows: int32 [B], row numbers within the chunk; vectors: float32 [B, H];
    n_tokens: int32 [B]; truncated: bool [B].
    """

    rows: Int32Array
    vectors: FloatArray
    n_tokens: Int32Array
    truncated: BoolArray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class RowFailure:
    """A row that the encoder could not do: row number within the chunk, reason code, message."""

    row: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class EncodeStats:
    """What an encode step did; sums over batches, so two of them add up field by field.

    timeline: tokens by the time they were encoded; memory: peaks of the processes.
    """

    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    encode_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    load_seconds: float = 0.0
    expert_loads: int = 0
    splits: int = 0
    timeline: Timeline = field(default=Timeline())
    memory: PeakMemory = field(default=PeakMemory())

    def __add__(self, other: EncodeStats) -> EncodeStats:
        return EncodeStats(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Expert:
    """A resolved expert: what a worker needs to load it. A worker never downloads.

    `name` is the short name or one derived from the handle; `fingerprint` is the sha256 over
    what determines the encoder's output for given token ids (graph and weights);
    `tokenizer_fingerprint` the same for text → ids. `tokenizer` is "fast" where the fast
    tokenizer was proved to give the preprocessor's ids, else "preprocessor".
    """

    name: str
    handle: str
    path: str
    preprocessor_handle: str
    preprocessor_path: str
    width: int
    layers: int
    position_limit: int
    lower_case: bool
    fingerprint: str
    tokenizer_fingerprint: str
    tokenizer: str = "fast"


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """How texts become vectors; everything that changes a vector is in `fingerprint_fields`."""

    pooling: str = "mean"
    normalize: bool = False
    max_tokens: int = 512
    engine: str = "auto"
    precision: str = "auto"
    batch_tokens: int = 4096
    threads: int = 0
    checkpoint_seconds: float = 30.0
    long_text: str = "truncate"
    fingerprint_fields: tuple[str, ...] = field(
        default=("pooling", "normalize", "max_tokens", "precision"), repr=False
    )


@dataclass(frozen=True, slots=True)
class FileCount:
    """Rows of one input file: read, rejected so far, with a vector. `file`: `InputFile.index`."""

    file: int
    rows_read: int
    rejects: int
    vectors: int = 0


@dataclass(frozen=True, slots=True)
class StagedRejects:
    """A file of rejects under the work folder, as JSON lines, and what is in it by reason."""

    path: str
    rows: int
    reasons: tuple[tuple[str, int], ...]
    sample: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of the corpus in the spool.

    `text_digest` is the sha256 over the rows' text hashes in order: it names the chunk's vectors,
    which outlive a change of metadata or of other chunks. `metadata_schema` is a serialised
    pa.Schema.
    """

    key: ChunkKey
    path: str
    text_digest: str
    rows: int
    rows_read: int
    text_bytes: int
    metadata_schema: bytes
    files: tuple[FileCount, ...]
    rejects: StagedRejects | None


@dataclass(frozen=True, slots=True)
class KeyBatch:
    """Ids of one chunk that fall into one bucket, as hashes.

    rows: int32 [N], row numbers within the chunk; hashes: uint64 [N, 2], BLAKE2b-128 of the id;
    files: int32 [N] and positions: int64 [N], the row's origin; texts: uint64 [N], the head of
    the text's sha256.
    """

    key: ChunkKey
    rows: Int32Array
    hashes: UInt64Array
    files: Int32Array
    positions: Int64Array
    texts: UInt64Array


@dataclass(frozen=True, slots=True)
class TextKeys:
    """Texts of one chunk that fall into one bucket: rows int32 [N], hashes uint64 [N, 2].

    hashes are the first 16 bytes of the text's sha256.
    """

    key: ChunkKey
    rows: Int32Array
    hashes: UInt64Array


@dataclass(frozen=True, slots=True)
class OldKeys:
    """Rows of a committed file that fall into one bucket, by id or by text.

    file: `CommittedFile.index`; rows: int64 [N]; hashes: uint64 [N, 2] of the id or the text;
    texts: uint64 [N], the head of the text's sha256.
    """

    file: int
    rows: Int64Array
    hashes: UInt64Array
    texts: UInt64Array


@dataclass(frozen=True, slots=True)
class ReuseRefs:
    """Rows of a chunk whose text an earlier output has.

    rows: int32 [N] within the chunk; files: int32 [N]; old_rows: int64 [N] within the file.
    """

    key: ChunkKey
    rows: Int32Array
    files: Int32Array
    old_rows: Int64Array


@dataclass(frozen=True, slots=True)
class ReuseCounts:
    """Ids against the earlier output: same text, other text, only here, only there."""

    unchanged: int = 0
    changed: int = 0
    new: int = 0
    deleted: int = 0

    def __add__(self, other: ReuseCounts) -> ReuseCounts:
        return ReuseCounts(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows of one chunk whose id an earlier row of the corpus has already.

    rows: int32 [N]; first_files: int32 [N] and first_positions: int64 [N], the earlier row.
    """

    key: ChunkKey
    rows: Int32Array
    first_files: Int32Array
    first_positions: Int64Array


@dataclass(frozen=True, slots=True)
class ChunkWork:
    """A chunk and what the index pass decided about it.

    dropped: int32 row numbers of duplicate ids; reuse: rows whose vectors an earlier output has.
    """

    chunk: Chunk
    dropped: Int32Array
    rejects: StagedRejects | None = None
    reuse: tuple[ReuseRefs, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkTexts:
    """Rows of a chunk that still need a vector: rows int32 [N] within the chunk, and texts."""

    key: ChunkKey
    text_digest: str
    rows: Int32Array
    texts: pa.StringArray
    pairs: pa.StringArray | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Part:
    """A file of vectors of some rows of a chunk, under the work folder.

    source: encoded (by this run), resumed (by an earlier try of it) or reused (from an output).
    """

    key: ChunkKey
    path: str
    rows: Int32Array
    source: str = "encoded"


@dataclass(frozen=True, slots=True)
class FinishedChunk:
    """A chunk with all its vectors: rows == kept + dropped + failed, checked when it is made."""

    chunk: Chunk
    parts: tuple[str, ...]
    kept: Int32Array
    resumed_rows: int
    reused_rows: int
    files: tuple[FileCount, ...]
    rejects: tuple[StagedRejects, ...]


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Kept rows `[start, stop)` of a finished chunk."""

    chunk: FinishedChunk
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FilePlan:
    """Which rows make output file `index` of `count`; `schema` is its serialised pa.Schema.

    first_row: the output's rows before this file; of all rows, each `sample_every`-th is sampled
    for the report.
    """

    index: int
    count: int
    slices: tuple[FileSlice, ...]
    schema: bytes
    first_row: int = 0
    sample_every: int = 1


@dataclass(frozen=True, slots=True)
class RejectsPlan:
    """Which staged reject files make rejects file `index` of `count`.

    examples_in: those of the paths that examples for the report are taken from.
    """

    index: int
    count: int
    paths: tuple[str, ...]
    rows: int
    examples_in: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RejectExample:
    """What the report shows of a reject; never its text."""

    reason: str
    id: str | None
    file: str
    position: int
    line: int | None
    message: str


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A finished file, still under the work folder; `name` is relative to the output.

    tokens and truncated: sums over its rows, for a file of vectors.
    """

    name: str
    path: str
    rows: int
    size_bytes: int
    sha256: str
    kind: str = "vectors"
    tokens: int = 0
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class RowSample:
    """Every so-many-th row of a file, S of them, for the report.

    texts: their beginnings, or None where texts are not kept; hashes: heads of text_sha256;
    vectors: float32 [S, H]; n_tokens: int32 [S]; metadata: (name, kind, S values), kind number
    or category.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...] | None
    hashes: tuple[str, ...]
    vectors: FloatArray
    n_tokens: Int32Array
    metadata: tuple[tuple[str, str, tuple[str | float | None, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class FileSummary:
    """What the report says of an output file's rows; summaries of files can be merged.

    lengths: int64 [L + 1], rows by n_tokens; norm_bins: (bin, rows) pairs, where bin b is the norms
    from 2**(b / 256) on; sums, square_sums, unit_sums: float64 [H], over rows, of the values, their
    squares, and the rows scaled to length 1; seconds: spent on the file.
    """

    index: int
    rows: int
    lengths: Int64Array
    norm_bins: tuple[tuple[int, int], ...]
    norm_low: float
    norm_high: float
    norm_sum: float
    norm_square_sum: float
    sums: Float64Array
    square_sums: Float64Array
    unit_sums: Float64Array
    sample: RowSample
    seconds: float = 0.0
    memory: PeakMemory = field(default=PeakMemory())


@dataclass(frozen=True, slots=True)
class CorpusTotals:
    """What the index pass found in the whole corpus.

    `faults` are the first few by file; each fault counts as a row read and as a reject.
    """

    chunks: int = 0
    rows_read: int = 0
    rows: int = 0
    text_bytes: int = 0
    rejects: tuple[tuple[str, int], ...] = ()
    faults: tuple[FileFault, ...] = ()
    fault_reasons: tuple[tuple[str, int], ...] = ()
    metadata_schemas: tuple[bytes, ...] = ()

    @property
    def fault_count(self) -> int:
        return sum(count for _, count in self.fault_reasons)


@dataclass(frozen=True, slots=True)
class RunCounts:
    """What a run did to its rows; `files` in the order of the input."""

    vectors: int
    resumed: int
    reused: int
    rejects: tuple[tuple[str, int], ...]
    files: tuple[FileCount, ...]

    @property
    def reject_count(self) -> int:
        return sum(count for _, count in self.rejects)

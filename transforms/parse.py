"""Rows checked: every row of the source becomes a valid row of a `TextBatch` or a `Reject`.

Row-wise formats are checked value by value, columnar ones column by column; both by the same
rules, which `REASONS` lists.
"""

from __future__ import annotations

import base64
import difflib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from transforms.errors import ConfigError, InputError
from transforms.readers.base import BadRow, SourceRow, TableBlock
from transforms.readers.lines import KEPT_ID
from transforms.readers.parquet import is_text
from transforms.records import (
    ChunkKey,
    InputFile,
    MetadataField,
    Reject,
    RowFields,
    RowLimits,
    TextBatch,
)

STAGE = "parse"

REASONS: dict[str, str] = {
    # rows
    "missing_text": "The row has no text field. Check --text_field, or mend the row.",
    "null_text": "The text is null. Give it a text, or leave the row out.",
    "text_not_string": "The text is a number, a list or another thing than a string. Write it as "
    "a string.",
    "blank_text": "The text is empty or white space only, so there is nothing to encode.",
    "nul_byte": "A NUL byte (U+0000) stands in the text, the pair or the id, or in the raw row; "
    "often a hole of a damaged file. Remove it.",
    "invalid_utf8": "The bytes are not UTF-8, or a JSON escape is half a surrogate pair. Convert "
    "the file to UTF-8 (iconv).",
    "missing_id": "The id field is missing, null or blank. Fill it, or drop --id_field.",
    "id_not_string": "The id is neither a string nor an integer. Write it as one.",
    "missing_pair": "The row has no second text, or null. Fill it, or drop --pair_field.",
    "blank_pair": "The second text is empty or white space only.",
    "pair_not_string": "The second text is another thing than a string. Write it as a string.",
    "malformed_json": "The line is not JSON. Write one whole object on each line.",
    "not_an_object": "The line is JSON, but no object {…}. Write one object on each line.",
    "malformed_csv": "The row has another number of fields than the header, or a quote that is "
    "never closed or out of place. Quote fields by RFC 4180, or check the delimiter.",
    "malformed_example": "The record is not a tf.train.Example.",
    "row_too_long": "The row is longer than is read (--max_row_bytes). Split it, or raise the "
    "limit.",
    "raw_row_missing": "The reject of an earlier run holds no raw row, or only its head. Give the "
    "source itself to --input.",
    "metadata_type": "A metadata value does not fit the type of its field. Mend it, or give the "
    "type: --metadata_fields=name:string.",
    # files
    "truncated_file": "The file breaks off before its end. Fetch it again.",
    "corrupt_file": "The file is damaged. Fetch or write it again.",
    "unreadable_file": "The file is not there or may not be read. Check path and permissions.",
    "schema_mismatch": "The file lacks a used column, or has it in another type than it must. "
    "Write the file like the others, or name another field.",
}

# str.isspace() is true of exactly these, so that columns and single values judge alike.
WHITE_SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())

Problem = tuple[str, str]
"""Reason code and message."""


def derive_id(name: str, *, position: int, text: str, pair: str | None = None) -> str:
    """The id of a row that has none of its own, from its origin and content.

    Args:
      name: `InputFile.name`.
      position: `Reject.position`.
    Returns: the first 32 hex digits of sha256(name \\0 position \\0 text [\\0 pair]).
    """
    digest = hashlib.sha256(b"%s\0%d\0%s" % (_name_bytes(name), position, text.encode()))
    if pair is not None:
        digest.update(b"\0" + pair.encode())
    return digest.hexdigest()[:32]


def _name_bytes(name: str) -> bytes:
    # A file name of a POSIX system need not be UTF-8; Python holds its bytes as surrogates.
    return name.encode("utf-8", "surrogateescape")


@functools.lru_cache(maxsize=1024)
def field_type(field: MetadataField) -> pa.DataType | None:
    """The Arrow type that a metadata field is given, or None to take it as found.

    Raises: ConfigError if there is no such type.
    """
    if field.type is None:
        return None
    try:
        return pa.type_for_alias(field.type)
    except ValueError as error:
        near = difflib.get_close_matches(field.type, _TYPE_ALIASES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"metadata field {field.name!r}: unknown type {field.type!r}; {hint}"
            f"wanted one of {', '.join(_TYPE_ALIASES)}"
        ) from error


_TYPE_ALIASES = (
    *("string", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float", "double", "date32", "timestamp[s]", "timestamp[ms]", "timestamp[us]"),
    *("timestamp[ns]", "binary"),
)


def merge_schemas(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The one schema that all the given ones can be cast to.

    Null goes with any type, integers widen, integers and floats make floats, lists and structs
    merge by their parts. The fields stand in the order in which they are first met.

    Raises: InputError if two types of a field cannot be one.
    """
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            known = types.get(field.name)
            if known is None or known.equals(field.type):
                types[field.name] = field.type
                continue
            merged = _merge_types(known, field.type)
            if merged is None:
                raise InputError(
                    f"metadata field {field.name!r} is {known} in one part of the input and "
                    f"{field.type} in another; give one type to cast to, such as "
                    f"--metadata_fields={field.name}:string"
                )
            types[field.name] = merged
    return pa.schema(list(types.items()))


def _merge_types(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if _is_bytes(one) != _is_bytes(other) and not (
        pa.types.is_null(one) or pa.types.is_null(other)
    ):
        return None  # Arrow would make binary of text
    try:
        both = pa.unify_schemas(
            [pa.schema([("field", one)]), pa.schema([("field", other)])],
            promote_options="permissive",
        )
    except pa.ArrowException:
        return None
    return both.field("field").type


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class RowChunk:
    """Rows of a row-wise format, checked one by one, up to the end of a chunk."""

    def __init__(self, fields: RowFields, *, limits: RowLimits) -> None:
        self.rows_read = 0
        self.n_bytes = 0
        self._fields = fields
        self._limits = limits
        self._metadata_names = tuple(field.name for field in fields.metadata)
        self._ids: list[str] = []
        self._texts: list[str] = []
        self._pairs: list[str] = []
        self._files: list[InputFile] = []
        self._positions: list[int] = []
        # Kept only where a later look at metadata types may still reject a row.
        self._rows: list[SourceRow] = []
        self._ordinals: list[int] = []
        self._values: list[list[Any]] = [[] for _ in fields.metadata]
        self._rejects: list[tuple[int, Reject]] = []

    def add(self, file: InputFile, row: SourceRow) -> None:
        """Check one row and keep it, as a valid row or as a reject."""
        ordinal = self.rows_read
        self.rows_read += 1
        self.n_bytes += row.n_bytes
        record = row.record
        if isinstance(record, BadRow):
            self._rejects.append((ordinal, _reject_bad_row(file, row, record, self._limits)))
            return
        fields = self._fields
        text, pair = record.get(fields.text), None
        problem = _check_text(text, record, name=fields.text, what="text")
        if fields.pair is not None:
            pair = record.get(fields.pair)
            problem = problem or _check_text(pair, record, name=fields.pair, what="pair")
        row_id: str | None = None
        if fields.id is not None:
            row_id, id_problem = check_id(record.get(fields.id), name=fields.id)
            problem = problem or id_problem
        if problem is not None:
            self._reject(ordinal, file, row, problem, row_id=row_id)
            return
        kept_id = record.get(KEPT_ID)
        if row_id is None and isinstance(kept_id, str):
            row_id = kept_id
        if row_id is None:
            row_id = derive_id(file.name, position=row.position, text=text, pair=pair)  # type: ignore[arg-type]
        self._ids.append(row_id)
        self._texts.append(text)  # type: ignore[arg-type]
        if fields.pair is not None:
            self._pairs.append(pair)  # type: ignore[arg-type]
        self._files.append(file)
        self._positions.append(row.position)
        if not self._metadata_names:
            return
        self._rows.append(row)
        self._ordinals.append(ordinal)
        for name, values in zip(self._metadata_names, self._values, strict=True):
            values.append(record.get(name))

    def _reject(
        self, ordinal: int, file: InputFile, row: SourceRow, problem: Problem, *, row_id: str | None
    ) -> None:
        assert not isinstance(row.record, BadRow)
        # The whole row, also fields that this run does not use: another run may.
        found = {name: value for name, value in row.record.items() if name != KEPT_ID}
        raw = encode_raw(json_text(found), max_bytes=self._limits.max_raw_bytes)
        reason, message = problem
        self._rejects.append(
            (
                ordinal,
                Reject(
                    *(row_id, file.path, row.position, STAGE, reason, message),
                    raw=raw[0],
                    line=row.line,
                    raw_base64=raw[1],
                    raw_truncated=raw[2],
                ),
            )
        )

    def finish(self, key: ChunkKey) -> TextBatch:
        """Type the metadata, and make the batch. The chunk is used up by it."""
        columns: list[Any] = []
        problems: dict[int, Problem] = {}
        for field, values in zip(self._fields.metadata, self._values, strict=True):
            column, found = fit_values(values, name=field.name, kind=field_type(field))
            columns.append(column)
            for index, problem in found.items():
                problems.setdefault(index, problem)
        keep = None
        if problems:
            for index, problem in problems.items():
                self._reject(
                    self._ordinals[index],
                    self._files[index],
                    self._rows[index],
                    problem,
                    row_id=self._ids[index],
                )
            keep = np.setdiff1d(np.arange(len(self._ids)), np.fromiter(problems, np.int64))

        def take(array: Any) -> Any:
            if keep is None:
                return array
            return array[keep] if isinstance(array, np.ndarray) else array.take(pa.array(keep))

        ids = take(pa.array(self._ids, pa.string()))
        count = len(self._ids)
        return TextBatch(
            key=key,
            ids=ids,
            texts=take(pa.array(self._texts, pa.string())),
            pairs=None if self._fields.pair is None else take(pa.array(self._pairs, pa.string())),
            files=take(np.fromiter((file.index for file in self._files), np.int32, count)),
            positions=take(np.array(self._positions, np.int64)),
            metadata=make_table(self._metadata_names, [take(c) for c in columns], rows=len(ids)),
            rejects=_in_order(self._rejects),
            rows_read=self.rows_read,
        )


class TableChunk:
    """Rows of a columnar format, checked column by column, up to the end of a chunk."""

    def __init__(self, fields: RowFields, *, limits: RowLimits) -> None:
        self.rows_read = 0
        self.n_bytes = 0
        self._fields = fields
        self._limits = limits
        self._parts: list[_TablePart] = []
        self._rejects: list[tuple[int, Reject]] = []

    def fits(self, part: _TablePart) -> bool:
        """Whether the part's metadata are of the types that the chunk has so far."""
        return not self._parts or self._parts[0].metadata.schema.equals(part.metadata.schema)

    def add(self, file: InputFile, part: _TablePart) -> None:
        """Keep checked rows, the valid ones and the rejects."""
        for row in np.flatnonzero(part.problem_of_row >= 0):
            reason, message = part.problems[part.problem_of_row[row]]
            position = part.first_position + int(row)
            raw, is_base64, truncated = part.raw(int(row), limits=self._limits)
            row_id = part.ids[int(row)].as_py()
            self._rejects.append(
                (
                    self.rows_read + int(row),
                    Reject(
                        *(row_id, file.path, position, STAGE, reason, message),
                        raw=raw,
                        raw_base64=is_base64,
                        raw_truncated=truncated,
                    ),
                )
            )
        self.rows_read += len(part)
        self.n_bytes += int(part.row_bytes.sum())
        self._parts.append(part.keep_valid(file))

    def finish(self, key: ChunkKey) -> TextBatch:
        """Make the batch. The chunk is used up by it."""
        parts = self._parts
        ids = pa.concat_arrays([part.ids for part in parts])
        tables = [part.metadata for part in parts]
        columns = [
            pa.concat_arrays([chunk for table in tables for chunk in table.column(k).chunks])
            if any(table.column(k).num_chunks for table in tables)
            else pa.array([], tables[0].schema.field(k).type)
            for k in range(len(self._fields.metadata))
        ]
        return TextBatch(
            key=key,
            ids=ids,
            texts=pa.concat_arrays([part.texts for part in parts]),
            pairs=None
            if self._fields.pair is None
            else pa.concat_arrays([part.pairs for part in parts]),
            files=np.concatenate([part.files for part in parts]),
            positions=np.concatenate([part.positions for part in parts]),
            metadata=make_table([f.name for f in self._fields.metadata], columns, rows=len(ids)),
            rejects=_in_order(self._rejects),
            rows_read=self.rows_read,
        )


class _TablePart:
    """Consecutive rows of one table with what was found wrong in them.

    texts, pairs, ids: pa.StringArray [N], null where there is no valid one; metadata: pa.Table
    of N rows; problem_of_row: int16 [N], an index of `problems`, or -1; row_bytes: int64 [N].
    """

    def __init__(
        self,
        source: pa.Table,
        *,
        first_position: int,
        texts: pa.StringArray,
        pairs: pa.StringArray | None,
        ids: pa.StringArray,
        metadata: pa.Table,
        problem_of_row: np.ndarray[Any, np.dtype[np.int16]],
        problems: list[Problem],
        row_bytes: np.ndarray[Any, np.dtype[np.int64]],
    ) -> None:
        self.source = source
        self.first_position = first_position
        self.texts = texts
        self.pairs = pairs
        self.ids = ids
        self.metadata = metadata
        self.problem_of_row = problem_of_row
        self.problems = problems
        self.row_bytes = row_bytes
        self.files = np.zeros(0, np.int32)
        self.positions = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.row_bytes)

    def slice(self, start: int, count: int) -> _TablePart:
        """Rows [start, start + count), without a copy."""
        return _TablePart(
            self.source.slice(start, count),
            first_position=self.first_position + start,
            texts=self.texts.slice(start, count),
            pairs=None if self.pairs is None else self.pairs.slice(start, count),
            ids=self.ids.slice(start, count),
            metadata=self.metadata.slice(start, count),
            problem_of_row=self.problem_of_row[start : start + count],
            problems=self.problems,
            row_bytes=self.row_bytes[start : start + count],
        )

    def keep_valid(self, file: InputFile) -> _TablePart:
        """The valid rows alone, with their origin, and without the source."""
        valid = self.problem_of_row < 0
        mask = pa.array(valid)
        kept = _TablePart(
            self.source.slice(0, 0),
            first_position=self.first_position,
            texts=self.texts.filter(mask),
            pairs=None if self.pairs is None else self.pairs.filter(mask),
            ids=self.ids.filter(mask),
            metadata=self.metadata.filter(mask) if self.metadata.num_columns else self.metadata,
            problem_of_row=self.problem_of_row[valid],
            problems=[],
            row_bytes=self.row_bytes[valid],
        )
        kept.positions = self.first_position + np.flatnonzero(valid).astype(np.int64)
        kept.files = np.full(len(kept.positions), file.index, np.int32)
        return kept

    def raw(self, row: int, *, limits: RowLimits) -> tuple[str, bool, bool]:
        """One source row as JSON text, cut to the limit."""
        one = self.source.slice(row, 1)
        try:
            data = json_text(one.to_pylist()[0])
        except UnicodeDecodeError:
            columns = [_binary_for_bad_text(column) for column in one.columns]
            values = {
                name: _bytes_as_text(column[0].as_py())
                for name, column in zip(one.column_names, columns, strict=True)
            }
            data = json.dumps(values, ensure_ascii=False, default=str).encode(
                "utf-8", "surrogateescape"
            )
        return encode_raw(data, max_bytes=limits.max_raw_bytes)


def check_table(
    block: TableBlock, *, file: InputFile, fields: RowFields, limits: RowLimits
) -> _TablePart:
    """Check the rows of a block, column by column.

    The types of text, pair and id columns were checked when the file was opened.
    """
    table = pa.Table.from_arrays(
        [_plain(column) for column in block.table.columns], names=block.table.column_names
    )
    count = table.num_rows
    problems: list[Problem] = []
    problem_of_row = np.full(count, -1, np.int16)

    def note(mask: Any, reason: str, message: str) -> None:
        rows = _as_mask(mask) & (problem_of_row < 0)
        if rows.any():
            problem_of_row[rows] = len(problems)
            problems.append((reason, message))

    texts, bad = _as_texts(table.column(fields.text))
    _note_text(note, texts, bad, name=fields.text, what="text", limits=limits)
    pairs = None
    if fields.pair is not None:
        pairs, bad = _as_texts(table.column(fields.pair))
        _note_text(note, pairs, bad, name=fields.pair, what="pair", limits=limits)
    if fields.id is not None:
        column = table.column(fields.id)
        if pa.types.is_integer(column.type):
            column = column.cast(pa.string())
        ids, bad = _as_texts(column)
        note(bad, "invalid_utf8", f"field {fields.id!r} is not UTF-8")
        note(ids.is_null(), "missing_id", f"field {fields.id!r} is null")
        note(_is_blank(ids), "missing_id", f"field {fields.id!r} is blank")
        note(_has_nul(ids), "nul_byte", f"field {fields.id!r} holds a NUL byte")
    columns = []
    for field in fields.metadata:
        column = table.column(field.name)
        invalid = _invalid_rows(column)
        note(invalid, "invalid_utf8", f"field {field.name!r} is not UTF-8")
        if invalid.any():
            column = pc.if_else(pa.array(invalid), pa.scalar(None, column.type), column)
        column, found = _cast_column(column, name=field.name, kind=field_type(field))
        for row, (reason, message) in found.items():
            note(np.arange(count) == row, reason, message)
        columns.append(column)
    if fields.id is None:
        ids = _derive_ids(file, block.first_position, texts, pairs, problem_of_row)
    else:
        # A row that is rejected for its id has none.
        ids = pc.if_else(pc.or_kleene(_is_blank(ids), _has_nul(ids)), None, ids)
    sizes = np.full(count, 8 * table.num_columns, np.int64)
    for column in [texts, *([] if pairs is None else [pairs])]:
        sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    if count and columns:
        sizes += sum(column.nbytes for column in columns) // count
    return _TablePart(
        table,
        first_position=block.first_position,
        texts=texts,
        pairs=pairs,
        ids=ids,
        metadata=make_table([field.name for field in fields.metadata], columns, rows=count),
        problem_of_row=problem_of_row,
        problems=problems,
        row_bytes=sizes,
    )


def _note_text(
    note: Any, texts: pa.StringArray, bad: Any, *, name: str, what: str, limits: RowLimits
) -> None:
    null = "null_text" if what == "text" else "missing_pair"
    note(bad, "invalid_utf8", f"field {name!r} is not UTF-8")
    note(texts.is_null(), null, f"field {name!r} is null")
    lengths = pc.binary_length(texts)
    note(
        pc.greater(lengths, limits.max_row_bytes),
        "row_too_long",
        f"field {name!r} has more bytes than are read ({limits.max_row_bytes})",
    )
    note(_is_blank(texts), f"blank_{what}", f"field {name!r} is empty or white space only")
    note(_has_nul(texts), "nul_byte", f"field {name!r} holds a NUL byte")


def _derive_ids(
    file: InputFile,
    first: int,
    texts: pa.StringArray,
    pairs: pa.StringArray | None,
    problem_of_row: np.ndarray[Any, np.dtype[np.int16]],
) -> pa.StringArray:
    seconds = [None] * len(texts) if pairs is None else pairs.to_pylist()
    return pa.array(
        [
            None
            if problem >= 0
            else derive_id(file.name, position=position, text=text, pair=second)
            for position, (text, second, problem) in enumerate(
                zip(texts.to_pylist(), seconds, problem_of_row.tolist(), strict=True), first
            )
        ],
        pa.string(),
    )


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array, dictionaries decoded."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    chunks = column.chunks
    if len(chunks) == 1:
        return chunks[0]
    return pa.concat_arrays(chunks) if chunks else pa.array([], column.type)


def _as_mask(mask: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if isinstance(mask, np.ndarray):
        return mask
    if isinstance(mask, pa.ChunkedArray):
        mask = mask.combine_chunks()
    found: np.ndarray[Any, np.dtype[np.bool_]] = pc.fill_null(mask, False).to_numpy(
        zero_copy_only=False
    )
    return found


def _invalid_rows(column: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows hold text that is not UTF-8; Parquet promises that none does, writers differ."""
    bad = np.zeros(len(column), np.bool_)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row in range(len(column)):
            bad[row] = not _is_valid(column.slice(row, 1))
    return bad


def _is_valid(column: Any) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _as_texts(column: Any) -> tuple[pa.StringArray, np.ndarray[Any, np.dtype[np.bool_]]]:
    """The column as one string array, null where it is not UTF-8, and where that is."""
    array = _plain(column) if isinstance(column, pa.ChunkedArray) else column
    assert is_text(array.type), array.type
    bad = _invalid_rows(array)
    if bad.any():
        good = [None if bad[row] else array[row].as_py() for row in range(len(array))]
        return pa.array(good, pa.string()), bad
    return array.cast(pa.string()), bad


def _is_blank(texts: pa.StringArray) -> Any:
    return pc.equal(pc.binary_length(pc.utf8_ltrim(texts, characters=WHITE_SPACE)), 0)


def _has_nul(texts: pa.StringArray) -> Any:
    return pc.match_substring(texts, "\0")


def _cast_column(
    column: Any, *, name: str, kind: pa.DataType | None
) -> tuple[Any, dict[int, Problem]]:
    array = _plain(column) if isinstance(column, pa.ChunkedArray) else column
    if kind is None or array.type.equals(kind):
        return array, {}
    try:
        return array.cast(kind), {}
    except pa.ArrowException:
        return fit_values(array.to_pylist(), name=name, kind=kind)


def fit_values(
    values: list[Any], *, name: str, kind: pa.DataType | None
) -> tuple[pa.Array, dict[int, Problem]]:
    """Make a column of Python values.

    Args:
      kind: the type to cast to, or None to find the one type that most of them fit.
    Returns: the column, null where a value does not fit, and what was wrong there by row.
    """
    # Of values of one kind Arrow finds the type at once; of a mix that is to be cast, each is cast
    # by itself, so that 12345678 beside 2.5 does not become "1.2345678e+07".
    if kind is None or len({type(value) for value in values} - {type(None)}) <= 1:
        try:
            column = pa.array(values)
            if _keeps_truth(values, column):
                # Found first and cast then: pa.array([1.5], pa.int64()) gives 1 without a word.
                return (column if kind is None else column.cast(kind)), {}
        except _ARROW_ERRORS:
            pass
    singles: list[Any] = []
    problems: dict[int, Problem] = {}
    for row, value in enumerate(values):
        single, problem = _fit_value(value, name=name, kind=kind)
        singles.append(single)
        if problem is not None:
            problems[row] = problem
    if kind is None:
        kind = _common_type([single.type for single in singles if single is not None])
    fitted: list[Any] = []
    for row, (value, single) in enumerate(zip(values, singles, strict=True)):
        found = None if single is None else _widen_value(value, single, kind=kind)
        if found is None:
            found = pa.nulls(1, kind)
            message = f"field {name!r} is {_kind(value)}; the rows around it have {kind}"
            problems.setdefault(row, ("metadata_type", message))
        fitted.append(found)
    return (pa.concat_arrays(fitted) if fitted else pa.array([], kind)), problems


_ARROW_ERRORS = (pa.ArrowException, OverflowError, ValueError, TypeError)


def _fit_value(value: Any, *, name: str, kind: pa.DataType | None) -> tuple[Any, Problem | None]:
    """An array of the one value, or None and what is wrong with it."""
    try:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63:
            # Arrow takes such an integer only for a type that was asked for.
            if kind is not None and pa.types.is_string(kind):
                return pa.array([str(value)], kind), None
            if kind is not None and not pa.types.is_floating(kind):
                return pa.array([value], kind), None
        single = pa.array([value])
        if _keeps_truth([value], single):
            return (single if kind is None else single.cast(kind)), None
    except UnicodeEncodeError:
        return None, ("invalid_utf8", f"field {name!r} holds half a surrogate pair")
    except _ARROW_ERRORS:
        pass
    wanted = kind or "any Arrow type"
    return None, ("metadata_type", f"field {name!r} is {_kind(value)}, which does not fit {wanted}")


def _widen_value(value: Any, single: Any, *, kind: pa.DataType) -> Any:
    """The value as an array of the wider type, or None if it does not fit."""
    if single.type.equals(kind):
        return single
    if _merge_types(kind, single.type) != kind:
        return None
    try:
        # From the value and not by a cast, which cannot add members to a struct.
        return pa.array([value], kind)
    except _ARROW_ERRORS:
        return None


def _keeps_truth(values: list[Any], column: Any) -> bool:
    """Whether no true or false became a number: pa.array([1.5, True]) gives [1.5, 1.0]."""
    if "double" not in str(column.type) and "float" not in str(column.type):
        return True
    return not _holds_bool(values) or _same_bools(values, column.to_pylist())


def _holds_bool(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_bool, value))
    if isinstance(value, dict):
        return any(map(_holds_bool, value.values()))
    return isinstance(value, bool)


def _same_bools(value: Any, back: Any) -> bool:
    if isinstance(value, list):
        return all(map(_same_bools, value, back))
    if isinstance(value, dict):
        return all(_same_bools(value[name], back[name]) for name in value)
    return isinstance(value, bool) == isinstance(back, bool)


def _common_type(types: list[pa.DataType]) -> pa.DataType:
    """The type that takes most of the given ones; of equals the one met first."""
    merged: list[tuple[pa.DataType, int]] = []
    for kind, count in Counter(types).items():
        if pa.types.is_null(kind):
            continue
        for k, (other, votes) in enumerate(merged):
            both = _merge_types(other, kind)
            if both is not None:
                merged[k] = (both, votes + count)
                break
        else:
            merged.append((kind, count))
    return max(merged, key=lambda pair: pair[1])[0] if merged else pa.null()


def make_table(names: Sequence[str], columns: Sequence[Any], *, rows: int) -> pa.Table:
    """A table that knows its number of rows also where it has no column."""
    if names:
        return pa.Table.from_arrays(list(columns), names=list(names))
    return pa.table({"row": pa.nulls(rows)}).select([])


def _check_text(
    value: object, record: Mapping[str, object], *, name: str, what: str
) -> Problem | None:
    """What is wrong with a text or, for `what` "pair", with a second text."""
    if type(value) is str:
        if not value or value.isspace():
            return f"blank_{what}", f"field {name!r} is empty or white space only"
        return _check_letters(value, name=name)
    if value is not None:
        return f"{what}_not_string", f"field {name!r} is {_kind(value)}; wanted a string"
    if name in record:
        return ("null_text" if what == "text" else "missing_pair"), f"field {name!r} is null"
    return f"missing_{what}", f"the row has no field {name!r}"


def check_id(value: object, *, name: str) -> tuple[str | None, Problem | None]:
    """The id as a string, or what is wrong with it."""
    if type(value) is int:
        return str(value), None
    if type(value) is str:
        if not value or value.isspace():
            return None, ("missing_id", f"field {name!r} is blank")
        problem = _check_letters(value, name=name)
        return (None if problem else value), problem
    if value is None:
        return None, ("missing_id", f"field {name!r} is missing or null")
    message = f"field {name!r} is {_kind(value)}; wanted a string or an integer"
    return None, ("id_not_string", message)


def _check_letters(value: str, *, name: str) -> Problem | None:
    if "\0" in value:
        return "nul_byte", f"field {name!r} holds a NUL byte"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "invalid_utf8", f"field {name!r} holds half a surrogate pair"
    return None


def _kind(value: object) -> str:
    kinds = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


def json_text(record: Mapping[str, Any]) -> bytes:
    """A row as JSON text, whatever it holds: any integer, half surrogates, dates."""
    try:
        return orjson.dumps(record, default=_plain_value, option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, UnicodeEncodeError):
        return json.dumps(record, default=_plain_value).encode()


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.item() if isinstance(value, np.generic) else str(value)


def _binary_for_bad_text(column: Any) -> Any:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column


def _bytes_as_text(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def encode_raw(data: bytes, *, max_bytes: int) -> tuple[str, bool, bool]:
    """Bytes as a string for `Reject.raw`.

    Returns: the string, whether it is base64 because the bytes are no UTF-8, whether it was cut.
    """
    cut = data[:max_bytes]
    truncated = len(cut) < len(data)
    try:
        return cut.decode(), False, truncated
    except UnicodeDecodeError as error:
        if truncated and error.reason == "unexpected end of data":
            return cut[: error.start].decode(), False, True  # the cut went through a character
    return base64.b64encode(cut).decode("ascii"), True, truncated


def _reject_bad_row(file: InputFile, row: SourceRow, bad: BadRow, limits: RowLimits) -> Reject:
    # A head that the reader cut itself may end within a character, like one cut here.
    data = bad.raw + b"\0" if bad.raw_cut else bad.raw
    max_bytes = min(limits.max_raw_bytes, len(bad.raw))
    raw, is_base64, truncated = encode_raw(data, max_bytes=max_bytes)
    return Reject(
        *(None, file.path, row.position, STAGE, bad.reason, bad.message),
        raw=raw,
        line=row.line,
        raw_base64=is_base64,
        raw_truncated=truncated,
    )


def _in_order(rejects: list[tuple[int, Reject]]) -> tuple[Reject, ...]:
    return tuple(reject for _, reject in sorted(rejects, key=lambda pair: pair[0]))

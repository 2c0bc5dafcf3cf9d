"""Texts → token ids, in bulk: whole columns go through tensorflow-text's C++ operations.

The ids are those of the expert's own preprocessor (`.tokenize` and `.bert_pack_inputs`) at any
token limit. A text far beyond the limit costs no more than one a little beyond it: only its head
is tokenized, cut where a cut cannot change a token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.errors import ConfigError, ExpertError
from transforms.process_cache import ProcessCache
from transforms.records import RowFailure, TokenBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transforms.records import BoolArray, Expert, Int32Array, Int64Array

    # A string column of N texts → their ids, flat, and int64 [N + 1] where each text's begin.
    TokenizeColumn = Callable[[pa.StringArray], tuple[Int32Array, Int64Array]]

# `tf_text.FastBertTokenizer` gives the ids of the hub's preprocessor for every text without these
# code points (swept one by one, alone and inside words, with tensorflow-text 2.21;
# tests/test_tokenize.py sweeps again). They are three separators that the preprocessor's regular
# expressions do not take for white space, and punctuation that is younger than one of the two
# Unicode tables. A text with one of them goes to the preprocessor itself.
UNLIKE_CODE_POINTS = (
    "\u1680\u2028\u2029\u1b4e\u1b4f\u1b7f\U00010d6e\U000113d4\U000113d5\U000113d7\U000113d8"
    "\U00011be1\U00016d6d\U00016d6e\U00016d6f\U0001e5ff"
)

# The head that is tokenized first, per token of the limit. English has 4 to 6 bytes a token,
# spaces included; a head that gives too few tokens is lengthened and tried again.
_HEAD_BYTES_PER_TOKEN = 10
_HEAD_GROWTH = 4

# The last place before which a text may be cut: the tokenizer ends a word before white space,
# ASCII punctuation and Chinese characters whatever surrounds them, and Unicode normalisation
# never joins one of these to what precedes it. In UTF-8, U+4E00 to U+9FFF are E4 B8 80 to
# E9 BF BF. The dot takes all it can, so group 1 ends at the last such place.
_LAST_SAFE_CUT = re.compile(
    rb"(.*)(?:[\t\n\r -/:-@\[-`{-~]|\xe4[\xb8-\xbf][\x80-\xbf]|[\xe5-\xe9][\x80-\xbf]{2})",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids that every BERT vocabulary has."""

    pad: int
    unk: int
    cls: int
    sep: int


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """What the encoder can do, and what it cannot.

    tokens: the B rows that have tokens; rows: int32 [B], their row numbers; failures: the others,
    with the reasons no_tokens and unknown_tokens_only.
    """

    tokens: TokenBatch
    rows: Int32Array
    failures: tuple[RowFailure, ...]


@dataclass(frozen=True, slots=True)
class TokenHeads:
    """The first tokens of N texts, without [CLS] and [SEP].

    Text n's begin at ids[starts[n]]. counts: int64 [N], all its tokens, or some number beyond the
    limit that was asked for.
    """

    ids: Int32Array
    starts: Int64Array
    counts: Int64Array


def read_vocabulary(path: str) -> list[str]:
    """Read the word pieces of the SavedModel at `path`; a piece's line, from 0, is its id.

    Raises: ExpertError if there is no one vocabulary among the assets.
    """
    import tensorflow as tf

    assets = f"{path.rstrip('/')}/assets"
    try:
        names = tf.io.gfile.listdir(assets)
        files = [name for name in names if not tf.io.gfile.isdir(f"{assets}/{name}")]
        chosen = "vocab.txt" if "vocab.txt" in files else files[0] if len(files) == 1 else None
        if chosen is None:
            found = ", ".join(sorted(files)) or "nothing"
            raise ExpertError(
                f"{assets} holds {found}; wanted vocab.txt, or one file that is the vocabulary; "
                "name another preprocessor with --preprocessor"
            )
        with tf.io.gfile.GFile(f"{assets}/{chosen}", "rb") as file:
            lines = file.read().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError, tf.errors.OpError) as error:
        raise ExpertError(
            f"{assets}: the vocabulary cannot be read ({error}); wanted a UTF-8 text file, a word "
            "piece a line; fetch the preprocessor again"
        ) from error
    if lines[-1] == "":
        lines.pop()
    return [line.rstrip("\r") for line in lines]


def find_special_ids(vocabulary: Sequence[str], *, path: str) -> SpecialIds:
    """Find the ids of [PAD], [UNK], [CLS] and [SEP]; `path` is for the message.

    Raises: ExpertError if one is not there.
    """
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    missing = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in numbers]
    if missing:
        raise ExpertError(
            f"the vocabulary of {path} has {len(vocabulary)} pieces, but no {', '.join(missing)}; "
            "wanted a BERT vocabulary; name another preprocessor with --preprocessor"
        )
    return SpecialIds(
        pad=numbers["[PAD]"], unk=numbers["[UNK]"], cls=numbers["[CLS]"], sep=numbers["[SEP]"]
    )


def find_safe_cut(data: bytes | memoryview, *, start: int, stop: int) -> int | None:
    """Find the last place in `data[start:stop]`, UTF-8, at which no word goes on.

    The tokens of data[start:place] are then the first tokens of any longer text that starts
    with it. None if there is no such place after `start`.
    """
    match = _LAST_SAFE_CUT.match(data, start, stop)
    return match.end(1) if match and match.end(1) > start else None


def tokenize_heads(column: pa.StringArray, *, limit: int, tokenize: TokenizeColumn) -> TokenHeads:
    """Tokenize each text as far as needed to have `limit` tokens and to know if there are more."""
    offsets = _byte_offsets(column)
    sizes = np.diff(offsets)
    starts = np.zeros(len(column), np.int64)
    counts = np.zeros(len(column), np.int64)
    pools: list[Int32Array] = []
    pooled = 0
    pending = np.arange(len(column))
    head_bytes = (limit + 1) * _HEAD_BYTES_PER_TOKEN
    while len(pending):
        heads = _cut_heads(column, rows=pending, offsets=offsets, head_bytes=head_bytes)
        ids, splits = tokenize(heads)
        found = np.diff(splits)
        done = (sizes[pending] <= head_bytes) | (found > limit)
        starts[pending[done]] = pooled + splits[:-1][done]
        counts[pending[done]] = found[done]
        pools.append(ids)
        pooled += len(ids)
        pending = pending[~done]
        head_bytes *= _HEAD_GROWTH
    return TokenHeads(np.concatenate(pools or [np.zeros(0, np.int32)]), starts, counts)


def _byte_offsets(column: pa.StringArray) -> Int64Array:
    buffer = column.buffers()[1]
    if len(column) == 0 or buffer is None:
        return np.zeros(len(column) + 1, np.int64)
    every = np.frombuffer(buffer, np.int32)
    return every[column.offset : column.offset + len(column) + 1].astype(np.int64)


def _cut_heads(
    column: pa.StringArray, *, rows: Int64Array, offsets: Int64Array, head_bytes: int
) -> pa.StringArray:
    """Take the rows' texts, those over `head_bytes` as their head; "" if it has no safe cut."""
    long = np.flatnonzero(offsets[rows + 1] - offsets[rows] > head_bytes)
    if len(long) == 0:
        return column if len(rows) == len(column) else column.take(pa.array(rows))
    data = memoryview(column.buffers()[2])
    cut = []
    for start in offsets[rows[long]].tolist():
        stop = find_safe_cut(data, start=start, stop=start + head_bytes)
        cut.append(bytes(data[start : start if stop is None else stop]))
    # Short texts first, then the heads, and back into the order of `rows`.
    short = np.setdiff1d(np.arange(len(rows)), long, assume_unique=True)
    parts = [column.take(pa.array(rows[short])), pa.array(cut, pa.binary()).cast(pa.string())]
    place = np.empty(len(rows), np.int64)
    place[np.concatenate([short, long])] = np.arange(len(rows))
    return pa.concat_arrays(parts).take(pa.array(place))


def trim_round_robin(
    first: Int64Array, *, second: Int64Array, budget: int
) -> tuple[Int64Array, Int64Array]:
    """Say how many tokens of each text and its pair are kept, by turns, the text's first.

    What one of the two does not need, the other may have; as `tf_text.RoundRobinTrimmer`.
    """
    half = budget // 2
    kept_first = np.minimum(first, np.maximum(budget - half, budget - second))
    kept_second = np.minimum(second, np.maximum(half, budget - first))
    return kept_first, kept_second


def take_ranges(flat: Int32Array, *, starts: Int64Array, counts: Int64Array) -> Int32Array:
    """Take flat[starts[n]:starts[n] + counts[n]] for each n, one after the other."""
    return flat[_spread(starts, counts)]


def _spread(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """Count up from each start, `counts` numbers each, one after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def pack_tokens(
    first: TokenHeads, *, second: TokenHeads | None, max_tokens: int, special: SpecialIds
) -> TokenBatch:
    """Make `[CLS] first [SEP]`, or `[CLS] first [SEP] second [SEP]`, of at most `max_tokens`."""
    if second is None:
        kept_first = np.minimum(first.counts, max_tokens - 2)
        kept_second = np.zeros_like(kept_first)
        cut = first.counts > kept_first
        lengths = kept_first + 2
    else:
        kept_first, kept_second = trim_round_robin(
            first.counts, second=second.counts, budget=max_tokens - 3
        )
        cut = (first.counts > kept_first) | (second.counts > kept_second)
        lengths = kept_first + kept_second + 3
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # What is neither [CLS] nor a piece is a [SEP].
    ids = np.full(int(offsets[-1]), special.sep, np.int32)
    ids[offsets[:-1]] = special.cls
    ids[_spread(offsets[:-1] + 1, kept_first)] = take_ranges(
        first.ids, starts=first.starts, counts=kept_first
    )
    if second is not None:
        ids[_spread(offsets[:-1] + 2 + kept_first, kept_second)] = take_ranges(
            second.ids, starts=second.starts, counts=kept_second
        )
    return TokenBatch(
        ids=ids,
        offsets=offsets,
        first_lengths=(kept_first + 2).astype(np.int32),
        truncated=cut,
    )


def select_rows(tokens: TokenBatch, *, keep: BoolArray) -> TokenBatch:
    """Take the rows where `keep`, bool [B], is true."""
    starts = tokens.offsets[:-1][keep]
    lengths = np.diff(tokens.offsets)[keep]
    return TokenBatch(
        ids=take_ranges(tokens.ids, starts=starts, counts=lengths),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        first_lengths=tokens.first_lengths[keep],
        truncated=tokens.truncated[keep],
    )


def split_failures(tokens: TokenBatch, *, special: SpecialIds, rows: Int32Array) -> TokenizedTexts:
    """Part the rows that say something about their text from those that do not.

    `rows` are the row numbers to give them, int32 [B].
    """
    framing = (tokens.ids == special.cls) | (tokens.ids == special.sep)
    pieces = _count_in_rows(tokens, ~framing)
    known = _count_in_rows(tokens, ~framing & (tokens.ids != special.unk))
    keep = known > 0
    if keep.all():
        return TokenizedTexts(tokens, rows, ())
    failures = tuple(
        RowFailure(
            row=int(rows[place]),
            reason="unknown_tokens_only",
            message=f"all {int(pieces[place])} tokens are [UNK]; the vocabulary has no piece of "
            "the text, so its vector would say nothing about it",
        )
        if pieces[place]
        else RowFailure(
            row=int(rows[place]),
            reason="no_tokens",
            message="the text has no token; it is white space, control characters or combining "
            "marks only",
        )
        for place in np.flatnonzero(~keep).tolist()
    )
    return TokenizedTexts(select_rows(tokens, keep=keep), rows[keep], failures)


def reject_truncated(tokenized: TokenizedTexts, *, max_tokens: int) -> TokenizedTexts:
    """Turn rows whose text was cut into failures: what `--long_text=reject` asks for."""
    cut = tokenized.tokens.truncated
    if not cut.any():
        return tokenized
    failures = tuple(
        RowFailure(
            row=int(row),
            reason="text_too_long",
            message=f"the text has more than max_tokens={max_tokens} tokens",
        )
        for row in tokenized.rows[cut]
    )
    return TokenizedTexts(
        select_rows(tokenized.tokens, keep=~cut),
        tokenized.rows[~cut],
        (*tokenized.failures, *failures),
    )


def _count_in_rows(tokens: TokenBatch, true: BoolArray) -> Int64Array:
    before = np.concatenate([[0], np.cumsum(true)]).astype(np.int64)
    counts: Int64Array = before[tokens.offsets[1:]] - before[tokens.offsets[:-1]]
    return counts


class Tokenizer:
    """An expert's tokenizer; `get_tokenizer` gives the one that the process shares.

    Safe for threads. Holds the vocabulary, and the preprocessor only where it is needed.
    """

    def __init__(self, expert: Expert) -> None:
        self.special = find_special_ids(
            vocabulary := read_vocabulary(expert.preprocessor_path), path=expert.preprocessor_path
        )
        self._path = expert.preprocessor_path
        self._preprocessors: ProcessCache[Any] = ProcessCache(capacity=1)
        self._fast: Any = None
        if expert.tokenizer == "fast":
            self._fast = _build_fast(vocabulary, lower_case=expert.lower_case)
        elif expert.tokenizer == "preprocessor":
            self._load_preprocessor()
        else:
            raise ExpertError(
                f"{expert.name} has tokenizer={expert.tokenizer!r}; "
                "wanted 'fast' or 'preprocessor'; resolve the expert again"
            )

    def tokenize(
        self,
        texts: pa.StringArray | Sequence[str],
        *,
        pairs: pa.StringArray | Sequence[str] | None = None,
        max_tokens: int,
        rows: Int32Array | None = None,
    ) -> TokenizedTexts:
        """Turn N texts, or texts and their pairs, into encoder inputs of at most `max_tokens`.

        Args:
          texts: N texts, none of them null.
          pairs: N second texts, or None.
          max_tokens: the limit, with [CLS] and [SEP].
          rows: int32 [N], the row numbers to name in the result; 0 to N - 1 if None.
        Raises: ConfigError if `max_tokens` leaves no room for a token of each text.
        """
        least = 3 if pairs is None else 5
        if max_tokens < least:
            raise ConfigError(
                f"max_tokens={max_tokens} leaves no room beside [CLS] and [SEP]; "
                f"wanted at least {least}"
            )
        limit = max_tokens - (2 if pairs is None else 3)
        column = _as_column(texts)
        first = tokenize_heads(column, limit=limit, tokenize=self.tokenize_column)
        second = None
        if pairs is not None:
            second_column = _as_column(pairs)
            if len(second_column) != len(column):
                raise ValueError(f"{len(second_column)} pairs for {len(column)} texts")
            second = tokenize_heads(second_column, limit=limit, tokenize=self.tokenize_column)
        tokens = pack_tokens(first, second=second, max_tokens=max_tokens, special=self.special)
        if rows is None:
            rows = np.arange(len(tokens), dtype=np.int32)
        elif len(rows) != len(tokens):
            raise ValueError(f"{len(rows)} row numbers for {len(tokens)} texts")
        return split_failures(tokens, special=self.special, rows=rows)

    def tokenize_column(self, column: pa.StringArray) -> tuple[Int32Array, Int64Array]:
        """Tokenize whole texts → flat ids, and int64 [N + 1] where each text's ids begin."""
        if self._fast is None:
            return self._tokenize_as_preprocessor(column)
        unlike = np.asarray(pc.match_substring_regex(column, f"[{UNLIKE_CODE_POINTS}]"))
        if not unlike.any():
            return self._tokenize_fast(column)
        # Both kinds one after the other, then back into the order of the column.
        order = np.argsort(unlike, kind="stable")
        fast_count = int(np.count_nonzero(~unlike))
        sorted_column = column.take(pa.array(order))
        fast_ids, fast_splits = self._tokenize_fast(sorted_column[:fast_count])
        slow_ids, slow_splits = self._tokenize_as_preprocessor(sorted_column[fast_count:])
        splits = np.concatenate([fast_splits, slow_splits[1:] + len(fast_ids)])
        starts, counts = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
        starts[order], counts[order] = splits[:-1], np.diff(splits)
        ids = take_ranges(np.concatenate([fast_ids, slow_ids]), starts=starts, counts=counts)
        return ids, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def _tokenize_fast(self, column: pa.StringArray) -> tuple[Int32Array, Int64Array]:
        ragged = self._fast.tokenize(_to_tensor(column))
        return ragged.flat_values.numpy(), ragged.row_splits.numpy()

    def _tokenize_as_preprocessor(self, column: pa.StringArray) -> tuple[Int32Array, Int64Array]:
        # [B, words, pieces]; a word's pieces follow each other, so [B, tokens] is a merge.
        ragged = self._load_preprocessor().tokenize(_to_tensor(column)).merge_dims(1, 2)
        return ragged.flat_values.numpy(), ragged.row_splits.numpy()

    def _load_preprocessor(self) -> Any:
        return self._preprocessors.get("preprocessor", load=self._read_preprocessor)[0]

    def _read_preprocessor(self) -> Any:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 (registers the operations that the graph is made of)

        try:
            return tf.saved_model.load(self._path)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise ExpertError(
                f"the preprocessor at {self._path} cannot be loaded ({error}); "
                "wanted a SavedModel that this machine can read; fetch it again"
            ) from error


def _build_fast(vocabulary: list[str], *, lower_case: bool) -> Any:
    import tensorflow as tf
    import tensorflow_text as tf_text

    return tf_text.FastBertTokenizer(
        vocabulary, token_out_type=tf.int32, lower_case_nfd_strip_accents=lower_case
    )


def _as_column(texts: pa.StringArray | Sequence[str]) -> pa.StringArray:
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    column = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
    if column.null_count:
        raise ValueError(f"{column.null_count} of {len(column)} texts are null; leave them out")
    return column if column.type == pa.string() else column.cast(pa.string())


def _to_tensor(column: pa.StringArray) -> Any:
    import tensorflow as tf

    # Through an object array of bytes: made and read in C, no str and no list in between.
    values = column.cast(pa.binary()).to_numpy(zero_copy_only=False)
    return tf.constant(values, tf.string, shape=[len(column)])


_TOKENIZERS: ProcessCache[Tokenizer] = ProcessCache(capacity=8)


def get_tokenizer(expert: Expert) -> Tokenizer:
    """Return the process's tokenizer of `expert`; the first call loads it, others wait."""
    key = (
        expert.tokenizer_fingerprint,
        expert.preprocessor_path,
        expert.tokenizer,
        expert.lower_case,
    )
    return _TOKENIZERS.get(key, load=lambda: Tokenizer(expert))[0]

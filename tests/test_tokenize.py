"""Tokenizing: the preprocessor's ids, exactly, at any limit, without reading texts to their end."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import tokenize
from transforms.errors import ConfigError, ExpertError
from transforms.records import Expert, RowFailure

SHARED = Path(__file__).parents[2] / "shared"


def make_expert(*, encoder: str, preprocessor: str, tokenizer: str = "fast") -> Expert:
    return Expert(
        name="tiny",
        handle=encoder,
        path=encoder,
        preprocessor_handle=preprocessor,
        preprocessor_path=preprocessor,
        width=64,
        layers=2,
        position_limit=512,
        lower_case=True,
        fingerprint="f" * 64,
        tokenizer_fingerprint=preprocessor,
        tokenizer=tokenizer,
    )


@pytest.fixture(scope="session")
def hub_paths() -> dict[str, str]:
    """The hub's preprocessor (the real vocabulary), and an encoder of its form."""
    paths = {
        "encoder": str(SHARED / "experts" / "bert_tiny"),
        "preprocessor": str(SHARED / "experts" / "preprocess"),
    }
    if not Path(paths["preprocessor"]).is_dir():
        pytest.skip("the shared folder with the hub's preprocessor is not beside this checkout")
    return paths


@pytest.fixture(scope="session")
def hub_tokenizer(hub_paths) -> tokenize.Tokenizer:
    return tokenize.get_tokenizer(make_expert(**hub_paths))


@pytest.fixture(scope="session")
def hub_preprocessor(hub_paths):
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    return tf.saved_model.load(hub_paths["preprocessor"])


@pytest.fixture(scope="session")
def own_tokenizer(tiny_expert) -> tokenize.Tokenizer:
    expert = make_expert(encoder=tiny_expert.encoder, preprocessor=tiny_expert.preprocessor)
    return tokenize.get_tokenizer(expert)


def pack_with_hub(preprocessor, segments: list[list[str]], *, max_tokens: int):
    """What the hub's preprocessor itself makes of whole texts: (ids, type ids) of each row."""
    import tensorflow as tf

    ragged = [preprocessor.tokenize(tf.constant(texts, tf.string)) for texts in segments]
    packed = preprocessor.bert_pack_inputs(ragged, tf.constant(max_tokens))
    packed = {name: tensor.numpy() for name, tensor in packed.items()}
    return [
        (ids[mask == 1].tolist(), types[mask == 1].tolist())
        for ids, mask, types in zip(
            packed["input_word_ids"],
            packed["input_mask"],
            packed["input_type_ids"],
            strict=True,
        )
    ]


def as_rows(tokens) -> list[tuple[list[int], list[int]]]:
    rows = []
    for row in range(len(tokens)):
        ids = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
        first = int(tokens.first_lengths[row])
        rows.append((ids, [0] * first + [1] * (len(ids) - first)))
    return rows


def read_corpus(name: str, *, rows: int) -> list[str]:
    path = SHARED / "corpora" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("the shared folder with the corpora is not beside this checkout")
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(rows), strict=False)]


# --- pure parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("one two thr", "one two"),
        ("one two ", "one two"),
        ("one-two", "one"),
        ("a.b!c", "a.b"),
        ("学习中文", "学习中"),
        ("ひらがな漢字かな", "ひらがな漢"),
        ("one\u00a0two\u2028three", None),
        ("unbroken", None),
        (" unbroken", None),
        ("", None),
    ],
)
def test_find_safe_cut_text_is_cut_before_last_safe_character(text, head):
    data = ("before " + text).encode()
    cut = tokenize.find_safe_cut(data, start=7, stop=len(data))
    assert (None if cut is None else data[7:cut].decode()) == head


def test_find_safe_cut_stop_inside_a_character_keeps_whole_ones():
    data = "ab 学".encode()
    assert tokenize.find_safe_cut(data, start=0, stop=len(data) - 1) == 2


def trim_by_turns(first: int, second: int, *, budget: int) -> tuple[int, int]:
    kept = [0, 0]
    while sum(kept) < min(budget, first + second):
        for turn, available in enumerate((first, second)):
            if kept[turn] < available and sum(kept) < budget:
                kept[turn] += 1
    return kept[0], kept[1]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 50))
def test_trim_round_robin_any_lengths_equals_taking_turns(first, second, budget):
    kept = tokenize.trim_round_robin(np.array([first]), second=np.array([second]), budget=budget)
    assert (int(kept[0][0]), int(kept[1][0])) == trim_by_turns(first, second, budget=budget)


class PlainTokenizer:
    """Words and punctuation, numbered by their letters; remembers how many bytes it read."""

    def __init__(self):
        self.read_bytes = 0

    def __call__(self, column):
        self.read_bytes += sum(len(text.encode()) for text in column.to_pylist())
        words = [re.findall(r"\w+|[^\w\s]", text) for text in column.to_pylist()]
        ids = [sum(map(ord, word)) for row in words for word in row]
        return np.array(ids, np.int32), np.cumsum([0] + [len(row) for row in words])


@settings(deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from("ab ,\n\u00a0é"), max_size=200), max_size=8),
    limit=st.integers(1, 12),
)
def test_tokenize_heads_any_texts_equals_whole_tokenization(texts, limit):
    heads = tokenize.tokenize_heads(
        pa.array(texts, pa.string()), limit=limit, tokenize=PlainTokenizer()
    )
    for row, text in enumerate(texts):
        ids, splits = PlainTokenizer()(pa.array([text]))
        found = heads.ids[heads.starts[row] :][: min(heads.counts[row], limit)]
        assert found.tolist() == ids[:limit].tolist()
        assert (heads.counts[row] > limit) == (splits[-1] > limit)


def test_tokenize_heads_long_text_reads_only_its_head():
    plain = PlainTokenizer()
    column = pa.array(["short text", "word " * 1_000_000, "end"])
    heads = tokenize.tokenize_heads(column, limit=100, tokenize=plain)
    assert heads.counts.tolist()[::2] == [2, 1]
    assert heads.counts[1] > 100
    assert plain.read_bytes < 2_000


def test_tokenize_heads_long_blank_stretch_reads_on():
    plain = PlainTokenizer()
    heads = tokenize.tokenize_heads(pa.array([" " * 5_000 + "late words"]), limit=2, tokenize=plain)
    assert heads.counts.tolist() == [2]
    assert plain.read_bytes < 2 * 5_010


# --- with tensorflow-text -----------------------------------------------------------------------

# Scripts with and without spaces, combining marks, Hangul letters, ligatures, separators and
# controls: whatever a cut or a normalisation could get wrong.
_LETTERS = (
    "abzAEé ßİﬁ한각中学。ひカไทยاشⅧ①😀≠́̈\u200b\u200d\u00ad\ufeff\x00\x07\t\n\r\u2028\u1680.,!-[]'"
)
TEXTS = st.text(st.one_of(st.sampled_from(_LETTERS), st.characters(codec="utf-8")), max_size=150)
SPACED = st.lists(TEXTS | st.sampled_from(["word", "a" * 101, "学" * 40]), max_size=6).map(" ".join)


@pytest.mark.integration
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS | SPACED, min_size=1, max_size=6), max_tokens=st.integers(3, 40))
def test_tokenize_random_unicode_equals_hub_preprocessor(
    hub_tokenizer, hub_preprocessor, texts, max_tokens
):
    result = hub_tokenizer.tokenize(texts, max_tokens=max_tokens)
    packed = pack_with_hub(hub_preprocessor, [texts], max_tokens=max_tokens)
    whole = pack_with_hub(hub_preprocessor, [texts], max_tokens=10_000)
    assert as_rows(result.tokens) == [packed[row] for row in result.rows]
    assert result.tokens.truncated.tolist() == [
        len(whole[row][0]) > max_tokens for row in result.rows
    ]
    silent = {row for row, (ids, _) in enumerate(packed) if not set(ids) - {100, 101, 102}}
    assert {failure.row for failure in result.failures} == silent
    assert sorted([*result.rows, *silent]) == list(range(len(texts)))


@pytest.mark.integration
@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(SPACED, SPACED), min_size=1, max_size=5),
    max_tokens=st.integers(5, 40),
)
def test_tokenize_random_pairs_equals_hub_preprocessor(
    hub_tokenizer, hub_preprocessor, rows, max_tokens
):
    texts, pairs = map(list, zip(*rows, strict=True))
    result = hub_tokenizer.tokenize(texts, pairs=pairs, max_tokens=max_tokens)
    packed = pack_with_hub(hub_preprocessor, [texts, pairs], max_tokens=max_tokens)
    whole = pack_with_hub(hub_preprocessor, [texts, pairs], max_tokens=10_000)
    assert as_rows(result.tokens) == [packed[row] for row in result.rows]
    assert result.tokens.truncated.tolist() == [
        len(whole[row][0]) > max_tokens for row in result.rows
    ]


@pytest.mark.integration
@pytest.mark.parametrize("max_tokens", [16, 128, 512])
@pytest.mark.parametrize("name", ["sentences", "abstracts", "articles"])
def test_tokenize_real_texts_equals_hub_preprocessor(
    hub_tokenizer, hub_preprocessor, name, max_tokens
):
    texts = read_corpus(name, rows=60)
    result = hub_tokenizer.tokenize(pa.array(texts), max_tokens=max_tokens)
    assert result.failures == ()
    packed = pack_with_hub(hub_preprocessor, [texts], max_tokens=max_tokens)
    assert as_rows(result.tokens) == packed
    pairs = texts[::-1]
    result = hub_tokenizer.tokenize(pa.array(texts), pairs=pa.array(pairs), max_tokens=max_tokens)
    packed = pack_with_hub(hub_preprocessor, [texts, pairs], max_tokens=max_tokens)
    assert as_rows(result.tokens) == packed


@pytest.mark.integration
def test_tokenize_every_code_point_equals_hub_preprocessor(hub_tokenizer, hub_preprocessor):
    import tensorflow as tf

    # All assigned planes, and one text of the unassigned ones for each 4,096.
    points = [*range(1, 0xD800), *range(0xE000, 0x32000), *range(0xE0000, 0xE0200)]
    points += range(0x32000, 0x110000, 4096)
    different = set()
    for start in range(0, len(points), 30_000):
        some = points[start : start + 30_000]
        texts = pa.array([f"b{chr(point)}c" for point in some])
        ids, splits = hub_tokenizer.tokenize_column(texts)
        ragged = hub_preprocessor.tokenize(tf.constant(texts.to_pylist())).merge_dims(1, 2)
        if not np.array_equal(splits, ragged.row_splits.numpy()) or not np.array_equal(
            ids, ragged.flat_values.numpy()
        ):
            wanted = ragged.to_list()
            different |= {
                hex(point)
                for row, point in enumerate(some)
                if ids[splits[row] : splits[row + 1]].tolist() != wanted[row]
            }
    assert different == set()


@pytest.mark.integration
def test_tokenize_preprocessor_expert_equals_fast_one(hub_paths, hub_tokenizer):
    slow = tokenize.Tokenizer(make_expert(**hub_paths, tokenizer="preprocessor"))
    texts = ["Ça va? " * 40, "naïve\u2028 cafés", "中文 text", "", "😀", "x" * 300]
    fast_result = hub_tokenizer.tokenize(texts, max_tokens=24)
    slow_result = slow.tokenize(texts, max_tokens=24)
    assert as_rows(slow_result.tokens) == as_rows(fast_result.tokens)
    assert slow_result.failures == fast_result.failures
    assert slow_result.tokens.truncated.tolist() == [True, False, False]
    assert slow_result.rows.tolist() == [0, 1, 2]


@pytest.mark.integration
def test_tokenize_texts_that_say_nothing_become_failures(own_tokenizer):
    texts = ["the words", "", " \t\n\x00", "\u0301\u0308", "\U0001f600 \U0001f680", "end"]
    numbers = np.array([10, 11, 12, 13, 14, 15], np.int32)
    result = own_tokenizer.tokenize(texts, max_tokens=16, rows=numbers)
    assert result.rows.tolist() == [10, 15]
    assert len(result.tokens) == 2
    assert [(failure.row, failure.reason) for failure in result.failures] == [
        (11, "no_tokens"),
        (12, "no_tokens"),
        (13, "no_tokens"),
        (14, "unknown_tokens_only"),
    ]
    assert result.failures[3] == RowFailure(
        row=14,
        reason="unknown_tokens_only",
        message="all 2 tokens are [UNK]; the vocabulary has no piece of the text, so its vector "
        "would say nothing about it",
    )


@pytest.mark.integration
def test_tokenize_pair_with_one_silent_text_is_kept(own_tokenizer):
    result = own_tokenizer.tokenize(["", "a", ""], pairs=["b", "\u0301", ""], max_tokens=16)
    assert result.rows.tolist() == [0, 1]
    assert result.tokens.first_lengths.tolist() == [2, 3]
    assert np.diff(result.tokens.offsets).tolist() == [4, 4]
    assert [failure.reason for failure in result.failures] == ["no_tokens"]


@pytest.mark.integration
def test_tokenize_slice_of_a_column_equals_its_texts(own_tokenizer):
    texts = ["zero", "the " * 300, "two words", "is \u2028 that", "his " * 300, "five"]
    column = pa.array(texts)
    sliced = own_tokenizer.tokenize(column[1:5], max_tokens=9)
    assert as_rows(sliced.tokens) == as_rows(
        own_tokenizer.tokenize(texts[1:5], max_tokens=9).tokens
    )
    assert (
        as_rows(sliced.tokens)[3]
        == as_rows(own_tokenizer.tokenize(["his " * 300], max_tokens=9).tokens)[0]
    )
    chunked = pa.chunked_array([texts[:2], texts[2:]], pa.large_string())
    whole = own_tokenizer.tokenize(chunked, max_tokens=9)
    assert as_rows(whole.tokens) == as_rows(own_tokenizer.tokenize(texts, max_tokens=9).tokens)
    assert whole.tokens.truncated.tolist() == [False, True, False, False, True, False]


@pytest.mark.integration
def test_tokenize_no_texts_gives_no_rows(own_tokenizer):
    result = own_tokenizer.tokenize([], max_tokens=9)
    assert len(result.tokens) == len(result.rows) == len(result.failures) == 0
    assert result.tokens.offsets.tolist() == [0]


@pytest.mark.integration
def test_tokenize_bad_arguments_raise(own_tokenizer):
    with pytest.raises(ConfigError, match=r"max_tokens=2 .* at least 3"):
        own_tokenizer.tokenize(["a"], max_tokens=2)
    with pytest.raises(ConfigError, match=r"max_tokens=4 .* at least 5"):
        own_tokenizer.tokenize(["a"], pairs=["b"], max_tokens=4)
    with pytest.raises(ValueError, match="1 pairs for 2 texts"):
        own_tokenizer.tokenize(["a", "b"], pairs=["c"], max_tokens=9)
    with pytest.raises(ValueError, match="1 of 2 texts are null"):
        own_tokenizer.tokenize(pa.array(["a", None]), max_tokens=9)
    with pytest.raises(ValueError, match="1 row numbers for 2 texts"):
        own_tokenizer.tokenize(["a", "b"], max_tokens=9, rows=np.array([1], np.int32))


@pytest.mark.integration
def test_tokenize_hundred_thousand_letters_is_one_unknown_word(own_tokenizer):
    result = own_tokenizer.tokenize(["a" * 100_000, "the " + "a" * 100_000], max_tokens=128)
    assert [failure.row for failure in result.failures] == [0]
    assert np.diff(result.tokens.offsets).tolist() == [4]
    assert result.tokens.truncated.tolist() == [False]


@pytest.mark.integration
def test_tokenize_shuffled_rows_gives_the_same_row_each(own_tokenizer):
    texts = ["the " * count + ("\u2028" if count % 5 == 0 else "!") for count in range(1, 60)]
    order = random.Random(3).sample(range(len(texts)), len(texts))
    straight = as_rows(own_tokenizer.tokenize(texts, max_tokens=20).tokens)
    shuffled = as_rows(own_tokenizer.tokenize([texts[row] for row in order], max_tokens=20).tokens)
    assert shuffled == [straight[row] for row in order]


# --- vocabulary ---------------------------------------------------------------------------------


def write_assets(folder: Path, files: dict[str, bytes]) -> str:
    (folder / "assets").mkdir()
    for name, content in files.items():
        (folder / "assets" / name).write_bytes(content)
    return str(folder)


def test_read_vocabulary_one_asset_of_other_name_is_read(tmp_path):
    path = write_assets(tmp_path, {"pieces.txt": "[PAD]\r\n[UNK]\n\u2028\n".encode()})
    assert tokenize.read_vocabulary(path) == ["[PAD]", "[UNK]", "\u2028"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds nothing"),
        ({"a.txt": b"", "b.txt": b""}, "holds a.txt, b.txt"),
        ({"vocab.txt": b"\xff\xfe"}, "cannot be read"),
    ],
)
def test_read_vocabulary_none_to_be_had_raises_expert_error(tmp_path, files, message):
    with pytest.raises(ExpertError, match=message):
        tokenize.read_vocabulary(write_assets(tmp_path, files))


def test_read_vocabulary_missing_folder_raises_expert_error(tmp_path):
    with pytest.raises(ExpertError, match="cannot be read"):
        tokenize.read_vocabulary(str(tmp_path / "none"))


def test_find_special_ids_missing_piece_raises_expert_error():
    assert tokenize.find_special_ids(["[PAD]", "[SEP]", "[CLS]", "[UNK]"], path="p") == (
        tokenize.SpecialIds(pad=0, unk=3, cls=2, sep=1)
    )
    with pytest.raises(ExpertError, match=r"vocabulary of p has 2 pieces, but no \[UNK\], \[SEP\]"):
        tokenize.find_special_ids(["[PAD]", "[CLS]"], path="p")

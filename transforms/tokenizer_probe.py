"""Proves, or disproves, that the fast tokenizer gives a preprocessor's ids.

`tf_text.FastBertTokenizer` is several times as fast as the tokenizer inside a TF-Hub preprocessor,
but it is another program with Unicode tables of its own: on U+2028, for one, the two differ.
"""

# ruff: noqa: RUF001 - letters that look alike are what the probe is about

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from transforms import hub, savedmodel
from transforms.errors import ExpertError

_LOG = logging.getLogger(__name__)

# Planes 4 to 13 hold no character, 15 and 16 none that is public.
_PROBED_CODE_POINTS = (range(1, 0xD800), range(0xE000, 0x40000), range(0xE0000, 0xE1000))
_PROBE_GROUP = 64
_PROBE_BATCH = 512


def probe_tokenizer(
    preprocessor_path: str,
    *,
    vocab_path: str,
    lower_case: bool,
    fingerprint: str,
    cache_dir: str | None = None,
) -> str:
    """Find out whether the fast tokenizer gives the preprocessor's ids.

    Compares the two on every assigned character (alone, and inside a word) and on texts that are
    hard in other ways. The verdict is kept in the cache folder, for one preprocessor and version
    of tensorflow-text, as the probe takes a few seconds.

    Args:
      preprocessor_path: a SavedModel folder.
      vocab_path: its vocabulary.
      lower_case: whether it lower-cases and strips accents.
      fingerprint: `savedmodel.fingerprint_model` of it.
      cache_dir: where to keep the verdict; None for the model cache.
    Returns: "fast" if the two differ on none but `tokenize.UNLIKE_CODE_POINTS`, for which a worker
      asks the preprocessor anyway, else "preprocessor".
    Raises: ExpertError if the preprocessor cannot be loaded or called.
    """
    # Here, since a listing of the experts needs no Arrow, which it imports.
    from transforms.tokenize import UNLIKE_CODE_POINTS

    version = importlib.metadata.version("tensorflow-text")
    question = [
        version,
        list_hard_texts(),
        str(_PROBED_CODE_POINTS),
        UNLIKE_CODE_POINTS,
        lower_case,
    ]
    digest = hashlib.sha256(json.dumps(question).encode()).hexdigest()
    folder = hub.cache_folder() if cache_dir is None else cache_dir
    kept = f"{folder}/tokenizer-{fingerprint[:24]}-{digest[:12]}.json"
    verdict = _read_verdict(kept)
    if verdict is None:
        difference = _find_difference(
            preprocessor_path,
            vocab_path=vocab_path,
            lower_case=lower_case,
            known=frozenset(UNLIKE_CODE_POINTS),
        )
        if difference is not None:
            _LOG.warning(
                "the fast tokenizer differs from preprocessor %s on %s; using the preprocessor, "
                "which is slower",
                preprocessor_path,
                difference,
            )
        verdict = "fast" if difference is None else "preprocessor"
        _keep_verdict(kept, verdict)
    return verdict


def _read_verdict(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            verdict = json.load(file)["tokenizer"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return verdict if verdict in ("fast", "preprocessor") else None


def _keep_verdict(path: str, verdict: str) -> None:
    if "://" in path:
        return
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=folder, suffix=".tmp", delete=False
        ) as file:
            json.dump({"tokenizer": verdict}, file)
        os.replace(file.name, path)
    except OSError as error:
        # A cache that cannot be written to; the next run probes again.
        _LOG.debug("did not keep %s: %s", path, error)


def _find_difference(
    preprocessor_path: str, *, vocab_path: str, lower_case: bool, known: frozenset[str]
) -> str | None:
    """Run both tokenizers over the characters and the hard texts; say where they first differ."""
    tokenize = _load_tokenizer(preprocessor_path)
    import tensorflow as tf
    import tensorflow_text as tf_text

    try:
        fast = tf_text.FastBertTokenizer(
            savedmodel.read_vocabulary(vocab_path),
            token_out_type=tf.int32,
            lower_case_nfd_strip_accents=lower_case,
        )
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        return f"its vocabulary, which it does not take ({error})"

    def find_unequal(texts: list[str]) -> list[int]:
        slow_ids = tokenize(texts)
        fast_ids = fast.tokenize(tf.constant(texts)).to_list()
        return [number for number, ids in enumerate(slow_ids) if ids != fast_ids[number]]

    points = [
        character
        for span in _PROBED_CODE_POINTS
        for character in map(chr, span)
        if character not in known
    ]
    groups = ["".join(group) for group in _cut(points, _PROBE_GROUP)]
    for batch in _cut(groups, _PROBE_BATCH):
        for number in find_unequal([_embed_characters(group) for group in batch]):
            alone = find_unequal([_embed_characters(character) for character in batch[number]])
            code_points = ", ".join(f"U+{ord(batch[number][place]):04X}" for place in alone)
            return f"the characters {code_points}" if alone else f"{batch[number]!a}"
    hard = [text for text in list_hard_texts() if not known.intersection(text)]
    unequal = find_unequal(hard)
    return ascii(hard[unequal[0]]) if unequal else None


def _load_tokenizer(preprocessor_path: str) -> Callable[[list[str]], list[list[int]]]:
    """The preprocessor's own text → ids, words and pieces flattened."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 - registers the ops that the preprocessor is made of

    try:
        loaded = tf.saved_model.load(preprocessor_path)
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        raise ExpertError(
            f"preprocessor {preprocessor_path} cannot be loaded: {error}\n"
            f"download it again, or give another one with --preprocessor"
        ) from error

    def tokenize(texts: list[str]) -> list[list[int]]:
        try:
            ragged: Any = loaded.tokenize(tf.constant(texts))
        except (TypeError, ValueError, AttributeError, tf.errors.OpError) as error:
            raise ExpertError(
                f"preprocessor {preprocessor_path}: `tokenize` does not take strings ({error}); "
                f"give another one with --preprocessor"
            ) from error
        while ragged.shape.rank > 2:
            ragged = ragged.merge_dims(1, 2)
        ids: list[list[int]] = ragged.to_list()
        return ids

    # The loaded object owns the vocabulary table; the closure keeps it alive.
    return tokenize


def observe_lower_casing(preprocessor_path: str) -> bool:
    """Whether a preprocessor lower-cases, by how it treats words of one letter."""
    upper, lower = _load_tokenizer(preprocessor_path)(
        [" ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), " ".join("abcdefghijklmnopqrstuvwxyz")]
    )
    return upper == lower


def _embed_characters(characters: str) -> str:
    return " ".join(f"Ab{character}Cd {character}" for character in characters)


def _cut(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@functools.cache
def list_hard_texts() -> tuple[str, ...]:
    """Texts on which tokenizers are known to part ways, about two hundred."""
    words = (
        "unaffable", "Don't", "e-mail", "COVID-19", "β-catenin", "naïve", "Ångström", "résumé",
        "RESUME\u0301", "Straße", "ﬁnance", "İstanbul", "ıi", "Σίσυφος", "ΌΣΟΣ", "ǅungla", "ß", "ẞ",
        "Москва", "Ёлка", "ѝ", "שָׁלוֹם", "العربية", "اَلْعَرَبِيَّةُ", "हिन्दी", "தமிழ்", "ไทย", "ລາວ",
        "日本語", "中文字符", "漢字とかな", "ｶﾀｶﾅ", "ＡＢＣ１２３", "한국어", "\u1112\u1161\u11ab",
        "Việt", "Vie\u0323\u0302t", "ǹ", "ṩ", "s\u0323\u0307", "Å", "Ω", "K", "ℌ", "𝔘𝔫𝔦", "𝟘𝟙𝟚",
        "½", "¼cup", "x²", "H₂O", "10⁻³", "№5", "™", "©2020", "€100", "$3.50", "£", "¥", "₹",
        "😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "❤️", "☎", "♻️", "1️⃣", "🧬🦠",
    )  # fmt: skip
    frames = ("{}", "a {} b", "{}.")
    spaces = "\t\n\r\v\f \u00a0\u2000\u2003\u2009\u200a\u202f\u205f\u3000\u0085"
    unseen = "\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\ufeff\ufffd\ufffe\ufff9"
    controls = "\x01\x07\x08\x0e\x1b\x1f\x7f\x80\x9f"
    numbers = ("3.14159", "1,000,000", "-40°C", "1e-9", "0x1F", "12:30", "2026-11-23", "192.0.2.1")
    marks = ("...", "…", "--", "—", "'tis", "“quoted”", "«x»", "a/b", "C++", "#tag", "@me", "a_b")
    others = (
        "", " ", "   ", "[CLS]", "[SEP] a [MASK] b [PAD] [UNK]", "[cls]", "##ing", "a ##b", "[",
        "https://example.org/a?b=c&d=%20#e", "someone@example.org", "`code`", "\\n", "<br/>",
        "a" * 99, "a" * 100, "a" * 101, "é" * 50, "é" * 51, "e\u0301" * 60, "中" * 40, "ａ" * 34,
        "x" * 5000, "ab" * 50 + "-" + "cd" * 50, "\u0301", "\u0301\u0302\u0303",
        "]", "a" + "\u0301" * 80,
        "\u0301a", "a \u0301 b", "\u20dd", "ก\u0e33", "क\u094d\u0937", "\U000e0061\U000e007f",
        "A\u030a", "i\u0307", "I\u0307", "ŉ", "ǰ",
        "The quick brown fox jumps over the lazy dog.",
        "Pembrolizumab (Keytruda®) 200 mg IV q3w; PFS 10.3 vs 6.0 mo, HR 0.50 [95% CI 0.37–0.68].",
        "Mixed 日本語 and English混在 text—с русским и العربية.",
    )  # fmt: skip
    texts = [frame.format(word) for word in words for frame in frames[:2]]
    texts += [f"a{space}b{space}{space}c" for space in spaces]
    texts += [f"a{character}b {character} c" for character in unseen + controls]
    texts += [frames[2].format(word) for word in (*numbers, *marks)]
    return (*texts, *others)

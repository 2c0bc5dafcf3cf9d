"""Experts that cost nothing, or fail in a chosen way: SavedModels in the form of the hub's experts.

All share one arithmetic: the state of token t at place p is `states_of(ids)`, so that the vectors
of any of them can be told without running it, and the ones that fail give the same vectors as the
free one wherever they do not fail.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transforms import bert_savedmodel

FloatArray = npt.NDArray[np.float32]

POSITIONS = 512
_LOW = 997

# What makes a row fail; a word that is one piece of BERT's vocabulary.
MARKED_WORD = "with"


def piece_id(word: str, *, vocab_file: str | Path) -> int:
    """The id of a word that is one piece of the vocabulary."""
    return Path(vocab_file).read_text(encoding="utf-8").splitlines().index(word)


def make_tables(*, pieces: int, width: int) -> dict[str, FloatArray]:
    """The weights: an id is the sum of two rows, so that small tables tell all ids apart."""
    generator = np.random.default_rng(20261123)
    return {
        "low": generator.standard_normal((_LOW, width), dtype=np.float32),
        "high": generator.standard_normal((-(-pieces // _LOW), width), dtype=np.float32),
        # Factors, not summands: a mean over summands would not see the order of the words.
        "positions": generator.uniform(0.5, 1.5, (POSITIONS, width)).astype(np.float32),
    }


def states_of(ids: npt.NDArray[np.int32], *, tables: dict[str, FloatArray]) -> FloatArray:
    """The states of one row's tokens: int32 [L] → float32 [L, H]."""
    words = tables["low"][ids % _LOW] + tables["high"][ids // _LOW]
    return (words * tables["positions"][: len(ids)]).astype(np.float32)


def build_free_expert(path: str | Path, *, vocab_file: str | Path, width: int = 768) -> None:
    """An expert that costs two look-ups a token, and tells all texts apart."""
    _build(path, vocab_file=vocab_file, width=width, fault=None)


def build_poison_expert(
    path: str | Path, *, vocab_file: str | Path, width: int = 768, word: str = MARKED_WORD
) -> None:
    """An expert that fails on a whole batch, with InvalidArgumentError, if `word` is in it."""
    marked = piece_id(word, vocab_file=vocab_file)

    def fault(tf: Any, ids: Any, states: Any) -> Any:
        clean = tf.reduce_all(tf.not_equal(ids, marked))
        with tf.control_dependencies([tf.debugging.Assert(clean, ["a marked token is there"])]):
            return tf.identity(states)

    _build(path, vocab_file=vocab_file, width=width, fault=fault)


def build_hungry_expert(
    path: str | Path, *, vocab_file: str | Path, width: int = 768, fitting_tokens: int = 512
) -> None:
    """An expert that runs out of memory, truly, on a batch of more padded tokens than fit."""

    def fault(tf: Any, ids: Any, states: Any) -> Any:
        shape = tf.shape(ids, out_type=tf.int64)
        over = shape[0] * shape[1] > fitting_tokens
        # More bytes than there are addresses, so that no machine's overcommit grants it. The size
        # depends on the input, or the graph's optimiser would try to fold the zeros.
        amount = tf.where(over, shape[0] * tf.constant(1 << 46, tf.int64), 1)
        wanted = tf.cond(
            over, lambda: tf.zeros(tf.stack([amount])), lambda: tf.zeros([1], tf.float32)
        )
        return states + tf.reduce_sum(wanted)

    _build(path, vocab_file=vocab_file, width=width, fault=fault)


def build_nan_expert(
    path: str | Path, *, vocab_file: str | Path, width: int = 768, word: str = MARKED_WORD
) -> None:
    """An expert whose states are NaN in every row that has `word`; other rows are whole."""
    marked = piece_id(word, vocab_file=vocab_file)

    def fault(tf: Any, ids: Any, states: Any) -> Any:
        bad = tf.reduce_any(tf.equal(ids, marked), axis=1)
        return tf.where(bad[:, tf.newaxis, tf.newaxis], tf.constant(np.nan, tf.float32), states)

    _build(path, vocab_file=vocab_file, width=width, fault=fault)


def _build(
    path: str | Path,
    *,
    vocab_file: str | Path,
    width: int,
    fault: Callable[[Any, Any, Any], Any] | None,
) -> None:
    """Write the SavedModel; `fault(tf, ids, states)` gives the states that it returns."""
    import tensorflow as tf

    pieces = len(Path(vocab_file).read_text(encoding="utf-8").splitlines())
    tables = make_tables(pieces=pieces, width=width)
    encoder = tf.Module()
    low = encoder.low = tf.Variable(tables["low"], name="low")
    high = encoder.high = tf.Variable(tables["high"], name="high")
    positions = encoder.positions = tf.Variable(
        tables["positions"], name="position_embedding/embeddings"
    )
    encoder.do_lower_case = tf.Variable(True, trainable=False)
    encoder.vocab_file = tf.saved_model.Asset(str(vocab_file))

    def call(inputs: dict[str, Any], training: bool = False) -> dict[str, Any]:
        ids = inputs["input_word_ids"]
        words = tf.gather(low, ids % _LOW) + tf.gather(high, ids // _LOW)
        states = words * positions[: tf.shape(ids)[1]]
        if fault is not None:
            states = fault(tf, ids, states)
        states = tf.ensure_shape(states, [None, None, width])
        pooled = tf.tanh(states[:, 0])
        return {
            "pooled_output": pooled,
            "default": pooled,
            "sequence_output": states,
            "encoder_outputs": [states],
        }

    spec = {
        name: tf.TensorSpec([None, None], tf.int32, name=name)
        for name in ("input_word_ids", "input_mask", "input_type_ids")
    }
    encoder.__call__ = tf.function(call)
    for training in (True, False):
        encoder.__call__.get_concrete_function(spec, training)
    tf.saved_model.save(encoder, str(path))


def build_preprocessor(path: str | Path, *, vocab_file: str | Path) -> None:
    """The preprocessor that goes with all of them."""
    bert_savedmodel.build_preprocessor(path, vocab_file=vocab_file)

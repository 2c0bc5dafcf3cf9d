"""Pooling: token states [B, L, H] → one vector a row [B, H], inside the encode call.

`POOLINGS` is the table. A function there takes the encoder's outputs, a dict as the hub's BERT
experts return it, and the mask, both tensors; `pool_plainly` is the same in NumPy, row by row, and
is what the tests hold the others against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transforms.records import FloatArray, Int32Array


@dataclass(frozen=True, slots=True)
class Pooling:
    """One way to pool. `pool(outputs, mask)` → float32 [B, H]; `min_layers` is what it needs."""

    name: str
    pool: Callable[[Mapping[str, Any], Any], Any]
    min_layers: int = 1


def masked_mean(states: Any, mask: Any) -> Any:
    """Average the token states over real tokens, [CLS] and [SEP] among them.

    Args:
      states: float32 [B, L, H].
      mask: int32 [B, L], 1 for a token, 0 for padding; a row of padding alone gives zeros.
    Returns: float32 [B, H]; rows are not normalised.
    Source: mean pooling, Reimers & Gurevych 2019 (arXiv:1908.10084), section 3.
    """
    import tensorflow as tf

    real = tf.cast(mask, tf.bool)[:, :, tf.newaxis]
    # Chosen, not multiplied: NaN × 0 is NaN, so a product would let a bad padded state leak in.
    kept = tf.where(real, states, tf.zeros([], states.dtype))
    counts = tf.reduce_sum(tf.cast(mask, states.dtype), axis=1, keepdims=True)
    return tf.math.divide_no_nan(tf.reduce_sum(kept, axis=1), counts)


def _pool_mean(outputs: Mapping[str, Any], mask: Any) -> Any:
    return masked_mean(outputs["sequence_output"], mask)


def _pool_cls(outputs: Mapping[str, Any], mask: Any) -> Any:
    return outputs["sequence_output"][:, 0]


def _pool_pooled_output(outputs: Mapping[str, Any], mask: Any) -> Any:
    return outputs["pooled_output"]


def _pool_last2_mean(outputs: Mapping[str, Any], mask: Any) -> Any:
    layers = outputs["encoder_outputs"]
    return masked_mean((layers[-2] + layers[-1]) / 2, mask)


def _pool_first_last_mean(outputs: Mapping[str, Any], mask: Any) -> Any:
    # The first layer's output, not the embeddings below it, which the experts do not return.
    layers = outputs["encoder_outputs"]
    return masked_mean((layers[0] + layers[-1]) / 2, mask)


def _pool_max(outputs: Mapping[str, Any], mask: Any) -> Any:
    import tensorflow as tf

    states = outputs["sequence_output"]
    real = tf.cast(mask, tf.bool)[:, :, tf.newaxis]
    return tf.reduce_max(tf.where(real, states, states.dtype.min), axis=1)


POOLINGS: dict[str, Pooling] = {
    pooling.name: pooling
    for pooling in (
        Pooling("mean", _pool_mean),
        Pooling("cls", _pool_cls),
        Pooling("pooled_output", _pool_pooled_output),
        Pooling("last2_mean", _pool_last2_mean, min_layers=2),
        Pooling("first_last_mean", _pool_first_last_mean),
        Pooling("max", _pool_max),
    )
}


def find_pooling(name: str, *, layers: int) -> Pooling:
    """Look `name` up for an encoder of `layers` layers.

    Raises: ConfigError if there is no such pooling, or it needs more layers.
    """
    pooling = POOLINGS.get(name)
    if pooling is None:
        raise ConfigError(f"pooling={name!r} is unknown; choose one of {', '.join(POOLINGS)}")
    if layers < pooling.min_layers:
        raise ConfigError(
            f"pooling={name} averages {pooling.min_layers} layers, the expert has {layers}; "
            "choose another pooling"
        )
    return pooling


def pool_plainly(name: str, *, outputs: Mapping[str, Any], mask: Int32Array) -> FloatArray:
    """Pool NumPy arrays one row at a time, in float64: the oracle of the tests, not for speed."""
    vectors = []
    for row in range(len(mask)):
        real = np.flatnonzero(mask[row])
        last = np.asarray(outputs["sequence_output"][row], np.float64)[real]
        layers = [np.asarray(layer[row], np.float64)[real] for layer in outputs["encoder_outputs"]]
        if name == "mean":
            vector = last.mean(axis=0)
        elif name == "cls":
            vector = last[0]
        elif name == "pooled_output":
            vector = np.asarray(outputs["pooled_output"][row], np.float64)
        elif name == "last2_mean":
            vector = np.concatenate([layers[-2], layers[-1]]).mean(axis=0)
        elif name == "first_last_mean":
            vector = np.concatenate([layers[0], layers[-1]]).mean(axis=0)
        elif name == "max":
            vector = last.max(axis=0)
        else:
            raise ValueError(f"pooling={name!r} has no plain computation")
        vectors.append(vector.astype(np.float32))
    return np.stack(vectors)

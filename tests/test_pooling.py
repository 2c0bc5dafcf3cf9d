"""Pooling: every way against plain NumPy, with rubbish planted where padding is."""

from __future__ import annotations

import numpy as np
import pytest

from transforms.errors import ConfigError
from transforms.pooling import POOLINGS, find_pooling, masked_mean, pool_plainly

LAYERS = 3


def make_outputs(*, batch: int, length: int, width: int, seed: int):
    generator = np.random.default_rng(seed)
    layers = [generator.standard_normal((batch, length, width), np.float32) for _ in range(LAYERS)]
    outputs = {
        "encoder_outputs": layers,
        "sequence_output": layers[-1],
        "pooled_output": generator.standard_normal((batch, width), np.float32),
    }
    lengths = generator.integers(1, length + 1, batch)
    lengths[0], lengths[-1] = length, 1
    mask = (np.arange(length) < lengths[:, np.newaxis]).astype(np.int32)
    return outputs, mask


def pool(name: str, outputs, mask) -> np.ndarray:
    import tensorflow as tf

    tensors = {
        "encoder_outputs": [tf.constant(layer) for layer in outputs["encoder_outputs"]],
        "sequence_output": tf.constant(outputs["sequence_output"]),
        "pooled_output": tf.constant(outputs["pooled_output"]),
    }
    return POOLINGS[name].pool(tensors, tf.constant(mask)).numpy()


@pytest.mark.parametrize("planted", [999.0, -999.0, np.nan, np.inf], ids=str)
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_rubbish_in_padding_equals_plain_computation(name, planted):
    outputs, mask = make_outputs(batch=5, length=7, width=4, seed=1)
    wanted = pool_plainly(name, outputs=outputs, mask=mask)
    for layer in outputs["encoder_outputs"]:
        layer[mask == 0] = planted
    found = pool(name, outputs, mask)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_of_any_two_ways_differs(name):
    outputs, mask = make_outputs(batch=3, length=6, width=4, seed=2)
    found = pool(name, outputs, mask)
    for other in POOLINGS:
        if other != name:
            assert np.abs(found - pool(other, outputs, mask)).max() > 0.01


def test_masked_mean_two_of_three_tokens_is_their_mean():
    states = np.array([[[1.0, 2.0], [3.0, 6.0], [999.0, np.nan]]], np.float32)
    found = masked_mean(states, np.array([[1, 1, 0]], np.int32)).numpy()
    assert found.tolist() == [[2.0, 4.0]]


def test_max_of_negative_states_is_not_zero():
    outputs, mask = make_outputs(batch=3, length=6, width=4, seed=3)
    outputs["sequence_output"][:] = -np.abs(outputs["sequence_output"]) - 1
    assert (pool("max", outputs, mask) <= -1).all()


def test_find_pooling_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match="mean, cls, pooled_output, last2_mean"):
        find_pooling("median", layers=12)


def test_find_pooling_too_few_layers_raises_config_error():
    with pytest.raises(ConfigError, match="averages 2 layers, the expert has 1"):
        find_pooling("last2_mean", layers=1)


def test_pool_plainly_unknown_name_raises():
    outputs, mask = make_outputs(batch=1, length=2, width=2, seed=4)
    with pytest.raises(ValueError, match="median"):
        pool_plainly("median", outputs=outputs, mask=mask)

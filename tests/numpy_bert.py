"""BERT's forward pass in NumPy: the oracle that the SavedModels are held against.

Written from the paper (Devlin et al. 2019; Vaswani et al. 2017) over PyTorch's tensor names, in
float64, one text at a time and hence without padding or mask. It shares no code with the product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[np.floating]]

# erf at a fine grid, from the C library; beyond 6 it is 1 to the last bit of a float64.
_STEP = 1 / 512
_GRID = np.arange(0, 6 + 2 * _STEP, _STEP)
_ERF = np.array([math.erf(x) for x in _GRID])
_SLOPE = 2 / math.sqrt(math.pi) * np.exp(-(_GRID**2))


def erf(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The error function to 1e-12, by cubic Hermite interpolation of `math.erf`."""
    size = np.minimum(np.abs(x), 6.0)
    left = (size / _STEP).astype(np.int64)
    t = size / _STEP - left
    value = (
        (1 + 2 * t) * (1 - t) ** 2 * _ERF[left]
        + t * (1 - t) ** 2 * _STEP * _SLOPE[left]
        + t**2 * (3 - 2 * t) * _ERF[left + 1]
        + t**2 * (t - 1) * _STEP * _SLOPE[left + 1]
    )
    return np.sign(x) * value


def gelu(x: npt.NDArray[np.float64], *, exact: bool) -> npt.NDArray[np.float64]:
    """Hendrycks & Gimpel 2016: x times the normal distribution, or its tanh approximation."""
    if exact:
        return x * (1 + erf(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def encode(
    tensors: Tensors,
    ids: Sequence[int],
    *,
    layers: int,
    heads: int,
    type_ids: Sequence[int] | None = None,
    exact_gelu: bool = True,
    epsilon: float = 1e-12,
) -> tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Encode one text.

    Returns: the states of each layer, float64 [L, H], and the pooled output, float64 [H].
    """

    def get(name: str) -> npt.NDArray[np.float64]:
        return np.asarray(tensors[name], np.float64)

    def linear(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        return x @ get(f"{name}.weight").T + get(f"{name}.bias")

    def layer_norm(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)
        return scaled * get(f"{name}.weight") + get(f"{name}.bias")

    length = len(ids)
    x = tensors["embeddings.word_embeddings.weight"][list(ids)].astype(np.float64)
    x = x + get("embeddings.position_embeddings.weight")[:length]
    x = x + get("embeddings.token_type_embeddings.weight")[list(type_ids or [0] * length)]
    x = layer_norm(x, "embeddings.LayerNorm")
    head_width = x.shape[1] // heads
    states = []
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}"
        query = linear(x, f"{prefix}.attention.self.query")
        key = linear(x, f"{prefix}.attention.self.key")
        value = linear(x, f"{prefix}.attention.self.value")
        mixed = np.empty_like(x)
        for head in range(heads):
            part = slice(head * head_width, (head + 1) * head_width)
            scores = query[:, part] @ key[:, part].T / math.sqrt(head_width)
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, part] = shares / shares.sum(axis=1, keepdims=True) @ value[:, part]
        attended = linear(mixed, f"{prefix}.attention.output.dense")
        x = layer_norm(x + attended, f"{prefix}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{prefix}.intermediate.dense"), exact=exact_gelu)
        x = layer_norm(x + linear(inner, f"{prefix}.output.dense"), f"{prefix}.output.LayerNorm")
        states.append(x)
    return states, np.tanh(linear(x[:1], "pooler.dense"))[0]


def random_tensors(
    *, vocab_size: int, width: int, layers: int, intermediate: int, positions: int, seed: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Random tensors under PyTorch's names; each matters to the output."""
    generator = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[np.float32]] = {}

    def add(name: str, *shape: int, scale: float, offset: float = 0.0) -> None:
        drawn = offset + scale * generator.standard_normal(shape)
        tensors[name] = drawn.astype(np.float32)

    def add_linear(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", outputs, inputs, scale=1.5 / math.sqrt(inputs))
        add(f"{name}.bias", outputs, scale=0.1)

    def add_norm(name: str) -> None:
        add(f"{name}.weight", width, scale=0.1, offset=1.0)
        add(f"{name}.bias", width, scale=0.1)

    add("embeddings.word_embeddings.weight", vocab_size, width, scale=1)
    add("embeddings.position_embeddings.weight", positions, width, scale=1)
    add("embeddings.token_type_embeddings.weight", 2, width, scale=1)
    add_norm("embeddings.LayerNorm")
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            add_linear(f"{prefix}.attention.self.{name}", width, width)
        add_linear(f"{prefix}.attention.output.dense", width, width)
        add_norm(f"{prefix}.attention.output.LayerNorm")
        add_linear(f"{prefix}.intermediate.dense", width, intermediate)
        add_linear(f"{prefix}.output.dense", intermediate, width)
        add_norm(f"{prefix}.output.LayerNorm")
    add_linear("pooler.dense", width, width)
    return tensors

"""Writes a BERT encoder and its preprocessor as TF-Hub-form SavedModels, from plain arrays.

The saved pair has the interface of the hub's BERT experts and of `bert_en_uncased_preprocess`, so
whatever loads those loads these. Names and shapes of the variables are those of the TensorFlow
Model Garden's exporter, which wrote the experts. There is no dropout: `training` is accepted, for
the interface, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BertWeights = Mapping[str, npt.NDArray[np.float32]]
"""Variable name → float32 array; `weight_shapes` lists the names and shapes."""

GELUS = ("tanh", "exact")

# What a masked score gets added; exp of it is 0 in float32. The Model Garden's value.
_MASKED = -1e9

# The length to which the preprocessor's root call cuts and pads, as the hub's does.
_ROOT_LENGTH = 128

_SPECIAL_TOKENS = {
    "start_of_sequence_id": "[CLS]",
    "end_of_segment_id": "[SEP]",
    "padding_id": "[PAD]",
    "mask_id": "[MASK]",
}


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The shape of a BERT encoder.

    `gelu` is "tanh" (the Model Garden's approximation) or "exact" (the error function, as in
    PyTorch's). `lower_case` is what the expert says about its vocabulary in `.do_lower_case`.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    intermediate: int
    positions: int = 512
    type_vocab: int = 2
    gelu: str = "tanh"
    layer_norm_epsilon: float = 1e-12
    lower_case: bool = True

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "width",
            "layers",
            "heads",
            "intermediate",
            "positions",
            "type_vocab",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"BertConfig.{name}={getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise ValueError(
                f"BertConfig.width={self.width} is not a multiple of heads={self.heads}"
            )
        if self.gelu not in GELUS:
            raise ValueError(f"BertConfig.gelu={self.gelu!r}; use one of {', '.join(GELUS)}")
        if not self.layer_norm_epsilon > 0:
            raise ValueError(
                f"BertConfig.layer_norm_epsilon={self.layer_norm_epsilon}; it must be positive"
            )


def weight_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of each weight, in the order of the experts' `.variables`.

    Kernels stand input first, as in `x @ kernel`; those of the attention keep heads and width of
    a head apart: query, key and value [width, heads, head width], output [heads, head width,
    width].
    """
    width, heads = config.width, config.heads
    head = width // heads
    shapes: dict[str, tuple[int, ...]] = {
        "word_embeddings/embeddings": (config.vocab_size, width),
        "position_embedding/embeddings": (config.positions, width),
        "type_embeddings/embeddings": (config.type_vocab, width),
        "embeddings/layer_norm/gamma": (width,),
        "embeddings/layer_norm/beta": (width,),
    }
    for layer in range(config.layers):
        prefix = f"transformer/layer_{layer}"
        for name in ("query", "key", "value"):
            shapes[f"{prefix}/self_attention/{name}/kernel"] = (width, heads, head)
            shapes[f"{prefix}/self_attention/{name}/bias"] = (heads, head)
        shapes[f"{prefix}/self_attention/attention_output/kernel"] = (heads, head, width)
        shapes[f"{prefix}/self_attention/attention_output/bias"] = (width,)
        shapes[f"{prefix}/self_attention_layer_norm/gamma"] = (width,)
        shapes[f"{prefix}/self_attention_layer_norm/beta"] = (width,)
        shapes[f"{prefix}/intermediate/kernel"] = (width, config.intermediate)
        shapes[f"{prefix}/intermediate/bias"] = (config.intermediate,)
        shapes[f"{prefix}/output/kernel"] = (config.intermediate, width)
        shapes[f"{prefix}/output/bias"] = (width,)
        shapes[f"{prefix}/output_layer_norm/gamma"] = (width,)
        shapes[f"{prefix}/output_layer_norm/beta"] = (width,)
    shapes["pooler_transform/kernel"] = (width, width)
    shapes["pooler_transform/bias"] = (width,)
    return shapes


def random_weights(
    config: BertConfig, *, seed: int, identity_pooler: bool = True
) -> dict[str, npt.NDArray[np.float32]]:
    """Draw weights for tests: every one matters to the output, biases and scales included.

    Args:
      config: the encoder's shape.
      seed: the same seed and config give the same weights.
      identity_pooler: the pooler of the hub's experts, so that pooled_output is tanh of the
        first token's state; otherwise the pooler is random as well.
    Returns: the names and shapes of `weight_shapes(config)`.
    """
    generator = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in weight_shapes(config).items():
        drawn = generator.standard_normal(shape, dtype=np.float32)
        if name.endswith("/gamma"):
            drawn = np.float32(1) + drawn / np.float32(10)
        elif name.endswith(("/bias", "/beta")):
            drawn = drawn / np.float32(10)
        elif name.endswith("/kernel"):
            inputs = np.prod(shape[:2] if "attention_output" in name else shape[:1])
            # Twice the usual spread for queries and keys: attention that is far from uniform.
            gain = 2 if "/query/" in name or "/key/" in name else 1
            drawn = drawn * np.float32(gain / np.sqrt(inputs))
        weights[name] = drawn
    if identity_pooler:
        weights["pooler_transform/kernel"] = np.eye(config.width, dtype=np.float32)
        weights["pooler_transform/bias"] = np.zeros(config.width, dtype=np.float32)
    return weights


def convert_transformers_weights(
    tensors: Mapping[str, npt.NDArray[Any]], *, config: BertConfig
) -> dict[str, npt.NDArray[np.float32]]:
    """Rename and turn the tensors of a PyTorch `BertModel` into `BertWeights`.

    Args:
      tensors: name → array by PyTorch's names, such as `encoder.layer.0.output.dense.weight`,
        with linear weights [outputs, inputs]; others beside them are left alone.
      config: the encoder's shape.
    Returns: the names and shapes of `weight_shapes(config)`.
    Raises: ValueError if a tensor is missing or of another size.
    """
    sources = {
        "word_embeddings/embeddings": "embeddings.word_embeddings.weight",
        "position_embedding/embeddings": "embeddings.position_embeddings.weight",
        "type_embeddings/embeddings": "embeddings.token_type_embeddings.weight",
        "embeddings/layer_norm/gamma": "embeddings.LayerNorm.weight",
        "embeddings/layer_norm/beta": "embeddings.LayerNorm.bias",
        "pooler_transform/kernel": "pooler.dense.weight",
        "pooler_transform/bias": "pooler.dense.bias",
    }
    parts = {
        "self_attention/query": "attention.self.query",
        "self_attention/key": "attention.self.key",
        "self_attention/value": "attention.self.value",
        "self_attention/attention_output": "attention.output.dense",
        "self_attention_layer_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_layer_norm": "output.LayerNorm",
    }
    for layer in range(config.layers):
        for ours, theirs in parts.items():
            weight, bias = ("gamma", "beta") if ours.endswith("norm") else ("kernel", "bias")
            source = f"encoder.layer.{layer}.{theirs}"
            sources[f"transformer/layer_{layer}/{ours}/{weight}"] = f"{source}.weight"
            sources[f"transformer/layer_{layer}/{ours}/{bias}"] = f"{source}.bias"
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in weight_shapes(config).items():
        source = sources[name]
        if source not in tensors:
            raise ValueError(f"tensor {source!r} is missing; it is needed for {name!r}")
        tensor = tensors[source]
        found = tensor.shape
        if name.endswith("/kernel"):
            tensor = tensor.T
        flat = _flat_shape(name, shape)
        if tensor.shape != flat:
            wanted = flat[::-1] if name.endswith("/kernel") else flat
            raise ValueError(f"tensor {source!r} has shape {found}; {config} wants {wanted}")
        weights[name] = np.ascontiguousarray(tensor, dtype=np.float32).reshape(shape)
    return weights


def build_encoder(
    path: str | Path, *, config: BertConfig, weights: BertWeights, vocab_file: str | Path
) -> None:
    """Write a BERT encoder as a SavedModel with the interface of the hub's experts.

    The loaded object takes `{input_word_ids, input_mask, input_type_ids}`, int32 [B, L], and
    `training`, and returns `pooled_output` and `default` [B, H], `sequence_output` [B, L, H] and
    `encoder_outputs`, a list of [B, L, H] for each layer. L is at most `config.positions`.
    Besides `.vocab_file` and `.do_lower_case` it has `.variables` and `.trainable_variables`.

    Args:
      path: the folder to write.
      config: the encoder's shape.
      weights: names and shapes as `weight_shapes(config)` gives them.
      vocab_file: one word piece a line; it becomes an asset of its own name.
    Raises: ValueError if weights or vocabulary do not fit the config.
    """
    _check_weights(weights, config=config)
    _check_vocabulary(vocab_file, config=config)
    import tensorflow as tf

    class Encoder(tf.Module):  # type: ignore[misc]
        # tf.Module has both as properties, which are not saved; the experts have both as lists.
        variables: Any = None
        trainable_variables: Any = None

    encoder = Encoder()
    by_name = {
        name: tf.Variable(weights[name], name=name, dtype=tf.float32)
        for name in weight_shapes(config)
    }
    encoder.trainable_variables = list(by_name.values())
    encoder.do_lower_case = tf.Variable(config.lower_case, trainable=False)
    encoder.variables = [*by_name.values(), encoder.do_lower_case]
    encoder.vocab_file = tf.saved_model.Asset(str(vocab_file))

    ids = tf.TensorSpec([None, None], tf.int32)
    names = ("input_word_ids", "input_mask", "input_type_ids")
    inputs_spec = {name: tf.TensorSpec([None, None], tf.int32, name=name) for name in names}

    # A function of its own, so that both values of `training` and the signature share one graph.
    @tf.function(input_signature=[ids, ids, ids])  # type: ignore[untyped-decorator,unused-ignore]
    def encode(word_ids: Any, mask: Any, type_ids: Any) -> dict[str, Any]:
        return _encode(word_ids, mask, type_ids, by_name=by_name, config=config)

    def call(inputs: dict[str, Any], training: bool = False) -> dict[str, Any]:
        outputs: dict[str, Any] = encode(*(inputs[name] for name in names))
        return outputs

    def serve(**inputs: Any) -> dict[str, Any]:
        # The names that Keras' exporter gives an expert's outputs, in its order.
        outputs = call(inputs)
        listed = [
            outputs["default"],
            *outputs["encoder_outputs"],
            outputs["pooled_output"],
            outputs["sequence_output"],
        ]
        return {
            f"bert_encoder_{number}" if number else "bert_encoder": output
            for number, output in enumerate(listed)
        }

    callable_object = tf.function(call)
    for training in (True, False):
        callable_object.get_concrete_function(inputs_spec, training)
    encoder.__call__ = callable_object
    serving = tf.function(serve).get_concrete_function(**inputs_spec)
    tf.saved_model.save(encoder, str(path), signatures={"serving_default": serving})


def build_preprocessor(
    path: str | Path, *, vocab_file: str | Path, lower_case: bool = True
) -> None:
    """Write a BERT preprocessor as a SavedModel with the interface of the hub's.

    The loaded object takes strings [B] and returns the encoder's inputs at 128 tokens;
    `.tokenize` gives the ids of words and pieces, int32 [B, (words), (pieces)], and
    `.bert_pack_inputs([segment, ...], seq_length)` the encoder's inputs for one or two segments
    at any length. `.tokenize.get_special_tokens_dict()` gives the ids of the special tokens.

    Args:
      path: the folder to write.
      vocab_file: one word piece a line; it becomes an asset of its own name.
      lower_case: lower-case the text and strip its accents.
    Raises: ValueError if the vocabulary lacks a special token.
    """
    pieces = _read_vocabulary(vocab_file)
    missing = sorted({*_SPECIAL_TOKENS.values(), "[UNK]"}.difference(pieces))
    if missing:
        raise ValueError(
            f"vocabulary {vocab_file} has no {', '.join(missing)}; use the file of a BERT model"
        )
    special = {name: pieces.index(token) for name, token in _SPECIAL_TOKENS.items()}
    import tensorflow as tf
    import tensorflow_text as tf_text

    sentences_spec = tf.TensorSpec([None], tf.string, name="sentences")
    length_spec = tf.TensorSpec([], tf.int32, name="seq_length")

    def segment_spec(rank: int) -> Any:
        return tf.RaggedTensorSpec([None] * rank, tf.int32, ragged_rank=rank - 1)

    # Functions of their own, so that the many signatures share their graphs: tokenizer and
    # trimmer are large ones, slow to trace and slow to load.
    @tf.function(input_signature=[sentences_spec])  # type: ignore[untyped-decorator,unused-ignore]
    def split_sentences(sentences: Any) -> Any:
        return tokenizer.bert.tokenize(sentences)

    @tf.function  # type: ignore[untyped-decorator,unused-ignore]
    def pack_segments(segments: list[Any], seq_length: Any) -> dict[str, Any]:
        # [CLS] and a [SEP] after each segment take their part of the length.
        trimmer = tf_text.RoundRobinTrimmer(seq_length - len(segments) - 1)
        ids, types = tf_text.combine_segments(
            trimmer.trim(segments),
            start_of_sequence_id=special["start_of_sequence_id"],
            end_of_segment_id=special["end_of_segment_id"],
        )
        word_ids, mask = tf_text.pad_model_inputs(ids, seq_length, pad_value=special["padding_id"])
        type_ids, _ = tf_text.pad_model_inputs(types, seq_length)
        packed = {"input_word_ids": word_ids, "input_mask": mask, "input_type_ids": type_ids}
        return {name: tf.cast(x, tf.int32) for name, x in packed.items()}

    def tokenize(sentences: Any, training: bool = False) -> Any:
        return split_sentences(sentences)

    def get_special_tokens() -> dict[str, Any]:
        ids = {**special, "vocab_size": len(pieces)}
        return {name: tf.constant(value, tf.int32) for name, value in ids.items()}

    def pack(inputs: list[Any], seq_length: Any) -> dict[str, Any]:
        flat = [x.merge_dims(1, -1) if x.shape.rank == 3 else x for x in inputs]
        packed: dict[str, Any] = pack_segments(flat, seq_length)
        return packed

    def call(sentences: Any, training: bool = False) -> dict[str, Any]:
        packed = pack([tokenize(sentences)], tf.constant(_ROOT_LENGTH))
        return {name: tf.ensure_shape(x, [None, _ROOT_LENGTH]) for name, x in packed.items()}

    def serve(sentences: Any) -> dict[str, Any]:
        # The names that Keras' exporter gives the hub preprocessor's outputs, in its order.
        packed = call(sentences)
        return {
            "bert_pack_inputs": packed["input_mask"],
            "bert_pack_inputs_1": packed["input_type_ids"],
            "bert_pack_inputs_2": packed["input_word_ids"],
        }

    tokenizer, packer, root = tf.Module(), tf.Module(), tf.Module()
    # An anonymous table: a named one would carry the vocabulary's path on this machine into the
    # graph. Held by an object that is saved, so that the table, and its asset, are saved too.
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(vocab_file),
            key_dtype=tf.string,
            key_index=tf.lookup.TextFileIndex.WHOLE_LINE,
            value_dtype=tf.int64,
            value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        num_oov_buckets=1,
        experimental_is_anonymous=True,
    )
    tokenizer.bert = tf_text.BertTokenizer(table, token_out_type=tf.int32, lower_case=lower_case)
    tokenizer.__call__ = tf.function(tokenize)
    tokenizer.get_special_tokens_dict = tf.function(get_special_tokens, input_signature=[])
    packer.__call__ = tf.function(pack)
    root.__call__ = tf.function(call)
    root.tokenize, root.bert_pack_inputs = tokenizer, packer
    for segments in (1, 2):
        for rank in (2, 3):
            packer.__call__.get_concrete_function([segment_spec(rank)] * segments, length_spec)
    for training in (True, False):
        tokenizer.__call__.get_concrete_function(sentences_spec, training)
        root.__call__.get_concrete_function(sentences_spec, training)
    serving = tf.function(serve).get_concrete_function(sentences_spec)
    tf.saved_model.save(root, str(path), signatures={"serving_default": serving})


def _encode(
    word_ids: Any, mask: Any, type_ids: Any, *, by_name: Mapping[str, Any], config: BertConfig
) -> dict[str, Any]:
    """The forward pass, traced into a graph; states are kept flat, [B*L, H], between layers."""
    import tensorflow as tf

    shape = tf.shape(word_ids)
    B, L = shape[0], shape[1]
    H, N = config.width, config.heads

    def dense(x: Any, name: str) -> Any:
        kernel, bias = by_name[f"{name}/kernel"], by_name[f"{name}/bias"]
        flat = _flat_shape(f"{name}/kernel", tuple(kernel.shape))
        return tf.nn.bias_add(tf.matmul(x, tf.reshape(kernel, flat)), tf.reshape(bias, [-1]))

    def normalize(x: Any, name: str) -> Any:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return tf.nn.batch_normalization(
            x,
            mean,
            variance,
            offset=by_name[f"{name}/beta"],
            scale=by_name[f"{name}/gamma"],
            variance_epsilon=config.layer_norm_epsilon,
        )

    def split_heads(x: Any) -> Any:
        return tf.transpose(tf.reshape(x, [B, L, N, H // N]), [0, 2, 1, 3])

    def attend(x: Any, name: str) -> Any:
        # Scaling the queries, not the scores, touches L / (H / N) times fewer numbers.
        query = split_heads(dense(x, f"{name}/query") * (H // N) ** -0.5)
        key, value = split_heads(dense(x, f"{name}/key")), split_heads(dense(x, f"{name}/value"))
        scores = tf.matmul(query, key, transpose_b=True) + masked
        mixed = tf.matmul(tf.nn.softmax(scores), value)
        merged = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [B * L, H])
        return dense(merged, f"{name}/attention_output")

    words = tf.gather(by_name["word_embeddings/embeddings"], word_ids)
    types = tf.gather(by_name["type_embeddings/embeddings"], type_ids)
    positions = by_name["position_embedding/embeddings"][:L]
    x = normalize(tf.reshape(words + positions + types, [B * L, H]), "embeddings/layer_norm")
    masked = tf.cast(1 - mask, tf.float32)[:, tf.newaxis, tf.newaxis, :] * _MASKED
    states = []
    for layer in range(config.layers):
        prefix = f"transformer/layer_{layer}"
        x = normalize(
            x + attend(x, f"{prefix}/self_attention"), f"{prefix}/self_attention_layer_norm"
        )
        inner = tf.nn.gelu(dense(x, f"{prefix}/intermediate"), approximate=config.gelu == "tanh")
        x = normalize(x + dense(inner, f"{prefix}/output"), f"{prefix}/output_layer_norm")
        states.append(tf.reshape(x, [B, L, H]))
    pooled = tf.tanh(dense(states[-1][:, 0], "pooler_transform"))
    return {
        "pooled_output": pooled,
        "default": pooled,
        "sequence_output": states[-1],
        "encoder_outputs": states,
    }


def _flat_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight as a matrix [inputs, outputs] or a vector, heads joined."""
    if "/self_attention/" not in name:
        return shape
    if name.endswith("/attention_output/kernel"):
        return (shape[0] * shape[1], shape[2])
    if name.endswith("/kernel"):
        return (shape[0], shape[1] * shape[2])
    return (int(np.prod(shape)),)


def _read_vocabulary(vocab_file: str | Path) -> list[str]:
    """The pieces, split as TensorFlow's table reader splits: at line feeds alone."""
    lines = Path(vocab_file).read_bytes().decode("utf-8").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _check_vocabulary(vocab_file: str | Path, *, config: BertConfig) -> None:
    found = len(_read_vocabulary(vocab_file))
    if found > config.vocab_size:
        raise ValueError(
            f"vocabulary {vocab_file} has {found} pieces, more than "
            f"BertConfig.vocab_size={config.vocab_size} embeddings"
        )


def _check_weights(weights: BertWeights, *, config: BertConfig) -> None:
    shapes = weight_shapes(config)
    missing, extra = shapes.keys() - weights.keys(), weights.keys() - shapes.keys()
    if missing or extra:
        raise ValueError(
            f"weights do not fit {config}: missing {sorted(missing)[:3]}, "
            f"unknown {sorted(extra)[:3]}; weight_shapes(config) lists the names"
        )
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"weight {name!r} has shape {weights[name].shape}; wanted {shape}")

"""The saved encoder against NumPy and the Model Garden's; the preprocessor against the hub's."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import numpy_bert
from transforms import bert_savedmodel
from transforms.bert_savedmodel import BertConfig

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "experts").is_dir(), reason="the folder shared/ beside the checkout is absent"
)

SMALL = BertConfig(
    vocab_size=50, width=24, layers=3, heads=4, intermediate=40, positions=33, gelu="exact"
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

ODD_TEXTS = [
    "",
    " \t\n",
    "Hello, wörld! UNAFFABLE naïve ﬁne İstanbul",
    "你好 world 日本語 한국어",
    "😀 👩‍👩‍👧 e\u0301\u0302\u0303",
    "\u0301\u0302",
    "nul \0 inside, \u200b zero width, \ufeff BOM, \u2028 line",
    "a" * 100 + " " + "a" * 101,
    "[CLS] [SEP] [MASK] literal",
    "don't u.s.a. 3.14 $5 x^2 ~`|<>",
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "vocab.txt"
    pieces = [*SPECIAL, *(f"word{number}" for number in range(45))]
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return path


def small_tensors(config, *, seed):
    return numpy_bert.random_tensors(
        vocab_size=config.vocab_size,
        width=config.width,
        layers=config.layers,
        intermediate=config.intermediate,
        positions=config.positions,
        seed=seed,
    )


def make_batch(lengths, *, vocab_size, seed):
    """Random ids and types of the given lengths; padding carries random ids, so a leak shows."""
    generator = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    return {
        "input_word_ids": generator.integers(0, vocab_size, shape, dtype=np.int32),
        "input_mask": (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int32),
        "input_type_ids": generator.integers(0, 2, shape, dtype=np.int32),
    }


def as_tensors(batch):
    import tensorflow as tf

    return {name: tf.constant(array) for name, array in batch.items()}


# The shapes, the weights, the checks: no TensorFlow.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 0),
        ("vocab_size", -1),
        ("heads", 5),
        ("gelu", "relu"),
        ("layer_norm_epsilon", 0.0),
        ("layer_norm_epsilon", math.nan),
    ],
)
def test_bert_config_impossible_value_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}".replace("'", ".")):
        dataclasses.replace(SMALL, **{field: value})


def test_weight_shapes_bert_base_has_its_published_size():
    base = BertConfig(vocab_size=30522, width=768, layers=12, heads=12, intermediate=3072)
    sizes = [math.prod(shape) for shape in bert_savedmodel.weight_shapes(base).values()]
    assert (len(sizes), sum(sizes)) == (199, 109_482_240)


def test_random_weights_same_seed_gives_the_same_and_another_seed_others():
    first = bert_savedmodel.random_weights(SMALL, seed=1)
    again = bert_savedmodel.random_weights(SMALL, seed=1)
    other = bert_savedmodel.random_weights(SMALL, seed=2)
    assert {name: w.shape for name, w in first.items()} == bert_savedmodel.weight_shapes(SMALL)
    assert {w.dtype.name for w in first.values()} == {"float32"}
    drawn = [name for name in first if not name.startswith("pooler_transform")]
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not [name for name in drawn if np.array_equal(first[name], other[name])]


def test_random_weights_identity_pooler_is_the_experts():
    weights = bert_savedmodel.random_weights(SMALL, seed=1)
    np.testing.assert_array_equal(weights["pooler_transform/kernel"], np.eye(SMALL.width))
    np.testing.assert_array_equal(weights["pooler_transform/bias"], np.zeros(SMALL.width))
    drawn = bert_savedmodel.random_weights(SMALL, seed=1, identity_pooler=False)
    assert not np.allclose(drawn["pooler_transform/kernel"], np.eye(SMALL.width))


@settings(max_examples=25, deadline=None)
@given(heads=st.integers(1, 4), head=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_convert_transformers_weights_any_shape_keeps_the_linear_maps(heads, head, seed):
    config = dataclasses.replace(SMALL, width=heads * head, heads=heads, layers=1)
    tensors = small_tensors(config, seed=seed)
    weights = bert_savedmodel.convert_transformers_weights(tensors, config=config)
    assert {name: w.shape for name, w in weights.items()} == bert_savedmodel.weight_shapes(config)
    x = np.random.default_rng(seed).standard_normal((3, config.width))
    layer = "transformer/layer_0"
    query = np.einsum("lh,hnd->lnd", x, weights[f"{layer}/self_attention/query/kernel"])
    wanted = x @ tensors["encoder.layer.0.attention.self.query.weight"].T
    np.testing.assert_allclose(query.reshape(3, -1), wanted, atol=1e-5)
    kernel = weights[f"{layer}/self_attention/attention_output/kernel"]
    output = np.einsum("lnd,ndh->lh", x.reshape(3, heads, head), kernel)
    wanted = x @ tensors["encoder.layer.0.attention.output.dense.weight"].T
    np.testing.assert_allclose(output, wanted, atol=1e-5)


def test_convert_transformers_weights_missing_tensor_is_named():
    tensors = small_tensors(SMALL, seed=1)
    del tensors["encoder.layer.2.intermediate.dense.bias"]
    with pytest.raises(ValueError, match=r"encoder\.layer\.2\.intermediate\.dense\.bias"):
        bert_savedmodel.convert_transformers_weights(tensors, config=SMALL)


def test_convert_transformers_weights_wrong_shape_says_found_and_wanted():
    tensors = small_tensors(SMALL, seed=1)
    tensors["encoder.layer.0.intermediate.dense.weight"] = np.ones((24, 40), np.float32)
    with pytest.raises(ValueError, match=r"shape \(24, 40\).*wants \(40, 24\)"):
        bert_savedmodel.convert_transformers_weights(tensors, config=SMALL)


def test_build_encoder_weights_that_do_not_fit_are_refused_before_work(tmp_path, vocabulary):
    weights = bert_savedmodel.random_weights(SMALL, seed=1)
    lacking = {name: w for name, w in weights.items() if name != "pooler_transform/bias"}
    turned = {**weights, "transformer/layer_1/output/kernel": np.ones((24, 40), np.float32)}
    for bad, message in ((lacking, "pooler_transform/bias"), (turned, r"\(24, 40\).*\(40, 24\)")):
        with pytest.raises(ValueError, match=message):
            bert_savedmodel.build_encoder(
                tmp_path / "encoder", config=SMALL, weights=bad, vocab_file=vocabulary
            )
    assert not list(tmp_path.iterdir())


def test_build_encoder_more_pieces_than_embeddings_is_refused(tmp_path, vocabulary):
    config = dataclasses.replace(SMALL, vocab_size=49)
    weights = bert_savedmodel.random_weights(config, seed=1)
    with pytest.raises(ValueError, match="50 pieces"):
        bert_savedmodel.build_encoder(
            tmp_path / "encoder", config=config, weights=weights, vocab_file=vocabulary
        )


def test_build_preprocessor_without_a_special_token_names_it(tmp_path):
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no \[MASK\]"):
        bert_savedmodel.build_preprocessor(tmp_path / "preprocessor", vocab_file=vocab_file)


def test_oracle_erf_matches_the_c_library():
    x = np.concatenate([np.random.default_rng(0).normal(0, 2, 5000), [0.0, -6.0, 6.0, 40.0]])
    wanted = [math.erf(value) for value in x]
    np.testing.assert_allclose(numpy_bert.erf(x), wanted, rtol=0, atol=1e-12)


# The encoder.


@pytest.fixture(scope="module", params=["tanh", "exact"])
def small_encoder(request, tmp_path_factory, vocabulary):
    """A loaded small encoder, its config and its tensors by PyTorch's names."""
    import tensorflow as tf

    # An epsilon large enough that leaving it out would show.
    config = dataclasses.replace(SMALL, gelu=request.param, layer_norm_epsilon=1e-2)
    tensors = small_tensors(config, seed=3)
    path = tmp_path_factory.mktemp("small_encoder") / "encoder"
    weights = bert_savedmodel.convert_transformers_weights(tensors, config=config)
    bert_savedmodel.build_encoder(path, config=config, weights=weights, vocab_file=vocabulary)
    return tf.saved_model.load(str(path)), config, tensors


@pytest.mark.integration
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "xla"])
def test_encoder_padded_batch_gives_each_row_of_the_oracle(small_encoder, compiled):
    import tensorflow as tf

    encoder, config, tensors = small_encoder
    lengths = [1, 33, 2, 17, 8]
    batch = make_batch(lengths, vocab_size=config.vocab_size, seed=4)
    call = tf.function(encoder, jit_compile=True) if compiled else encoder
    outputs = call(as_tensors(batch), training=False)
    assert sorted(outputs) == ["default", "encoder_outputs", "pooled_output", "sequence_output"]
    assert len(outputs["encoder_outputs"]) == config.layers
    np.testing.assert_array_equal(outputs["default"], outputs["pooled_output"])
    np.testing.assert_array_equal(outputs["sequence_output"], outputs["encoder_outputs"][-1])
    for row, length in enumerate(lengths):
        states, pooled = numpy_bert.encode(
            tensors,
            batch["input_word_ids"][row, :length].tolist(),
            layers=config.layers,
            heads=config.heads,
            type_ids=batch["input_type_ids"][row, :length].tolist(),
            exact_gelu=config.gelu == "exact",
            epsilon=config.layer_norm_epsilon,
        )
        np.testing.assert_allclose(outputs["pooled_output"][row], pooled, rtol=0, atol=1e-5)
        for found, wanted in zip(outputs["encoder_outputs"], states, strict=True):
            np.testing.assert_allclose(found[row, :length], wanted, rtol=0, atol=1e-5)


@pytest.mark.integration
def test_encoder_training_flag_any_form_gives_the_same(small_encoder):
    encoder, config, _ = small_encoder
    inputs = as_tensors(make_batch([5, 9], vocab_size=config.vocab_size, seed=5))
    wanted = encoder(inputs)["sequence_output"].numpy()
    for outputs in (encoder(inputs, True), encoder(inputs, training=False)):
        np.testing.assert_array_equal(outputs["sequence_output"], wanted)


@pytest.mark.integration
def test_encoder_text_over_its_positions_is_an_error(small_encoder):
    import tensorflow as tf

    encoder, config, _ = small_encoder
    inputs = as_tensors(make_batch([34], vocab_size=config.vocab_size, seed=6))
    # Shape inference finds it before the run does, where the shape is known by then.
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"34.*33"):
        encoder(inputs)


@pytest.mark.integration
def test_encoder_loaded_has_the_attributes_of_the_experts(small_encoder, vocabulary):
    encoder, config, _ = small_encoder
    names = [f"{name}:0" for name in bert_savedmodel.weight_shapes(config)]
    assert [variable.name for variable in encoder.trainable_variables] == names
    assert [variable.name for variable in encoder.variables][:-1] == names
    assert bool(encoder.do_lower_case) is True
    asset = Path(encoder.vocab_file.asset_path.numpy().decode())
    assert asset.read_bytes() == vocabulary.read_bytes()


@pytest.mark.integration
def test_tiny_expert_pooled_output_is_tanh_of_the_first_state(tiny_expert):
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 – registers the preprocessor's operations

    encoder = tf.saved_model.load(tiny_expert.encoder)
    preprocessor = tf.saved_model.load(tiny_expert.preprocessor)
    inputs = preprocessor(tf.constant(["a cat sat on the mat", "the end"]))
    outputs = encoder(inputs)
    assert outputs["sequence_output"].shape == (2, 128, 64)
    wanted = np.tanh(outputs["sequence_output"][:, 0])
    np.testing.assert_allclose(outputs["pooled_output"], wanted, rtol=0, atol=1e-6)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1


@pytest.fixture(scope="module")
def rebuilt_bert_tiny(tmp_path_factory):
    """The Model Garden's bert_tiny, and its weights in a SavedModel of ours."""
    import tensorflow as tf

    source = SHARED / "experts" / "bert_tiny"
    config = BertConfig(vocab_size=30522, width=64, layers=2, heads=2, intermediate=256)
    checkpoint = tf.train.load_checkpoint(str(source / "variables" / "variables"))
    weights = {
        name: checkpoint.get_tensor(f"variables/{number}/.ATTRIBUTES/VARIABLE_VALUE")
        for number, name in enumerate(bert_savedmodel.weight_shapes(config))
    }
    path = tmp_path_factory.mktemp("rebuilt") / "encoder"
    bert_savedmodel.build_encoder(
        path, config=config, weights=weights, vocab_file=source / "assets" / "vocab.txt"
    )
    return tf.saved_model.load(str(source)), tf.saved_model.load(str(path))


@needs_shared
@pytest.mark.integration
def test_encoder_with_bert_tiny_weights_gives_the_model_gardens_outputs(rebuilt_bert_tiny):
    theirs, ours = rebuilt_bert_tiny
    lengths = [1, 512, 3, 128, 77, 40]
    inputs = as_tensors(make_batch(lengths, vocab_size=30522, seed=8))
    wanted, found = theirs(inputs, training=False), ours(inputs, training=False)
    real = inputs["input_mask"].numpy().astype(bool)
    for name in ("pooled_output", "default"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5)
    states = zip(
        [*found["encoder_outputs"], found["sequence_output"]],
        [*wanted["encoder_outputs"], wanted["sequence_output"]],
        strict=True,
    )
    for mine, other in states:
        np.testing.assert_allclose(mine.numpy()[real], other.numpy()[real], rtol=0, atol=1e-5)
    signatures = [loaded.signatures["serving_default"](**inputs) for loaded in (theirs, ours)]
    assert signatures[0].keys() == signatures[1].keys()
    for name in ("bert_encoder", "bert_encoder_3"):
        np.testing.assert_allclose(signatures[1][name], signatures[0][name], rtol=0, atol=1e-5)


@needs_shared
@pytest.mark.integration
def test_encoder_interface_is_the_model_gardens(rebuilt_bert_tiny):
    theirs, ours = (
        {
            "variables": [(v.name, v.shape, v.dtype, v.trainable) for v in loaded.variables],
            "trainable": [v.name for v in loaded.trainable_variables],
            # Beside inputs and training Keras takes a mask, which is always None.
            "calls": [
                (f.structured_input_signature[0][:2], f.structured_outputs)
                for f in loaded.__call__.concrete_functions
            ],
            "inputs": loaded.signatures["serving_default"].structured_input_signature,
            "outputs": loaded.signatures["serving_default"].structured_outputs,
            "lower": bool(loaded.do_lower_case),
        }
        for loaded in rebuilt_bert_tiny
    )
    assert ours == theirs


# The preprocessor.


def ragged(tokens):
    return tokens.to_list()


@pytest.mark.integration
def test_preprocessor_small_vocabulary_tokenizes_and_packs(tmp_path, vocabulary):
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 – registers the preprocessor's operations

    path = tmp_path / "preprocessor"
    bert_savedmodel.build_preprocessor(path, vocab_file=vocabulary, lower_case=False)
    preprocessor = tf.saved_model.load(str(path))
    tokens = preprocessor.tokenize(tf.constant(["word3 word1 word4", "WORD1", ""]))
    assert tokens.dtype == tf.int32
    assert ragged(tokens) == [[[8], [6], [9]], [[1]], []]
    packed = preprocessor.bert_pack_inputs([tokens, tokens], seq_length=tf.constant(6))
    assert packed["input_word_ids"].numpy().tolist() == [
        [2, 8, 6, 3, 8, 3],
        [2, 1, 3, 1, 3, 0],
        [2, 3, 3, 0, 0, 0],
    ]
    assert packed["input_mask"].numpy().sum(axis=1).tolist() == [6, 5, 3]
    assert packed["input_type_ids"].numpy().tolist() == [
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 0],
    ]
    special = preprocessor.tokenize.get_special_tokens_dict()
    assert {name: int(value) for name, value in special.items()} == {
        "padding_id": 0,
        "start_of_sequence_id": 2,
        "end_of_segment_id": 3,
        "mask_id": 4,
        "vocab_size": 50,
    }
    empty = preprocessor(tf.constant([], tf.string))
    assert {name: tuple(x.shape) for name, x in empty.items()} == {
        "input_word_ids": (0, 128),
        "input_mask": (0, 128),
        "input_type_ids": (0, 128),
    }
    # Where the vocabulary lay on the machine that built it is nobody's business.
    assert str(vocabulary.parent).encode() not in (path / "saved_model.pb").read_bytes()


@pytest.fixture(scope="module")
def preprocessors(tmp_path_factory):
    """The hub's preprocessor and ours over the same vocabulary."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 – registers the preprocessor's operations

    source = SHARED / "experts" / "preprocess"
    path = tmp_path_factory.mktemp("preprocessors") / "preprocessor"
    bert_savedmodel.build_preprocessor(path, vocab_file=source / "assets" / "vocab.txt")
    return tf.saved_model.load(str(source)), tf.saved_model.load(str(path))


@needs_shared
@pytest.mark.integration
def test_preprocessor_real_texts_give_the_hubs_ids_and_the_fast_tokenizers(preprocessors):
    import tensorflow as tf
    import tensorflow_text as tf_text

    files = sorted((SHARED / "corpora").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) > 10_000
    vocab_file = SHARED / "experts" / "preprocess" / "assets" / "vocab.txt"
    fast = tf_text.FastBertTokenizer(
        vocab_file.read_text(encoding="utf-8").splitlines(),
        token_out_type=tf.int32,
        lower_case_nfd_strip_accents=True,
    )
    theirs, ours = preprocessors
    tokens = 0
    for start in range(0, len(texts), 2000):
        batch = tf.constant(texts[start : start + 2000])
        found = ours.tokenize(batch)
        wanted = theirs.tokenize(batch)
        np.testing.assert_array_equal(found.flat_values, wanted.flat_values)
        for mine, other in zip(found.nested_row_splits, wanted.nested_row_splits, strict=True):
            np.testing.assert_array_equal(mine, other)
        flat, quick = found.merge_dims(1, -1), fast.tokenize(batch).merge_dims(1, -1)
        np.testing.assert_array_equal(flat.flat_values, quick.flat_values)
        np.testing.assert_array_equal(flat.row_splits, quick.row_splits)
        tokens += flat.flat_values.shape[0]
    assert tokens > 500_000


@needs_shared
@pytest.mark.integration
def test_preprocessor_odd_texts_pack_as_the_hubs(preprocessors):
    import tensorflow as tf

    theirs, ours = preprocessors
    texts = tf.constant([*ODD_TEXTS, "long " * 600])
    tokens = ours.tokenize(texts)
    assert ragged(tokens) == ragged(theirs.tokenize(texts))
    flat = tokens.merge_dims(1, -1)
    pairs = [(ours(texts), theirs(texts))]
    for length in (8, 128, 512):
        pairs += [
            (ours.bert_pack_inputs(mine, seq_length=length), theirs.bert_pack_inputs(mine, length))
            for mine in ([tokens], [tokens, tokens[::-1]], [flat], [flat, flat[::-1]])
        ]
    signatures = [loaded.signatures["serving_default"](texts) for loaded in (ours, theirs)]
    pairs.append((signatures[0], signatures[1]))
    for found, wanted in pairs:
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert found[name].dtype == wanted[name].dtype
            np.testing.assert_array_equal(found[name], wanted[name])


@needs_shared
@pytest.mark.integration
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(), min_size=1, max_size=20))
def test_preprocessor_any_texts_give_the_hubs_ids(preprocessors, texts):
    import tensorflow as tf

    theirs, ours = preprocessors
    batch = tf.constant([text.encode("utf-8", errors="replace") for text in texts])
    assert ragged(ours.tokenize(batch)) == ragged(theirs.tokenize(batch))


@needs_shared
@pytest.mark.integration
def test_preprocessor_interface_is_the_hubs(preprocessors):
    theirs, ours = (
        {
            # Beside sentences and training Keras takes a mask, which is always None.
            name: [
                (function.structured_input_signature[0][:2], function.structured_outputs)
                for function in called.concrete_functions
            ]
            for name, called in (
                ("root", loaded.__call__),
                ("tokenize", loaded.tokenize.__call__),
                ("pack", loaded.bert_pack_inputs.__call__),
            )
        }
        | {
            "special": {
                name: int(value)
                for name, value in loaded.tokenize.get_special_tokens_dict().items()
            }
        }
        for loaded in preprocessors
    )
    assert ours["special"] == theirs["special"]
    for name in ("root", "tokenize", "pack"):
        assert sorted(map(repr, ours[name])) == sorted(map(repr, theirs[name]))

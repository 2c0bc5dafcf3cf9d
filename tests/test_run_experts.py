"""The run command with experts of the hub, and with things that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import commands
from tests.conftest import SavedExpert
from tests.hub_server import PREPROCESSOR_PATH, HubServer, Reply
from transforms.experts import EXPERTS
from transforms.readers.tfrecord import read_examples

pytestmark = pytest.mark.integration


@pytest.fixture
def hub(tiny_expert: SavedExpert):
    """A hub on loopback that serves the eight experts and their preprocessor."""
    with HubServer.for_experts(Path(tiny_expert.encoder), Path(tiny_expert.preprocessor)) as server:
        yield server


def hub_env(server: HubServer, folder: Path) -> dict[str, str]:
    return {"EXPERTS_HUB_ADDRESS": server.address, "TFHUB_CACHE_DIR": str(folder / "cache")}


def test_run_all_eight_experts_by_short_name_download_each_file_once(tmp_path, hub):
    (tmp_path / "rows.txt").write_text("the heart pumps blood\nstars shine\n")
    for name in EXPERTS:
        output = name.replace("/", "-")
        result = commands.run(
            ["--input=rows.txt", f"--expert={name}", f"--output={output}", "--max_tokens=64"],
            folder=tmp_path,
            env=hub_env(hub, tmp_path),
        )
        assert result.code == 0, result.err
        assert len(commands.read_rows(tmp_path / output)) == 2
        expert = commands.read_manifest(tmp_path / output)["expert"]
        assert expert["name"] == name
        assert expert["handle"] == EXPERTS[name].handle
    assert hub.requests[PREPROCESSOR_PATH] == 1
    assert set(hub.requests.values()) == {1}
    assert len(hub.requests) == 9


def test_run_without_expert_uses_wiki_books(tmp_path, hub):
    (tmp_path / "rows.txt").write_text("the heart pumps blood\n")
    result = commands.run(
        ["--input=rows.txt", "--output=out"], folder=tmp_path, env=hub_env(hub, tmp_path)
    )
    assert result.code == 0, result.err
    assert commands.read_manifest(tmp_path / "out")["expert"]["name"] == "wiki_books"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        pytest.param(Reply(status=403), "403", id="forbidden"),
        pytest.param(Reply(status=404), "404", id="not-found"),
        pytest.param(Reply(body=b"<html>sign in</html>"), "archive", id="not-an-archive"),
    ],
)
def test_run_hub_that_refuses_is_an_error_that_names_the_handle(tmp_path, hub, reply, message):
    path = "/google/experts/bert/pubmed/2"
    hub.always_reply(path, reply)
    (tmp_path / "rows.txt").write_text("text\n")
    result = commands.run(
        ["--input=rows.txt", "--expert=pubmed", "--output=out"],
        folder=tmp_path,
        env=hub_env(hub, tmp_path),
    )
    assert result.code == 2
    assert "experts/bert/pubmed/2" in result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def make_other_model(path: Path) -> None:
    import tensorflow as tf

    class Image(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)])
        def __call__(self, pixels):
            return tf.reduce_mean(pixels, axis=[1, 2])

    tf.saved_model.save(Image(), str(path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--expert=pubmedd"], "pubmed", id="unknown-name"),
        pytest.param(
            ["--expert=https://tfhub.dev/google/experts/bert/wiki_books/1"], "/2", id="version-1"
        ),
        pytest.param(["--expert=./absent"], "absent", id="no-such-path"),
        pytest.param(["--expert=./folder"], "saved_model.pb", id="not-a-saved-model"),
        pytest.param(["--expert=./image", "--preprocessor={pre}"], "image", id="something-else"),
        pytest.param(["--expert={pre}", "--preprocessor={pre}"], "encoder", id="preprocessor"),
        pytest.param(["--expert={enc}", "--preprocessor=./image"], "image", id="no-preprocessor"),
        pytest.param(["--expert={enc}", "--preprocessor=./other"], "vocabular", id="other-words"),
    ],
)
def test_run_expert_that_cannot_be_used_is_an_error(
    tmp_path, tiny_expert, bert_vocabulary, flags, message
):
    from transforms.bert_savedmodel import build_preprocessor

    (tmp_path / "rows.txt").write_text("text\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no model")
    if any("image" in flag for flag in flags):
        make_other_model(tmp_path / "image")
    if any("other" in flag for flag in flags):
        words = bert_vocabulary.read_text(encoding="utf-8").splitlines()
        (tmp_path / "vocab.txt").write_text("\n".join([*words[:-1], "anotherword"]) + "\n")
        build_preprocessor(tmp_path / "other", vocab_file=tmp_path / "vocab.txt")
    paths = {"enc": tiny_expert.encoder, "pre": tiny_expert.preprocessor}
    result = commands.run(
        ["--input=rows.txt", "--output=out", *(flag.format(**paths) for flag in flags)],
        folder=tmp_path,
    )
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_run_output_that_cannot_be_written_is_an_error(tmp_path, tiny_expert):
    (tmp_path / "rows.txt").write_text("text\n")
    flags = [f"--expert={tiny_expert.encoder}", f"--preprocessor={tiny_expert.preprocessor}"]
    for output in ("rows.txt", "rows.txt/below", "/proc/none"):
        result = commands.run(["--input=rows.txt", f"--output={output}", *flags], folder=tmp_path)
        assert result.code == 2, result.err
        assert f"--output={output}" in result.err
        assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--input=absent.txt"], "absent.txt", id="missing"),
        pytest.param(["--input=absent-*.txt"], "absent-*.txt", id="glob-without-match"),
        pytest.param(["--input=empty.txt"], "--allow_empty", id="empty"),
        pytest.param(["--input=folder"], "folder", id="folder"),
        pytest.param(["--input=image.png"], "PNG", id="unknown-format"),
        pytest.param(["--input=cut.parquet"], "cut.parquet", id="truncated-parquet"),
        pytest.param(["--input=rows.jsonl", "--text_field=body"], "body", id="no-such-field"),
        pytest.param(["--input=rows.txt", "--id_field=id"], "id", id="text-has-no-fields"),
        pytest.param(
            ["--input=rows.jsonl", "--metadata_fields=embedding"], "embedding", id="taken-name"
        ),
        pytest.param(
            ["--input=rows.jsonl", "--metadata_fields=text:no_such_type"], "no_such_type",
            id="unknown-type",
        ),
    ],
)  # fmt: skip
def test_run_input_that_cannot_be_used_is_an_error_before_work(
    tmp_path, tiny_expert, flags, message
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "rows.txt").write_text("text\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "embedding": 1}\n')
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + bytes(100))
    result = commands.run(
        [
            *flags,
            "--output=out",
            f"--expert={tiny_expert.encoder}",
            f"--preprocessor={tiny_expert.preprocessor}",
        ],
        folder=tmp_path,
    )
    assert result.code == 2, result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_run_empty_input_with_allow_empty_commits_one_file_without_rows(tmp_path, tiny_expert):
    (tmp_path / "empty.txt").write_text("")
    for form in ("parquet", "tfrecord"):
        result = commands.run(
            [
                "--input=empty.txt",
                "--allow_empty",
                f"--output_format={form}",
                f"--output={form}",
                f"--expert={tiny_expert.encoder}",
                f"--preprocessor={tiny_expert.preprocessor}",
            ],
            folder=tmp_path,
        )
        assert result.code == 0, result.err
        (file,) = commands.read_manifest(tmp_path / form)["files"]
        assert file["rows"] == 0
    assert commands.read_rows(tmp_path / "parquet") == {}
    assert list(read_examples(str(tmp_path / "tfrecord" / file["name"]))) == []


def test_run_leaves_nothing_in_the_folder_it_was_started_in(tmp_path, tiny_expert):
    (tmp_path / "rows.txt").write_text("text\n")
    result = commands.run(
        [
            "--input=rows.txt",
            "--output=out",
            f"--expert={tiny_expert.encoder}",
            f"--preprocessor={tiny_expert.preprocessor}",
        ],
        folder=tmp_path,
    )
    assert result.code == 0, result.err
    found = {name for name in os.listdir(tmp_path) if not name.startswith(".command")}
    assert found == {"rows.txt", "out"}

"""Names, handles and paths, and what they resolve to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from apache_beam.io.localfilesystem import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pipeline import experts as listing
from tests.hub_server import (
    PREPROCESSOR_PATH,
    TINY_VOCABULARY,
    HubServer,
    Reply,
    make_tiny_models,
    write_vocabulary,
)
from transforms import experts, hub, savedmodel, tokenizer_probe
from transforms.errors import ExpertError
from transforms.experts import EXPERTS, find_source, resolve_expert

ROOT = Path(__file__).resolve().parents[1]
MIRROR = "http://mirror.example.org:8080"
WIKI = "https://tfhub.dev/google/experts/bert/wiki_books/2"
WIKI_AT_KAGGLE = "https://www.kaggle.com/models/google/experts-bert/tensorFlow2/wiki-books/2"


@pytest.fixture(scope="session")
def models() -> tuple[Path, Path]:
    return make_tiny_models()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(folder))
    monkeypatch.delenv("TFHUB_MODEL_LOAD_FORMAT", raising=False)
    monkeypatch.delenv("EXPERTS_HUB_ADDRESS", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


@pytest.fixture
def server(models: tuple[Path, Path]) -> Iterator[HubServer]:
    with HubServer.for_experts(*models) as running:
        yield running


def test_experts_table_has_the_eight() -> None:
    assert list(EXPERTS) == [
        "wiki_books",
        "wiki_books/mnli",
        "wiki_books/qnli",
        "wiki_books/qqp",
        "wiki_books/sst2",
        "wiki_books/squad2",
        "pubmed",
        "pubmed/squad2",
    ]
    assert EXPERTS["wiki_books"].handle == WIKI
    assert EXPERTS["wiki_books"].kaggle_handle == WIKI_AT_KAGGLE
    assert EXPERTS["pubmed/squad2"].kaggle_handle.endswith("/tensorFlow2/pubmed-squad2/2")
    for name, info in EXPERTS.items():
        assert info.name == name
        assert (info.width, info.layers, info.position_limit) == (768, 12, 512)
        assert info.preprocessor_handle == experts.UNCASED_PREPROCESSOR


@pytest.mark.parametrize(
    ("text", "name", "handle"),
    [
        ("wiki_books", "wiki_books", WIKI),
        ("pubmed/squad2", "pubmed/squad2", EXPERTS["pubmed/squad2"].handle),
        (WIKI, "wiki_books", WIKI),
        (f"{WIKI}/", "wiki_books", WIKI),
        (f"{WIKI}?tf-hub-format=compressed", "wiki_books", WIKI),
        ("tfhub.dev/google/experts/bert/wiki_books/2", "wiki_books", WIKI),
        ("http://tfhub.dev/google/experts/bert/wiki_books/2", "wiki_books", WIKI),
        ("google/experts/bert/wiki_books/2", "wiki_books", WIKI),
        (WIKI_AT_KAGGLE, "wiki_books", WIKI_AT_KAGGLE),
        ("google/experts-bert/tensorFlow2/wiki-books/2", "wiki_books", WIKI_AT_KAGGLE),
        ("google/experts-bert/TensorFlow2/wiki-books/2", "wiki_books", WIKI_AT_KAGGLE),
        (
            (
                "https://kaggle.com/models/google/experts-bert/frameworks/TensorFlow2/variations/"
                "wiki-books/versions/2"
            ),
            "wiki_books",
            WIKI_AT_KAGGLE,
        ),
        (
            "tensorflow/bert_en_uncased_L-12_H-768_A-12/4",
            "bert_en_uncased_L-12_H-768_A-12",
            "https://tfhub.dev/tensorflow/bert_en_uncased_L-12_H-768_A-12/4",
        ),
        (
            "https://models.example.org/a/my bert.tar.gz",
            "my_bert",
            "https://models.example.org/a/my bert.tar.gz",
        ),
        ("gs://bucket/experts/mine/3/", "mine", "gs://bucket/experts/mine/3"),
        ("s3://bucket/mine", "mine", "s3://bucket/mine"),
    ],
)
def test_find_source_forms_of_one_name_agree(text: str, name: str, handle: str) -> None:
    source = find_source(text)
    assert (source.name, source.handle, source.address) == (name, handle, handle)


@pytest.mark.parametrize(
    "text", ["wiki_books", WIKI, WIKI_AT_KAGGLE, f"{MIRROR}/google/experts/bert/wiki_books/2"]
)
def test_find_source_other_hub_is_asked_by_the_same_path(text: str) -> None:
    source = find_source(text, hub_address=MIRROR)
    assert source == experts.ModelSource(
        "wiki_books", WIKI, f"{MIRROR}/google/experts/bert/wiki_books/2", "hub"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wiki_book", "did you mean wiki_books"),
        ("PubMed", "did you mean pubmed"),
        ("wiki-books/SST2", "did you mean wiki_books/sst2"),
        ("bert", "known are wiki_books, wiki_books/mnli"),
        ("", "is not known"),
        ("https://tfhub.dev/google/experts/bert/pubmed/1", f"use {EXPERTS['pubmed'].handle}"),
        (
            "google/experts-bert/tensorFlow2/wiki-books-qqp/1",
            f"use {EXPERTS['wiki_books/qqp'].kaggle_handle}",
        ),
        (
            "https://tfhub.dev/google/experts/bert/wiki_books",
            f"names no version; use {WIKI}",
        ),
        ("https://tfhub.dev/tensorflow/bert_en_uncased_L-2_H-128_A-2", "names no version"),
        (
            "https://tfhub.dev/google/bert_uncased_L-12_H-768_A-12/1",
            (
                "TF1 hub module; wanted a TF2 SavedModel: use "
                "https://tfhub.dev/tensorflow/bert_en_uncased_L-12_H-768_A-12/4"
            ),
        ),
        (
            "https://tfhub.dev/google/small_bert/bert_uncased_L-2_H-128_A-2/1",
            "https://tfhub.dev/tensorflow/small_bert/bert_en_uncased_L-2_H-128_A-2/2",
        ),
    ],
)
def test_find_source_what_cannot_work_is_refused_with_what_can(text: str, message: str) -> None:
    with pytest.raises(ExpertError) as caught:
        find_source(text)
    assert message in str(caught.value)


@given(st.text(max_size=60) | st.from_regex(r"[a-z]{2,5}://[a-z./%0-9\[\]]{0,30}"))
def test_find_source_any_text_gives_a_source_or_an_expert_error(text: str) -> None:
    try:
        source = find_source(text)
    except ExpertError:
        return
    assert source.name
    assert source.address


def test_resolve_expert_hub_address_that_is_none_is_refused() -> None:
    with pytest.raises(ExpertError, match="'ftp://mirror' is not an http"):
        resolve_expert("wiki_books", hub_address="ftp://mirror")


def test_resolve_expert_unknown_family_asks_for_a_preprocessor() -> None:
    with pytest.raises(ExpertError, match="its preprocessor is not known; give it with"):
        resolve_expert("https://models.example.org/mine.tar.gz")


@pytest.mark.integration
@pytest.mark.parametrize("name", EXPERTS)
def test_resolve_expert_short_name_comes_from_the_server(
    server: HubServer, models: tuple[Path, Path], cache: Path, name: str
) -> None:
    found = resolve_expert(name, hub_address=f"{server.address}/", probe_tokenizer=False)
    path = EXPERTS[name].handle.removeprefix("https://tfhub.dev")
    assert server.requests == {path: 1, PREPROCESSOR_PATH: 1}
    assert found == experts.Expert(
        name=name,
        handle=EXPERTS[name].handle,
        path=hub.entry_path(server.address + path),
        preprocessor_handle=experts.UNCASED_PREPROCESSOR,
        preprocessor_path=hub.entry_path(server.address + PREPROCESSOR_PATH),
        width=8,
        layers=2,
        position_limit=32,
        lower_case=True,
        fingerprint=savedmodel.fingerprint_model(str(models[0])),
        tokenizer_fingerprint=savedmodel.fingerprint_model(str(models[1])),
        tokenizer="preprocessor",
    )


@pytest.mark.integration
def test_resolve_expert_hub_address_comes_from_the_environment(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERTS_HUB_ADDRESS", server.address)
    first = resolve_expert("google/experts-bert/tensorFlow2/pubmed/2", probe_tokenizer=False)
    again = resolve_expert("pubmed", probe_tokenizer=False)
    assert first == again
    assert server.requests == {"/google/experts/bert/pubmed/2": 1, PREPROCESSOR_PATH: 1}


@pytest.mark.integration
def test_resolve_expert_refused_by_the_hub_names_the_handle(server: HubServer) -> None:
    server.always_reply("/google/experts/bert/pubmed/2", Reply(status=403))
    with pytest.raises(ExpertError, match=r"google/experts/bert/pubmed/2: HTTP status 403"):
        resolve_expert("pubmed", hub_address=server.address)


@pytest.mark.integration
def test_resolve_expert_any_other_archive_takes_a_preprocessor(
    server: HubServer, models: tuple[Path, Path]
) -> None:
    server.models["/mine.tar.gz"] = models[0]
    found = resolve_expert(
        f"{server.address}/mine.tar.gz", preprocessor=str(models[1]), probe_tokenizer=False
    )
    assert (found.name, found.preprocessor_path) == ("mine", str(models[1]))


@pytest.mark.integration
def test_resolve_expert_local_path_finds_the_preprocessor_beside_it(
    models: tuple[Path, Path],
) -> None:
    found = resolve_expert(str(models[0]))
    assert (found.name, found.path) == ("tiny", str(models[0]))
    assert found.preprocessor_path == str(models[1])
    assert found.tokenizer == "fast"


@pytest.mark.integration
def test_resolve_expert_local_path_alone_asks_for_a_preprocessor(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(models[0], tmp_path / "alone")
    with pytest.raises(ExpertError, match="found no preprocessor beside it") as caught:
        resolve_expert(str(tmp_path / "alone"))
    assert "--preprocessor" in str(caught.value)


@pytest.mark.integration
def test_resolve_expert_preprocessor_of_another_model_is_refused(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    from transforms.bert_savedmodel import build_preprocessor

    vocab_file = write_vocabulary(tmp_path / "vocab.txt", (*TINY_VOCABULARY, "more"))
    build_preprocessor(tmp_path / "other", vocab_file=vocab_file)
    with pytest.raises(ExpertError, match="vocabularies differ"):
        resolve_expert(str(models[0]), preprocessor=str(tmp_path / "other"))


@pytest.mark.integration
def test_resolve_expert_absent_path_is_refused() -> None:
    with pytest.raises(ExpertError, match=r"nowhere/expert: no such folder"):
        resolve_expert("./nowhere/expert")


class BucketFileSystem(LocalFileSystem):
    """A Beam file system under `bucket://`, which TensorFlow cannot read."""

    opened: ClassVar[list[str]] = []

    @classmethod
    def scheme(cls) -> str:
        return "bucket"

    def match(self, patterns, limits=None):
        results = super().match([pattern.removeprefix("bucket:/") for pattern in patterns], limits)
        for result in results:
            for metadata in result.metadata_list:
                metadata.path = f"bucket:/{metadata.path}"
        return results

    def open(self, path, *args, **kwargs):
        BucketFileSystem.opened.append(path)
        return super().open(path.removeprefix("bucket:/"), *args, **kwargs)


@pytest.mark.integration
def test_resolve_expert_object_store_is_copied_once_and_again_when_it_changes(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(models[0], store / "tiny")
    shutil.copytree(models[1], store / "preprocess")
    BucketFileSystem.opened.clear()
    first = resolve_expert(f"bucket:/{store}/tiny", probe_tokenizer=False)
    assert first.name == "tiny"
    assert first.handle == f"bucket:/{store}/tiny"
    assert first.fingerprint == savedmodel.fingerprint_model(str(models[0]))
    copied = len(BucketFileSystem.opened)
    assert copied == sum(path.is_file() for path in store.rglob("*"))
    assert resolve_expert(f"bucket:/{store}/tiny", probe_tokenizer=False) == first
    assert len(BucketFileSystem.opened) == copied
    os.utime(store / "tiny" / "saved_model.pb", (1_000_000_000, 1_000_000_000))
    second = resolve_expert(f"bucket:/{store}/tiny", probe_tokenizer=False)
    assert second.path != first.path
    assert second.fingerprint == first.fingerprint


@pytest.mark.integration
def test_resolve_expert_object_store_without_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match=r"found 0 files, no saved_model\.pb"):
        resolve_expert(f"bucket:/{tmp_path}/nothing", preprocessor="./any")


def test_resolve_expert_scheme_that_nobody_serves_is_refused() -> None:
    with pytest.raises(ExpertError, match="cannot list nowhere://x/y"):
        resolve_expert("nowhere://x/y", preprocessor="wiki_books")


def probe(preprocessor: Path, cache: Path, *, lower_case: bool = True) -> str:
    return tokenizer_probe.probe_tokenizer(
        str(preprocessor),
        vocab_path=f"{preprocessor}/assets/vocab.txt",
        lower_case=lower_case,
        fingerprint="f" * 64,
        cache_dir=str(cache),
    )


@pytest.mark.integration
def test_probe_tokenizer_verdict_is_kept(
    models: tuple[Path, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe(models[1], cache) == "fast"

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("probed again")

    monkeypatch.setattr(tokenizer_probe, "_find_difference", fail)
    assert probe(models[1], cache) == "fast"
    (kept,) = cache.glob("tokenizer-*.json")
    kept.write_text("{")
    with pytest.raises(AssertionError, match="probed again"):
        probe(models[1], cache)


@pytest.mark.integration
def test_probe_tokenizer_that_differs_is_found_and_said(
    models: tuple[Path, Path], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The preprocessor lower-cases and the fast tokenizer does not.
    assert probe(models[1], cache, lower_case=False) == "preprocessor"
    assert "using the preprocessor, which is slower" in caplog.text


@pytest.mark.integration
def test_probe_tokenizer_cache_that_cannot_be_written_is_no_matter(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert probe(models[1], tmp_path / "file" / "cache") == "fast"


@pytest.mark.integration
def test_observe_lower_casing_tells_by_behaviour(models: tuple[Path, Path], tmp_path: Path) -> None:
    from transforms.bert_savedmodel import build_preprocessor

    vocab_file = write_vocabulary(tmp_path / "vocab.txt", TINY_VOCABULARY)
    build_preprocessor(tmp_path / "cased", vocab_file=vocab_file, lower_case=False)
    assert tokenizer_probe.observe_lower_casing(str(models[1])) is True
    assert tokenizer_probe.observe_lower_casing(str(tmp_path / "cased")) is False


def test_list_hard_texts_are_many_and_different() -> None:
    texts = tokenizer_probe.list_hard_texts()
    assert len(texts) == len(set(texts)) >= 200
    assert max(len(text.encode()) for text in texts) >= 5000


def test_listing_names_every_expert_and_handle(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(EXPERTS)
    assert lines[0].split() == ["expert", "trained", "on", "meant", "for", "width", "handle"]
    for line, info in zip(lines[1:], EXPERTS.values(), strict=True):
        assert line.startswith(f"{info.name} ")
        assert line.endswith(f" 768    {info.handle}")
        assert info.trained_on in line
        assert info.meant_for in line


def test_listing_json_gives_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(EXPERTS)
    assert rows[0]["kaggle_handle"] == WIKI_AT_KAGGLE
    assert rows[0]["width"] == 768


def test_listing_unknown_argument_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        listing.main(["choose"])
    assert caught.value.code == 2


def test_listing_runs_without_tensorflow() -> None:
    code = (
        "import sys; from pipeline.experts import main; main([]); "
        "sys.exit(any(name.split('.')[0] == 'tensorflow' for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("https://tfhub.dev/google/experts/bert/") == 8
